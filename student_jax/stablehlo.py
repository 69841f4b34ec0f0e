"""A student as StableHLO: a program a bucket, which runs in JAX without this package.

The weights lie beside the programs, once, and are an argument of each:

    from jax import export
    from safetensors.numpy import load_file
    program = export.deserialize(open("stablehlo/12x6.bin", "rb").read())
    leaves = load_file("stablehlo/weights.safetensors")
    log_probs = program.call(leaves, demonstrations, mask, palette, query)

In the shape descriptions: `B` batch, free in every program, `P` demonstrations, `N` canvas side,
`C` colors, `T` teacher tokens, `F` teacher feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from bridge import weights
from bridge.canvas import SIDES
from bridge.proofs import Proof, Verdict, hold
from bridge.tree import flatten, unflatten
from bridge.weights import Array
from student_jax.batch import NO_COLOR, ROOMS, TOKEN_BUCKET
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
    (batch,) = export.symbolic_shape("batch")
    inputs = inputs_like(solver, program, batch).values()
    with jax.default_matmul_precision("highest"):
        function = jax.jit(make_answer(solver))
        return bytes(
            export.export(function, platforms=PLATFORMS)(weights_like, *inputs).serialize()
        )


def make_answer(solver: Solver) -> Any:
    """Returns (weights by name, *inputs) -> log-probabilities f32[B, N, N, V]; nothing is state."""
    config = replace(solver.config.model, compute="float32")
    predict = make_predict(config, solver.feature_width)
    names = ("features", "mask") if config.reads_features else tuple(_grid_shapes(1, 8, 4))

    def answer_one(leaves: Mapping[str, Any], inputs: Mapping[str, Any]) -> jax.Array:
        batch = batch_of({name: array[None] for name, array in inputs.items()}, config.answer_side)
        own = unflatten(leaves)
        scaling = replace(solver.scaling, **own.pop("scaling", {}))
        return predict(with_unused(own, solver.params), scaling, batch)[0]

    def answer(leaves: Mapping[str, Any], *inputs: Any) -> jax.Array:
        # One question at a time, mapped over the batch: networks ask how many there are, and a
        # free size is no number.
        named = dict(zip(names, inputs, strict=True))
        return jax.vmap(answer_one, in_axes=(None, 0))(leaves, named)

    return answer


def used_leaves(solver: Solver) -> dict[str, Array]:
    """Returns the weights that an answer needs, by name, and the scaling of features."""
    params = flatten(needed_to_answer(solver.params))
    leaves = {name: np.asarray(leaf) for name, leaf in params.items()}
    if solver.config.model.kind == "feature":
        scales = {name: getattr(solver.scaling, name) for name in SCALING}
        leaves |= {f"scaling.{k}": np.asarray(v) for k, v in scales.items() if v is not None}
    return leaves


def inputs_like(solver: Solver, program: Program, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a program's inputs, in order; `batch` is a number or a symbol."""
    if program.colors:
        pairs = solver.config.data.max_demonstrations
        shapes = _grid_shapes(pairs, program.size, program.colors)
    else:
        shapes = {
            "features": ((program.size, solver.feature_width), np.float32),
            "mask": ((program.size,), np.bool_),
        }
    return {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def fitting(solver: Solver, proofs: Sequence[Proof], program: Program) -> list[Proof]:
    """Returns the proofs that a program is held against, padded with nothing to its sizes.

    Those of its own palette's room; where there are none, those of smaller ones do.
    """
    if program.colors:
        proofs = [proof for proof in proofs if proof.log_probs.shape[1] == program.size]
        rooms = {proof.inputs["palette"].shape[1] for proof in proofs}
        room = max(room for room in rooms if room <= program.colors)
        proofs = [proof for proof in proofs if proof.inputs["palette"].shape[1] == room]
    else:
        proofs = [proof for proof in proofs if proof.inputs["mask"].shape[1] <= program.size]
    return [padded(proof, inputs_like(solver, program, len(proof.log_probs))) for proof in proofs]


def padded(proof: Proof, like: Mapping[str, jax.ShapeDtypeStruct]) -> Proof:
    """Pads a proof's inputs to these shapes: with empty places, masked tokens, unused slots."""
    inputs: dict[str, Array] = {}
    for name, wanted in like.items():
        array = proof.inputs[name]
        room = [(0, most - size) for most, size in zip(wanted.shape, array.shape, strict=True)]
        fill = NO_COLOR if name == "palette" else 0
        inputs[name] = np.pad(array, room, constant_values=fill)
    return replace(proof, inputs=inputs, projected=None)


def shape_of(leaf: Array) -> jax.ShapeDtypeStruct:
    """Returns an array without its content."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _grid_shapes(pairs: int, side: int, colors: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    return {
        "demonstrations": ((pairs, 2, side, side), np.uint8),
        "mask": ((pairs,), np.bool_),
        "palette": ((colors,), np.uint8),
        "query": ((side, side), np.uint8),
    }
