"""A predictions file: what a solver wrote before anything was scored.

    {"about": {...}, "submission": {task_id: [{"attempt_1": grid, "attempt_2": grid}, ...]},
     "confidence": {task_id: [number, ...]}, "candidates": {task_id: [[grid, ...], ...]}}

`submission` is Kaggle's format: one entry per test input, in order. `candidates`, of a vote, are
all grids that it chose from, best first: the oracle score asks if the right one is among them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.arc import Grid, Task, parse_grid
from bridge.arc_files import read_json
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.files import write_text


@dataclass(frozen=True)
class Predictions:
    """Checked contents of a predictions file."""

    about: dict[str, Any]
    attempts: dict[str, tuple[Attempts, ...]]  # task_id -> per test input
    digest: str  # sha256 of the file


def write_predictions(
    path: Path, about: dict[str, Any], attempts: dict[str, tuple[Attempts, ...]]
) -> None:
    """Writes a predictions file."""
    confidence = {task_id: [a.confidence for a in items] for task_id, items in attempts.items()}
    candidates = {
        task_id: [[grid.tolist() for grid in a.candidates] for a in items]
        for task_id, items in attempts.items()
        if any(a.candidates for a in items)
    }
    value = {"about": about, "submission": to_submission(attempts), "confidence": confidence}
    if candidates:
        value["candidates"] = candidates
    write_text(path, json.dumps(value))


def to_submission(
    attempts: Mapping[str, tuple[Attempts, ...]],
) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Returns attempts as Kaggle's submission has them."""
    return {
        task_id: [{"attempt_1": a.first.tolist(), "attempt_2": a.second.tolist()} for a in items]
        for task_id, items in attempts.items()
    }


def parse_attempts(
    items: Any,
    where: str,
    confidences: Sequence[float] | None = None,
    candidates: Sequence[Sequence[Any]] | None = None,
) -> tuple[Attempts, ...]:
    """Checks the attempts at one task's test inputs.

    Args:
        items: `[{"attempt_1": grid, "attempt_2": grid}, ...]`.
        where: file and task, for error texts.
        confidences: one a test input; 0 where they are not known.
        candidates: of a vote, for each test input.

    Raises:
        InputError: naming the first fault.
    """
    if not isinstance(items, list):
        raise InputError(f"{where}: expected a list, one entry per test input")
    confidences = [0.0] * len(items) if confidences is None else confidences
    candidates = [[]] * len(items) if candidates is None else candidates
    for name, values in (("confidences", confidences), ("candidates", candidates)):
        if len(values) != len(items):
            raise InputError(f"{where}: expected {len(items)} {name}, got {len(values)}")
    return tuple(
        Attempts(
            _attempt(item, "attempt_1", f"{where}[{i}]"),
            _attempt(item, "attempt_2", f"{where}[{i}]"),
            float(confidences[i]),
            candidates=tuple(
                parse_grid(grid, f"{where}[{i}].candidates") for grid in candidates[i]
            ),
        )
        for i, item in enumerate(items)
    )


def read_predictions(path: Path) -> Predictions:
    """Reads and checks a predictions file.

    Raises:
        InputError: naming file, task and attempt of the first fault.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("submission"), dict):
        raise InputError(
            f"{path}: expected a predictions file with 'submission'; "
            "write one with python -m student_jax.solve --out"
        )
    attempts = {
        task_id: parse_attempts(
            items,
            f"{path}: task {task_id}",
            value.get("confidence", {}).get(task_id),
            value.get("candidates", {}).get(task_id),
        )
        for task_id, items in value["submission"].items()
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Predictions(value.get("about", {}), attempts, digest)


def check_covers(
    attempts: Mapping[str, tuple[Attempts, ...]], tasks: Mapping[str, Task], where: str
) -> None:
    """Refuses attempts for unknown tasks or another number of test inputs.

    Raises:
        InputError: naming the task.
    """
    for task_id, items in attempts.items():
        if task_id not in tasks:
            raise InputError(f"{where}: task {task_id} is not in the tasks to score against")
        expected = len(tasks[task_id].test_inputs)
        if len(items) != expected:
            raise InputError(
                f"{where}: task {task_id}: expected {expected} test inputs, got {len(items)}"
            )


def _attempt(item: Any, key: str, where: str) -> Grid:
    if not isinstance(item, dict) or key not in item:
        raise InputError(f"{where}: expected an object with attempt_1 and attempt_2")
    return parse_grid(item[key], f"{where}.{key}")
