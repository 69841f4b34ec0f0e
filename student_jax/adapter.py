"""Test-time training: a student learns each task's own demonstrations, then answers.

Each task starts from the same weights and learns alone, but for the tier "joint". Tasks of one
shape learn at once in one compiled program, and the shapes are spread over the devices. A task that
is learnt before its time is up is learnt again, from new weights: what fits in two ways and answers
alike deserves the vote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from bridge.arc import Task
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.stop import Stop
from student_jax.config import AdaptConfig
from student_jax.course import Course, Seen
from student_jax.group import Group
from student_jax.learner import learner_of
from student_jax.lesson import Form, Lesson, make_lesson, share_forms
from student_jax.pace import Clock
from student_jax.solver import Solver
from student_jax.spread import Device, spread
from student_jax.together import Together

Watch = Callable[[str, Seen], None]  # is told a task's id and how far it has come
# On a GPU, where a form compiles for a minute and a group leaves it idle while the host works.
FORMS = 12
GROUPS = 4  # that learn at once on one device
AT_ONCE = 16  # tasks of a group


@dataclass(frozen=True)
class Adapted:
    """What became of a task."""

    attempts: tuple[Attempts, ...]  # one a test input; their confidence is `fit`
    fit: float  # share of right cells in the last steps' copies, before they were learnt from
    steps: int
    seconds: float  # its share of the group's
    rounds: int  # that vote
    agree: float  # share of all rounds' views that answer as the first attempt; with one view, how
    # sure that is


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
        self._on_cpu, self._jointly = jax.default_backend() == "cpu", config.tier == "joint"
        own = solver.config.model
        model = own if self._on_cpu else own.to_learn_many()
        self.learner = learner_of(model, solver.feature_width, config)
        alone = self._on_cpu and not self._jointly
        self._at_once = config.tasks_at_once or (1 if alone else AT_ONCE)

    def adapt(
        self,
        tasks: Sequence[Task],
        views: int = 1,
        watch: Watch | None = None,
        stop: Stop | None = None,
    ) -> Iterator[tuple[str, Adapted]]:
        """Yields each task's id and what became of it, as they are done.

        A request to stop ends the learning, not the answering: what is learnt by then answers.
        Tasks that have not begun are left out, but one a device.

        Args:
            tasks: test outputs are dropped before anything else.
            views: in which a task is learnt and answered, to vote on.
            watch: is told of every step, in the thread that makes it.
            stop: may be requested from any thread, or by a signal.
        """
        lessons = [make_lesson(task, views) for task in tasks]
        forms: dict[Form, list[Lesson]] = defaultdict(list)
        for lesson in lessons if self._on_cpu else share_forms(lessons, FORMS):
            forms[lesson.form].append(lesson)
        groups = {form: self._groups(each) for form, each in sorted(forms.items())}
        stop = stop or Stop()
        if self._jointly:
            together = [some for each in groups.values() for some, _ in each]
            yield from self._learn_together(together, stop, watch)
            return
        count = sum(map(len, groups.values()))
        beside = 1 if self._on_cpu else max(1, min(GROUPS, count // jax.local_device_count()))
        learn = partial(self._learn, beside=beside, stop=stop, watch=watch)
        yield from spread(groups, learn, stop, beside)

    def _groups(self, lessons: Sequence[Lesson]) -> list[tuple[Sequence[Lesson], int]]:
        """Cuts tasks of one form into those that learn together, each with its program's size.

        Each size compiles. On a GPU, where that takes a minute, there is one, and the last group is
        filled up; elsewhere sizes are powers of two, and none is, as what fills up costs as much.
        """
        if not (self._on_cpu or self._jointly):
            size = -(-len(lessons) // -(-len(lessons) // self._at_once))
            return [(lessons[i : i + size], size) for i in range(0, len(lessons), size)]
        groups, start = [], 0
        while left := len(lessons) - start:
            size = 1 << (min(left, self._at_once).bit_length() - 1)
            groups.append((lessons[start : start + size], size))
            start += size
        return groups

    def _learn(
        self,
        piece: tuple[Sequence[Lesson], int],
        device: Device,
        *,
        beside: int,
        stop: Stop,
        watch: Watch | None,
    ) -> Iterator[tuple[str, Adapted]]:
        """Learns tasks of one form at once, each alone, on one device.

        Args:
            piece: the tasks, and how many the program takes.
            device: to learn on.
            beside: groups that the device has at once, and its time is theirs alike.
            stop: see `adapt`.
            watch: see `adapt`.
        """
        (lessons, size), config = piece, self.config
        clock = Clock(config.steps, config.seconds * len(lessons) * beside)
        params = jax.device_put(self.solver.params, device)
        group = Group(self.learner, config, params, lessons, size=size)
        if not stop.requested:
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
                    group.begin_anew(fitted, clock.progress(step + 1))
                fit = np.mean([course.seen(progress).fit for course in group.courses])
                bar.set_postfix_str(f"fitted {fit:.1%} of cells")
                bar.update()
        # A later round that was cut short does not vote.
        group.close(np.array([not course.closed for course in group.courses]))
        yield from told(group.courses, clock, beside)

    def _learn_together(
        self, groups: Sequence[Sequence[Lesson]], stop: Stop, watch: Watch | None
    ) -> Iterator[tuple[str, Adapted]]:
        """Learns all tasks with one copy of the weights, on all devices."""
        config, count = self.config, sum(map(len, groups))
        steps = config.steps * len(groups)
        # In its first round over the groups every step may compile.
        clock = Clock(steps, config.seconds * count, compiling=len(groups))
        together = Together(self.learner, config, self.solver.params, groups)
        clock.keep(together.rehearse())
        bar = tqdm(
            total=steps, desc=f"adapt {count} tasks jointly", leave=False, disable=bool(watch)
        )
        with bar:
            for step in range(steps):
                progress = clock.progress(step)
                if progress >= 1 or stop.requested or together.is_fitted:
                    break
                seen = together.step(step, progress)
                for course in seen if watch else ():
                    watch(course.lesson.task.task_id, course.seen(progress))  # type: ignore[misc]
                bar.set_postfix_str(f"fitted {together.fit:.1%} of cells")
                bar.update()
        together.close()
        yield from told(together.courses, clock)


def told(courses: Sequence[Course], clock: Clock, beside: int = 1) -> Iterator[tuple[str, Adapted]]:
    """Tells what became of tasks, each of which took an equal share of the time, its vote's too.

    Args:
        courses: of the tasks.
        clock: theirs.
        beside: so many shared the time with them.
    """
    votes = [each.vote() for each in courses]
    seconds = clock.seconds() / len(courses) / beside
    for course, voted in zip(courses, votes, strict=True):
        yield (
            course.lesson.task.task_id,
            Adapted(
                attempts=tuple(replace(each, confidence=course.fit) for each in voted),
                fit=course.fit,
                steps=course.steps,
                seconds=seconds,
                rounds=course.closed,
                agree=float(np.mean([each.confidence for each in voted])),
            ),
        )
