"""What is counted. numpy only; the headline is the exact match of whole grids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bridge.arc import Grid, Task
from bridge.canvas import Attempts

Answers = Mapping[str, tuple[Attempts, ...]]  # task_id -> attempts, one a test input


@dataclass(frozen=True)
class Scores:
    """Means over tasks; a task's score is the mean over its test inputs. All in [0, 1]."""

    num_tasks: int
    pass_1: float  # first attempt exact
    pass_2: float  # either attempt exact
    strict: float  # either attempt exact for every test input of a task
    shape: float  # first attempt of the right rows and columns
    cell: float  # first attempt's right cells among the expected grid's
    oracle: float  # an attempt or any candidate of a vote exact: no solver can know which
    low: float  # 95 % interval of pass_2, over tasks
    high: float


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


def score(attempts: Answers, tasks: Mapping[str, Task], ids: Iterable[str]) -> Scores:
    """Scores attempts on the tasks named; a task without attempts counts as wrong."""
    rows = [_task_row(attempts.get(i, ()), tasks[i].test_outputs or ()) for i in ids]
    first, either, strict, shape, cell, oracle = np.mean(rows, 0).tolist() if rows else [0.0] * 6
    low, high = interval(either, len(rows))
    return Scores(len(rows), first, either, strict, shape, cell, oracle, low, high)


def pass_2(items: tuple[Attempts, ...], task: Task) -> float:
    """Returns the share of a task's test inputs that either attempt answers exactly."""
    return _task_row(items, task.test_outputs or ())[1]


def interval(share: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share of `count` tasks.

    Resampling tasks would give no width where nothing is solved. Where tasks have several test
    inputs it is wide rather than narrow: such scores vary less than yes or no (Brown, Cai and
    DasGupta, Interval estimation for a binomial proportion, 2001, section 3.1.1).
    """
    if count == 0:
        return 0.0, 1.0
    z2 = 1.959964**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = (z2 * (share * (1 - share) / count + z2 / (4 * count**2))) ** 0.5 / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


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
    if not rows:
        return [0.0] * 6
    first, either, *others = (np.sum(rows, 0) / len(expected)).tolist()
    return [first, either, float(either == 1.0), *others]
