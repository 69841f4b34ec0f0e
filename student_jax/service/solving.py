"""`/solve`: a task in, answers out, in one pass."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, HTTPException, Query, Request

from bridge.arc import open_questions
from bridge.transforms import NUM_DIHEDRAL
from student_jax.service.batcher import Answered, FullError
from student_jax.service.forms import Solved, task_body
from student_jax.service.host import Host
from student_jax.service.reading import read_body, read_task
from student_jax.service.replies import Reply, answer_of, faults, refuse_full, refuse_if_draining


def routes(host: Host) -> APIRouter:
    """Returns the route."""
    router, limits = APIRouter(), host.limits

    @router.post(
        "/solve",
        response_model=Solved,
        responses=faults(400, 408, 413, 422, 429, 503, 504),
        openapi_extra=task_body(limits.demonstrations, limits.test_inputs),
    )
    async def solve(
        request: Request,
        views: int = Query(1, ge=1, le=NUM_DIHEDRAL, description="to vote on"),
        certainty: bool = Query(False, description="of each cell"),
    ) -> Reply:
        """Answer a task's test inputs; outputs that it may hold of them are not read."""
        refuse_if_draining(host)
        task = read_task(await read_body(request, limits), "asked", limits)
        try:
            futures = host.batcher.ask(open_questions(task), views)
        except FullError as full:
            raise refuse_full(full, "questions") from None
        try:
            async with asyncio.timeout(limits.seconds):
                answered = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except TimeoutError:
            raise HTTPException(504, f"no answer within {limits.seconds:g} s") from None
        except asyncio.CancelledError:
            if host.draining:  # for too long
                raise HTTPException(503, "the server ended before there was an answer") from None
            raise
        return Reply(tell(host, answered, views, certainty=certainty))

    return router


def tell(host: Host, answered: list[Answered], views: int, *, certainty: bool) -> dict[str, object]:
    """Returns a response, see `forms.Solved`, and takes its times."""
    arrived = min(each.arrived for each in answered)
    began = min(each.began for each in answered)
    ended = max(each.ended for each in answered)
    host.metrics.queued_seconds.observe(began - arrived)
    host.metrics.answer_seconds.observe(ended - began)
    return {
        "tier": "zero-shot",
        "views": views,
        "milliseconds": round(1e3 * (ended - began), 3),
        "queued_milliseconds": round(1e3 * (began - arrived), 3),
        "answers": [answer_of(each.attempts, certainty=certainty) for each in answered],
    }
