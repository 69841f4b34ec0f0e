"""Which tasks a run uses, and which of them are held out. Shared by extract, train and solve."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bridge.arc import MAX_SIDE, Task
from bridge.arc_files import load_tasks
from bridge.errors import InputError
from bridge.views import MAX_DEMONSTRATIONS


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """A choice of tasks. It looks at demonstrations and test inputs only, never at test outputs."""

    source: str = "arcagi/training"
    """arcagi/training, arcagi/evaluation, a folder of task JSON, or a Kaggle *_challenges.json"""
    max_side: int = MAX_SIDE
    """keep tasks whose grids have at most this many rows and columns"""
    max_demonstrations: int = MAX_DEMONSTRATIONS
    """keep tasks with at most this many demonstrations"""
    limit: int | None = None
    """keep only the first so many, by id"""
    dev_fraction: float = 0.2
    """share of tasks held out for development, chosen by a hash of the id"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"max_side: expected 1..{MAX_SIDE}, got {self.max_side}")
        if self.max_demonstrations < 1:
            raise ValueError(
                f"max_demonstrations: expected 1 or more, got {self.max_demonstrations}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")
        if not 0 <= self.dev_fraction < 1:
            raise ValueError(f"dev_fraction: expected 0 <= x < 1, got {self.dev_fraction}")

    def load(self) -> dict[str, Task]:
        """Returns task_id -> task, sorted by id.

        Raises:
            InputError: if no task is left.
        """
        tasks = {
            task_id: task
            for task_id, task in load_tasks(self.source).items()
            if task.largest_side <= self.max_side
            and len(task.demonstrations) <= self.max_demonstrations
        }
        if not tasks:
            raise InputError(
                f"tasks: {self.source} holds no task with sides of at most {self.max_side} and at "
                f"most {self.max_demonstrations} demonstrations"
            )
        return dict(list(tasks.items())[: self.limit])

    def is_dev(self, task_id: str) -> bool:
        """Whether a task is held out. It depends on the id alone, not on what else is loaded."""
        return int(hashlib.sha256(task_id.encode()).hexdigest()[:8], 16) / 2**32 < self.dev_fraction

    def split(self, tasks: dict[str, Task]) -> tuple[dict[str, Task], dict[str, Task]]:
        """Returns the training tasks and the held-out development tasks."""
        dev = {task_id: task for task_id, task in tasks.items() if self.is_dev(task_id)}
        train = {task_id: task for task_id, task in tasks.items() if task_id not in dev}
        return train, dev
