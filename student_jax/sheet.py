"""A predictions file that grows while tasks are learnt, so that nothing that is done is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.predictions import read_predictions, write_predictions

PAUSE = 10.0  # seconds between two writes: a file of hundreds of tasks is megabytes


class AnswerSheet:
    """Answers to some tasks, on their way to a file.

    Until all are there the file says "stopped": tasks are missing. Where a file is there that was
    stopped, of the same student, settings and source, its answers are kept, but for those that a
    signal cut short.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        tasks: Sequence[str],
        trained_on: Collection[str],
    ) -> None:
        """Takes up what is there.

        Args:
            path: of the predictions file.
            about: who answers what, and how.
            tasks: their ids, in the order in which the file will have them.
            trained_on: ids of all tasks that the student was trained on.
        """
        self.path, self._about, self._tasks = path, about, tasks
        self._trained_on = set(trained_on)
        self.attempts: dict[str, tuple[Attempts, ...]] = {}
        self._adapted: dict[str, dict[str, Any]] = {}
        self._before, self._started = 0.0, time.perf_counter()
        self._take_up()
        self._written = self._started

    def add(self, task_id: str, attempts: tuple[Attempts, ...], **adapted: Any) -> None:
        """Takes down a task's answers.

        Args:
            task_id: which.
            attempts: at its test inputs.
            adapted: how it was learnt, if it was; `cut` says that a signal ended that.
        """
        self.attempts[task_id] = attempts
        if adapted:
            self._adapted[task_id] = adapted
            if time.perf_counter() - self._written > PAUSE:
                self.write(stopped=True)
                self._written = time.perf_counter()

    def write(self, *, stopped: bool) -> None:
        """Writes the file.

        Args:
            stopped: whether tasks are missing.
        """
        order = [task_id for task_id in self._tasks if task_id in self.attempts]
        seconds = self._before + time.perf_counter() - self._started
        about = {
            **self._about,
            # Of all tasks together, compilation included.
            "answering": {"tasks": len(order), "seconds": seconds},
            "stopped": stopped,
            "adapted": {i: self._adapted[i] for i in order if i in self._adapted},
            "trained_on": sorted(self._trained_on.intersection(order)),
        }
        write_predictions(self.path, about, {i: self.attempts[i] for i in order})

    def _take_up(self) -> None:
        try:
            before = read_predictions(self.path)
        except InputError:
            return  # none is there, or it is to be written anew
        same = {name: before.about.get(name) for name in self._about}
        if not before.about.get("stopped") or same != json.loads(json.dumps(self._about)):
            return
        adapted = before.about["adapted"]
        for task_id, attempts in before.attempts.items():
            cut = adapted.get(task_id, {}).get("cut", True)
            if task_id in self._tasks and not cut:
                self.attempts[task_id] = attempts
                self._adapted[task_id] = adapted[task_id]
        self._before = before.about["answering"]["seconds"]
