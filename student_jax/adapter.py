"""Test-time training: a student learns each task's own demonstrations, then answers.

Nothing but demonstrations is learnt from: each is answered from the task's tokens, which are learnt
with the weights or alone, and all are augmented (VARC, arXiv 2511.14761, section 4). Each task
starts from the same weights and learns alone; many learn at once in one compiled program, one for
each shape of lesson.

In the shape descriptions: `W` tasks at once, `A` augmented copies of a task, `P` demonstrations,
`Q` queries, `N` canvas side, `C` slots of the palette, `K` task tokens a demonstration, `D` width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from bridge.arc import Task
from bridge.canvas import BACKGROUND, Attempts, decode
from bridge.errors import InputError
from bridge.stop import Stop
from student_jax.batch import room_for
from student_jax.grid_student import TaskTokens
from student_jax.lesson import (
    Lesson,
    Shown,
    make_lesson,
    queries,
    show_augmented,
    show_plainly,
    stack,
)
from student_jax.pace import Clock, rate_at
from student_jax.solver import Solver
from student_jax.students import make_student
from student_jax.terms import cross_entropy
from student_jax.vote import tally

STATES = 2**15  # cells x colors that are answered at once: memory follows them
RECENT = 10  # steps over which the fit is told
TOKENS_RATE = 3.0  # times the learning rate: tokens are the task's alone
FITTED = 20  # steps in a row with every copy of every demonstration exact: learnt enough


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a task is learnt."""

    tier: Literal["tokens", "weights"] = "weights"
    """what is learnt: the task tokens alone, or all of the student's weights"""
    steps: int = 2000
    """at most, for each task"""
    seconds: float = 60.0
    """at most, for each task on average; what is learnt by then answers"""
    lr: float = 3e-3
    """Adam's; it falls to 0 along a cosine, sooner where the time will not do for all steps"""
    weight_decay: float = 0.01
    copies: int = 1
    """of a task's demonstrations a step, in views drawn at random, shifted and scaled"""
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Learnt:
    """What a task has of its own; of one task, or with a leading axis W of several."""

    tokens: jax.Array  # f32[V, P * K, C, D], a set for each view
    weights: Any  # the student's; empty where they stay as they are


class Adapter:
    """Learns tasks with a trained student, which itself stays as it is."""

    def __init__(self, solver: Solver, config: AdaptConfig) -> None:
        """Prepares the programs; each compiles once for every shape of lesson.

        Raises:
            InputError: if the student reads a teacher's features: no demonstration has any.
        """
        if solver.config.model.reads_features:
            raise InputError("adapt: expected a grid student, got one that reads features")
        self.solver, self.config = solver, config
        self._model = make_student(solver.config.model, solver.feature_width)
        self._tx = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(1.0, b2=0.98, weight_decay=config.weight_decay),  # the rate comes later
        )
        self._at_once = config.tasks_at_once or (1 if jax.default_backend() == "cpu" else 16)
        self._begin = jax.jit(jax.vmap(self._begin_one, in_axes=(None, 0)))
        self._update = jax.jit(
            jax.vmap(self._update_one, in_axes=(0, 0, None, 0, 0, 0, None)), donate_argnums=(0, 1)
        )
        self._say = jax.jit(self._say_one)

    def adapt(self, tasks: Sequence[Task], views: int = 1) -> Iterator[tuple[str, Adapted]]:
        """Yields each task's id and what became of it, group by group.

        A signal ends the learning, not the answering: what is learnt by then answers.

        Args:
            tasks: test outputs are dropped before anything else.
            views: in which a task is learnt and answered, to vote on.
        """
        groups: dict[tuple[int, int, int], list[Lesson]] = defaultdict(list)
        for lesson in (make_lesson(task, views) for task in tasks):
            groups[lesson.side, lesson.pairs, room_for(lesson.colors)].append(lesson)
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
        plain = stack([show_plainly(lesson) for lesson in lessons])
        learnt, opt_state, tasks = self._begin(self.solver.params, plain)
        taken = np.zeros(len(lessons), int)
        in_a_row = np.zeros(len(lessons), int)
        fits: list[list[float]] = [[] for _ in lessons]
        name = lessons[0].task.task_id if len(lessons) == 1 else f"{len(lessons)} tasks"
        bar = tqdm(total=config.steps, desc=f"adapt {name}", unit="step", leave=False)
        for step in range(config.steps):
            active = in_a_row < FITTED
            progress = clock.progress(step)
            if progress >= 1 or stop.requested or not active.any():
                break
            shown = stack([show_augmented(x, config.copies, config.seed, step) for x in lessons])
            rate = config.lr * rate_at(step, progress)
            learnt, opt_state, cells, exact = self._update(
                learnt, opt_state, self.solver.params, tasks, shown, active, rate
            )
            taken += active
            in_a_row = np.where(active, np.where(exact, in_a_row + 1, 0), in_a_row)
            for i in np.flatnonzero(active):
                fits[i].append(float(cells[i]))
            bar.set_postfix_str(f"fitted {np.mean([recent(x) for x in fits]):.1%} of cells")
            bar.update()
        bar.close()
        for i, lesson in enumerate(lessons):
            own, task = jax.tree.map(lambda x, i=i: x[i], (learnt, tasks))
            fit = recent(fits[i])
            attempts = tuple(
                replace(attempt, confidence=fit) for attempt in self._answer(own, task, lesson)
            )
            seconds = clock.seconds() / len(lessons)
            yield lesson.task.task_id, Adapted(attempts, fit, int(taken[i]), seconds)

    def _begin_one(self, params: Any, plain: Shown) -> tuple[Learnt, Any, TaskTokens]:
        """Returns what one task learns, as it starts; its optimizer's state; and its tokens."""
        task, _ = self._model.apply(
            {"params": params},
            plain.demonstrations,
            plain.mask,
            plain.palette,
            method="encode_task",
        )
        learnt: Any = Learnt(task.tokens, params if self.config.tier == "weights" else {})
        return learnt, self._tx.init(learnt), task

    def _update_one(
        self,
        learnt: Any,
        opt_state: Any,
        params: Any,
        task: TaskTokens,
        shown: Shown,
        active: Any,
        rate: Any,
    ) -> tuple[Learnt, Any, jax.Array, jax.Array]:
        """Makes one update of one task, or none if it has learnt enough.

        Returns:
            What is learnt, the optimizer's state, and of the answers before the update the share
            of right cells, border included, and whether all are exact.
        """
        grads, (cells, exact) = jax.grad(self._loss, has_aux=True)(learnt, params, task, shown)
        updates: Any
        updates, after = self._tx.update(grads, opt_state, learnt)
        updates = Learnt(TOKENS_RATE * updates.tokens, updates.weights)
        new = optax.apply_updates(learnt, optax.tree.scale(rate, updates)), after
        kept = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, (learnt, opt_state))
        return *kept, cells, exact

    def _loss(
        self, learnt: Learnt, params: Any, task: TaskTokens, shown: Shown
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the mean cross entropy over the demonstrations of one task, nats a cell.

        With it the share of right cells, border included, and whether all grids are exact.
        """
        answers, mask = jnp.asarray(shown.demonstrations)[:, :, 1], jnp.asarray(shown.mask)
        own = jax.tree.map(lambda x: x[shown.view], replace(task, tokens=learnt.tokens))
        inputs = jnp.asarray(shown.demonstrations)[:, :, 0]
        logits = self._from_tokens(learnt, params, own, inputs)
        nats = cross_entropy(logits, answers).mean((2, 3))
        right, drawn = logits.argmax(-1) == answers, answers != BACKGROUND
        cells = (right & drawn).sum((2, 3)) / drawn.sum((2, 3))
        exact = ((right | ~drawn).all((2, 3)) | ~mask).all()
        nats, cells = ((x * mask).sum() / mask.sum() for x in (nats, cells))
        return nats, (cells, exact)

    def _from_tokens(
        self, learnt: Learnt, params: Any, task: TaskTokens, inputs: jax.Array
    ) -> jax.Array:
        """Answers inputs u8[A, Q, N, N] in A views from their tokens, f32[A, Q, N, N, V].

        So many at once as memory allows; the rest of the activations is computed again.
        """
        copies, count, side, _ = inputs.shape
        weights = learnt.weights if self.config.tier == "weights" else params

        def answer(task: TaskTokens, query: jax.Array) -> jax.Array:
            logits, _ = self._model.apply({"params": weights}, task, query, method="answer")
            return logits.astype(jnp.float32)

        each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), task)
        asked = inputs.reshape(-1, side, side)
        at_once = max(1, STATES // (side**2 * task.palette.shape[-1]))
        if at_once >= len(asked):
            logits = answer(each, asked)
        else:
            one = jax.checkpoint(lambda x: answer(*jax.tree.map(lambda y: y[None], x))[0])
            logits = jax.lax.map(one, (each, asked), batch_size=at_once)
        return logits.reshape(copies, count, *logits.shape[1:])

    def _say_one(
        self, learnt: Learnt, params: Any, task: TaskTokens, inputs: jax.Array
    ) -> jax.Array:
        """Answers test inputs u8[views, Q, N, N]: log-probabilities f32[views, Q, N, N, V]."""
        own = replace(task, tokens=learnt.tokens)
        return jax.nn.log_softmax(self._from_tokens(learnt, params, own, inputs))

    def _answer(self, learnt: Learnt, task: TaskTokens, lesson: Lesson) -> list[Attempts]:
        """Answers a task's test inputs with what was learnt of it; its views vote."""
        said = np.asarray(self._say(learnt, self.solver.params, task, queries(lesson)))
        return [
            tally([(view, decode(values)) for view, values in zip(lesson.views, each, strict=True)])
            for each in said.swapaxes(0, 1)
        ]


def recent(fits: Sequence[float]) -> float:
    """The mean over the last steps; 0 before the first."""
    return float(np.mean(fits[-RECENT:])) if fits else 0.0
