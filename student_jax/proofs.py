"""Makes an export's proofs: random inputs, and real questions, with what the student says in f32.

In the shape descriptions: `B` batch, `P` demonstrations, `N` canvas side, `C` colors, `T` teacher
tokens, `F` teacher feature width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from bridge.arc import NUM_COLORS, all_questions
from bridge.arc_files import load_tasks
from bridge.canvas import NUM_CLASSES
from bridge.proofs import Answer, Proof
from bridge.scaling import Scaling
from bridge.weights import Array
from student_jax.batch import NO_COLOR, Batch, feature_batch, scale_teacher
from student_jax.config import DataConfig
from student_jax.data import Examples
from student_jax.solver import Predict, Solver, make_predict
from student_jax.students import make_student

PAIRS = 3  # demonstrations of a real question, at most
REAL_TASKS = "arcagi/training"


@dataclass(frozen=True)
class Draw:
    """How many proofs there are of one shape; each shape compiles once."""

    size: int  # B
    pairs: int  # P
    side: int  # N
    colors: int  # C
    random: int
    real: int = 0  # of ARC-AGI-1's training tasks


GRID_DRAWS = (
    Draw(2, PAIRS, 8, 4, random=8, real=8),
    Draw(2, PAIRS, 8, 6, random=8, real=8),
    Draw(2, PAIRS, 12, 4, random=8, real=8),
    Draw(2, PAIRS, 12, 6, random=8, real=8),
    Draw(2, PAIRS, 12, 10, random=8, real=8),
    Draw(1, 2, 8, 10, random=8),
    Draw(3, 1, 12, 6, random=8),
    *(Draw(1, 2, side, 4, random=2) for side in (16, 20, 24, 32)),  # dear, and large on disk
)
# Examples, teacher tokens, proofs: full size has 2048 channels a token, so there are few.
FEATURE_DRAWS = ((1, 5, 40), (2, 4, 40), (3, 2, 20), (1, 96, 4))


@dataclass(frozen=True)
class Exact:
    """A student in float32, whatever it was trained in."""

    solver: Solver
    predict: Predict

    @staticmethod
    def of(solver: Solver) -> Exact:
        """Compiles nothing yet."""
        model = replace(solver.config.model, compute="float32")
        return Exact(solver, make_predict(model, solver.feature_width))

    def answer_with(self, params: Any, scaling: Scaling) -> Answer:
        """Returns what answers a proof's inputs with these weights."""
        side = self.solver.config.model.answer_side

        def answer(inputs: dict[str, Array]) -> tuple[Array, Array | None]:
            batch = batch_of(inputs, side)
            with jax.default_matmul_precision(
                "highest"
            ):  # a GPU's default would miss the tolerance
                return np.asarray(self.predict(params, scaling, batch)), None

        return answer


def make_proofs(exact: Exact) -> list[Proof]:
    """Returns at least `MIN_PROOFS` inputs of few shapes with the student's answers."""
    solver = exact.solver
    draws = feature_inputs(solver) if solver.config.model.reads_features else grid_inputs(solver)
    answer = exact.answer_with(solver.params, solver.scaling)
    proofs, projected = [], set()
    for inputs in draws:
        proof = Proof(inputs, answer(inputs)[0])
        shape = next(iter(inputs.values())).shape
        if solver.config.model.reads_features and shape not in projected:
            projected.add(shape)  # one of each shape: they are as large as the features
            proof = replace(proof, projected=project(solver, inputs))
        proofs.append(proof)
    return proofs


def batch_of(inputs: dict[str, Array], side: int) -> Batch:
    """Puts a proof's inputs where students look for them; `side` is that of answers."""
    if "features" in inputs:
        answer = np.zeros((len(inputs["mask"]), side, side), np.uint8)
        return feature_batch(inputs["features"], inputs["mask"], answer)
    size = len(inputs["query"])
    return Batch(
        demonstrations=inputs["demonstrations"],
        demonstration_mask=inputs["mask"],
        palette=inputs["palette"],
        query=inputs["query"],
        answer=inputs["query"],  # looked at by the loss alone, like what follows
        teacher=np.zeros((size, 1, 1), np.float32),
        teacher_mask=np.zeros((size, 1), bool),
    )


def grid_inputs(solver: Solver) -> Iterator[dict[str, Array]]:
    """Yields a grid student's inputs: random canvases, then real questions of the same shapes."""
    rng = np.random.default_rng(0)
    most = solver.config.data.max_demonstrations
    for draw in GRID_DRAWS:
        for _ in range(draw.random):
            yield random_grids(rng, replace(draw, pairs=min(draw.pairs, most)))
    yield from real_grids(solver)


def random_grids(rng: np.random.Generator, draw: Draw) -> dict[str, Array]:
    """Draws canvases of the palette's colors, border and background; any number of places empty."""
    size, pairs, side = draw.size, draw.pairs, draw.side
    palette = np.full((size, draw.colors), NO_COLOR, np.uint8)
    canvases = np.zeros((size, 2 * pairs + 1, side, side), np.uint8)
    for i in range(size):
        shown = rng.integers(1, draw.colors + 1)
        palette[i, :shown] = rng.permutation(NUM_COLORS)[:shown]
        classes = [*palette[i, :shown], *range(NUM_COLORS, NUM_CLASSES)]
        canvases[i] = rng.choice(classes, canvases[i].shape)
    there = rng.integers(0, pairs + 1, (size, 1))
    return {
        "demonstrations": canvases[:, 1:].reshape(size, pairs, 2, side, side),
        "mask": np.arange(pairs) < there,
        "palette": palette,
        "query": canvases[:, 0],
    }


def real_grids(solver: Solver) -> Iterator[dict[str, Array]]:
    """Yields batches of real questions of at most `PAIRS` demonstrations."""
    tasks = load_tasks(REAL_TASKS).values()
    questions = [
        q for task in tasks for q in all_questions(task) if _is_short(len(q.demonstrations))
    ]
    pairs = min(PAIRS, solver.config.data.max_demonstrations)
    data = DataConfig(max_demonstrations=pairs)
    examples = Examples(questions, {}, solver.config.model, data, None)
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, example in enumerate(examples.examples):
        members[example.bucket].append(i)
    rng = np.random.default_rng(1)
    for draw in GRID_DRAWS:
        if not draw.real:
            continue
        chosen = rng.choice(members[draw.side, draw.colors], draw.size * draw.real, replace=False)
        for start in range(0, len(chosen), draw.size):
            batch = examples.batch(chosen[start : start + draw.size].tolist())
            yield {
                "demonstrations": np.asarray(batch.demonstrations),
                "mask": np.asarray(batch.demonstration_mask),
                "palette": np.asarray(batch.palette),
                "query": np.asarray(batch.query),
            }


def feature_inputs(solver: Solver) -> Iterator[dict[str, Array]]:
    """Yields random features, f32[B, T, F], and masks of which one token at least is True."""
    rng = np.random.default_rng(0)
    for size, tokens, count in FEATURE_DRAWS:
        tokens = min(tokens, solver.config.model.max_tokens)
        for _ in range(count):
            shape = (size, tokens, solver.feature_width)
            yield {
                "features": rng.normal(0, 2, shape).astype(np.float32),
                "mask": np.arange(tokens) < rng.integers(1, tokens + 1, (size, 1)),
            }


def project(solver: Solver, inputs: dict[str, Array]) -> Array:
    """Returns what a student projects to its teacher's features, f32[B, T, F]."""
    model = make_student(replace(solver.config.model, compute="float32"), solver.feature_width)
    batch = batch_of(inputs, solver.config.model.answer_side)
    with jax.default_matmul_precision("highest"):
        output: Any = model.apply({"params": solver.params}, scale_teacher(batch, solver.scaling))
    return np.asarray(output.features)


def _is_short(demonstrations: int) -> bool:
    return 1 <= demonstrations <= PAIRS
