"""How much of what a student sees is like what its teacher sees, frame by frame.

python -m student_jax.similarity --checkpoint runs/quickstart/grid

Three measures, over all patches of held-out questions that show cells:

- cosine, scaled: of what the student's projectors say and the teacher's features as the loss sees
  them, mean and scale removed;
- cosine, raw: the same with mean and scale put back; a few loud channels make it high for anyone;
- CKA: linear centred kernel alignment of the student's own states, before its projectors, with the
  teacher's features (Kornblith et al., arXiv 1905.00414, eq. 3): 1 for equal but for turning and
  scaling, whatever the projectors do; and of what each of its blocks leaves behind, in the order
  they run.

The controls are the same student with the weights it began with, untrained, and any other, such as
one that had no teacher: what it shares with these features, the teacher did not teach.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bridge import config as configs
from bridge.arc import all_questions, known_answers
from bridge.errors import InputError
from bridge.files import write_text
from bridge.scaling import unscale
from bridge.store import FeatureStore
from student_jax.alignment import Similarity, Sums
from student_jax.batch import Batch, scale_teacher
from student_jax.data import Examples
from student_jax.sight import See, make_see
from student_jax.solver import Solver, begin_again, calls, load_solver, open_store

FRAMES = ("input", "output", "query")
STATES = {"input": "encoder", "output": "encoder", "query": "core"}  # which layers a frame's are of


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Which student to hold against which features."""

    checkpoint: Path
    """a training run's folder, of a grid student that had a teacher"""
    which: Literal["latest", "best"] = "latest"
    """a run's latest checkpoint, or the one that answered the most held-out questions"""
    control: Path | None = None
    """another grid student's folder, to see what it shares with the same features"""
    store: str | None = None
    """the teacher's features; by default those it was trained with"""
    split: Literal["dev", "train"] = "dev"
    """tasks held out, or trained on"""
    out: Path | None = None
    """JSON file; by default similarity.json in the run's folder"""


def main(config: SimilarityConfig) -> None:
    """Compare a student's states with its teacher's features, beside an untrained control."""
    solver = load_solver(config.checkpoint, config.which)
    if solver.config.model.kind != "grid" or solver.teacher is None:
        raise InputError("similarity: expected a grid student that was trained with a teacher")
    scaled = solver.config.loss.scaling in ("standardise", "phi_s")
    if scaled and not np.any(solver.scaling.mean):
        raise InputError(
            f"checkpoint: {config.checkpoint}: expected a training run's folder, since exports of "
            "grid students leave out how the teacher's features were scaled"
        )
    examples = load_examples(solver, open_store(solver, config.store), config.split)
    see = make_see(solver)  # compiled once for both
    found = {
        "trained": measure(solver, see, solver.params, examples),
        "untrained": measure(solver, see, begin_again(solver).params, examples),
    }
    if config.control is not None:
        other = load_solver(config.control, config.which)
        if other.config.model.kind != "grid":
            raise InputError(f"control: {config.control}: expected a grid student")
        see = make_see(other)
        found["control"] = measure(solver, see, other.params, examples, projected=False)
    console = Console()
    console.print(make_table(found))
    console.print(make_layers_table(found))
    out = config.out or config.checkpoint / "similarity.json"
    about = {
        "checkpoint": str(config.checkpoint),
        "control": config.control and str(config.control),
        "step": solver.step,
        "teacher": solver.teacher,
        "questions": len(examples.examples),
        "split": config.split,
    }
    rows = {name: {f: asdict(s) for f, s in each.items()} for name, each in found.items()}
    write_text(out, json.dumps({"about": about, "similarity": rows}, indent=1) + "\n")
    configs.save(config, out.with_suffix(".config.yaml"))
    print(f"similarity: {out}")


def load_examples(solver: Solver, store: FeatureStore, split: str) -> Examples:
    """Returns every question of the tasks that the store holds.

    Raises:
        InputError: if it holds none.
    """
    tasks = solver.config.data.tasks
    trained, held_out = tasks.split(tasks.load())
    chosen = (held_out if split == "dev" else trained).values()
    questions = [q for task in chosen for q in all_questions(task) if q.example_id in store.records]
    if not questions:
        raise InputError(f"store {store.path}: expected questions of {split} tasks, got none")
    # Features are of questions with a known answer alone; the answers themselves are not looked at.
    answers = {name: grid for task in chosen for name, grid in known_answers(task).items()}
    return Examples(questions, answers, solver.config.model, solver.config.data, store)


def measure(
    solver: Solver, see: See, params: Any, examples: Examples, *, projected: bool = True
) -> dict[str, Similarity]:
    """Returns how similar each kind of frame is, for these weights.

    Args:
        solver: whose teacher it is.
        see: of the student whose weights these are.
        params: its weights.
        examples: what is looked at.
        projected: whether its projectors are to this teacher's features.
    """
    sums = {frame: Sums() for frame in FRAMES}
    for batch, asked in calls(examples):
        count = len(asked)
        scaled = scale_teacher(batch, solver.scaling)
        said, states = see(params, batch)
        for frame, where in places(batch).items():
            mask = np.asarray(batch.teacher_mask)[:count, where]
            raw, target = (
                np.asarray(x, np.float64)[:count, where][mask]
                for x in (batch.teacher, scaled.teacher)
            )
            guesses = None
            if projected:
                guess = np.asarray(said, np.float64)[:count, where][mask]
                guesses = guess, unscale(solver.scaling, guess)
            own = {
                layer: np.asarray(x, np.float64)[:count][mask] for layer, x in states[frame].items()
            }
            sums[frame].add(own, raw, target, guesses)
    return {frame: each.result() for frame, each in sums.items() if each.patches}


def places(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """Returns where each kind of frame lies among patches: in1 out1 in2 out2 ... query."""
    pairs, side = batch.demonstrations.shape[1], batch.query.shape[-1]
    patches = np.arange((2 * pairs + 1) * (side // 2) ** 2).reshape(2 * pairs + 1, -1)
    return {
        "input": patches[0:-1:2].ravel(),
        "output": patches[1:-1:2].ravel(),
        "query": patches[-1],
    }


def make_table(found: dict[str, dict[str, Similarity]]) -> Table:
    """Returns the measures as a table."""
    table = Table(title="student and teacher", title_justify="left", title_style="bold")
    for heading in ("weights", "frame", "student's", "patches", "cosine, scaled", "raw", "CKA"):
        table.add_column(heading, justify="left" if heading in ("weights", "frame") else "right")
    for name, frames in found.items():
        for frame, s in frames.items():
            values = map(in_thousandths, (s.cosine_scaled, s.cosine_raw, s.cka))
            table.add_row(name, frame, STATES[frame], f"{s.patches:,}", *values)
    return table


def make_layers_table(found: dict[str, dict[str, Similarity]]) -> Table:
    """Returns the CKA of each block as a table; an encoder reads no query, a core nothing else."""
    table = Table(title="CKA by block", title_justify="left", title_style="bold")
    table.add_column("weights")
    table.add_column("after block")
    for frame in FRAMES:
        table.add_column(frame, justify="right")
    for name, frames in found.items():
        for layer in dict.fromkeys(layer for s in frames.values() for layer in s.layers):
            each = (
                frames[frame].layers.get(layer) if frame in frames else None for frame in FRAMES
            )
            table.add_row(name, layer, *map(in_thousandths, each))
    return table


def in_thousandths(value: float | None) -> str:
    """Writes a measure; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    configs.command(main, SimilarityConfig)
