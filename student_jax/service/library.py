"""The tasks that people can pick, and what other students answered to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.arc import Task
from bridge.arc_files import load_tasks
from bridge.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class Library:
    """Tasks by source, and predictions by name."""

    sources: dict[str, dict[str, Task]]
    compared: dict[str, Predictions]

    def find(self, task_id: str) -> tuple[str, Task] | None:
        """Returns a task with its source: the first that has it."""
        for source, tasks in self.sources.items():
            if task_id in tasks:
                return source, tasks[task_id]
        return None


def open_library(sources: Sequence[str], predictions: Sequence[Path]) -> Library:
    """Reads tasks and predictions.

    Raises:
        InputError: naming the file and the first fault.
    """
    compared: dict[str, Predictions] = {}
    for path in predictions:
        found = read_predictions(path)
        name = str(found.about.get("student", path.stem))
        compared[name if name not in compared else f"{name} ({path.parent.name})"] = found
    return Library({source: load_tasks(source) for source in sources}, compared)
