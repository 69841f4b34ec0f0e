"""Answers one question at a time, fast: every bucket compiled ahead of time, tasks read once.

In the shape descriptions: `W` views of a question, `P` demonstrations, `N` canvas side, `C` slots
of the palette, `V` cell classes, `T` teacher tokens, `F` teacher feature width.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
)
from student_jax.batch import feature_batch as batch_of
from student_jax.data import Bucket
from student_jax.grid_student import GridStudent, TaskTokens
from student_jax.solver import Solver, make_predict
from student_jax.students import needed_to_answer, with_unused
from student_jax.vote import tally, views_of

TOKENS = 128  # feature sequences are padded to a multiple of this, one program each
REMEMBERED = 256  # tasks whose tokens are kept: the oldest make room

Program = Callable[..., Any]  # compiled


class Shape(NamedTuple):
    """What questions share that one compiled program answers."""

    bucket: Bucket
    views: int


@dataclass(frozen=True)
class Prepared:
    """A question on the device, its task already read: all that is left is one call."""

    program: Program
    weights: Any
    task: TaskTokens
    queries: jax.Array  # u8[W, N, N]
    views: tuple[Augmentation, ...]

    def run(self) -> jax.Array:
        """Returns log-probabilities f32[W, N, N, V]; they may still be computed."""
        return self.program(self.weights, self.task, self.queries)


class Engine:
    """A grid student, ready: what a server holds.

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
        self.pairs = solver.config.data.max_demonstrations
        self._programs: dict[Shape, tuple[Program, Program]] = {}
        self._tasks: OrderedDict[bytes, TaskTokens] = OrderedDict()

    def answer(self, question: Question, views: int = 1) -> Attempts:
        """Answers a question from so many views of it, all in one call.

        Raises:
            InputError: if there are not so many views.
        """
        prepared = self.prepare(question, views)
        log_probs = np.asarray(prepared.run())
        answered = zip(prepared.views, log_probs, strict=True)
        return tally([(how.transform, decode(values)) for how, values in answered])

    def prepare(self, question: Question, views: int = 1) -> Prepared:
        """Reads a question's task, unless that was done before."""
        shown = tuple(Augmentation(view) for view in views_of(views))
        return self.prepare_views(question, shown)

    def prepare_views(self, question: Question, shown: Sequence[Augmentation]) -> Prepared:
        """The same for views of the caller's choice."""
        *drawn, queries = self.draw(question, shown)
        encode, program = self.compiled(shape_of(drawn[-1], queries))
        key = b"".join([str(drawn[0].shape).encode(), *(x.tobytes() for x in drawn)])
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = encode(self.weights, *drawn)
        self._tasks.move_to_end(key)
        while len(self._tasks) > REMEMBERED:
            self._tasks.popitem(last=False)
        return Prepared(program, self.weights, task, jax.device_put(queries), tuple(shown))

    def draw(
        self, question: Question, shown: Sequence[Augmentation] = (Augmentation(),)
    ) -> tuple[npt.NDArray[Any], ...]:
        """Draws views of a question.

        Returns:
            Demonstrations u8[W, P, 2, N, N], their mask bool[W, P], palettes u8[W, C], and queries
            u8[W, N, N].
        """
        pairs, side = question.demonstrations[: self.pairs], side_for(question)
        colors = colors_of(pairs, question.query)
        drawn = [demonstration_canvases(pairs, side, self.pairs, how) for how in shown]
        demonstrations, mask = (np.stack(each) for each in zip(*drawn, strict=True))
        palette = np.stack([palette_of(colors, how) for how in shown])
        queries = np.stack([how.canvas(question.query, side) for how in shown])
        return demonstrations, mask, palette, queries

    def forget(self) -> None:
        """Forgets the tasks that were read."""
        self._tasks.clear()

    def compiled(self, shape: Shape) -> tuple[Program, Program]:
        """Returns what reads tasks and what answers, compiled for this shape; each once."""
        if shape not in self._programs:
            (side, colors), views = shape
            drawn = [
                jax.ShapeDtypeStruct((views, self.pairs, 2, side, side), jnp.uint8),
                jax.ShapeDtypeStruct((views, self.pairs), bool),
                jax.ShapeDtypeStruct((views, colors), jnp.uint8),
            ]
            queries = jax.ShapeDtypeStruct((views, side, side), jnp.uint8)
            task = jax.eval_shape(self._encode, self.weights, *drawn)
            self._programs[shape] = (
                jax.jit(self._encode).lower(self.weights, *drawn).compile(),
                jax.jit(self._answer).lower(self.weights, task, queries).compile(),
            )
        return self._programs[shape]

    def _encode(self, weights: Any, demonstrations: Any, mask: Any, palette: Any) -> TaskTokens:
        """Reads demonstrations u8[W, P, 2, N, N]."""
        drawn = (demonstrations, mask, palette)
        task: Any
        variables = {"params": with_unused(weights, self._like)}
        task, _ = self._model.apply(variables, *drawn, method="encode_task")
        return task

    def _answer(self, weights: Any, task: TaskTokens, queries: Any) -> jax.Array:
        """Answers queries u8[W, N, N]: log-probabilities f32[W, N, N, V]."""
        variables = {"params": with_unused(weights, self._like)}
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


def shape_of(palette: npt.NDArray[Any], queries: npt.NDArray[Any]) -> Shape:
    """Returns the shape of the programs that answer questions so drawn."""
    return Shape(Bucket(queries.shape[-1], palette.shape[-1]), len(queries))


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
