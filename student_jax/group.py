"""Tasks of one shape that learn at once in one compiled program, and how they answer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from student_jax.config import AdaptConfig
from student_jax.course import Course
from student_jax.keep import make_room_for_programs
from student_jax.learner import Fit, Learner
from student_jax.lesson import Lesson, Shown, queries, show_augmented, show_plainly, stack
from student_jax.vote import Said


class Group:
    """Tasks of one shape. Each learns alone, but for weights that a caller shares among groups."""

    def __init__(
        self,
        learner: Learner,
        config: AdaptConfig,
        params: Any,
        lessons: Sequence[Lesson],
        place: Callable[[Any], Any] = lambda x: x,
        size: int | None = None,
    ) -> None:
        """Begins, from a student's weights on the device that is to be used.

        Args:
            learner: the programs.
            config: how tasks are learnt.
            params: the student's weights.
            lessons: the tasks, of one form.
            place: puts what has a leading axis of tasks on devices; by default where params are.
            size: of the program, in tasks, if larger: what fills it up learns nothing.
        """
        make_room_for_programs()  # every shape has programs of its own
        rounds = config.rounds if config.tier == "weights" else 1
        self.courses = [Course(lesson, rounds) for lesson in lessons]
        self._learner, self._config, self._params, self._place = learner, config, params, place
        self._idle = (size or len(lessons)) - len(lessons)
        self._drawn: tuple[int, Shown] | None = None  # of the step that comes next
        self._plain = self._stack([show_plainly(lesson) for lesson in lessons])
        *own, self.tasks = learner.begin(params, self._plain)
        # What the tasks learn, and the optimizer's state: placed as an update will leave it, or the
        # second one would compile again.
        self.own = place(tuple(own))

    def show(self, step: int) -> Shown:
        """Draws a step's copies of every task."""
        config, lessons = self._config, [course.lesson for course in self.courses]
        shown = [show_augmented(each, config.copies, config.seed, step) for each in lessons]
        return self._stack(shown)

    def step(self, step: int, progress: float) -> None:
        """Makes one update of every task that has anything left to learn."""
        lr = self._config.lr
        rates = np.array([lr * each.rate(step, progress) for each in self.courses], np.float32)
        shown = self._drawn[1] if self._drawn and self._drawn[0] == step else self.show(step)
        *own, fit = self._learner.update(
            *self.own, self._params, self.tasks, shown, self._filled(rates)
        )
        self.own = tuple(own)
        self._drawn = step + 1, self.show(step + 1)  # while the device is busy with this one
        take_note(self.courses, fit)

    def close(self, which: npt.NDArray[np.bool_], weights: Any = None) -> None:
        """Ends rounds: what is learnt by then answers.

        Args:
            which: bool[W], whose.
            weights: those that groups share, if they do.
        """
        for i in np.flatnonzero(which).tolist():
            self.courses[i].close(self._answer(i, weights))

    def rehearse(self, weights: Any = None) -> float:
        """Answers before anything is learnt, to know the seconds that answering takes.

        Twice, since the first compiles: after the learning no time is left for that. Each number of
        test inputs has a program of its own.
        """
        make_room_for_programs()
        counts = [len(course.lesson.task.test_inputs) for course in self.courses]
        seconds = 0.0
        for count in sorted(set(counts)):
            first = counts.index(count)
            self._answer(first, weights)
            started = time.perf_counter()
            self._answer(first, weights)
            seconds += (time.perf_counter() - started) * counts.count(count)
        return seconds

    def begin_anew(self, which: npt.NDArray[np.bool_], progress: float) -> None:
        """Begins the next rounds, where any are left, from new random weights.

        None begins when less is left of the budget than a round took in the mean: it would hardly
        end, and what is cut short does not vote.

        Args:
            which: bool[W], whose round was closed.
            progress: the share of the budget that is spent.
        """
        for course in itertools.compress(self.courses, which):
            if 1 - progress < progress / course.closed:
                course.end()
        again = which & np.array([not course.is_over for course in self.courses])
        if again.any():
            rounds = self._filled(np.array([each.closed for each in self.courses]))
            anew = self._learner.begin_anew(self._config.seed, rounds, self._plain)[:2]
            self.own = self._learner.select(self._filled(again), anew, self.own)

    def _stack(self, shown: Sequence[Shown]) -> Shown:
        return self._place(stack([*shown, *[shown[-1]] * self._idle]))

    def _filled(self, each: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fills what there is for each task up with zeros."""
        return np.pad(each, (0, self._idle))

    def _answer(self, i: int, weights: Any) -> list[list[Said]]:
        """Answers one task's test inputs in its views."""
        learnt, task = take((self.own[0], self.tasks), i)
        if weights is not None:
            learnt = replace(learnt, weights=weights)
        lesson = self.courses[i].lesson
        said = np.asarray(self._learner.say(learnt, self._params, task, queries(lesson)))
        return [list(zip(lesson.views, each, strict=True)) for each in said.swapaxes(0, 1)]


@jax.jit  # one program, not one for each array
def take(tree: Any, i: int) -> Any:
    """Returns one task's part of what a group holds."""
    return jax.tree.map(lambda x: x[i], tree)


def take_note(courses: Sequence[Course], fit: Fit) -> None:
    """Tells each task's course how a step's copies were answered."""
    told = (each.tolist() for each in (fit.loss, fit.cells, fit.exact))
    for course, loss, cells, exact in zip(courses, *told, strict=False):  # what fills up is last
        course.see(loss, cells, exact=exact)
