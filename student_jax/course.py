"""How the learning of one task goes: its rounds, its fit, and what it answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bridge.canvas import Attempts
from student_jax.lesson import Lesson
from student_jax.pace import rate_at
from student_jax.vote import Said, tally

RECENT = 10  # steps over which the fit is told
FITTED = 20  # steps in a row with every copy of every demonstration exact: learnt enough


@dataclass(frozen=True)
class Seen:
    """How far the learning of a task has come, for those who watch it."""

    step: int  # in all rounds
    progress: float  # share of the budget that is spent, steps or seconds
    loss: float  # nats a cell, before the step
    fit: float  # see `Course.recent`


@dataclass
class Course:
    """One task's learning, round after round."""

    lesson: Lesson
    rounds: int  # at most
    steps: int = 0  # in all rounds
    answers: list[list[Sequence[Said]]] = field(default_factory=list)  # to each test input, a round
    fit: float = 0.0  # of the last round that votes
    loss: float = math.nan  # of the last step, nats a cell
    closed: int = 0  # rounds that are over
    _cells: list[float] = field(default_factory=list)  # of this round's steps
    _in_a_row: int = 0
    _began: tuple[int, float] | None = None  # this round's first step, and the progress there

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be learnt."""
        return self.closed >= self.rounds

    @property
    def is_fitted(self) -> bool:
        """Whether this round has learnt enough."""
        return self._in_a_row >= FITTED

    @property
    def recent(self) -> float:
        """The share of right cells in this round's last steps; 0 before the first."""
        return float(np.mean(self._cells[-RECENT:])) if self._cells else 0.0

    def rate(self, step: int, progress: float) -> float:
        """The share of the learning rate; every round goes through all of it in what time is left.

        Returns:
            0 when all rounds are over.
        """
        if self.is_over:
            return 0.0
        # Only now: answering and beginning anew are compiled between two rounds.
        self._began = self._began or (step, progress)
        first, since = self._began
        return rate_at(step - first, (progress - since) / (1 - since))

    def see(self, loss: float, cells: float, *, exact: bool) -> None:
        """Takes note of a step."""
        if not self.is_over:
            self.steps += 1
            self.loss = loss
            self._cells.append(cells)
            self._in_a_row = self._in_a_row + 1 if exact else 0

    def seen(self, progress: float) -> Seen:
        """How far it has come, the share `progress` of its budget being spent."""
        return Seen(self.steps, progress, self.loss, self.fit if self.is_over else self.recent)

    def close(self, said: Sequence[Sequence[Said]]) -> None:
        """Ends a round, which votes with what it said of each test input; the next one begins."""
        if not self.answers:
            self.answers = [[] for _ in said]
        for answers, each in zip(self.answers, said, strict=True):
            answers.append(each)
        self.fit, self.closed = self.recent, self.closed + 1
        self._began, self._cells, self._in_a_row = None, [], 0

    def end(self) -> None:
        """Leaves out the rounds that are left."""
        self.rounds = self.closed

    def vote(self) -> tuple[Attempts, ...]:
        """What all views of all rounds find likeliest, for each test input, and how they agree."""
        return tuple(tally(*rounds) for rounds in self.answers)
