"""How an answer went: the kinds of success and failure. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.arc import Grid, Task
from bridge.canvas import Attempts
from student_jax.metrics import cell_accuracy, is_exact

NEAR = 0.9  # share of right cells; above it a person sees what was meant

# Best first.
OUTCOMES = {
    "first": "solved by attempt 1",
    "second": "solved by attempt 2",
    "not-chosen": "right grid found, not chosen",
    "near": "right shape, 90 % of cells or more",
    "cells": "right shape, fewer cells",
    "copied": "copied the input",
    "wrong-shape": "wrong shape",
}
RESULTS = {
    "solved": ("first", "second"),
    "near": ("not-chosen", "near"),
    "failed": ("cells", "copied", "wrong-shape"),
}


def outcome_of(item: Attempts, query: Grid, expected: Grid) -> str:
    """Returns which of `OUTCOMES` the attempts at one test input are; of failures, the first's."""
    if is_exact(item.first, expected):
        return "first"
    if is_exact(item.second, expected):
        return "second"
    if any(is_exact(grid, expected) for grid in item.candidates):
        return "not-chosen"
    if is_exact(item.first, query):
        return "copied"  # before near: most cells of many tasks stay as they are
    if item.first.shape != expected.shape:
        return "wrong-shape"
    return "near" if cell_accuracy(item.first, expected) >= NEAR else "cells"


def outcomes_of(items: Sequence[Attempts], task: Task) -> list[str]:
    """Returns the outcome at each test input."""
    expected = task.test_outputs or ()
    return [outcome_of(*each) for each in zip(items, task.test_inputs, expected, strict=True)]


def task_outcome(items: Sequence[Attempts], task: Task) -> str:
    """Returns a task's outcome: the worst among its test inputs, as all of them must be right."""
    return max(outcomes_of(items, task), key=list(OUTCOMES).index)


def is_solved(items: Sequence[Attempts], task: Task) -> bool:
    """Whether one of two attempts is right at every test input."""
    return task_outcome(items, task) in RESULTS["solved"]
