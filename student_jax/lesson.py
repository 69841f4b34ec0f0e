"""A task to be learnt: what of it may be shown, and how it is drawn for each step.

In the shape descriptions: `W` tasks at once, `A` drawn copies of a task, `P` demonstrations,
`N` canvas side, `C` slots of the palette.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
import numpy.typing as npt

from bridge.arc import Task, open_questions
from bridge.canvas import Placement, side_for
from bridge.errors import InputError
from bridge.transforms import Transform
from student_jax.batch import (
    PLACES,
    Array,
    Augmentation,
    colors_of,
    demonstration_canvases,
    palette_of,
    places_for,
)
from student_jax.vote import views_of


@dataclass(frozen=True)
class Lesson:
    """A task to be learnt."""

    task: Task  # blind
    side: int  # N, one for all its questions
    pairs: int  # P
    colors: tuple[int, ...]  # that the task shows
    views: tuple[Transform, ...]  # none recolors


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shown:
    """A task's demonstrations; of one task, or with a leading axis W of several."""

    view: Array  # i32[A], which of the lesson's views each copy is drawn in
    demonstrations: Array  # u8[A, P, 2, N, N]
    mask: Array  # bool[A, P]
    palette: Array  # u8[A, C]


def make_lesson(task: Task, views: int = 1) -> Lesson:
    """Takes from a task what may be learnt from; its test outputs are dropped first.

    Args:
        task: with or without answers.
        views: in which it is learnt: those that vote on the answer.

    Raises:
        InputError: if it has no demonstration.
    """
    task = task.blind()
    count = len(task.demonstrations)
    if not count:
        raise InputError(f"task {task.task_id}: expected demonstrations to adapt to, got none")
    return Lesson(
        task=task,
        side=max(side_for(question) for question in open_questions(task)),
        pairs=places_for(count, max(count, PLACES[-1])),  # all of them, however many
        colors=colors_of(task.demonstrations, *task.test_inputs),
        views=tuple(views_of(views)),
    )


def show_plainly(lesson: Lesson) -> Shown:
    """Draws a task's demonstrations once in every view."""
    return _show(lesson, range(len(lesson.views)), [Placement()] * len(lesson.views))


def show_augmented(lesson: Lesson, copies: int, seed: int, step: int) -> Shown:
    """Draws a step's copies: they hang on the seed, the task and the step alone."""
    name = int.from_bytes(hashlib.sha256(lesson.task.task_id.encode()).digest()[:8])
    rng = np.random.default_rng((seed, name, step))
    longest = lesson.task.largest_side
    places = [Placement.draw(rng, longest, lesson.side) for _ in range(copies)]
    return _show(lesson, rng.integers(len(lesson.views), size=copies).tolist(), places)


def queries(lesson: Lesson) -> npt.NDArray[np.uint8]:
    """Draws a task's test inputs in every view, u8[views, inputs, N, N]."""
    return np.stack(
        [
            [Augmentation(view).canvas(grid, lesson.side) for grid in lesson.task.test_inputs]
            for view in lesson.views
        ]
    )


def _show(lesson: Lesson, views: Sequence[int], places: Sequence[Placement]) -> Shown:
    pairs = lesson.task.demonstrations
    how = [Augmentation(lesson.views[i], place) for i, place in zip(views, places, strict=True)]
    drawn = [demonstration_canvases(pairs, lesson.side, lesson.pairs, each) for each in how]
    canvases, masks = zip(*drawn, strict=True)
    palettes = [palette_of(lesson.colors, each) for each in how]
    return Shown(np.array(views), np.stack(canvases), np.stack(masks), np.stack(palettes))


def stack(shown: Sequence[Shown]) -> Shown:
    """Gives several tasks' demonstrations a leading axis W."""
    return jax.tree.map(lambda *x: np.stack(x), *shown)
