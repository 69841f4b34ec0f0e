"""Where a score comes from: kinds of tasks, single colors, and how sure the solver was. numpy only.

The headline stays the exact match of whole grids (`student_jax/metrics.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bridge.arc import NUM_COLORS, Grid, Task
from bridge.canvas import Attempts
from student_jax.metrics import Answers, is_exact, score

# Longest side of any grid of a task, the answer included.
SIZES = {10: "sides 1 to 10", 20: "sides 11 to 20", 30: "sides 21 to 30"}
OUTPUTS = ("same size", "other size")  # of a task's outputs, beside their inputs


def longest_side(task: Task) -> int:
    """Returns the rows or columns of a task's largest grid, the answer included."""
    return max(task.largest_side, *(max(grid.shape) for grid in task.test_outputs or ()))


def kinds_of_task(task: Task) -> tuple[str, str]:
    """Returns which of `SIZES` and which of `OUTPUTS` a task is of."""
    pairs = [(pair.input, pair.output) for pair in task.demonstrations]
    pairs += zip(task.test_inputs, task.test_outputs or (), strict=True)
    same = all(given.shape == output.shape for given, output in pairs)
    longest = longest_side(task)
    return next(name for side, name in SIZES.items() if longest <= side), OUTPUTS[not same]


def kinds_of(tasks: Mapping[str, Task], ids: Iterable[str]) -> dict[str, list[str]]:
    """Sorts scored tasks by size, and by whether outputs are as large as their inputs."""
    kinds: dict[str, list[str]] = {name: [] for name in (*SIZES.values(), *OUTPUTS)}
    for task_id in ids:
        for kind in kinds_of_task(tasks[task_id]):
            kinds[kind].append(task_id)
    return {name: found for name, found in kinds.items() if found}


@dataclass(frozen=True)
class ColorScore:
    """How well one color's cells are found by first attempts, over all test inputs."""

    precision: float  # of the cells given this color, those that have it
    recall: float  # of the cells that have this color, those given it
    f1: float  # their harmonic mean
    cells: int  # that have it


def color_scores(
    answers: Answers, tasks: Mapping[str, Task], ids: Iterable[str]
) -> list[ColorScore]:
    """Returns a score for each of the ten colors; cells off the expected grid are never right."""
    right, given, wanted = np.zeros((3, NUM_COLORS), np.int64)
    for item, expected in _answered(answers, tasks, ids):
        rows, cols = np.minimum(item.first.shape, expected.shape)
        common = expected[:rows, :cols]
        right += np.bincount(common[common == item.first[:rows, :cols]], minlength=NUM_COLORS)
        given += np.bincount(item.first.ravel(), minlength=NUM_COLORS)
        wanted += np.bincount(expected.ravel(), minlength=NUM_COLORS)
    return [
        ColorScore(
            precision=float(r / g) if g else 0.0,
            recall=float(r / w) if w else 0.0,
            f1=float(2 * r / (g + w)) if g + w else 0.0,
            cells=int(w),
        )
        for r, g, w in zip(right, given, wanted, strict=True)
    ]


def risk_coverage(
    answers: Answers, tasks: Mapping[str, Task], ids: Iterable[str]
) -> list[tuple[float, float]]:
    """Returns (coverage, risk) as the solver answers more and more, the surest first.

    Coverage is the share of test inputs that are answered; risk is the share of those that neither
    attempt answers exactly (Geifman and El-Yaniv, arXiv 1705.08500). Equally sure ones come
    together. A solver whose confidence means something starts low.
    """
    found = sorted(
        (-item.confidence, not (is_exact(item.first, grid) or is_exact(item.second, grid)))
        for item, grid in _answered(answers, tasks, ids)
    )
    curve, wrong = [], 0
    for i, (confidence, is_wrong) in enumerate(found, start=1):
        wrong += is_wrong
        if i == len(found) or found[i][0] != confidence:
            curve.append((i / len(found), wrong / i))
    return curve


def area_under(curve: Sequence[tuple[float, float]]) -> float:
    """Returns the mean risk over all coverages: lower is better."""
    area, before = 0.0, 0.0
    for coverage, risk in curve:
        area += (coverage - before) * risk
        before = coverage
    return area


def break_down(answers: Answers, tasks: Mapping[str, Task], ids: Sequence[str]) -> dict[str, Any]:
    """Returns one student's scores by kind of task and color, and what its confidence is worth."""
    curve = risk_coverage(answers, tasks, ids)
    return {
        "kinds": {
            kind: asdict(score(answers, tasks, found))
            for kind, found in kinds_of(tasks, ids).items()
        },
        "colors": [asdict(c) for c in color_scores(answers, tasks, ids)],
        "risk_coverage": curve,
        "area_under_risk": area_under(curve),
    }


def _answered(
    answers: Answers, tasks: Mapping[str, Task], ids: Iterable[str]
) -> Iterator[tuple[Attempts, Grid]]:
    """Yields what was answered to each test input, with what was expected."""
    for task_id in ids:
        yield from zip(answers.get(task_id, ()), tasks[task_id].test_outputs or (), strict=False)
