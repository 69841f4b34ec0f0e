"""Trains the student without one ingredient at a time, at equal budget, and tables what it costs.

    python -m bridge.rearc --out data/rearc_small --pairs 100 --max_side 10
    python tools/ablate.py --out tools/measurements/ablation_cpu.json

Every row is trained on the same tasks for as many steps and scored on the same held-out tasks, once
a seed: zero-shot and with adapted weights, in one view and in a vote. Held-out tasks are carved
from the training set; evaluation tasks are never looked at. The rows of the second group see a
teacher: the one without it and the one with a random-weights teacher are its controls. Rows that
`--out` holds already, of the same budget, are kept: a run that was stopped goes on where it stood,
and more seeds or variants join those that are there.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conditions import conditions
from rich.console import Console
from rich.table import Table

from bridge import config as configs
from bridge.arc import Task, open_questions
from bridge.arc_files import read_json
from bridge.errors import InputError
from bridge.files import write_text
from bridge.tree import flatten, unflatten
from student_jax.adapter import Adapter
from student_jax.baselines import BASELINES, baseline
from student_jax.config import AdaptConfig, TrainConfig
from student_jax.cores import use_every_core
from student_jax.keep import make_room_for_programs
from student_jax.memory import begin_with_mimalloc
from student_jax.metrics import score
from student_jax.solver import by_task, load_solver
from student_jax.train import train

# Features are of the original pairs alone, and of those that are not augmented.
SEEN = {"data.rearc": None, "data.augmented_fraction": 0.5}
STORES = {  # the teacher's weights
    "teacher: DINOv2": "pretrained",
    "teacher: DINOv2, fading": "pretrained",
    "teacher: DINOv2, random weights": "random",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "1-D positions": {"model.positions": "1-d"},
    "no convolution": {"model.convolution": False},
    "no loops": {"model.loops": 1},
    "queries alone": {"loss.left_out": 0.0},
    "no teacher": SEEN,
    "teacher: DINOv2": SEEN,
    "teacher: DINOv2, fading": {**SEEN, "loss.fade": 0.5},
    "teacher: DINOv2, random weights": SEEN,
}
TIERS = ("zero-shot", "adapted weights")
BUDGET = ("base", "max_side", "train_steps", "adapt_steps", "views")  # alike in all rows


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """The budget of every row."""

    base: Path = Path("configs/nano.yaml")
    """training config that the rows differ from"""
    max_side: int = 7
    """of the tasks' grids: small canvases make many rows affordable"""
    train_steps: int = 200
    adapt_steps: int = 200
    views: int = 8
    """of the vote"""
    seeds: tuple[int, ...] = (0, 1)
    variants: tuple[str, ...] = tuple(VARIANTS)
    runs: Path = Path("runs/ablation")
    """folder for the runs and the teachers' features"""
    out: Path = Path("runs/ablation/rows.json")
    """JSON file for the numbers; what it holds of other variants and seeds is kept"""

    def __post_init__(self) -> None:
        """Checks the names."""
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants or not self.seeds:
            raise ValueError(f"variants: expected some of {', '.join(VARIANTS)}; got {unknown}")


def main(config: AblateConfig) -> None:
    """Train and score every variant with every seed."""
    use_every_core()
    under = conditions("jax", "flax", "optax")
    rows = kept(config)
    if rows:
        show(config, rows)
    there = {(row["seed"], row["variant"]) for row in rows}
    for seed, name in itertools.product(config.seeds, config.variants):
        if (seed, name) not in there:
            rows += [{**row, "date": under["date"]} for row in measure(config, name, seed)]
            write_text(config.out, json.dumps(result_of(config, under, rows), indent=1) + "\n")
            show(config, rows)


def result_of(
    config: AblateConfig, under: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns all that is measured so far, with what it is measured on."""
    return {
        **under,
        "config": configs.to_dict(config),
        "tasks": sorted(held_out(config)),
        "baselines": {
            name: asdict(
                score(baseline(name, held_out(config)), held_out(config), held_out(config))
            )
            for name in BASELINES
        },
        "rows": rows,
    }


def kept(config: AblateConfig) -> list[dict[str, Any]]:
    """Returns the rows that the file holds.

    Raises:
        InputError: if they are of another budget, and so no row of the same table.
    """
    if not config.out.is_file():
        return []
    found = read_json(config.out)
    wanted, theirs = configs.to_dict(config), found.get("config", {})
    for name in BUDGET:
        if theirs.get(name) != wanted[name]:
            raise InputError(
                f"--out {config.out}: expected rows of {name} {wanted[name]}, "
                f"got {theirs.get(name)}; give another file"
            )
    return found["rows"]


def settings_of(config: AblateConfig, name: str, seed: int) -> TrainConfig:
    """Returns the training run of a row."""
    base = configs.to_dict(configs.load(TrainConfig, config.base))
    changes = {
        **VARIANTS[name],
        "data.tasks.max_side": config.max_side,
        "optim.total_steps": config.train_steps,
        "checkpoint_steps": config.train_steps,
        "dev_questions": 0,
        "seed": seed,
        "out": str(config.runs / f"{name.replace(': ', '_').replace(' ', '_')}-{seed}"),
    }
    if name in STORES:
        changes["data.store"] = str(config.runs / f"features_{STORES[name]}")
    return configs.from_dict(TrainConfig, unflatten({**flatten(base), **changes}))


def held_out(config: AblateConfig) -> dict[str, Task]:
    """Returns the tasks that are scored."""
    tasks = settings_of(config, "as configured", 0).data.tasks
    return tasks.split(tasks.load())[1]


def measure(config: AblateConfig, name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one variant and scores it in both tiers, in one view and in a vote."""
    make_room_for_programs()
    settings = settings_of(config, name, seed)
    if name in STORES:
        extract(settings, STORES[name])
    started = time.perf_counter()
    train(settings)
    trained = time.perf_counter() - started
    solver, tasks = load_solver(settings.out), held_out(config)
    blind = [task.blind() for task in tasks.values()]
    questions = [question for task in blind for question in open_questions(task)]
    # An hour never ends first: rows are compared at equal steps, however busy the machine is.
    learning = AdaptConfig(steps=config.adapt_steps, seconds=3600.0, seed=seed)
    rows = []
    for tier in TIERS:
        for views in sorted({1, config.views}):
            started = time.perf_counter()
            if tier == "zero-shot":
                attempts = by_task(blind, solver.solve(questions, views=views))
            else:
                adapted = dict(Adapter(solver, learning).adapt(blind, views))
                attempts = {task_id: each.attempts for task_id, each in adapted.items()}
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "tier": tier,
                    "views": views,
                    "parameters": solver.num_parameters,
                    **asdict(score(attempts, tasks, tasks)),
                    "train_seconds": trained,
                    "solve_seconds": time.perf_counter() - started,
                }
            )
    return rows


def extract(settings: TrainConfig, weights: str) -> None:
    """Runs the teacher on the run's tasks; what is there is kept."""
    tasks = settings.data.tasks
    command = [
        *(sys.executable, "-m", "teacher_torch.extract", "--teacher.name", "dinov2-s"),
        *("--teacher.checkpoint", weights, "--out", str(settings.data.store)),
        *("--tasks.source", tasks.source, "--tasks.max_side", str(tasks.max_side)),
        *("--tasks.dev_fraction", str(tasks.dev_fraction)),
    ]
    if subprocess.run(command, check=False).returncode:
        raise InputError(
            "the teacher could not be run, see above; leave its rows out by --variants"
        )


def show(config: AblateConfig, rows: list[dict[str, Any]]) -> None:
    """Prints the table: means over the seeds, and how far they lie apart."""
    table = Table(title=f"{rows[0]['num_tasks']} held-out tasks, {config.train_steps} steps")
    table.add_column("variant")
    columns = [(tier, views) for tier in TIERS for views in sorted({1, config.views})]
    for tier, views in columns:
        table.add_column(f"{tier}\n{views} view(s)\npass@2", justify="right")
    table.add_column("cells", justify="right")
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for tier, views in columns:
            found = [
                row["pass_2"]
                for row in rows
                if (row["variant"], row["tier"], row["views"]) == (name, tier, views)
            ]
            spread = f" ±{(max(found) - min(found)) / 2:.1%}" if len(found) > 1 else ""
            cells.append(f"{sum(found) / len(found):.1%}{spread}")
        own = [row["cell"] for row in rows if row["variant"] == name and row["tier"] == TIERS[1]]
        table.add_row(name, *cells, f"{sum(own) / len(own):.1%}")
    Console().print(table)


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, AblateConfig)
