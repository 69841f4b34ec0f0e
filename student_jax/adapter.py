"""Test-time training: a student learns each task's own demonstrations, then answers.

Nothing but demonstrations is learnt from: each is left out in turn, asked with the others as
context, and augmented (VARC, arXiv 2511.14761, section 4). Each task starts from the same weights
and learns alone; many learn at once in one compiled program, one for each canvas side.

In the shape descriptions: `W` tasks at once, `M` examples a task and step, `P` demonstrations, `N`
canvas side, `K` task tokens a demonstration, `D` width.
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

from bridge.arc import Grid, Question, Task, left_out_questions, open_questions
from bridge.canvas import BACKGROUND, Attempts, decode, side_for
from bridge.errors import InputError
from bridge.transforms import Transform
from student_jax.batch import Array, draw
from student_jax.data import Examples
from student_jax.solver import Solver, answer_all
from student_jax.students import TaskTokens, make_student
from student_jax.terms import cross_entropy

TRIAL = 10  # steps between looks at how well the demonstrations are fitted
PAIRS = (2, 3, 4, 6, 10)  # P is the smallest of these that holds a task's demonstrations
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
    batch_size: int = 8
    """weights: augmented demonstrations of a task a step"""
    tasks_at_once: int = 8
    """in one program; more fill the device better, and all of them wait for the slowest"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.steps, self.batch_size, self.tasks_at_once) < 1 or self.seed < 0:
            raise ValueError("steps, batch_size, tasks_at_once: expected at least 1, seed 0")
        if not (self.seconds > 0 and self.lr > 0):
            raise ValueError("seconds, lr: expected more than 0")


@dataclass(frozen=True)
class Adapted:
    """What became of a task."""

    attempts: tuple[Attempts, ...]  # one a test input; their confidence is `fit`
    fit: float  # share of the left-out demonstrations' cells that are right
    steps: int
    seconds: float  # its share of the group's


@dataclass(frozen=True)
class Lesson:
    """A task's left-out demonstrations, to be learnt from."""

    task: Task  # blind
    side: int  # N, one for all its questions
    questions: tuple[Question, ...]
    answers: tuple[Grid, ...]


def make_lesson(task: Task, tier: str) -> Lesson:
    """Takes from a task what may be learnt from; its test outputs are dropped first.

    Weights learn to answer a demonstration from the others; task tokens stand for all of them.

    Raises:
        InputError: if it has no demonstration.
    """
    task = task.blind()
    if not task.demonstrations:
        raise InputError(f"task {task.task_id}: expected demonstrations to adapt to, got none")
    left_out = left_out_questions(task)
    side = max(side_for(question) for question in left_out + open_questions(task))
    if tier == "tokens":
        left_out = [replace(q, demonstrations=task.demonstrations) for q in left_out]
    return Lesson(
        task=task,
        side=side,
        questions=tuple(left_out),
        answers=tuple(pair.output for pair in task.demonstrations),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shown:
    """Questions with their answers; of one task, or with a leading axis W of several."""

    demonstrations: Array  # u8[M, P, 2, N, N]
    demonstration_mask: Array  # bool[M, P]
    query: Array  # u8[M, N, N]
    answer: Array  # u8[M, N, N]
    counts: Array  # bool[M], False for one that only fills up


def show(lesson: Lesson, pairs: int, chosen: Sequence[tuple[int, Transform]], size: int) -> Shown:
    """Draws `size` of a lesson's questions, transformed; too few are filled up with the last.

    Args:
        lesson: of one task.
        pairs: P.
        chosen: which questions, each with its transform.
        size: M.
    """
    rows = [
        draw(lesson.questions[i], lesson.answers[i], transform, lesson.side, pairs)
        for i, transform in [*chosen, *[chosen[-1]] * (size - len(chosen))]
    ]
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Shown(**fields, counts=np.arange(size) < len(chosen))


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
        self._update = jax.jit(jax.vmap(self._update_one, in_axes=(0, 0, None, 0, 0)))
        self._try = jax.jit(jax.vmap(self._try_one, in_axes=(0, None, 0)))
        self._say = jax.jit(self._logits)

    def adapt(self, tasks: Sequence[Task], views: int = 1) -> Iterator[tuple[str, Adapted]]:
        """Yields each task's id and what became of it, group by group.

        Args:
            tasks: test outputs are dropped before anything else.
            views: of each test input, to vote on; tokens are learnt in one view.
        """
        if self.config.tier == "tokens" and views > 1:
            raise InputError("views: task tokens are learnt in one view; pass --views 1")
        groups: dict[tuple[int, int], list[Lesson]] = defaultdict(list)
        for lesson in (make_lesson(task, self.config.tier) for task in tasks):
            count = min(len(lesson.task.demonstrations), self.solver.config.data.max_demonstrations)
            pairs = next((p for p in PAIRS if p >= count), count)
            groups[lesson.side, pairs].append(lesson)
        for (_, pairs), lessons in sorted(groups.items()):
            for start in range(0, len(lessons), self.config.tasks_at_once):
                chunk = lessons[start : start + self.config.tasks_at_once]
                yield from self._group(chunk, pairs, views)

    def _group(
        self, lessons: Sequence[Lesson], pairs: int, views: int
    ) -> Iterator[tuple[str, Adapted]]:
        """Learns tasks of one shape together."""
        config, started = self.config, time.perf_counter()
        filled = [*lessons, *[lessons[-1]] * (config.tasks_at_once - len(lessons))]
        whole = stack([self._plainly(lesson, pairs) for lesson in filled])
        learnt, opt_state = self._begin(self.solver.params, whole)
        taken = np.zeros(len(filled), int)
        in_a_row = np.zeros(len(filled), int)
        fit = np.zeros(len(filled))
        bar = tqdm(total=config.steps, desc=f"adapt {len(lessons)} tasks", unit="step")
        for step in range(config.steps + 1):
            late = time.perf_counter() - started > config.seconds * len(lessons)
            if step % TRIAL == 0 or step == config.steps or late:
                said = self._try(learnt, self.solver.params, whole)
                fit, exact = (np.asarray(x) for x in said)
                in_a_row = np.where(exact == 1, in_a_row + 1, 0)
                bar.set_postfix_str(f"fitted {fit[: len(lessons)].mean():.1%} of cells")
                if late or step == config.steps or (in_a_row >= FITTED).all():
                    break
            active = in_a_row < FITTED
            batch = whole
            if config.tier == "weights":
                batch = stack([self._augmented(lesson, pairs, step) for lesson in filled])
            learnt, opt_state = self._update(learnt, opt_state, self.solver.params, batch, active)
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

    def _plainly(self, lesson: Lesson, pairs: int) -> Shown:
        """All left-out demonstrations as they are."""
        chosen = [(i, Transform()) for i in range(len(lesson.questions))]
        return show(lesson, pairs, chosen[:pairs], pairs)

    def _augmented(self, lesson: Lesson, pairs: int, step: int) -> Shown:
        """A step's examples: they hang on the seed, the task and the step alone."""
        config = self.config
        name = int.from_bytes(hashlib.sha256(lesson.task.task_id.encode()).digest()[:8])
        rng = np.random.default_rng((config.seed, name, step))
        indices = rng.integers(len(lesson.questions), size=config.batch_size).tolist()
        return show(lesson, pairs, [(i, Transform.draw(rng)) for i in indices], config.batch_size)

    def _begin_one(self, params: Any, shown: Shown) -> tuple[Any, Any]:
        """Returns what one task learns, as it starts, and its optimizer's state."""
        learnt = params
        if self.config.tier == "tokens":
            demonstrations, mask = shown.demonstrations[:1], shown.demonstration_mask[:1]
            learnt = self._encode(params, demonstrations, mask).tokens[0]
        return learnt, self._tx.init(learnt)

    def _update_one(
        self, learnt: Any, opt_state: Any, params: Any, shown: Shown, active: jax.Array
    ) -> tuple[Any, Any]:
        """Makes one update of one task, or none if it has learnt enough."""

        def loss(learnt: Any) -> jax.Array:
            nats = cross_entropy(self._logits(learnt, params, shown), jnp.asarray(shown.answer))
            return (nats.mean((1, 2)) * shown.counts).sum() / shown.counts.sum()

        updates, after = self._tx.update(jax.grad(loss)(learnt), opt_state, learnt)
        new = optax.apply_updates(learnt, updates), after
        return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, (learnt, opt_state))

    def _try_one(self, learnt: Any, params: Any, shown: Shown) -> tuple[jax.Array, jax.Array]:
        """Returns the share of right cells and the share of exact grids, border included."""
        answer = jnp.asarray(shown.answer)
        right = self._logits(learnt, params, shown).argmax(-1) == answer
        drawn = answer != BACKGROUND
        cells = (right & drawn).sum((1, 2)) / drawn.sum((1, 2))
        exact = (right | ~drawn).all((1, 2))
        cells, exact = ((x * shown.counts).sum() / shown.counts.sum() for x in (cells, exact))
        return cells, exact

    def _logits(self, learnt: Any, params: Any, shown: Shown) -> jax.Array:
        """Answers one task's questions with what was learnt, f32[M, N, N, V]."""
        if self.config.tier == "weights":
            params = learnt
            task = self._encode(params, shown.demonstrations, shown.demonstration_mask)
        else:
            size, count = len(shown.query), self.solver.config.model.tokens_per_pair
            task = TaskTokens(
                tokens=jnp.broadcast_to(learnt, (size, *learnt.shape)),
                mask=jnp.repeat(jnp.asarray(shown.demonstration_mask), count, axis=1),
            )
        logits, _ = self._model.apply({"params": params}, task, shown.query, method="answer")
        return logits.astype(jnp.float32)

    def _encode(self, params: Any, demonstrations: Array, mask: Array) -> TaskTokens:
        variables = {"params": params}
        task, _ = self._model.apply(variables, demonstrations, mask, method="encode_task")
        return task

    def _answer(self, learnt: Any, lesson: Lesson, pairs: int, views: int) -> list[Attempts]:
        """Answers a task's test inputs with what was learnt of it."""
        questions, solver = open_questions(lesson.task), self.solver
        if self.config.tier == "weights":
            examples = Examples(
                questions, {}, solver.config.model, solver.config.data, None, side=lesson.side
            )
            answers = answer_all(solver.predict, learnt, solver.scaling, examples, views)
            return [answers[question.example_id] for question in questions]
        # Drawn as if the first demonstration's output were the answer: it is not looked at.
        unknown = lesson.answers[:1] * len(questions)
        opened = replace(lesson, questions=tuple(questions), answers=unknown)
        chosen = [(i, Transform()) for i in range(len(questions))]
        shown = show(opened, pairs, chosen, len(questions))
        log_probs = jax.nn.log_softmax(self._say(learnt, solver.params, shown))
        return [decode(values) for values in np.asarray(log_probs)]


def stack(shown: Sequence[Shown]) -> Shown:
    """Gives several tasks' questions a leading axis W."""
    return jax.tree.map(lambda *x: np.stack(x), *shown)
