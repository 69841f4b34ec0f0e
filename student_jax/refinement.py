"""How far a student's answer to one task is refined, and what the next step of it is.

Each step answers the task once more with more behind it: one view zero-shot, then 2, 4 and 8 views
that vote, then, where the config says so, weights that learnt the task. What it costs is counted
in units: a view of the task, or a step of learning it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bridge.arc import Question, Task, parse_task
from bridge.canvas import Attempts
from student_jax.config import AdaptConfig
from student_jax.pace import WARM_UP
from student_jax.solve import NANO
from student_jax.solver import Which
from student_jax.vote import Said, views_of


@dataclass(frozen=True, kw_only=True)
class SageConfig:
    """A plugin's config; keys that the orchestrators know have their names and defaults."""

    entity_id: str = "sage_student"
    trust_weight: float = 1.0
    """SAGE's, of this plugin beside others; nothing here reads it"""
    checkpoint: Path = NANO
    """a training run's folder, or a released student's; by default the one of the package"""
    which: Which = "latest"
    views: int = 8
    """at most, of each question; each step doubles them"""
    learning: AdaptConfig | None = None
    """how the task is learnt when all views have voted; by default not at all"""
    confidence_threshold: float = 0.95
    """halt as soon as the answer is so sure"""
    max_iterations: int = 100
    max_ATP: float | None = None  # noqa: N815
    """of one refinement; orchestrator A writes it before each. None for no limit"""
    ATP_per_step: float = 0.1
    """price of one view of the task, or of one step of learning it"""
    max_seconds: float | None = None
    """of one refinement: no step begins later, and learning ends by then"""
    halt_eps: float = 1e-4
    halt_K: int = 3  # noqa: N815
    """halt when so many steps in a row each changed the energy by less than halt_eps"""
    device: str | None = None
    """what JAX must be running on, cpu or cuda; JAX_PLATFORMS chooses it"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        views_of(self.views)
        if not 0 < self.confidence_threshold <= 1:
            raise ValueError(
                f"confidence_threshold: expected 0 < x <= 1, got {self.confidence_threshold}"
            )
        if self.learning is not None and self.learning.tier not in ("tokens", "weights"):
            raise ValueError("learning.tier: expected tokens or weights; it learns one task alone")
        if self.ATP_per_step <= 0 or self.halt_K < 1 or self.max_iterations < 0:
            raise ValueError("ATP_per_step, halt_K: expected above 0, max_iterations 0 or more")


Next = Literal["views", "learning", "nothing", "too dear"]


@dataclass(frozen=True)
class Work:
    """How far the work on a task has come."""

    task: Task  # blind
    config: SageConfig
    early_stop: bool = True
    votes: tuple[tuple[Said, ...], ...] = ()  # views of each test input
    learnt: int = 0  # steps of learning
    tier: Literal["tokens", "weights"] | None = None
    attempts: tuple[Attempts, ...] = ()  # none before the first step
    confidence: float = 0.0
    seconds: float = 0.0

    @property
    def views(self) -> int:
        """How many views of each test input were asked."""
        return len(self.votes[0]) if self.votes else 0

    @property
    def units(self) -> int:
        """What the work cost so far: views asked and steps learnt."""
        return self.views + self.learnt

    @property
    def planned(self) -> int:
        """What it costs if nothing ends it early."""
        return self.config.views + (self.config.learning.steps if self.config.learning else 0)

    def affordable(self) -> float:
        """Returns how many units the budget still holds."""
        if self.config.max_ATP is None:
            return math.inf
        left = self.config.max_ATP / self.config.ATP_per_step - self.units
        return math.floor(left + 1e-6)  # 0.8 / 0.1 is a little under 8

    def seconds_left(self) -> float:
        """Returns how long the budget still lasts."""
        limit = self.config.max_seconds
        return math.inf if limit is None else limit - self.seconds

    def next(self) -> Next:
        """Returns what the next step is: what is left to do, as far as the budget goes."""
        learning = self.config.learning
        if self.views < self.config.views and self.tier is None:
            action, price = "views", self.more_views()
        elif learning is not None and self.tier is None:
            action, price = "learning", min(WARM_UP, learning.steps)
        else:
            return "nothing"
        return action if price <= self.affordable() and self.seconds_left() > 0 else "too dear"

    def more_views(self) -> int:
        """Returns how many views the next step adds: as many as there are."""
        return min(max(self.views, 1), self.config.views - self.views)


def as_task(x0: Any, task_id: str) -> Task:
    """Returns what was given as a task without its answers.

    Raises:
        InputError: if it is none.
    """
    if isinstance(x0, Question):
        return Task(x0.task_id, x0.demonstrations, (x0.query,))
    if isinstance(x0, Task):
        return x0.blind()
    return parse_task(task_id, x0, "sage").blind()


def surety(attempts: Attempts) -> float:
    """Returns how sure the student is of the first attempt, in [0, 1]: of its least certain cell.

    Averaged over the views; so one view and eight are measured alike, which the share of views
    would not do.
    """
    if attempts.certainty is None:
        return attempts.confidence
    return float(attempts.certainty.min())
