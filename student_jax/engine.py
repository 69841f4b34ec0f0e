"""A student in JAX, ready for single questions, or a few: compiled ahead of time, tasks read once.

In the shape descriptions: `Q` questions, `W` views of each, `N` canvas side, `V` cell classes, `T`
teacher tokens, `F` teacher feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bridge.canvas import Attempts, decode
from bridge.errors import InputError
from bridge.scaling import Scaling
from bridge.store import Features
from bridge.tree import flatten
from student_jax.answerer import Answerer, Drawn, Shape
from student_jax.batch import Batch, check_features
from student_jax.batch import feature_batch as batch_of
from student_jax.grid_student import GridStudent, TaskTokens
from student_jax.keep import make_room_for_programs
from student_jax.packing import Packed, pack, unpack
from student_jax.solver import Solver, make_predict
from student_jax.students import OF_ANSWERING, OF_READING, needed_to_answer, with_unused

CPU_INFO = Path("/proc/cpuinfo")  # Linux alone
MULTIPLIES_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # x86: AMD Zen 4, Intel Cooper Lake, and later
TOKENS = 128  # feature sequences are padded to a multiple of this, one program each

Program = Callable[..., Any]  # compiled


class Engine(Answerer):
    """A grid student in JAX.

    Answers are those of `Solver.solve`; in bfloat16 they may differ where two are almost as
    probable. Calls are filled up to a power of two, so that programs are few.
    """

    def __init__(self, solver: Solver, compute: str | None = None) -> None:
        """Places the weights.

        Args:
            solver: a grid student.
            compute: float32 or bfloat16; see `default_compute`.

        Raises:
            InputError: if the student reads a teacher's features.
        """
        if solver.config.model.reads_features:
            raise InputError("engine: expected a grid student; see FeatureEngine")
        super().__init__(solver.config.data.max_demonstrations)
        self.compute = compute or default_compute(solver.config.model.compute)
        config = solver.config.model.to_answer(self.compute)
        self._model = GridStudent(config, solver.feature_width)
        self._like = jax.eval_shape(lambda: solver.params)
        self.reading = place_weights(solver.params, self.compute, besides=OF_ANSWERING)
        self.answering = place_weights(solver.params, self.compute, besides=OF_READING)
        self._readers: dict[Shape, Program] = {}
        self._answerers: dict[Shape, Program] = {}

    def warm_up(self, shape: Shape) -> None:
        """Compiles."""
        self.reader(shape)
        self.answerer(shape)

    def read(self, drawn: Sequence[Drawn]) -> Sequence[TaskTokens]:
        """Reads the tasks of questions of one shape in one call."""
        drawn, count = fill(drawn), len(drawn)
        inputs = (np.concatenate(each) for each in zip(*(each[:3] for each in drawn), strict=True))
        program = self.reader(drawn[0].shape._replace(questions=len(drawn)))
        return program(self.reading, *inputs)[:count]

    def ask(self, tasks: Sequence[TaskTokens], drawn: Sequence[Drawn]) -> Callable[[], jax.Array]:
        """Sends the queries to the device, and returns what answers them."""
        queries = jax.device_put(np.concatenate([each.queries for each in fill(drawn)]))
        tasks = tuple(fill(tasks))
        program = self.answerer(drawn[0].shape._replace(questions=len(tasks)))
        return partial(program, self.answering, tasks, queries)

    def reader(self, shape: Shape) -> Program:
        """Returns what reads tasks of this shape, compiled once."""
        return self._program(self._readers, shape, self._lower_reader)

    def answerer(self, shape: Shape) -> Program:
        """Returns what answers questions of this shape, compiled once."""
        return self._program(self._answerers, shape, self._lower_answerer)

    def _program(
        self, known: dict[Shape, Program], shape: Shape, lower: Callable[[Shape], Any]
    ) -> Program:
        """Compiles, where that was not done before, or its result had to make room.

        A thread that warms up may do so beside the one that answers: at worst both compile.
        """
        program = known.get(shape)
        if program is None:
            make_room_for_programs(self._readers, self._answerers)
            program = known[shape] = lower(shape).compile()
        return program

    def _lower_reader(self, shape: Shape) -> Any:
        encode = jax.jit(partial(self._encode, shape.questions))
        return encode.lower(self.reading, *_demonstrations_like(shape))

    def _lower_answerer(self, shape: Shape) -> Any:
        one = shape._replace(questions=1)
        encode = partial(self._encode, 1)
        (task,) = jax.eval_shape(encode, self.reading, *_demonstrations_like(one))
        (side, _), rows = shape.bucket, shape.questions * shape.views
        queries = jax.ShapeDtypeStruct((rows, side, side), jnp.uint8)
        tasks = (task,) * shape.questions
        return jax.jit(self._answer).lower(self.answering, tasks, queries)

    def _encode(
        self, tasks: int, weights: Packed, demonstrations: Any, mask: Any, palette: Any
    ) -> tuple[TaskTokens, ...]:
        """Reads demonstrations u8[Q * W, P, 2, N, N] of so many tasks, and keeps these apart."""
        drawn = (demonstrations, mask, palette)
        read: Any
        variables = {"params": with_unused(unpack(weights), self._like)}
        read, _ = self._model.apply(variables, *drawn, method="encode_task")
        views = len(palette) // tasks
        cut = lambda i: jax.tree.map(lambda x: x[i * views : (i + 1) * views], read)  # noqa: E731
        return tuple(cut(i) for i in range(tasks))

    def _answer(self, weights: Packed, tasks: tuple[TaskTokens, ...], queries: Any) -> jax.Array:
        """Answers queries u8[Q * W, N, N]: log-probabilities f32[Q * W, N, N, V]."""
        variables = {"params": with_unused(unpack(weights), self._like)}
        task = jax.tree.map(lambda *each: jnp.concatenate(each), *tasks)
        said: Any = self._model.apply(variables, task, queries, method="answer")
        return jax.nn.log_softmax(said[0].astype(jnp.float32))


class FeatureEngine:
    """A student that reads a teacher's features, ready; the teacher's time comes on top."""

    def __init__(self, solver: Solver, compute: str | None = None) -> None:
        """Places the weights; arguments as for `Engine`."""
        model = solver.config.model
        self.config = model.to_answer(compute or default_compute(model.compute))
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
        return decode(log_probs)

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

    def _answer(self, weights: Packed, scaling: Scaling, batch: Batch) -> jax.Array:
        return self._predict(with_unused(unpack(weights), self._like), scaling, batch)


def default_compute(trained: str) -> str:
    """Returns what a student was trained in, but float32 on a CPU where that is as fast."""
    if jax.default_backend() != "cpu":
        return trained
    flags = CPU_INFO.read_text() if CPU_INFO.is_file() else ""
    return trained if MULTIPLIES_BFLOAT16 & set(flags.split()) else "float32"


def fill(items: Sequence[Any]) -> list[Any]:
    """Repeats the last one until there are a power of two."""
    most = 1 << (len(items) - 1).bit_length()
    return [*items, *[items[-1]] * (most - len(items))]


def _demonstrations_like(shape: Shape) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of what reads tasks."""
    (side, colors), rows = shape.bucket, shape.questions * shape.views
    return (
        jax.ShapeDtypeStruct((rows, shape.places, 2, side, side), jnp.uint8),
        jax.ShapeDtypeStruct((rows, shape.places), bool),
        jax.ShapeDtypeStruct((rows, colors), jnp.uint8),
    )


def place_weights(params: Any, compute: str, besides: Sequence[str] = ()) -> Packed:
    """Puts on the device what answering needs, as it is computed with, without parts `besides`.

    The matrices of blocks are cast once and not in every call; the numbers are the same, since
    the layers cast them anyway. Norms and biases stay in float32.
    """
    cast = {
        name: jnp.asarray(leaf, compute) if ".block_" in name and name.endswith("kernel") else leaf
        for name, leaf in flatten(needed_to_answer(params, besides)).items()
    }
    return jax.device_put(pack(cast))
