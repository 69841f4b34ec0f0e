"""From a request's bytes to a task: within limits, strictly checked, its answers dropped unread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from bridge.arc import Task, parse_task
from bridge.arc_files import decode_json
from bridge.errors import InputError
from student_jax.service.limits import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """Returns a request's body.

    Raises:
        HTTPException: 413 if it is too large, 408 if it is too slow, 400 if it breaks off.
    """
    most = limits.body_bytes
    declared = request.headers.get("content-length", "")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            if not (declared.isdecimal() and int(declared[:20]) > most):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        break
                else:
                    return bytes(body)
    except TimeoutError:
        line = f"body: expected all of it within {limits.body_seconds:g} s"
        raise HTTPException(408, line) from None
    except ClientDisconnect:
        raise HTTPException(400, "body: it broke off") from None
    raise HTTPException(413, f"body: expected at most {most} bytes, got more")


def read_task(body: bytes, name: str, limits: Limits) -> Task:
    """Returns the task that a body holds; what it holds of test outputs is not looked at.

    Raises:
        HTTPException: 422, naming the first fault.
    """
    try:
        value = without_outputs(decode_json(body, "body"))
        check_counts(value, limits)
        return parse_task(name, value, "body")
    except InputError as error:
        line = str(error).removeprefix(f"body: task {name}: ").removeprefix("body: ")
        raise HTTPException(422, line) from None


def without_outputs(value: Any) -> Any:
    """Returns a decoded task without its test outputs, whatever they are."""
    tests = value.get("test") if isinstance(value, Mapping) else None
    if not isinstance(tests, list):
        return value
    inputs = [
        {key: item[key] for key in item if key != "output"} if isinstance(item, Mapping) else item
        for item in tests
    ]
    return {**value, "test": inputs}


def check_counts(value: Any, limits: Limits) -> None:
    """Refuses a decoded task with too many pairs, before any is read.

    Raises:
        InputError: naming the list.
    """
    for key, most in (("train", limits.demonstrations), ("test", limits.test_inputs)):
        items = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(items, list) and len(items) > most:
            raise InputError(f"{key}: expected at most {most}, got {len(items)}")
