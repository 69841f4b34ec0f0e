"""Kaggle's `submission.json`, both ways, checked against the tasks it answers.

    {task_id: [{"attempt_1": grid, "attempt_2": grid}, ...]}    one entry per test input, in order

It says nothing of who answered; a predictions file does (`bridge/predictions.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bridge.arc import Task
from bridge.arc_files import read_json
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.files import write_text
from bridge.predictions import check_covers, parse_attempts, read_predictions, to_submission


def read_submission(path: Path) -> dict[str, tuple[Attempts, ...]]:
    """Reads the attempts of a submission or of a predictions file.

    Raises:
        InputError: naming file, task and attempt of the first fault.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: expected an object of task_id -> attempts")
    if "submission" in value:
        return read_predictions(path).attempts
    return {
        task_id: parse_attempts(items, f"{path}: task {task_id}")
        for task_id, items in value.items()
    }


def check_complete(
    attempts: Mapping[str, tuple[Attempts, ...]], tasks: Mapping[str, Task], where: str
) -> None:
    """Refuses attempts that leave out a task, answer one that is not asked, or miscount.

    Raises:
        InputError: naming the task and what to do; Kaggle refuses such a file without a word.
    """
    check_covers(attempts, tasks, where)
    missing = sorted(tasks.keys() - attempts.keys())
    if missing:
        raise InputError(
            f"{where}: expected all {len(tasks)} tasks, got {len(attempts)}: {missing[0]} is "
            "missing; solve the whole --source"
        )


def write_submission(path: Path, attempts: Mapping[str, tuple[Attempts, ...]]) -> None:
    """Writes Kaggle's file."""
    write_text(path, json.dumps(to_submission(attempts)))
