"""Adaptations: one task at a time is learnt, in a thread of its own, watched and ended from others.

A job is queued, then learning, then done, cancelled or failed; it is kept for a while after that.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bridge.arc import Task
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.stop import Stop
from student_jax.config import Tier
from student_jax.service.batcher import FullError
from student_jax.service.limits import Limits

if TYPE_CHECKING:
    from student_jax.course import Seen

POINTS = 200  # of a curve, at most
State = Literal["queued", "learning", "done", "cancelled", "failed"]


@dataclass(frozen=True)
class Wanted:
    """What is to be learnt, and how."""

    task: Task
    tier: Tier
    seconds: float
    steps: int
    views: int


@dataclass
class Curve:
    """Loss and fit by step, thinned so that it stays short: each point stands for `stride`."""

    points: list[tuple[int, float | None, float]] = field(default_factory=list)
    stride: int = 1

    def see(self, seen: Seen) -> None:
        """Keeps every stride's step; when there are too many, every second of them."""
        if seen.step % self.stride:
            return
        self.points.append((seen.step, finite(seen.loss), seen.fit))
        if len(self.points) > POINTS:
            self.stride *= 2
            self.points = [point for point in self.points if not point[0] % self.stride]


@dataclass(eq=False)
class Job:
    """A task's adaptation; fields change while it is learnt, all of them under `Jobs`' lock."""

    wanted: Wanted
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "queued"
    stop: Stop = field(default_factory=Stop)
    seen: Seen | None = None
    curve: Curve = field(default_factory=Curve)
    answers: tuple[Attempts, ...] = ()
    error: str | None = None
    began: float | None = None  # time.monotonic
    ended: float | None = None
    collected: bool = False  # whether its end was told

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.ended is not None

    @property
    def seconds(self) -> float:
        """For which it was learnt, or is."""
        ended = self.ended or time.monotonic()
        return ended - self.began if self.began else 0.0


class Learner(Protocol):
    """What learns a task: `student_jax.adapter.Adapter` behind it, or something else."""

    def __call__(
        self, wanted: Wanted, watch: Callable[[Seen], None], stop: Stop
    ) -> tuple[Attempts, ...]:
        """Returns the attempts at the test inputs, also where stop ended the learning."""
        ...


class Jobs:
    """The queue of adaptations, and what became of them."""

    def __init__(self, learn: Learner, limits: Limits) -> None:
        """Starts the thread."""
        self._learn, self._limits = learn, limits
        self._jobs: dict[str, Job] = {}  # the oldest first
        self._queue: deque[Job] = deque()
        self._cut: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="learning", daemon=True)
        self._thread.start()

    def add(self, wanted: Wanted) -> Job:
        """Queues an adaptation.

        Raises:
            FullError: if the queue is full.
        """
        with self._changed:
            self._forget()
            if len(self._queue) >= self._limits.jobs_waiting:
                queued = sum(job.wanted.seconds for job in self._queue)
                raise FullError(max(1, math.ceil(queued / max(1, len(self._queue)))))
            job = Job(wanted)
            self._jobs[job.key] = job
            self._queue.append(job)
            self._changed.notify_all()
        return job

    def find(self, key: str) -> Job | None:
        """Returns a job that is still kept."""
        with self._changed:
            self._forget()
            return self._jobs.get(key)

    def tell(self, job: Job, told: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
        """Returns what is told of a job, while nothing of it changes."""
        with self._changed:
            job.collected |= job.is_over
            return told(job)

    def cancel(self, job: Job) -> None:
        """Ends a job: what is learnt by then answers, and one that has not begun has no answers."""
        with self._changed:
            job.stop.requested = True
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, "cancelled")

    def count(self) -> dict[State, int]:
        """Returns how many jobs there are in each state."""
        with self._changed:
            found: dict[State, int] = dict.fromkeys(
                ("queued", "learning", "done", "cancelled", "failed"), 0
            )
            for job in self._jobs.values():
                found[job.state] += 1
            return found

    @property
    def is_idle(self) -> bool:
        """Whether none is queued or learning."""
        with self._changed:
            return all(job.is_over for job in self._jobs.values())

    @property
    def are_collected(self) -> bool:
        """Whether the end of every job that `end_all` ended was told to someone."""
        return all(job.collected for job in self._cut)

    def end_all(self) -> None:
        """Cancels every job."""
        self._cut = [job for job in list(self._jobs.values()) if not job.is_over]
        for job in self._cut:
            self.cancel(job)

    def close(self, seconds: float | None = None) -> bool:
        """Cancels every job, and ends; whether that was done in so many seconds."""
        self.end_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while job := self._next():
            try:
                answers = self._learn(
                    job.wanted, lambda seen, job=job: self._see(job, seen), job.stop
                )
            except InputError as error:
                self._finish(job, "failed", error=str(error))
            except Exception:
                logging.getLogger(__name__).exception("adaptation %s failed", job.key)
                self._finish(job, "failed", error="a fault of the server; its log has more")
            else:
                self._finish(job, "cancelled" if job.stop.requested else "done", answers)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            job = self._queue.popleft()
            job.state, job.began = "learning", time.monotonic()
            return job

    def _see(self, job: Job, seen: Seen) -> None:
        with self._changed:
            job.seen = seen
            job.curve.see(seen)

    def _finish(
        self, job: Job, state: State, answers: tuple[Attempts, ...] = (), error: str | None = None
    ) -> None:
        with self._changed:
            job.answers, job.error = answers, error
            self._end(job, state)

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended = state, time.monotonic()

    def _forget(self) -> None:
        """Drops what was over long ago, and the oldest where there are too many."""
        over = [(job.ended, key) for key, job in self._jobs.items() if job.ended is not None]
        old = time.monotonic() - 60 * self._limits.job_minutes
        for i, (ended, key) in enumerate(sorted(over)):
            if ended < old or i < len(over) - self._limits.jobs_kept:
                del self._jobs[key]


def finite(value: float) -> float | None:
    """Returns a number as JSON can hold it."""
    return value if math.isfinite(value) else None
