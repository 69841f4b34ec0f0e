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
from student_jax.batch import NO_COLOR, PLACES, ROOMS, Batch, feature_batch, scale_teacher
from student_jax.config import DataConfig
from student_jax.data import Examples
from student_jax.solver import Predict, Solver, make_predict
from student_jax.students import make_student

PAIRS = 3  # demonstrations of a real question, at most
MOST = PLACES[-1]  # demonstrations; a student that takes fewer is shown as many as it takes
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


# Every bucket. What is large is dear, and large on disk, so it comes once.
GRID_DRAWS = (
    Draw(2, PAIRS, 8, 4, random=8, real=8),
    Draw(2, PAIRS, 8, 6, random=8, real=8),
    Draw(2, PAIRS, 12, 4, random=8, real=8),
    Draw(2, PAIRS, 12, 6, random=8, real=8),
    Draw(2, PAIRS, 12, 10, random=8, real=8),
    Draw(1, MOST, 8, 10, random=8),
    Draw(3, 1, 12, 6, random=4),
    *(Draw(2, PAIRS, 16, room, random=1) for room in ROOMS),
    *(Draw(1, 2, side, room, random=1) for side in (20, 24, 32) for room in ROOMS),
)
# Examples, teacher tokens, proofs: full size has 2048 channels a token, so there are few. The last
# is as long as the original's were, and most of the file.
FEATURE_DRAWS = ((1, 5, 40), (2, 4, 40), (3, 2, 20), (1, 96, 4), (1, 5164, 1))
PROJECTED = 96  # tokens, at most, of a proof that tells what is projected: as large as its features


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
        # All in one place: weights from a checkpoint and from a file would else compile twice.
        params, scaling = jax.device_put((params, scaling), jax.devices()[0])

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
        shape = inputs["mask"].shape
        short = solver.config.model.reads_features and shape[1] <= PROJECTED
        if short and shape not in projected:  # one of each shape
            projected.add(shape)
            proof = replace(proof, projected=project(solver, inputs))
        proofs.append(proof)
    return proofs


def batch_of(inputs: dict[str, Array], side: int) -> Batch:
    """Puts a proof's inputs where students look for them; `side` is that of answers."""
    if "features" in inputs:
        answer = np.zeros((len(inputs["mask"]), side, side), np.uint8)
        return feature_batch(inputs["features"], inputs["mask"], answer)
    return Batch(
        demonstrations=inputs["demonstrations"],
        demonstration_mask=inputs["mask"],
        palette=inputs["palette"],
        query=inputs["query"],
        answer=inputs["query"],  # looked at by the loss alone, like what follows
        teacher=np.zeros((0, 1, 1), np.float32),
        teacher_mask=np.zeros((0, 1), bool),
    )


def grid_inputs(solver: Solver) -> Iterator[dict[str, Array]]:
    """Yields a grid student's inputs: random canvases, then real questions of the same shapes."""
    rng = np.random.default_rng(0)
    most = solver.config.data.max_demonstrations
    for draw in GRID_DRAWS:
        for i in range(draw.random):
            yield random_grids(rng, replace(draw, pairs=min(draw.pairs, most)), full=i == 0)
    yield from real_grids(solver)


def random_grids(rng: np.random.Generator, draw: Draw, *, full: bool) -> dict[str, Array]:
    """Draws canvases of the palette's colors, border and background.

    Args:
        rng: what they are drawn from.
        draw: their shapes.
        full: whether the first question has all places filled and all slots used; others have any
            number of both.
    """
    size, pairs, side = draw.size, draw.pairs, draw.side
    palette = np.full((size, draw.colors), NO_COLOR, np.uint8)
    canvases = np.zeros((size, 2 * pairs + 1, side, side), np.uint8)
    for i, shown in enumerate(_counts(rng, 1, draw.colors, size, full=full)):
        palette[i, :shown] = rng.permutation(NUM_COLORS)[:shown]
        classes = [*palette[i, :shown], *range(NUM_COLORS, NUM_CLASSES)]
        canvases[i] = rng.choice(classes, canvases[i].shape)
    there = _counts(rng, 0, pairs, size, full=full)
    return {
        "demonstrations": canvases[:, 1:].reshape(size, pairs, 2, side, side),
        "mask": np.arange(pairs) < there[:, None],
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
        for i in range(count):
            shape = (size, tokens, solver.feature_width)
            valid = _counts(rng, 1, tokens, size, full=i == 0)
            yield {
                "features": rng.normal(0, 2, shape).astype(np.float32),
                "mask": np.arange(tokens) < valid[:, None],
            }


def project(solver: Solver, inputs: dict[str, Array]) -> Array:
    """Returns what a student projects to its teacher's features, f32[B, T, F]."""
    model = make_student(replace(solver.config.model, compute="float32"), solver.feature_width)
    batch = batch_of(inputs, solver.config.model.answer_side)

    @jax.jit
    def said(params: Any, batch: Batch, scaling: Scaling) -> jax.Array:
        output: Any = model.apply({"params": params}, scale_teacher(batch, scaling))
        return output.features

    with jax.default_matmul_precision("highest"):
        return np.asarray(said(solver.params, batch, solver.scaling))


def _is_short(demonstrations: int) -> bool:
    return 1 <= demonstrations <= PAIRS


def _counts(rng: np.random.Generator, least: int, most: int, size: int, *, full: bool) -> Array:
    """Draws a number for each question of a batch, i64[B]; for the first, if `full`, the most."""
    counts = rng.integers(least, most + 1, size)
    return np.r_[most, counts[1:]] if full else counts
