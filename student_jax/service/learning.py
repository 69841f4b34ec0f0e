"""How a job is learnt: by the student's own adapter."""

from __future__ import annotations

from collections.abc import Callable

from bridge.canvas import Attempts
from bridge.stop import Stop
from student_jax.adapter import Adapter
from student_jax.config import AdaptConfig
from student_jax.course import Seen
from student_jax.service.jobs import Learner, Wanted
from student_jax.solver import Solver


def make_learner(solver: Solver) -> Learner:
    """Returns what learns a job."""

    def learn(wanted: Wanted, watch: Callable[[Seen], None], stop: Stop) -> tuple[Attempts, ...]:
        config = AdaptConfig(tier=wanted.tier, seconds=wanted.seconds, steps=wanted.steps)
        told = lambda _, seen: watch(seen)  # noqa: E731
        ((_, adapted),) = Adapter(solver, config).adapt([wanted.task], wanted.views, told, stop)
        return adapted.attempts

    return learn
