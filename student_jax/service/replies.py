"""Responses: JSON that any input can be told in, and one line for every fault."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bridge.canvas import Attempts
from student_jax.service.batcher import FullError
from student_jax.service.forms import Fault
from student_jax.service.host import Host
from student_jax.service.jobs import finite

DIGITS = 4  # of probabilities


class Reply(Response):
    """A JSON response in ASCII: half a surrogate pair from a request can be told, too."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encodes."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def answer_of(attempts: Attempts, *, certainty: bool) -> dict[str, Any]:
    """Returns attempts as the interface has them, see `forms.Answer`."""
    answer: dict[str, Any] = {
        "attempts": [attempts.first.tolist(), attempts.second.tolist()],
        "confidence": round(attempts.confidence, DIGITS),
        "log_prob": finite(attempts.log_prob),
    }
    if certainty and attempts.certainty is not None:
        answer["certainty"] = np.round(attempts.certainty.astype(float), DIGITS).tolist()
    return answer


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describes what a route may answer beside what it should."""
    return {status: {"model": Fault} for status in statuses}


def refuse_if_draining(host: Host) -> None:
    """Refuses new work while the server ends.

    Raises:
        HTTPException: 503.
    """
    if host.draining:
        raise HTTPException(503, "the server is ending and takes nothing on")


def refuse_full(full: FullError, what: str) -> HTTPException:
    """Returns the refusal of a full queue."""
    line = f"{what}: the queue is full; come again in {full} s"
    return HTTPException(429, line, {"retry-after": str(full)})


def tell_faults(app: FastAPI) -> None:
    """Makes every fault one line of JSON."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Reply:
        return Reply({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Reply:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        got = f", got {str(first['input'])[:40]!r}" if "input" in first else ""
        return Reply({"detail": f"{where}: {first['msg']}{got}"}, 422)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> Reply:
        return Reply({"detail": "a fault of the server; its log has more"}, 500)
