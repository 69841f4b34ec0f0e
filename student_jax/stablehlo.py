"""A student as StableHLO: a program a bucket, which runs in JAX without this package.

The weights lie beside the programs, once, and are an argument of each:

    from jax import export
    from safetensors.numpy import load_file
    program = export.deserialize(open("stablehlo/12x6.bin", "rb").read())
    leaves = load_file("stablehlo/weights.safetensors")
    log_probs = program.call(leaves, demonstrations, mask, palette, query)

In the shape descriptions: `B` batch and `P` demonstrations, free in every program, `N` canvas side,
`C` colors, `K` task tokens a demonstration, `V` cell classes, `T` teacher tokens, `F` teacher
feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bridge import weights
from bridge.canvas import SIDES
from bridge.proofs import Proof, Verdict, hold
from bridge.tree import flatten, unflatten
from bridge.weights import Array
from student_jax.batch import ROOMS, TOKEN_BUCKET
from student_jax.config import ModelConfig
from student_jax.grid_student import GridStudent, TaskTokens
from student_jax.proofs import batch_of
from student_jax.solver import Solver, make_predict
from student_jax.students import needed_to_answer, with_unused

FOLDER = "stablehlo"  # in an export's folder
WEIGHTS = "weights.safetensors"
PLATFORMS = ("cpu", "cuda")
SCALING = ("mean", "std", "rotation")  # of the teacher's features; weights like the others here


class Program(NamedTuple):
    """Which inputs a program takes: canvases of a side and palettes, or sequences of features."""

    size: int  # N, or T
    colors: int = 0  # C; 0 for features

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.size}x{self.colors}.bin" if self.colors else f"{self.size}.bin"


def programs_of(solver: Solver) -> tuple[Program, ...]:
    """Returns all buckets that a student meets."""
    if not solver.config.model.reads_features:
        return tuple(Program(side, room) for side in SIDES for room in ROOMS)
    longest = solver.config.model.max_tokens
    lengths = range(TOKEN_BUCKET, longest + TOKEN_BUCKET, TOKEN_BUCKET)
    return tuple(Program(min(length, longest)) for length in lengths)


def write_stablehlo(
    solver: Solver,
    out: Path,
    proofs: Sequence[Proof],
    chosen: Sequence[Program] | None = None,
) -> Verdict:
    """Writes the folder once all programs, read back, answer the proofs as JAX does.

    Args:
        solver: the student.
        out: an export's folder.
        proofs: with its answers.
        chosen: the programs to make; by default all.

    Raises:
        InputError: if an answer differs; nothing is written then.
    """
    chosen = tuple(chosen or programs_of(solver))
    leaves = used_leaves(solver)
    made: dict[str, bytes] = {}
    verdicts = []
    for program in chosen:
        made[program.file] = lower(solver, program, leaves)
        call = jax.jit(export.deserialize(bytearray(made[program.file])).call)

        def answer(inputs: dict[str, Array], call: Any = call) -> tuple[Array, None]:
            return np.asarray(call(leaves, *inputs.values())), None

        shown = fitting(solver, proofs, program)
        verdicts.append(hold(answer, shown, f"StableHLO {program.file}"))
    folder = out / FOLDER
    weights.save(folder / WEIGHTS, leaves, {"format": "flax"})
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return Verdict(
        largest=max(verdict.largest for verdict in verdicts),
        inputs=sum(verdict.inputs for verdict in verdicts),
        questions=sum(verdict.questions for verdict in verdicts),
        ties=sum(verdict.ties for verdict in verdicts),
    )


def lower(solver: Solver, program: Program, leaves: Mapping[str, Array]) -> bytes:
    """Returns one program, for CPUs and CUDA GPUs alike.

    Its matrix products are exact f32 on all of them: a GPU's TF32 would miss the tolerance.
    """
    weights_like = {name: shape_of(leaf) for name, leaf in leaves.items()}
    batch, pairs = export.symbolic_shape("batch, demonstrations")
    inputs = inputs_like(solver, program, batch, pairs).values()
    with jax.default_matmul_precision("highest"):
        function = jax.jit(make_answer(solver))
        return bytes(
            export.export(function, platforms=PLATFORMS)(weights_like, *inputs).serialize()
        )


def make_answer(solver: Solver) -> Any:
    """Returns (weights by name, *inputs) -> log-probabilities f32[B, N, N, V]; nothing is state."""
    one = _features_answer(solver) if solver.config.model.reads_features else _grids_answer(solver)

    def answer(leaves: Mapping[str, Any], *inputs: Any) -> jax.Array:
        # One question at a time, mapped over the batch: networks ask how many there are, and a
        # free size is no number.
        return jax.vmap(partial(one, unflatten(leaves)))(*inputs)

    return answer


def _features_answer(solver: Solver) -> Any:
    """Returns (weights, f32[T, F], bool[T]) -> log-probabilities f32[N, N, V]."""
    config = solver.config.model.to_answer("float32")
    predict = make_predict(config, solver.feature_width)

    def answer(own: Mapping[str, Any], features: Any, mask: Any) -> jax.Array:
        batch = batch_of({"features": features[None], "mask": mask[None]}, config.answer_side)
        params = {name: part for name, part in own.items() if name != "scaling"}
        scaling = replace(solver.scaling, **own.get("scaling", {}))
        return predict(with_unused(params, solver.params), scaling, batch)[0]

    return answer


def _grids_answer(solver: Solver) -> Any:
    """Returns (weights, u8[P, 2, N, N], bool[P], u8[C], u8[N, N]) -> log-probabilities."""
    config = solver.config.model.to_answer("float32")
    model = GridStudent(config, solver.feature_width)

    def answer(own: Any, demonstrations: Any, mask: Any, palette: Any, query: Any) -> jax.Array:
        variables = {"params": with_unused(own, solver.params)}

        def read(demonstration: Any) -> TaskTokens:
            drawn = demonstration[None, None], np.ones((1, 1), bool), palette[None]
            task: Any = model.apply(variables, *drawn, method="encode_task")[0]
            return task

        task = _joined(jax.vmap(read)(demonstrations), mask, config)
        said: Any = model.apply(variables, task, query[None], method="answer")
        return jax.nn.log_softmax(said[0][0])

    return answer


def _joined(each: TaskTokens, mask: Any, config: ModelConfig) -> TaskTokens:
    """Makes P tasks of a demonstration each, on a leading axis, one task of P demonstrations."""
    count = config.tokens_per_pair
    tokens, colors = each.tokens[:, 0], each.colors[:, 0]  # [P, K, C, D], [P, 1, C]
    flat = lambda x: x.reshape(1, -1, *x.shape[2:])  # noqa: E731
    joined = [flat(tokens[:, :count])], [flat(colors[:, :1])], [mask[None]]
    if config.table:  # what it adds is the same in each
        rest = tokens[:1, count:], colors[:1, 1:], np.ones((1, 1), bool)
        joined = tuple([*own, more] for own, more in zip(joined, rest, strict=True))
    tokens, colors, mask = (jnp.concatenate(parts, 1) for parts in joined)
    return TaskTokens(tokens=tokens, colors=colors, mask=mask, palette=each.palette[0])


def used_leaves(solver: Solver) -> dict[str, Array]:
    """Returns the weights that an answer needs, by name, and the scaling of features."""
    params = flatten(needed_to_answer(solver.params))
    leaves = {name: np.asarray(leaf) for name, leaf in params.items()}
    if solver.config.model.kind == "feature":
        scales = {name: getattr(solver.scaling, name) for name in SCALING}
        leaves |= {f"scaling.{k}": np.asarray(v) for k, v in scales.items() if v is not None}
    return leaves


def inputs_like(
    solver: Solver, program: Program, batch: Any, pairs: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a program's inputs, in order; batch and pairs: numbers, or symbols."""
    size, shapes = program.size, {}
    if program.colors:
        shapes["demonstrations"] = ((pairs, 2, size, size), np.uint8)
        shapes["mask"] = ((pairs,), np.bool_)
        shapes["palette"] = ((program.colors,), np.uint8)
        shapes["query"] = ((size, size), np.uint8)
    else:
        shapes["features"] = ((size, solver.feature_width), np.float32)
        shapes["mask"] = ((size,), np.bool_)
    return {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def fitting(solver: Solver, proofs: Sequence[Proof], program: Program) -> list[Proof]:
    """Returns the proofs that a program is held against: its bucket's, padded to its size.

    Where there are no features of its length, the longest below will do.
    """
    if program.colors:
        bucket = (program.size, program.colors)
        return [proof for proof in proofs if grid_bucket(proof) == bucket]
    lengths = [proof.inputs["mask"].shape[1] for proof in proofs]
    longest = max(length for length in lengths if length <= program.size)
    shorter = (program.size - 1) // TOKEN_BUCKET * TOKEN_BUCKET  # what the next smaller one takes
    above = min(shorter, longest - 1)
    return [
        padded(proof, inputs_like(solver, program, *proof.inputs["mask"].shape))
        for proof, length in zip(proofs, lengths, strict=True)
        if above < length <= program.size
    ]


def grid_bucket(proof: Proof) -> tuple[int, int]:
    """Returns the side of a proof's canvases and the slots of its palettes, N and C."""
    return proof.inputs["query"].shape[1], proof.inputs["palette"].shape[1]


def padded(proof: Proof, like: Mapping[str, jax.ShapeDtypeStruct]) -> Proof:
    """Pads a proof's inputs to these shapes, with masked tokens."""
    inputs: dict[str, Array] = {}
    for name, wanted in like.items():
        array = proof.inputs[name]
        room = [(0, most - size) for most, size in zip(wanted.shape, array.shape, strict=True)]
        inputs[name] = np.pad(array, room)
    return replace(proof, inputs=inputs, projected=None)


def shape_of(leaf: Array) -> jax.ShapeDtypeStruct:
    """Returns an array without its content."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
