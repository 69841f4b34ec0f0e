"""The web application: its parts put together."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from student_jax.service import adapting, solving, telling
from student_jax.service.gate import Gate
from student_jax.service.host import Host
from student_jax.service.pages import add_pages
from student_jax.service.replies import tell_faults


def make_app(host: Host, names: frozenset[str] | None) -> FastAPI:
    """Returns the application.

    Args:
        host: the student and its queues.
        names: that the server goes by, see `Gate`; None for any.
    """
    app = FastAPI(
        title="sage-distill",
        version=version("sage-distill"),
        description="A small student answers ARC tasks.",
        docs_url=None,
        redoc_url=None,
    )
    for routes in (solving.routes(host), adapting.routes(host), telling.routes(host)):
        app.include_router(routes)
    add_pages(app)
    tell_faults(app)
    app.add_middleware(Gate, metrics=host.metrics, names=names)
    return app
