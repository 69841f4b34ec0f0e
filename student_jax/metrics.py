"""What is counted. numpy only; the headline is the exact match of whole grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bridge.arc import Grid, Task
from bridge.canvas import Attempts

BASELINES: dict[str, Callable[[Grid], Grid]] = {
    "black": np.zeros_like,  # the input's shape, color 0
    "copy": lambda grid: grid,
}


@dataclass(frozen=True)
class Scores:
    """Means over tasks; a task's score is the mean over its test inputs. All in [0, 1]."""

    num_tasks: int
    pass_1: float  # first attempt exact
    pass_2: float  # either attempt exact
    shape: float  # first attempt of the right rows and columns
    cell: float  # first attempt's right cells among the expected grid's
    oracle: float  # an attempt or any candidate of a vote exact: no solver can know which


def is_exact(grid: Grid, expected: Grid) -> bool:
    """Whether a grid is the expected one, shape and every cell."""
    return grid.shape == expected.shape and bool((grid == expected).all())


def cell_accuracy(grid: Grid, expected: Grid) -> float:
    """Returns the share of the expected grid's cells that are right.

    Cells that the grid lacks are wrong; what lies outside the expected grid is not counted, so no
    padding can raise it.
    """
    rows, cols = np.minimum(grid.shape, expected.shape)
    return float((grid[:rows, :cols] == expected[:rows, :cols]).sum() / expected.size)


def score(
    attempts: Mapping[str, tuple[Attempts, ...]], tasks: Mapping[str, Task], ids: Iterable[str]
) -> Scores:
    """Scores attempts on the tasks named; a task without attempts counts as wrong."""
    rows = [_task_row(attempts.get(i, ()), tasks[i].test_outputs or ()) for i in ids]
    means = np.mean(rows, 0) if rows else np.zeros(5)
    return Scores(len(rows), *(float(x) for x in means))


def baseline(name: str, tasks: Mapping[str, Task]) -> dict[str, tuple[Attempts, ...]]:
    """Returns what a trivial solver answers; both its attempts are the same."""
    answer = BASELINES[name]
    return {
        task_id: tuple(Attempts(answer(g), answer(g), 0.0) for g in task.test_inputs)
        for task_id, task in tasks.items()
    }


def _task_row(items: tuple[Attempts, ...], expected: tuple[Grid, ...]) -> list[float]:
    rows = [
        (
            is_exact(item.first, grid),
            is_exact(item.first, grid) or is_exact(item.second, grid),
            item.first.shape == grid.shape,
            cell_accuracy(item.first, grid),
            any(is_exact(g, grid) for g in (item.first, item.second, *item.candidates)),
        )
        for item, grid in zip(items, expected, strict=False)
    ]
    return (np.sum(rows, 0) / len(expected)).tolist() if rows else [0.0] * 5
