"""A student with all that serving it takes: queues, tasks to pick, limits, metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from student_jax.service.batcher import Batcher
from student_jax.service.jobs import Jobs
from student_jax.service.library import Library
from student_jax.service.limits import Limits
from student_jax.service.metrics import Metrics


@dataclass
class Host:
    """What the routes share."""

    about: dict[str, Any]  # of the student: see `forms.Health`
    trained_on: frozenset[str]
    batcher: Batcher
    jobs: Jobs
    library: Library
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False

    def __post_init__(self) -> None:
        """Lets the queues be read as metrics."""
        self.metrics.watch(
            "sage_waiting",
            "In the queue",
            "queue",
            lambda: {"solve": self.batcher.waiting, "adapt": self.jobs.count()["queued"]},
        )
        self.metrics.watch(
            "sage_jobs", "Adaptations that are kept", "state", lambda: {**self.jobs.count()}
        )

    def drain(self) -> None:
        """Takes nothing more on; adaptations end and answer."""
        self.draining = True
        self.jobs.end_all()

    def close(self, seconds: float | None = None) -> bool:
        """Ends the threads; whether what they had in hand was done in so many seconds."""
        return self.batcher.close(seconds) & self.jobs.close(seconds)
