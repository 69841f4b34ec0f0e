"""What the server tells: its health, its metrics, tasks to pick, what others answered to them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from bridge.arc import Task
from student_jax.service.forms import Compared, Health, KnownTask
from student_jax.service.host import Host
from student_jax.service.replies import Reply, answer_of, faults


def routes(host: Host) -> APIRouter:
    """Returns the routes."""
    router, library = APIRouter(), host.library

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Reply:
        """Tell who answers; 503 while the server ends."""
        status = "draining" if host.draining else "ok"
        told = {"status": status, **host.about, "waiting": host.batcher.waiting}
        return Reply(told, 503 if host.draining else 200)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Tell Prometheus."""
        return Response(generate_latest(host.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/tasks", response_model=dict[str, list[str]])
    async def tasks() -> Reply:
        """Name the tasks of each source."""
        return Reply({source: list(tasks) for source, tasks in library.sources.items()})

    @router.get("/tasks/{task_id}", response_model=KnownTask, responses=faults(404))
    async def task(task_id: str) -> Reply:
        """Show a task with its truth, which the student is never given."""
        source, found = find(host, task_id)
        about = {"source": source, "trained_on": task_id in host.trained_on}
        return Reply({"id": task_id, **about, **pairs_of(found)})

    @router.get("/tasks/{task_id}/compared", response_model=list[Compared], responses=faults(404))
    async def compared(task_id: str) -> Reply:
        """Show what other students answered, from the predictions the server was started with."""
        find(host, task_id)
        return Reply(
            [
                {
                    "name": name,
                    "tier": str(predictions.about.get("tier", "unknown")),
                    "answers": [
                        answer_of(each, certainty=False) for each in predictions.attempts[task_id]
                    ],
                }
                for name, predictions in library.compared.items()
                if task_id in predictions.attempts
            ]
        )

    return router


def find(host: Host, task_id: str) -> tuple[str, Task]:
    """Returns a task and its source.

    Raises:
        HTTPException: 404 if there is none.
    """
    found = host.library.find(task_id)
    if found is None:
        raise HTTPException(404, "task: none of this id in the sources")
    return found


def pairs_of(task: Task) -> dict[str, list[dict[str, Any]]]:
    """Returns a task's pairs, test outputs included where they are known."""
    outputs = task.test_outputs or (None,) * len(task.test_inputs)
    return {
        "train": [
            {"input": pair.input.tolist(), "output": pair.output.tolist()}
            for pair in task.demonstrations
        ],
        "test": [
            {"input": grid.tolist(), "output": None if output is None else output.tolist()}
            for grid, output in zip(task.test_inputs, outputs, strict=True)
        ],
    }
