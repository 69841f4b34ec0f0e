"""`/adapt`: a task is learnt before it is answered; a job that can be watched and ended."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request

from bridge.transforms import NUM_DIHEDRAL
from student_jax.config import Tier
from student_jax.service.batcher import FullError
from student_jax.service.forms import Learning, Queued, task_body
from student_jax.service.host import Host
from student_jax.service.jobs import Job, Wanted, finite
from student_jax.service.reading import read_body, read_task
from student_jax.service.replies import Reply, answer_of, faults, refuse_full, refuse_if_draining

WEIGHTS = Query("weights", description="what is learnt")


def routes(host: Host) -> APIRouter:
    """Returns the routes."""
    router, limits = APIRouter(), host.limits

    @router.post(
        "/adapt",
        status_code=202,
        response_model=Queued,
        responses=faults(400, 408, 413, 422, 429, 503),
        openapi_extra=task_body(limits.demonstrations, limits.test_inputs),
    )
    async def adapt(
        request: Request,
        tier: Tier = WEIGHTS,
        seconds: float = Query(
            min(60.0, limits.job_seconds),
            gt=0,
            le=limits.job_seconds,
            allow_inf_nan=False,
            description="at most; what is learnt by then answers",
        ),
        steps: int = Query(min(2000, limits.job_steps), ge=1, le=limits.job_steps),
        views: int = Query(1, ge=1, le=NUM_DIHEDRAL, description="to learn and to vote on"),
    ) -> Reply:
        """Queue a task to be learnt; `Location` is where to watch it."""
        refuse_if_draining(host)
        task = read_task(await read_body(request, limits), "asked", limits)
        try:
            job = host.jobs.add(Wanted(task, tier, seconds, steps, views))
        except FullError as full:
            raise refuse_full(full, "adaptations") from None
        told = {"job": job.key, "state": job.state}
        return Reply(told, 202, {"location": f"/adapt/{job.key}"})

    @router.get("/adapt/{job}", response_model=Learning, responses=faults(404))
    async def watch(job: str) -> Reply:
        """Tell how far the learning has come, and its answers once there are some."""
        return Reply(host.jobs.tell(find(host, job), tell))

    @router.delete("/adapt/{job}", response_model=Learning, responses=faults(404))
    async def cancel(job: str) -> Reply:
        """End the learning; what is learnt by then answers, so watch on."""
        found = find(host, job)
        host.jobs.cancel(found)
        return Reply(host.jobs.tell(found, tell))

    return router


def find(host: Host, key: str) -> Job:
    """Returns a job.

    Raises:
        HTTPException: 404 if there is none.
    """
    job = host.jobs.find(key)
    if job is None:
        raise HTTPException(404, "job: none of this name, or not any more")
    return job


def tell(job: Job) -> dict[str, Any]:
    """Returns a job as the interface has it, see `forms.Learning`."""
    seen = job.seen
    return {
        "job": job.key,
        "state": job.state,
        "tier": job.wanted.tier,
        "views": job.wanted.views,
        "step": seen.step if seen else 0,
        "progress": 1.0 if job.is_over else min(1.0, seen.progress) if seen else 0.0,
        "loss": finite(seen.loss) if seen else None,
        "fit": seen.fit if seen else 0.0,
        "seconds": round(job.seconds, 3),
        "curve": job.curve.points,
        "answers": [answer_of(each, certainty=True) for each in job.answers],
        "error": job.error,
    }
