"""ARC tasks as types that keep questions and answers apart.

In the shape descriptions `R` and `C` denote a grid's rows and columns, 1..30 each.

A `Question` is all that a solver or a view builder may see: demonstrations and one query grid.
It has no field for an answer, so nothing built from it can leak one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import InputError

MAX_SIDE = 30  # rows and columns, https://github.com/fchollet/ARC-AGI
NUM_COLORS = 10
MAX_PAIRS = 1000  # per task; far above any published task, guards against hostile files

TASK_ID = re.compile(r"[\w-][\w.-]{0,79}")

Grid = npt.NDArray[np.uint8]  # u8[R, C], colors 0..9, read-only


@dataclass(frozen=True)
class Pair:
    """A demonstration: an input grid with its known output."""

    input: Grid
    output: Grid


@dataclass(frozen=True)
class Question:
    """One query in the context of demonstrations. It holds no answer, by type."""

    example_id: str  # {task_id}_{train|test}_{index}
    task_id: str
    demonstrations: tuple[Pair, ...]
    query: Grid


@dataclass(frozen=True)
class Task:
    """An ARC task. `test_outputs` is None when the answers are not known or not to be seen."""

    task_id: str
    demonstrations: tuple[Pair, ...]
    test_inputs: tuple[Grid, ...]
    test_outputs: tuple[Grid, ...] | None = None

    def blind(self) -> Task:
        """Returns the same task with its test outputs physically removed."""
        return Task(self.task_id, self.demonstrations, self.test_inputs)

    @property
    def largest_side(self) -> int:
        """The longest side among the grids a solver may see; test outputs are not looked at."""
        seen = [grid for pair in self.demonstrations for grid in (pair.input, pair.output)]
        return max(max(grid.shape) for grid in (*seen, *self.test_inputs))


def open_questions(task: Task) -> list[Question]:
    """Returns one question per test input, all demonstrations as context."""
    return [
        Question(f"{task.task_id}_test_{i}", task.task_id, task.demonstrations, grid)
        for i, grid in enumerate(task.test_inputs)
    ]


def left_out_questions(task: Task) -> list[Question]:
    """Returns each demonstration's input as the query in turn, the others as context."""
    return [
        Question(
            f"{task.task_id}_train_{i}",
            task.task_id,
            task.demonstrations[:i] + task.demonstrations[i + 1 :],
            pair.input,
        )
        for i, pair in enumerate(task.demonstrations)
    ]


def all_questions(task: Task) -> list[Question]:
    """Returns every pair as the query in turn: left-out demonstrations first, then test inputs.

    1302 + 416 = 1718 questions for the 400 training tasks of ARC-AGI-1.
    """
    return left_out_questions(task) + open_questions(task)


def known_answers(task: Task) -> dict[str, Grid]:
    """Returns example_id -> output grid for every question whose answer the task holds."""
    answers = {
        f"{task.task_id}_train_{i}": pair.output for i, pair in enumerate(task.demonstrations)
    }
    for i, grid in enumerate(task.test_outputs or ()):
        answers[f"{task.task_id}_test_{i}"] = grid
    return answers


def parse_grid(value: Any, where: str) -> Grid:
    """Checks a decoded JSON value and returns it as a read-only grid.

    Args:
        value: nested lists of ints; numpy integer arrays are taken too.
        where: file, task and path for the error text, e.g. `a.json: task 007bbfb7: train[0].input`.

    Raises:
        InputError: if it is not a rectangle of 1..30 x 1..30 integer cells 0..9.
    """
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer):
        value = value.tolist()
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list of rows, got {_short(value)}")
    if not 1 <= len(value) <= MAX_SIDE:
        raise InputError(f"{where}: expected 1..{MAX_SIDE} rows, got {len(value)}")
    for r, row in enumerate(value):
        if not isinstance(row, list):
            raise InputError(f"{where}[{r}]: expected a row (list of cells), got {_short(row)}")
        if not 1 <= len(row) <= MAX_SIDE:
            raise InputError(f"{where}[{r}]: expected 1..{MAX_SIDE} cells, got {len(row)}")
        if len(row) != len(value[0]):
            raise InputError(
                f"{where}[{r}]: expected {len(value[0])} cells like row 0, got {len(row)}; "
                "make every row equally long"
            )
        for c, cell in enumerate(row):
            # `type() is int` keeps out bool, which Python counts as an int.
            if type(cell) is not int or not 0 <= cell < NUM_COLORS:
                raise InputError(
                    f"{where}[{r}][{c}]: expected an integer color 0..9, got {_short(cell)}"
                )
    grid = np.array(value, np.uint8)
    grid.setflags(write=False)
    return grid


def parse_task(task_id: str, value: Any, where: str, solutions: Any = None) -> Task:
    """Checks one decoded task and returns it.

    Args:
        task_id: the task's name.
        value: `{"train": [{"input", "output"}, ...], "test": [{"input", "output"?}, ...]}`.
        where: the file, for error texts.
        solutions: test outputs from a Kaggle solutions file, or None.

    Raises:
        InputError: naming file, task and path of the first fault.
    """
    where = f"{where}: task {task_id[:80]}"
    if not TASK_ID.fullmatch(task_id):  # ids become file names
        raise InputError(f"{where}: expected an id of letters, digits, '.', '_' and '-'")
    if not isinstance(value, Mapping):
        raise InputError(
            f"{where}: expected an object with 'train' and 'test', got {_short(value)}"
        )
    demonstrations = tuple(
        parse_pair(item, f"{where}: train[{i}]")
        for i, item in enumerate(_pairs(value, "train", where))
    )
    tests = _pairs(value, "test", where)
    inputs = tuple(_grid_at(item, "input", f"{where}: test[{i}]") for i, item in enumerate(tests))
    if solutions is not None:
        outputs = [{"output": grid} for grid in _solution_list(solutions, len(tests), where)]
    else:
        outputs = [item for item in tests if "output" in item]
        if outputs and len(outputs) != len(tests):
            raise InputError(
                f"{where}: expected an output for every test input or for none, "
                f"got {len(outputs)} of {len(tests)}"
            )
    answers = tuple(_grid_at(o, "output", f"{where}: test[{i}]") for i, o in enumerate(outputs))
    return Task(task_id, demonstrations, inputs, answers or None)


def parse_pair(item: Any, where: str) -> Pair:
    """Reads a pair of grids.

    Args:
        item: `{"input": grid, "output": grid}`.
        where: for error texts.

    Raises:
        InputError: naming the first fault.
    """
    return Pair(_grid_at(item, "input", where), _grid_at(item, "output", where))


def _pairs(value: Mapping[str, Any], key: str, where: str) -> list[Any]:
    if key not in value:
        raise InputError(f"{where}: expected the key '{key}', got {_names(value)}")
    items = value[key]
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_PAIRS:
        got = f"one of {len(items)}" if isinstance(items, list) else _short(items)
        raise InputError(f"{where}: {key}: expected a list of 1..{MAX_PAIRS} pairs, got {got}")
    return items


def _grid_at(item: Any, key: str, where: str) -> Grid:
    if not isinstance(item, Mapping) or key not in item:
        got = _names(item) if isinstance(item, Mapping) else _short(item)
        raise InputError(f"{where}: expected an object with the key '{key}', got {got}")
    return parse_grid(item[key], f"{where}.{key}")


def _solution_list(solutions: Any, expected: int, where: str) -> list[Any]:
    if not isinstance(solutions, list) or len(solutions) != expected:
        got = len(solutions) if isinstance(solutions, list) else _short(solutions)
        raise InputError(f"{where}: solutions: expected {expected} output grids, got {got}")
    return solutions


def _names(keys: Iterable[Any]) -> str:
    return "keys " + ", ".join(repr(str(k)[:20]) for k in list(keys)[:6]) if keys else "no keys"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else ""
    return f"{type(value).__name__} {text[:40]}".strip()
