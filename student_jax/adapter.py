"""Test-time training: a student learns each task's own demonstrations, then answers.

Each task starts from the same weights and learns alone. Tasks of one shape learn at once in one
compiled program, and the shapes are spread over the devices. A task that is learnt before its time
is up is learnt again, from new weights: what fits in two ways and answers alike deserves the vote.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from bridge.arc import Task
from bridge.canvas import Attempts, decode
from bridge.errors import InputError
from bridge.stop import Stop
from bridge.transforms import Transform
from student_jax.batch import room_for
from student_jax.config import AdaptConfig
from student_jax.course import Course, Seen
from student_jax.learner import Fit, Learner
from student_jax.lesson import Lesson, make_lesson, queries, show_augmented, show_plainly, stack
from student_jax.pace import Clock
from student_jax.solver import Solver
from student_jax.spread import Device, spread

Watch = Callable[[str, Seen], None]  # is told a task's id and how far it has come


@dataclass(frozen=True)
class Adapted:
    """What became of a task."""

    attempts: tuple[Attempts, ...]  # one a test input; their confidence is `fit`
    fit: float  # share of right cells in the last steps' copies, before they were learnt from
    steps: int
    seconds: float  # its share of the group's
    rounds: int  # that vote


class Adapter:
    """Learns tasks with a trained student, which itself stays as it is."""

    def __init__(self, solver: Solver, config: AdaptConfig) -> None:
        """Prepares the programs.

        Raises:
            InputError: if the student reads a teacher's features: no demonstration has any.
        """
        if solver.config.model.reads_features:
            raise InputError("adapt: expected a grid student, got one that reads features")
        self.solver, self.config = solver, config
        self.learner = Learner(solver.config.model, solver.feature_width, config)
        self._at_once = config.tasks_at_once or (1 if jax.default_backend() == "cpu" else 16)

    def adapt(
        self,
        tasks: Sequence[Task],
        views: int = 1,
        watch: Watch | None = None,
        stop: Stop | None = None,
    ) -> Iterator[tuple[str, Adapted]]:
        """Yields each task's id and what became of it, as they are done.

        A signal ends the learning, not the answering: what is learnt by then answers.

        Args:
            tasks: test outputs are dropped before anything else.
            views: in which a task is learnt and answered, to vote on.
            watch: is told of every step, in the thread that makes it.
            stop: requesting it, from any thread, does what a signal does.
        """
        shapes: dict[tuple[int, int, int], list[Lesson]] = defaultdict(list)
        for lesson in (make_lesson(task, views) for task in tasks):
            shapes[lesson.side, lesson.pairs, room_for(lesson.colors)].append(lesson)
        groups = {shape: self._groups(lessons) for shape, lessons in sorted(shapes.items())}
        with stop or Stop() as stop:
            learn = partial(self._learn, stop=stop, watch=watch)
            yield from spread(groups, learn, stop)

    def _groups(self, lessons: Sequence[Lesson]) -> list[Sequence[Lesson]]:
        """Cuts tasks of one shape into those that learn together."""
        groups, start = [], 0
        while left := len(lessons) - start:
            # Powers of two: few programs, and none is filled up with idle copies.
            size = 1 << (min(left, self._at_once).bit_length() - 1)
            groups.append(lessons[start : start + size])
            start += size
        return groups

    def _learn(
        self, lessons: Sequence[Lesson], device: Device, *, stop: Stop, watch: Watch | None
    ) -> Iterator[tuple[str, Adapted]]:
        """Learns tasks of one shape together, on one device."""
        config = self.config
        clock = Clock(config.steps, config.seconds * len(lessons))
        group = Group(self.learner, jax.device_put(self.solver.params, device), lessons)
        clock.keep(group.rehearse())
        name = lessons[0].task.task_id if len(lessons) == 1 else f"{len(lessons)} tasks"
        hidden = watch is not None  # who watches draws a bar of their own
        with tqdm(
            total=config.steps, desc=f"adapt {name}", unit="step", leave=False, disable=hidden
        ) as bar:
            for step in range(config.steps):
                progress = clock.progress(step)
                if progress >= 1 or stop.requested or all(x.is_over for x in group.courses):
                    break
                group.step(step, progress)
                if watch:
                    for course in group.courses:
                        watch(course.lesson.task.task_id, course.seen(progress))
                fitted = np.array([course.is_fitted for course in group.courses])
                if fitted.any():
                    group.close(fitted)
                    group.begin_anew(fitted)
                fit = np.mean([course.recent for course in group.courses])
                bar.set_postfix_str(f"fitted {fit:.1%} of cells")
                bar.update()
        # A later round that was cut short does not vote.
        group.close(np.array([not course.closed for course in group.courses]))
        seconds = clock.seconds() / len(lessons)
        for each in group.courses:
            adapted = Adapted(each.attempts(), each.fit, each.steps, seconds, each.closed)
            yield each.lesson.task.task_id, adapted


class Group:
    """Tasks of one shape that learn together."""

    def __init__(self, learner: Learner, params: Any, lessons: Sequence[Lesson]) -> None:
        """Begins, from a student's weights on the device that is to be used."""
        config = learner.config
        rounds = config.rounds if config.tier == "weights" else 1
        self.courses = [Course(lesson, rounds) for lesson in lessons]
        self._learner, self._params = learner, params
        self._plain = stack([show_plainly(lesson) for lesson in lessons])
        self._learnt, self._opt_state, self._tasks = learner.begin(params, self._plain)

    def step(self, step: int, progress: float) -> None:
        """Makes one update of every task that has anything left to learn."""
        config, lessons = self._learner.config, [course.lesson for course in self.courses]
        shown = stack([show_augmented(x, config.copies, config.seed, step) for x in lessons])
        rates = np.array([config.lr * x.rate(step, progress) for x in self.courses], np.float32)
        self._learnt, self._opt_state, fit = self._learner.update(
            self._learnt, self._opt_state, self._params, self._tasks, shown, rates
        )
        take_note(self.courses, fit)

    def close(self, which: npt.NDArray[np.bool_]) -> None:
        """Ends rounds: what is learnt by then answers."""
        for i in np.flatnonzero(which).tolist():
            self.courses[i].close(self._answer(i))

    def rehearse(self) -> float:
        """Answers before anything is learnt, to know the seconds that answering takes.

        Twice, since the first compiles: after the learning no time is left for that.
        """
        self._answer(0)
        started = time.perf_counter()
        self._answer(0)
        return (time.perf_counter() - started) * len(self.courses)

    def begin_anew(self, which: npt.NDArray[np.bool_]) -> None:
        """Begins the next rounds, where any are left, from new random weights."""
        again = which & np.array([not course.is_over for course in self.courses])
        if again.any():
            seeds = self._learner.config.seed + np.array([each.closed for each in self.courses])
            anew = self._learner.begin_anew(seeds, self._plain)[:2]
            old = self._learnt, self._opt_state
            self._learnt, self._opt_state = self._learner.select(again, anew, old)

    def _answer(self, i: int) -> list[list[tuple[Transform, Attempts]]]:
        """Answers one task's test inputs in its views."""
        own, task = jax.tree.map(lambda x: x[i], (self._learnt, self._tasks))
        lesson = self.courses[i].lesson
        said = np.asarray(self._learner.say(own, self._params, task, queries(lesson)))
        return read(lesson, said)


def take_note(courses: Sequence[Course], fit: Fit) -> None:
    """Tells each task's course how a step's copies were answered."""
    told = (each.tolist() for each in (fit.loss, fit.cells, fit.exact))
    for course, loss, cells, exact in zip(courses, *told, strict=True):
        course.see(loss, cells, exact=exact)


def read(lesson: Lesson, said: npt.NDArray[np.floating]) -> list[list[tuple[Transform, Attempts]]]:
    """Reads answers to a task's test inputs in its views, f32[views, Q, N, N, V]; Q lists."""
    return [
        [(view, decode(values)) for view, values in zip(lesson.views, each, strict=True)]
        for each in said.swapaxes(0, 1)
    ]
