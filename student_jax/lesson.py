"""A task to be learnt: what of it may be shown, and how it is drawn for each step.

In the shape descriptions: `W` tasks at once, `A` drawn copies of a task, `P` demonstrations,
`N` canvas side, `C` slots of the palette.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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
    room_for,
)
from student_jax.vote import views_of


class Form(NamedTuple):
    """What tasks share that are learnt by one program."""

    side: int  # N, of the canvases of all its questions
    pairs: int  # P
    room: int  # C

    @property
    def states(self) -> int:
        """How many a task's demonstrations have: what a step costs follows them."""
        return self.side**2 * self.pairs * self.room


@dataclass(frozen=True)
class Lesson:
    """A task to be learnt."""

    task: Task  # blind
    form: Form
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
    colors = colors_of(task.demonstrations, *task.test_inputs)
    form = Form(
        side=max(side_for(question) for question in open_questions(task)),
        pairs=places_for(count, max(count, PLACES[-1])),  # all of them, however many
        room=room_for(colors),
    )
    return Lesson(task, form, colors, tuple(views_of(views)))


def share_forms(lessons: Sequence[Lesson], most: int) -> list[Lesson]:
    """Gives lessons larger forms, until there are few: again and again the two that cost least.

    A form's programs take longer to compile on a GPU than many tasks take to be learnt. Canvases
    stay as they are: places and slots that are left over are masked, but a larger canvas would
    give a task other answers beside other tasks.

    Args:
        lessons: of any forms.
        most: how many forms may be left, but for one a canvas side.
    """
    counts = Counter(lesson.form for lesson in lessons)
    larger = {form: form for form in counts}

    def cost(pair: tuple[Form, Form]) -> int:
        both = Form(*map(max, *pair))
        return sum(counts[form] * (both.states - form.states) for form in pair)

    while len(counts) > max(most, len({form.side for form in counts})):
        pairs = itertools.combinations(sorted(counts), 2)
        pair = min((pair for pair in pairs if pair[0].side == pair[1].side), key=cost)
        both = Form(*map(max, *pair))
        together = sum(counts.pop(form) for form in pair)
        counts[both] += together
        larger = {form: both if now in pair else now for form, now in larger.items()}
    return [replace(lesson, form=larger[lesson.form]) for lesson in lessons]


def show_plainly(lesson: Lesson) -> Shown:
    """Draws a task's demonstrations once in every view."""
    return _show(lesson, range(len(lesson.views)), [Placement()] * len(lesson.views))


def show_augmented(lesson: Lesson, copies: int, seed: int, step: int) -> Shown:
    """Draws a step's copies: they hang on the seed, the task and the step alone."""
    name = int.from_bytes(hashlib.sha256(lesson.task.task_id.encode()).digest()[:8])
    rng = np.random.default_rng((seed, name, step))
    longest = lesson.task.largest_side
    places = [Placement.draw(rng, longest, lesson.form.side) for _ in range(copies)]
    return _show(lesson, rng.integers(len(lesson.views), size=copies).tolist(), places)


def queries(lesson: Lesson) -> npt.NDArray[np.uint8]:
    """Draws a task's test inputs in every view, u8[views, inputs, N, N]."""
    return np.stack(
        [
            [Augmentation(view).canvas(grid, lesson.form.side) for grid in lesson.task.test_inputs]
            for view in lesson.views
        ]
    )


def _show(lesson: Lesson, views: Sequence[int], places: Sequence[Placement]) -> Shown:
    pairs = lesson.task.demonstrations
    how = [Augmentation(lesson.views[i], place) for i, place in zip(views, places, strict=True)]
    side, most, room = lesson.form
    drawn = [demonstration_canvases(pairs, side, most, each) for each in how]
    canvases, masks = zip(*drawn, strict=True)
    palettes = [palette_of(lesson.colors, each, room) for each in how]
    return Shown(np.array(views), np.stack(canvases), np.stack(masks), np.stack(palettes))


def stack(shown: Sequence[Shown]) -> Shown:
    """Gives several tasks' demonstrations a leading axis W."""
    return jax.tree.map(lambda *x: np.stack(x), *shown)
