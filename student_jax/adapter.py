"""Test-time training: a student learns each task's own demonstrations, then answers.

Nothing but demonstrations is learnt from: each is left out in turn and answered from the others,
and all are augmented (VARC, arXiv 2511.14761, section 4). Each task starts from the same weights
and learns alone; many learn at once in one compiled program, one for each canvas side.

In the shape descriptions: `W` tasks at once, `A` augmented copies of a task, `P` demonstrations,
`N` canvas side, `K` task tokens a demonstration, `D` width.
"""

from __future__ import annotations

import hashlib
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
from bridge.canvas import BACKGROUND, Attempts, decode, side_for
from bridge.errors import InputError
from bridge.stop import Stop
from student_jax.batch import Array, Augmentation, demonstration_canvases
from student_jax.data import Examples
from student_jax.solver import Solver, answer_all
from student_jax.students import TaskTokens, make_student
from student_jax.terms import cross_entropy

TRIAL = 10  # steps between looks at how well the demonstrations are fitted
PAIRS = (2, 3, 4, 6, 10)  # P is the smallest of these that holds a task's demonstrations, or 10
FITTED = 2  # looks in a row with every demonstration exact, and a task has learnt enough


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
    """Adam's, constant"""
    copies: int = 4
    """weights: augmented copies of a task's demonstrations a step, all of them answered"""
    tasks_at_once: int = 8
    """in one program; more fill the device better, and all of them wait for the slowest"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.steps, self.copies, self.tasks_at_once) < 1 or self.seed < 0:
            raise ValueError("steps, copies, tasks_at_once: expected at least 1, seed 0")
        if not (self.seconds > 0 and self.lr > 0):
            raise ValueError("seconds, lr: expected more than 0")


@dataclass(frozen=True)
class Adapted:
    """What became of a task."""

    attempts: tuple[Attempts, ...]  # one a test input; their confidence is `fit`
    fit: float  # share of the demonstrations' cells that are right, each answered from the others
    steps: int
    seconds: float  # its share of the group's


@dataclass(frozen=True)
class Lesson:
    """A task to be learnt."""

    task: Task  # blind
    side: int  # N, one for all its questions


def make_lesson(task: Task) -> Lesson:
    """Takes from a task what may be learnt from; its test outputs are dropped first.

    Raises:
        InputError: if it has no demonstration.
    """
    task = task.blind()
    if not task.demonstrations:
        raise InputError(f"task {task.task_id}: expected demonstrations to adapt to, got none")
    return Lesson(task, max(side_for(question) for question in open_questions(task)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shown:
    """A task's demonstrations; of one task, or with a leading axis W of several."""

    demonstrations: Array  # u8[A, P, 2, N, N]
    mask: Array  # bool[A, P]


def show(lesson: Lesson, pairs: int, augmentations: Sequence[Augmentation]) -> Shown:
    """Draws `pairs` demonstrations of a task once for each augmentation."""
    canvases, masks = zip(
        *(
            demonstration_canvases(lesson.task.demonstrations, lesson.side, pairs, augmentation)
            for augmentation in augmentations
        ),
        strict=True,
    )
    return Shown(np.stack(canvases), np.stack(masks))


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
        self._begin = jax.jit(jax.vmap(self._begin_one, in_axes=(None, 0)))
        self._update = jax.jit(
            jax.vmap(self._update_one, in_axes=(0, 0, None, 0, 0)), donate_argnums=(0, 1)
        )
        self._try = jax.jit(jax.vmap(self._try_one, in_axes=(0, None, 0)))
        self._say = jax.jit(self._from_tokens)

    def adapt(self, tasks: Sequence[Task], views: int = 1) -> Iterator[tuple[str, Adapted]]:
        """Yields each task's id and what became of it, group by group.

        A signal ends the learning, not the answering: what is learnt by then answers.

        Args:
            tasks: test outputs are dropped before anything else.
            views: of each test input, to vote on; tokens are learnt in one view.
        """
        if self.config.tier == "tokens" and views > 1:
            raise InputError("views: task tokens are learnt in one view; pass --views 1")
        groups: dict[tuple[int, int], list[Lesson]] = defaultdict(list)
        for lesson in map(make_lesson, tasks):
            count = len(lesson.task.demonstrations)
            pairs = next((p for p in PAIRS if p >= count), PAIRS[-1])
            groups[lesson.side, pairs].append(lesson)
        with Stop() as stop:
            for (_, pairs), lessons in sorted(groups.items()):
                for start in range(0, len(lessons), self.config.tasks_at_once):
                    chunk = lessons[start : start + self.config.tasks_at_once]
                    yield from self._group(chunk, pairs, views, stop)

    def _group(
        self, lessons: Sequence[Lesson], pairs: int, views: int, stop: Stop
    ) -> Iterator[tuple[str, Adapted]]:
        """Learns tasks of one shape together."""
        config, started = self.config, time.perf_counter()
        filled = [*lessons, *[lessons[-1]] * (config.tasks_at_once - len(lessons))]
        plain = stack([show(lesson, pairs, [Augmentation()]) for lesson in filled])
        learnt, opt_state = self._begin(self.solver.params, plain)
        taken = np.zeros(len(filled), int)
        in_a_row = np.zeros(len(filled), int)
        fit = np.zeros(len(filled))
        bar = tqdm(total=config.steps, desc=f"adapt {len(lessons)} tasks", unit="step")
        for step in range(config.steps + 1):
            late = time.perf_counter() - started > config.seconds * len(lessons)
            last = late or stop.requested or step == config.steps
            if step % TRIAL == 0 or last:
                said = self._try(learnt, self.solver.params, plain)
                fit, exact = (np.asarray(x) for x in said)
                in_a_row = np.where(exact == 1, in_a_row + 1, 0)
                bar.set_postfix_str(f"fitted {fit[: len(lessons)].mean():.1%} of cells")
                if last or (in_a_row >= FITTED).all():
                    break
            active = in_a_row < FITTED
            shown = plain
            if config.tier == "weights":
                shown = stack([self._augmented(lesson, pairs, step) for lesson in filled])
            learnt, opt_state = self._update(learnt, opt_state, self.solver.params, shown, active)
            taken += active
            bar.update()
        bar.close()
        for i, lesson in enumerate(lessons):
            own = jax.tree.map(lambda x, i=i: x[i], learnt)
            attempts = tuple(
                replace(attempt, confidence=float(fit[i]))
                for attempt in self._answer(own, lesson, pairs, views)
            )
            seconds = (time.perf_counter() - started) / len(lessons)
            yield lesson.task.task_id, Adapted(attempts, float(fit[i]), int(taken[i]), seconds)

    def _augmented(self, lesson: Lesson, pairs: int, step: int) -> Shown:
        """A step's copies: they hang on the seed, the task and the step alone."""
        name = int.from_bytes(hashlib.sha256(lesson.task.task_id.encode()).digest()[:8])
        rng = np.random.default_rng((self.config.seed, name, step))
        draw = lambda: Augmentation.draw(rng, lesson.task.largest_side, lesson.side)  # noqa: E731
        return show(lesson, pairs, [draw() for _ in range(self.config.copies)])

    def _begin_one(self, params: Any, shown: Shown) -> tuple[Any, Any]:
        """Returns what one task learns, as it starts, and its optimizer's state."""
        learnt = params
        if self.config.tier == "tokens":
            learnt = self._encode(params, shown).tokens[0]
        return learnt, self._tx.init(learnt)

    def _update_one(
        self, learnt: Any, opt_state: Any, params: Any, shown: Shown, active: jax.Array
    ) -> tuple[Any, Any]:
        """Makes one update of one task, or none if it has learnt enough."""
        grads = jax.grad(self._loss)(learnt, params, shown)
        updates, after = self._tx.update(grads, opt_state, learnt)
        new = optax.apply_updates(learnt, updates), after
        return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, (learnt, opt_state))

    def _loss(self, learnt: Any, params: Any, shown: Shown) -> jax.Array:
        """Returns the mean cross entropy over the demonstrations of one task, nats a cell."""
        answers = jnp.asarray(shown.demonstrations)[:, :, 1]
        nats = cross_entropy(self._logits(learnt, params, shown), answers)
        return (nats.mean((2, 3)) * shown.mask).sum() / shown.mask.sum()

    def _try_one(self, learnt: Any, params: Any, shown: Shown) -> tuple[jax.Array, jax.Array]:
        """Returns the share of right cells and the share of exact grids, border included."""
        answers = jnp.asarray(shown.demonstrations)[:, :, 1]
        right = self._logits(learnt, params, shown).argmax(-1) == answers
        drawn = answers != BACKGROUND
        cells = (right & drawn).sum((2, 3)) / drawn.sum((2, 3))
        exact = (right | ~drawn).all((2, 3))
        cells, exact = ((x * shown.mask).sum() / shown.mask.sum() for x in (cells, exact))
        return cells, exact

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

    def _answer(self, learnt: Any, lesson: Lesson, pairs: int, views: int) -> list[Attempts]:
        """Answers a task's test inputs with what was learnt of it."""
        questions, solver = open_questions(lesson.task), self.solver
        if self.config.tier == "weights":
            data = replace(solver.config.data, max_demonstrations=pairs)
            examples = Examples(questions, {}, solver.config.model, data, None, side=lesson.side)
            answers = answer_all(solver.predict, learnt, solver.scaling, examples, views)
            return [answers[question.example_id] for question in questions]
        inputs = np.stack([Augmentation().canvas(q.query, lesson.side) for q in questions])
        shown = np.arange(pairs) < len(lesson.task.demonstrations)
        logits = self._say(learnt, solver.params, shown, inputs)
        return [decode(values) for values in np.asarray(jax.nn.log_softmax(logits))]


def stack(shown: Sequence[Shown]) -> Shown:
    """Gives several tasks' demonstrations a leading axis W."""
    return jax.tree.map(lambda *x: np.stack(x), *shown)
