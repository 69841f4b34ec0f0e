"""What can be answered without any learning: the floor under every score. numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from bridge.arc import Grid, Task
from bridge.canvas import Attempts


def black(_: Task, query: Grid) -> tuple[Grid, Grid]:
    """The query's shape in color 0, twice."""
    return np.zeros_like(query), np.zeros_like(query)


def copy(_: Task, query: Grid) -> tuple[Grid, Grid]:
    """The query itself, twice."""
    return query, query


def siblings(task: Task, _: Grid) -> tuple[Grid, Grid]:
    """What the demonstrations' outputs have most often, cell by cell; then, as a whole.

    Of the commonest shape; ties go to the demonstration that comes first. Solvers that ignore the
    query can do no better than look at its siblings.
    """
    outputs = [pair.output for pair in task.demonstrations]
    shape = Counter(grid.shape for grid in outputs).most_common(1)[0][0]
    stack = np.stack([grid for grid in outputs if grid.shape == shape])
    counts = np.stack([(stack == color).sum(0) for color in range(10)])
    whole = Counter(grid.tobytes() for grid in stack).most_common(1)[0][0]
    return counts.argmax(0).astype(np.uint8), np.frombuffer(whole, np.uint8).reshape(shape)


BASELINES: dict[str, Callable[[Task, Grid], tuple[Grid, Grid]]] = {
    "black": black,
    "copy": copy,
    "siblings": siblings,
}


def baseline(name: str, tasks: Mapping[str, Task]) -> dict[str, tuple[Attempts, ...]]:
    """Returns what a baseline answers to every test input."""
    answer = BASELINES[name]
    return {
        task_id: tuple(Attempts(*answer(task, grid), 0.0) for grid in task.test_inputs)
        for task_id, task in tasks.items()
    }
