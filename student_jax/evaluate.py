"""Scores frozen predictions. A separate program: it never runs a student.

python -m student_jax.evaluate --predictions runs/quickstart/grid/predictions.json
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge import config as configs
from bridge.arc import Task
from bridge.arc_files import load_tasks
from bridge.errors import InputError
from bridge.files import write_text
from bridge.predictions import Predictions, check_covers, read_predictions
from student_jax.metrics import BASELINES, Scores, baseline, score


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score."""

    predictions: tuple[Path, ...]
    """files written by python -m student_jax.solve, over the same tasks"""
    source: str = "arcagi/training"
    """where the answers are: as --source of solve"""
    out: Path | None = None
    """JSON file for the scores; by default scores.json beside the first predictions"""

    def __post_init__(self) -> None:
        """Checks that there is something to score."""
        if not self.predictions:
            raise ValueError("predictions: expected at least one file")


def main(config: EvaluateConfig) -> None:
    """Score predictions by exact match, beside the black and copy baselines.

    Tasks held out from training and tasks trained on are scored apart. Cell accuracy counts only
    cells inside the expected grid.
    """
    tasks = load_tasks(config.source)
    files = load_predictions(config.predictions, tasks)
    results = evaluate(files, tasks)
    console = Console()
    for group, rows in results.items():
        console.print(make_table(group, rows))
    out = config.out or config.predictions[0].parent / "scores.json"
    configs.save(config, out.with_suffix(".config.yaml"))
    write_text(
        out,
        json.dumps(
            {
                "source": config.source,
                "predictions": {name: p.digest for name, p in files.items()},
                "scores": {
                    group: {name: asdict(s) for name, s in rows.items()}
                    for group, rows in results.items()
                },
                "pass_2": {
                    task_id: {
                        name: score(p.attempts, tasks, [task_id]).pass_2
                        for name, p in files.items()
                    }
                    for task_id in next(iter(files.values())).attempts
                },
            },
            indent=1,
        ),
    )
    console.print(f"scores: {out}")


def load_predictions(paths: tuple[Path, ...], tasks: dict[str, Task]) -> dict[str, Predictions]:
    """Reads predictions over one set of tasks, named by student.

    Raises:
        InputError: if a file is faulty or covers other tasks than the first.
    """
    files: dict[str, Predictions] = {}
    for path in paths:
        predictions = read_predictions(path)
        check_covers(predictions, tasks, str(path))
        first = next(iter(files.values()), predictions)
        differing = sorted(set(first.attempts) ^ set(predictions.attempts))
        if differing:
            raise InputError(f"{path}: expected the tasks of {paths[0]}, differs in {differing[0]}")
        files[row_name(predictions.about, path, files)] = predictions
    for task_id in next(iter(files.values())).attempts:
        if tasks[task_id].test_outputs is None:
            raise InputError(f"task {task_id}: its test outputs are not known; nothing to score")
    return files


def evaluate(files: dict[str, Predictions], tasks: dict[str, Task]) -> dict[str, dict[str, Scores]]:
    """Returns group -> row -> scores, baselines first."""
    first = next(iter(files.values()))
    chosen = {task_id: tasks[task_id] for task_id in first.attempts}
    trained = trained_tasks(files)
    groups = {
        "held-out tasks": [i for i in chosen if i not in trained],
        "tasks trained on, answers included": [i for i in chosen if i in trained],
    }
    answers = {name: baseline(name, chosen) for name in BASELINES}
    answers |= {name: p.attempts for name, p in files.items()}
    return {
        group: {name: score(attempts, tasks, ids) for name, attempts in answers.items()}
        for group, ids in groups.items()
        if ids
    }


def trained_tasks(files: dict[str, Predictions]) -> set[str]:
    """Returns the tasks that any of the students was trained on.

    Raises:
        InputError: if a file does not say; nothing may then pass for held out.
    """
    for name, predictions in files.items():
        if "trained_on" not in predictions.about:
            raise InputError(
                f"{name}: about.trained_on: expected the tasks it was trained on, got nothing; "
                "write the predictions with python -m student_jax.solve"
            )
    return {i for p in files.values() for i in p.about["trained_on"]}


def row_name(about: dict[str, Any], path: Path, taken: dict[str, Predictions]) -> str:
    """Names a row by what the student is and what it needs at inference."""
    name = f"{about.get('student', path.stem)} student"
    if about.get("needs_teacher"):
        name += " (reads the teacher)"
    if about.get("tier", "zero-shot") != "zero-shot":
        name += f", {about['tier']}"
    if about.get("views", 1) > 1:
        name += f", {about['views']} views"
    return f"{name}, {path}" if name in taken else name


def make_table(group: str, rows: dict[str, Scores]) -> Table:
    """Returns the scores of one group as a table."""
    count = next(iter(rows.values())).num_tasks
    table = Table(title=f"{group} ({count})", title_justify="left", title_style="bold")
    table.add_column("answers by")
    headings = ["pass@1", "pass@2", "shape", "cells"]
    if any(s.oracle > s.pass_2 for s in rows.values()):
        headings.append("oracle")  # of a vote: what choosing rightly among its grids would give
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, s in rows.items():
        values = (s.pass_1, s.pass_2, s.shape, s.cell, s.oracle)[: len(headings)]
        table.add_row(name, *(f"{100 * value:.1f} %" for value in values))
    return table


if __name__ == "__main__":
    configs.command(main, EvaluateConfig)
