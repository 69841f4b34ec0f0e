"""Answers single questions, or a few, fast: each bucket compiled ahead of time, tasks read once.

In the shape descriptions: `Q` questions, `W` views of each, `P` places for demonstrations, `N`
canvas side, `C` slots of the palette, `V` cell classes, `T` teacher tokens, `F` teacher feature
width.
"""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bridge.arc import Question
from bridge.canvas import Attempts, decode, decode_whole, side_for
from bridge.errors import InputError
from bridge.scaling import Scaling
from bridge.store import Features
from bridge.tree import flatten, unflatten
from student_jax.batch import (
    Augmentation,
    Batch,
    check_features,
    colors_of,
    demonstration_canvases,
    palette_of,
    places_for,
    room_for,
)
from student_jax.batch import feature_batch as batch_of
from student_jax.data import Bucket
from student_jax.grid_student import GridStudent, TaskTokens
from student_jax.solver import Solver, make_predict
from student_jax.students import needed_to_answer, with_unused
from student_jax.vote import tally, views_of

TOKENS = 128  # feature sequences are padded to a multiple of this, one program each
REMEMBERED = 256  # tasks whose tokens are kept: the oldest make room
CELLS = 8192  # of queries in one call, at most: memory follows them

Program = Callable[..., Any]  # compiled
Drawn = tuple[npt.NDArray[Any], ...]  # see `Engine.draw`


class Shape(NamedTuple):
    """What questions share that one compiled program answers."""

    bucket: Bucket
    places: int  # P
    views: int  # W
    questions: int = 1  # Q, or tasks to be read: a power of two, so that programs are few


@dataclass(frozen=True)
class Prepared:
    """Questions on the device, their tasks already read: all that is left is one call."""

    program: Program
    weights: Any
    tasks: tuple[TaskTokens, ...]  # Q of them
    queries: jax.Array  # u8[Q * W, N, N]

    def run(self) -> jax.Array:
        """Returns log-probabilities f32[Q * W, N, N, V]; they may still be computed."""
        return self.program(self.weights, self.tasks, self.queries)


class Engine:
    """A grid student, ready: what a server holds. It is used by one thread at a time.

    Answers are those of `Solver.solve`; in bfloat16 they may differ where two are almost as
    probable.
    """

    def __init__(self, solver: Solver, compute: str | None = None) -> None:
        """Places the weights.

        Args:
            solver: a grid student.
            compute: float32 or bfloat16; by default bfloat16, and float32 on a CPU, which has no
                faster bfloat16.

        Raises:
            InputError: if the student reads a teacher's features.
        """
        if solver.config.model.reads_features:
            raise InputError("engine: expected a grid student; see FeatureEngine")
        self.compute = compute or default_compute()
        config = replace(solver.config.model, compute=self.compute, remat=False)  # type: ignore[arg-type]
        self._model = GridStudent(config, solver.feature_width)
        self._like = jax.eval_shape(lambda: solver.params)
        self.weights = place_weights(solver.params, self.compute)
        self.most_pairs = solver.config.data.max_demonstrations
        self._readers: dict[Shape, Program] = {}
        self._answerers: dict[Shape, Program] = {}
        self._tasks: OrderedDict[bytes, TaskTokens] = OrderedDict()

    def answer(self, question: Question, views: int = 1) -> Attempts:
        """Answers a question from so many views of it, all in one call.

        Raises:
            InputError: if there are not so many views.
        """
        return self.answer_all([question], views)[0]

    def answer_all(self, questions: Sequence[Question], views: int = 1) -> list[Attempts]:
        """Answers questions as `answer` does each; those of one shape share a call.

        Raises:
            InputError: if there are not so many views.
        """
        shown = [Augmentation(view) for view in views_of(views)]
        drawn = [self.draw(question, shown) for question in questions]
        called = [(members, self.ready([drawn[i] for i in members])) for members in calls(drawn)]
        running = [(members, prepared.run()) for members, prepared in called]
        attempts: dict[int, Attempts] = {}
        for members, said in running:
            for start, i in enumerate(members):
                own = np.asarray(said)[start * views : (start + 1) * views]
                answered = zip(shown, own, strict=True)
                attempts[i] = tally([(how.transform, decode(values)) for how, values in answered])
        return [attempts[i] for i in range(len(questions))]

    def prepare(self, question: Question, views: int = 1) -> Prepared:
        """Reads a question's task, unless that was done before."""
        shown = [Augmentation(view) for view in views_of(views)]
        return self.ready([self.draw(question, shown)])

    def draw(self, question: Question, shown: Sequence[Augmentation] = (Augmentation(),)) -> Drawn:
        """Draws views of a question.

        Returns:
            Demonstrations u8[W, P, 2, N, N], their mask bool[W, P], palettes u8[W, C], and queries
            u8[W, N, N].
        """
        pairs, side = question.demonstrations[: self.most_pairs], side_for(question)
        places, colors = places_for(len(pairs), self.most_pairs), colors_of(pairs, question.query)
        drawn = [demonstration_canvases(pairs, side, places, how) for how in shown]
        demonstrations, mask = (np.stack(each) for each in zip(*drawn, strict=True))
        palette = np.stack([palette_of(colors, how) for how in shown])
        queries = np.stack([how.canvas(question.query, side) for how in shown])
        return demonstrations, mask, palette, queries

    def ready(self, drawn: Sequence[Drawn]) -> Prepared:
        """Reads what tasks of questions of one shape were not read before, and sends the queries.

        The last question fills up to a power of two.
        """
        drawn = [*drawn, *[drawn[-1]] * (power_of_two(len(drawn)) - len(drawn))]
        shape = shape_of(drawn[0])._replace(questions=len(drawn))
        queries = jax.device_put(np.concatenate([each[3] for each in drawn]))
        return Prepared(self.answerer(shape), self.weights, self._read(shape, drawn), queries)

    def shape(self, question: Question, views: int = 1) -> Shape:
        """Returns what questions share that can be answered in one call; nothing is drawn."""
        pairs = question.demonstrations[: self.most_pairs]
        bucket = Bucket(side_for(question), room_for(colors_of(pairs, question.query)))
        return Shape(bucket, places_for(len(pairs), self.most_pairs), views)

    def forget(self) -> None:
        """Forgets the tasks that were read."""
        self._tasks.clear()

    def reader(self, shape: Shape) -> Program:
        """Returns what reads tasks of this shape, compiled once."""
        if shape not in self._readers:
            encode = jax.jit(partial(self._encode, shape.questions))
            lowered = encode.lower(self.weights, *_demonstrations_like(shape))
            self._readers[shape] = lowered.compile()
        return self._readers[shape]

    def answerer(self, shape: Shape) -> Program:
        """Returns what answers questions of this shape, compiled once."""
        if shape not in self._answerers:
            one = shape._replace(questions=1)
            encode = partial(self._encode, 1)
            (task,) = jax.eval_shape(encode, self.weights, *_demonstrations_like(one))
            (side, _), rows = shape.bucket, shape.questions * shape.views
            queries = jax.ShapeDtypeStruct((rows, side, side), jnp.uint8)
            tasks = (task,) * shape.questions
            lowered = jax.jit(self._answer).lower(self.weights, tasks, queries)
            self._answerers[shape] = lowered.compile()
        return self._answerers[shape]

    def _read(self, shape: Shape, drawn: Sequence[Drawn]) -> tuple[TaskTokens, ...]:
        """Returns the tasks' tokens; new ones are read in one call, each once."""
        sizes = str(shape._replace(questions=1)).encode()
        keys = [b"".join([sizes, *(x.tobytes() for x in each[:3])]) for each in drawn]
        known = {key: self._tasks[key] for key in keys if key in self._tasks}
        new = {key: each for key, each in zip(keys, drawn, strict=True) if key not in known}
        if new:
            count = power_of_two(len(new))
            rows = [*new.values(), *[drawn[-1]] * (count - len(new))]
            inputs = (np.concatenate(each) for each in zip(*(row[:3] for row in rows), strict=True))
            tasks = self.reader(shape._replace(questions=count))(self.weights, *inputs)
            known |= zip(new, tasks, strict=False)
        for key in keys:
            self._tasks[key] = known[key]
            self._tasks.move_to_end(key)
        while len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)
        return tuple(known[key] for key in keys)

    def _encode(
        self, tasks: int, weights: Any, demonstrations: Any, mask: Any, palette: Any
    ) -> tuple[TaskTokens, ...]:
        """Reads demonstrations u8[Q * W, P, 2, N, N] of so many tasks, and keeps these apart."""
        drawn = (demonstrations, mask, palette)
        read: Any
        variables = {"params": with_unused(weights, self._like)}
        read, _ = self._model.apply(variables, *drawn, method="encode_task")
        views = len(palette) // tasks
        cut = lambda i: jax.tree.map(lambda x: x[i * views : (i + 1) * views], read)  # noqa: E731
        return tuple(cut(i) for i in range(tasks))

    def _answer(self, weights: Any, tasks: tuple[TaskTokens, ...], queries: Any) -> jax.Array:
        """Answers queries u8[Q * W, N, N]: log-probabilities f32[Q * W, N, N, V]."""
        variables = {"params": with_unused(weights, self._like)}
        task = jax.tree.map(lambda *each: jnp.concatenate(each), *tasks)
        said: Any = self._model.apply(variables, task, queries, method="answer")
        return jax.nn.log_softmax(said[0].astype(jnp.float32))


class FeatureEngine:
    """A student that reads a teacher's features, ready; the teacher's time comes on top."""

    def __init__(self, solver: Solver, compute: str | None = None) -> None:
        """Places the weights; arguments as for `Engine`."""
        self.config = replace(
            solver.config.model,
            compute=compute or default_compute(),  # type: ignore[arg-type]
            remat=False,
        )
        self._predict = make_predict(self.config, solver.feature_width)
        self._like = jax.eval_shape(lambda: solver.params)
        self._width, self._scaling = solver.feature_width, solver.scaling
        self.weights = place_weights(solver.params, self.config.compute)
        self._programs: dict[int, Program] = {}

    def answer(self, features: Features) -> Attempts:
        """Answers from one example's features, bf16[T, F].

        Raises:
            InputError: if they are not this student's.
        """
        log_probs = np.asarray(self.run(*self.pad(features)))[0]
        return (decode_whole if self.config.kind == "original" else decode)(log_probs)

    def pad(self, features: Features) -> tuple[Features, npt.NDArray[np.bool_]]:
        """Pads features to their bucket: bf16[1, T, F] and bool[1, T]."""
        room = min(-(-len(features) // TOKENS) * TOKENS, self.config.max_tokens)
        mask = np.arange(max(room, len(features)))[None] < len(features)
        padded = np.zeros((1, mask.shape[1], features.shape[1]), features.dtype)
        padded[0, : len(features)] = features
        check_features(padded, mask, self._width, self.config.max_tokens)
        return padded, mask

    def run(self, features: Any, mask: Any) -> jax.Array:
        """Returns log-probabilities f32[1, N, N, V]; they may still be computed."""
        side = self.config.answer_side
        batch = batch_of(features, mask, np.zeros((1, side, side), np.uint8))
        if features.shape[1] not in self._programs:
            lowered = jax.jit(self._answer).lower(self.weights, self._scaling, batch)
            self._programs[features.shape[1]] = lowered.compile()
        return self._programs[features.shape[1]](self.weights, self._scaling, batch)

    def _answer(self, weights: Any, scaling: Scaling, batch: Batch) -> jax.Array:
        return self._predict(with_unused(weights, self._like), scaling, batch)


def default_compute() -> str:
    """Returns bfloat16, but float32 on a CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def shape_of(drawn: Drawn) -> Shape:
    """Returns the shape of a question that was drawn so."""
    demonstrations, _, palette, queries = drawn
    bucket = Bucket(queries.shape[-1], palette.shape[-1])
    return Shape(bucket, demonstrations.shape[1], len(queries))


def calls(drawn: Sequence[Drawn]) -> list[list[int]]:
    """Returns which questions are answered in one call: those of one shape, up to `CELLS` cells."""
    members: dict[Shape, list[int]] = defaultdict(list)
    for i, each in enumerate(drawn):
        members[shape_of(each)].append(i)
    found = []
    for shape, alike in members.items():
        room = max(1, CELLS // (shape.views * shape.bucket.size**2))
        most = 1 << (room.bit_length() - 1)  # a power of two, so that a full call pads nothing
        found += [alike[start : start + most] for start in range(0, len(alike), most)]
    return found


def power_of_two(count: int) -> int:
    """Returns the smallest power of two that holds so many."""
    return 1 << (count - 1).bit_length()


def _demonstrations_like(shape: Shape) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of what reads tasks."""
    (side, colors), rows = shape.bucket, shape.questions * shape.views
    return (
        jax.ShapeDtypeStruct((rows, shape.places, 2, side, side), jnp.uint8),
        jax.ShapeDtypeStruct((rows, shape.places), bool),
        jax.ShapeDtypeStruct((rows, colors), jnp.uint8),
    )


def place_weights(params: Any, compute: str) -> Any:
    """Puts on the device what answering needs, as it is computed with.

    The matrices of blocks are cast once and not in every call; the numbers are the same, since
    the layers cast them anyway. Norms and biases stay in float32.
    """
    cast = {
        name: jnp.asarray(leaf, compute) if ".block_" in name and name.endswith("kernel") else leaf
        for name, leaf in flatten(needed_to_answer(params)).items()
    }
    return jax.device_put(unflatten(cast))


def keep_programs() -> Path:
    """Makes JAX keep compiled programs on disk, where the environment does not say otherwise.

    Returns:
        The folder: JAX_COMPILATION_CACHE_DIR, or one in the user's cache folder.
    """
    told = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(told) if told else cache / "sage-distill" / "programs"
    if not told:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything: an answer has two programs, and small ones compile in less than JAX's second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
