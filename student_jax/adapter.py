"""Test-time training: a student learns each task's own demonstrations, then answers.

Nothing but demonstrations is learnt from: each is left out in turn and answered from the others,
and all are augmented (VARC, arXiv 2511.14761, section 4). Each task starts from the same weights
and learns alone; many learn at once in one compiled program, one for each canvas side.

In the shape descriptions: `W` tasks at once, `A` augmented copies of a task, `P` demonstrations,
`N` canvas side, `K` task tokens a demonstration, `D` width.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from bridge.arc import Task, open_questions
from bridge.canvas import BACKGROUND, Attempts, decode
from bridge.errors import InputError
from bridge.stop import Stop
from student_jax.batch import Array, Augmentation
from student_jax.data import Examples
from student_jax.lesson import Lesson, Shown, make_lesson, show, show_augmented, stack
from student_jax.solver import Solver, answer_all
from student_jax.students import TaskTokens, make_student
from student_jax.terms import cross_entropy

RECENT = 10  # steps over which the fit is told
FITTED = 20  # steps in a row with every copy of every demonstration exact: learnt enough


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a task is learnt."""

    tier: Literal["tokens", "weights"] = "weights"
    """what is learnt: the task tokens alone, or all of the student's weights"""
    steps: int = 100
    """at most, for each task"""
    seconds: float = 60.0
    """at most, for each task on average; what is learnt by then answers"""
    lr: float = 1e-3
    """Adam's; it falls to 0 along a cosine, sooner where the time will not do for all steps"""
    copies: int = 4
    """weights: augmented copies of a task's demonstrations a step, all of them answered"""
    tasks_at_once: int | None = None
    """at most, in one program, where all wait for the slowest; by default 1 on a CPU, which one
    task fills, and else 16"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.steps, self.copies, self.tasks_at_once or 1) < 1 or self.seed < 0:
            raise ValueError("steps, copies, tasks_at_once: expected at least 1, seed 0")
        if not (self.seconds > 0 and self.lr > 0):
            raise ValueError("seconds, lr: expected more than 0")


@dataclass(frozen=True)
class Adapted:
    """What became of a task."""

    attempts: tuple[Attempts, ...]  # one a test input; their confidence is `fit`
    fit: float  # share of right cells in the last steps' copies, before they were learnt from
    steps: int
    seconds: float  # its share of the group's


class Adapter:
    """Learns tasks with a trained student, which itself stays as it is."""

    def __init__(self, solver: Solver, config: AdaptConfig) -> None:
        """Prepares the programs; each compiles once for every canvas side and count of pairs.

        Raises:
            InputError: if the student reads a teacher's features: no demonstration has any.
        """
        if solver.config.model.reads_features:
            raise InputError("adapt: expected a grid student, got one that reads features")
        self.solver, self.config = solver, config
        self._model = make_student(solver.config.model, solver.feature_width)
        self._tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.lr))
        self._at_once = config.tasks_at_once or (1 if jax.default_backend() == "cpu" else 16)
        self._begin = jax.jit(jax.vmap(self._begin_one, in_axes=(None, 0)))
        self._update = jax.jit(
            jax.vmap(self._update_one, in_axes=(0, 0, None, 0, 0, None)), donate_argnums=(0, 1)
        )
        self._say = jax.jit(self._from_tokens)

    def adapt(self, tasks: Sequence[Task], views: int = 1) -> Iterator[tuple[str, Adapted]]:
        """Yields each task's id and what became of it, group by group.

        A signal ends the learning, not the answering: what is learnt by then answers.

        Args:
            tasks: test outputs are dropped before anything else.
            views: in which weights learn and answer, to vote on; tokens know only one.
        """
        if self.config.tier == "tokens" and views > 1:
            raise InputError("views: task tokens are learnt in one view; pass --views 1")
        groups: dict[tuple[int, int], list[Lesson]] = defaultdict(list)
        for lesson in (make_lesson(task, views) for task in tasks):
            groups[lesson.side, lesson.pairs].append(lesson)
        with Stop() as stop:
            for _, lessons in sorted(groups.items()):
                start = 0
                while left := len(lessons) - start:
                    # Powers of two: few programs, and none is filled up with idle copies.
                    size = 1 << (min(left, self._at_once).bit_length() - 1)
                    yield from self._group(lessons[start : start + size], stop)
                    start += size

    def _group(self, lessons: Sequence[Lesson], stop: Stop) -> Iterator[tuple[str, Adapted]]:
        """Learns tasks of one shape together."""
        config = self.config
        clock = Clock(config.steps, config.seconds * len(lessons))
        plain = stack([show(lesson, [Augmentation()]) for lesson in lessons])
        learnt, opt_state = self._begin(self.solver.params, plain)
        taken = np.zeros(len(lessons), int)
        in_a_row = np.zeros(len(lessons), int)
        fits: list[list[float]] = [[] for _ in lessons]
        bar = tqdm(total=config.steps, desc=f"adapt {len(lessons)} tasks", unit="step")
        for step in range(config.steps):
            active = in_a_row < FITTED
            progress = clock.progress(step)
            if progress >= 1 or stop.requested or not active.any():
                break
            shown = plain
            if config.tier == "weights":
                shown = stack(
                    [show_augmented(x, config.copies, config.seed, step) for x in lessons]
                )
            learnt, opt_state, cells, exact = self._update(
                learnt, opt_state, self.solver.params, shown, active, rate_at(progress)
            )
            taken += active
            in_a_row = np.where(active, np.where(exact, in_a_row + 1, 0), in_a_row)
            for i in np.flatnonzero(active):
                fits[i].append(float(cells[i]))
            bar.set_postfix_str(f"fitted {np.mean([recent(x) for x in fits]):.1%} of cells")
            bar.update()
        bar.close()
        for i, lesson in enumerate(lessons):
            own = jax.tree.map(lambda x, i=i: x[i], learnt)
            fit = recent(fits[i])
            attempts = tuple(
                replace(attempt, confidence=fit) for attempt in self._answer(own, lesson)
            )
            seconds = clock.seconds() / len(lessons)
            yield lesson.task.task_id, Adapted(attempts, fit, int(taken[i]), seconds)

    def _begin_one(self, params: Any, shown: Shown) -> tuple[Any, Any]:
        """Returns what one task learns, as it starts, and its optimizer's state."""
        learnt = params
        if self.config.tier == "tokens":
            learnt = self._encode(params, shown).tokens[0]
        return learnt, self._tx.init(learnt)

    def _update_one(
        self, learnt: Any, opt_state: Any, params: Any, shown: Shown, active: Any, rate: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """Makes one update of one task, or none if it has learnt enough.

        Returns:
            What is learnt, the optimizer's state, and of the answers before the update the share
            of right cells, border included, and whether all are exact.
        """
        grads, (cells, exact) = jax.grad(self._loss, has_aux=True)(learnt, params, shown)
        updates, after = self._tx.update(grads, opt_state, learnt)
        new = optax.apply_updates(learnt, optax.tree.scale(rate, updates)), after
        kept = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, (learnt, opt_state))
        return *kept, cells, exact

    def _loss(
        self, learnt: Any, params: Any, shown: Shown
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the mean cross entropy over the demonstrations of one task, nats a cell.

        With it the share of right cells, border included, and whether all grids are exact.
        """
        answers, mask = jnp.asarray(shown.demonstrations)[:, :, 1], jnp.asarray(shown.mask)
        logits = self._logits(learnt, params, shown)
        nats = cross_entropy(logits, answers).mean((2, 3))
        right, drawn = logits.argmax(-1) == answers, answers != BACKGROUND
        cells = (right & drawn).sum((2, 3)) / drawn.sum((2, 3))
        exact = ((right | ~drawn).all((2, 3)) | ~mask).all()
        nats, cells = ((x * mask).sum() / mask.sum() for x in (nats, cells))
        return nats, (cells, exact)

    def _logits(self, learnt: Any, params: Any, shown: Shown) -> jax.Array:
        """Answers one task's demonstrations with what was learnt, f32[A, P, N, N, V].

        Weights learn to answer a demonstration from the others; task tokens stand for all of them.
        """
        inputs = shown.demonstrations[:, :, 0]
        if self.config.tier == "tokens":
            return self._from_tokens(learnt, params, shown.mask[0], inputs[0])[None]
        variables = {"params": learnt}
        task = self._encode(learnt, shown)
        logits: Any = self._model.apply(variables, task, inputs, method="answer_each")
        return logits.astype(jnp.float32)

    def _from_tokens(
        self, tokens: jax.Array, params: Any, shown: Array, inputs: Array
    ) -> jax.Array:
        """Answers inputs u8[Q, N, N] from a task's tokens f32[P * K, D], f32[Q, N, N, V]."""
        mask = jnp.repeat(jnp.asarray(shown), self.solver.config.model.tokens_per_pair)
        task = TaskTokens(*(jnp.repeat(x[None], len(inputs), axis=0) for x in (tokens, mask)))
        logits, _ = self._model.apply({"params": params}, task, inputs, method="answer")
        return logits.astype(jnp.float32)

    def _encode(self, params: Any, shown: Shown) -> TaskTokens:
        task, _ = self._model.apply(
            {"params": params}, shown.demonstrations, shown.mask, method="encode_task"
        )
        return task

    def _answer(self, learnt: Any, lesson: Lesson) -> list[Attempts]:
        """Answers a task's test inputs with what was learnt of it."""
        questions, solver = open_questions(lesson.task), self.solver
        if self.config.tier == "weights":
            data = replace(solver.config.data, max_demonstrations=lesson.pairs)
            examples = Examples(questions, {}, solver.config.model, data, None, side=lesson.side)
            views = len(lesson.views)
            answers = answer_all(solver.predict, learnt, solver.scaling, examples, views)
            return [answers[question.example_id] for question in questions]
        inputs = np.stack([Augmentation().canvas(q.query, lesson.side) for q in questions])
        shown = np.arange(lesson.pairs) < len(lesson.task.demonstrations)
        logits = self._say(learnt, solver.params, shown, inputs)
        return [decode(values) for values in np.asarray(jax.nn.log_softmax(logits))]


class Clock:
    """How far a group of tasks has come on its way, by steps or by time."""

    def __init__(self, steps: int, budget: float) -> None:
        """Starts; the budget is in seconds."""
        self._steps, self._budget = steps, budget
        self._started = time.perf_counter()
        self._first = 0.0  # seconds until the first step was done: it was compiled

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def progress(self, step: int) -> float:
        """Returns the share that is done after so many steps: of the time, if that ends first."""
        passed = self.seconds()
        if step == 1:
            self._first = passed
        each = (passed - self._first) / (step - 1) if step > 1 else 0.0
        if passed + (self._steps - step) * each > self._budget:
            return max(passed / self._budget, step / self._steps)
        return step / self._steps


def rate_at(progress: float) -> float:
    """The share of the learning rate, along a cosine (arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def recent(fits: Sequence[float]) -> float:
    """The mean over the last steps; 0 before the first."""
    return float(np.mean(fits[-RECENT:])) if fits else 0.0
