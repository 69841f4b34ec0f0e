"""A task to be learnt: what of it may be shown, and how it is drawn for each step.

In the shape descriptions: `W` tasks at once, `A` augmented copies of a task, `P` demonstrations,
`N` canvas side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from bridge.arc import Task, open_questions
from bridge.canvas import Placement, side_for
from bridge.errors import InputError
from bridge.transforms import Transform
from student_jax.batch import Array, Augmentation, demonstration_canvases
from student_jax.vote import views_of

PAIRS = (2, 3, 4, 6, 10)  # P is the smallest of these that holds a task's demonstrations, or 10


@dataclass(frozen=True)
class Lesson:
    """A task to be learnt."""

    task: Task  # blind
    side: int  # N, one for all its questions
    pairs: int  # P
    views: tuple[Transform, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shown:
    """A task's demonstrations; of one task, or with a leading axis W of several."""

    demonstrations: Array  # u8[A, P, 2, N, N]
    mask: Array  # bool[A, P]


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
        pairs=next((p for p in PAIRS if p >= count), PAIRS[-1]),
        views=tuple(views_of(task.task_id, views)),
    )


def show(lesson: Lesson, augmentations: Sequence[Augmentation]) -> Shown:
    """Draws a task's demonstrations once for each augmentation."""
    pairs = lesson.task.demonstrations
    drawn = [demonstration_canvases(pairs, lesson.side, lesson.pairs, a) for a in augmentations]
    canvases, masks = zip(*drawn, strict=True)
    return Shown(np.stack(canvases), np.stack(masks))


def show_augmented(lesson: Lesson, copies: int, seed: int, step: int) -> Shown:
    """Draws a step's copies: they hang on the seed, the task and the step alone."""
    name = int.from_bytes(hashlib.sha256(lesson.task.task_id.encode()).digest()[:8])
    rng = np.random.default_rng((seed, name, step))
    views = [lesson.views[i] for i in rng.integers(len(lesson.views), size=copies)]
    longest = lesson.task.largest_side
    return show(lesson, [Augmentation(v, Placement.draw(rng, longest, lesson.side)) for v in views])


def stack(shown: Sequence[Shown]) -> Shown:
    """Gives several tasks' demonstrations a leading axis W."""
    return jax.tree.map(lambda *x: np.stack(x), *shown)
