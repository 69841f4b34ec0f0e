"""Many tasks learnt together: one copy of the weights for all, task tokens of each its own.

VARC (arXiv 2511.14761, section 5) found tasks learnt each alone better by some 10 points; this tier
is here to be measured beside that. It is cheaper by task where there are many, and runs on all
devices at once: each takes its share of a group's tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from student_jax.config import AdaptConfig
from student_jax.course import Course
from student_jax.group import Group, take_note
from student_jax.keep import make_room_for_programs
from student_jax.learner import Learner
from student_jax.lesson import Lesson
from student_jax.pace import rate_at
from student_jax.step import AXIS, make_mesh, replicated


class Together:
    """All tasks, in groups of one shape that take turns."""

    def __init__(
        self,
        learner: Learner,
        config: AdaptConfig,
        params: Any,
        groups: Sequence[Sequence[Lesson]],
    ) -> None:
        """Begins, from a student's weights."""
        self._learner, self._config, self._mesh = learner, config, make_mesh()
        self._params = jax.device_put(params, replicated(self._mesh))
        self._shared = learner.begin_joint(self._params)
        self._groups = [Group(learner, config, self._params, each, self._placed) for each in groups]
        self._order = np.arange(len(groups))

    @property
    def courses(self) -> list[Course]:
        """Of all tasks."""
        return [course for group in self._groups for course in group.courses]

    @property
    def is_fitted(self) -> bool:
        """Whether every task has learnt enough."""
        return all(course.is_fitted for course in self.courses)

    @property
    def fit(self) -> float:
        """The share of right cells in the last steps, over all tasks."""
        return float(np.mean([course.recent for course in self.courses]))

    def step(self, step: int, progress: float) -> Sequence[Course]:
        """Makes one update with one group's tasks; every group has its turn in an order of luck.

        Returns:
            The courses of those tasks.
        """
        config = self._config
        round_, turn = divmod(step, len(self._groups))
        if round_ == 0:
            make_room_for_programs()  # each group's first step compiles
        if turn == 0:
            self._order = np.random.default_rng((config.seed, round_)).permutation(
                len(self._groups)
            )
        group = self._groups[self._order[turn]]
        rate = np.float32(config.lr * rate_at(step, progress))
        self._shared, group.own, fit = self._learner.update_jointly(
            self._shared, group.own, self._params, group.tasks, group.show(round_), rate
        )
        take_note(group.courses, fit)
        return group.courses

    def rehearse(self) -> float:
        """Returns the seconds that answering all tasks takes, compiling it."""
        return sum(group.rehearse(self._shared[0]) for group in self._groups)

    def close(self) -> None:
        """Ends the learning: what is learnt by then answers."""
        for group in self._groups:
            group.close(np.ones(len(group.courses), bool), self._shared[0])

    def _placed(self, x: Any) -> Any:
        """Spreads what has a leading axis of tasks over the devices, where they share it evenly."""
        even = len(jax.tree.leaves(x)[0]) % self._mesh.size == 0
        spec = PartitionSpec(AXIS) if even else PartitionSpec()
        return jax.device_put(x, NamedSharding(self._mesh, spec))
