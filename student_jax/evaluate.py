"""Scores frozen predictions. A separate program: it never runs a student.

python -m student_jax.evaluate --predictions runs/quickstart/grid/predictions.json
python -m student_jax.evaluate --compare runs/a/predictions.json runs/b/predictions.json
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bridge import config as configs
from bridge.arc import Task
from bridge.arc_files import load_tasks
from bridge.files import write_text
from bridge.predictions import Predictions
from student_jax.baselines import BASELINES, baseline
from student_jax.breakdown import break_down
from student_jax.goals import (
    goals,
    goals_title,
    make_goals_table,
    read_latency,
    whose_goals,
)
from student_jax.metrics import Scores, pass_2, score
from student_jax.paired import Retention, compare
from student_jax.rows import (
    HELD_OUT,
    groups_of,
    load_predictions,
    reader_of,
    readers_of,
    retentions,
    split_tasks,
)
from student_jax.tables import (
    describe_costs,
    describe_retentions,
    describe_runs,
    describe_stops,
    make_kinds_table,
    make_retention_table,
    make_table,
    missing_controls,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score."""

    predictions: tuple[Path, ...] = ()
    """files written by python -m student_jax.solve, over the same tasks"""
    compare: tuple[Path, Path] | None = None
    """two such files instead: what the second solves and the first does not, and whether that is
    more than chance"""
    source: str = "arcagi/training"
    """where the answers are: as --source of solve"""
    latency: Path | None = None
    """what tools/bench_latency.py measured of one of the students: shows what was promised beside
    what was measured"""
    out: Path | None = None
    """JSON file for the scores; by default scores.json beside the first predictions, or
    comparison.json beside the second that are compared"""

    def __post_init__(self) -> None:
        """Checks that there is something to score."""
        if bool(self.predictions) == bool(self.compare):
            raise ValueError("predictions: expected at least one file, or two to --compare")
        if self.latency and self.compare:
            raise ValueError("latency: goals are shown with predictions, not with --compare")


def main(config: EvaluateConfig) -> None:
    """Score predictions by exact match, beside baselines that learn nothing; or compare two.

    Tasks held out from training and tasks trained on are scored apart. Cell accuracy counts only
    cells inside the expected grid.
    """
    tasks = load_tasks(config.source)
    files = load_predictions(config.compare or config.predictions, tasks)
    console = Console()
    if config.compare:
        out = config.out or config.compare[1].parent / "comparison.json"
        found = show_comparison(console, files, tasks)
    else:
        out = config.out or config.predictions[0].parent / "scores.json"
        latency = read_latency(config.latency, files) if config.latency else None
        found = show_scores(console, files, tasks)
        if latency:
            found["goals"] = show_goals(console, latency, files, found)
    configs.save(config, out.with_suffix(".config.yaml"))
    digests = {name: p.digest for name, p in files.items()}
    found = {"source": config.source, "predictions": digests, **found}
    write_text(out, json.dumps(found, indent=1))
    console.print(f"scores: {out}")


def show_goals(
    console: Console, latency: dict[str, Any], files: dict[str, Predictions], found: dict[str, Any]
) -> list[dict[str, Any]]:
    """Prints what was promised, and returns it."""
    name = whose_goals(files, latency)
    kept = found["retention"].get(name)
    rows = goals(files[name].about["parameters"], latency, Retention(**kept) if kept else None)
    console.print(make_goals_table(goals_title(name, latency), rows))
    return [{**asdict(row), "verdict": row.verdict} for row in rows]


def show_scores(
    console: Console, files: dict[str, Predictions], tasks: dict[str, Task]
) -> dict[str, Any]:
    """Prints the scores and returns them, with all that they are made of, as plain JSON."""
    results = evaluate(files, tasks)
    for group, rows in results.items():
        console.print(make_table(group, rows))
    ids = list(next(iter(files.values())).attempts)
    held_out, _ = split_tasks(files)
    details = {}
    if held_out:
        details = {name: break_down(p.attempts, tasks, held_out) for name, p in files.items()}
        console.print(make_kinds_table(details))
    retained = retentions(files, tasks, held_out)
    if retained:
        console.print(make_retention_table(str(reader_of(files)), retained))
    for line in remarks(files, results, retained):
        console.print(line, highlight=False)
    return {
        "scores": {
            group: {name: asdict(s) for name, s in rows.items()} for group, rows in results.items()
        },
        HELD_OUT: details,
        "retention": {name: asdict(found) for name, found in retained.items()},
        "pass_2": {
            task_id: {
                name: pass_2(p.attempts[task_id], tasks[task_id]) for name, p in files.items()
            }
            for task_id in ids
        },
    }


def show_comparison(
    console: Console, files: dict[str, Predictions], tasks: dict[str, Task]
) -> dict[str, Any]:
    """Prints how the second file differs from the first, and returns it as plain JSON."""
    (name_a, a), (name_b, b) = files.items()
    found = {}
    for group, ids in groups_of(files).items():
        result = compare(a.attempts, b.attempts, tasks, ids)
        found[group] = asdict(result)
        console.print(
            f"[bold]{group} ({result.num_tasks})[/]: {name_b} against {name_a}\n"
            f"  pass@2 {100 * result.difference:+.1f} points, 95 % interval "
            f"{100 * result.low:+.1f} to {100 * result.high:+.1f}; "
            f"p = {result.p_value:.3f} (McNemar, exact)\n"
            f"  solved by it alone ({len(result.gained)}): {' '.join(result.gained) or '-'}\n"
            f"  lost ({len(result.lost)}): {' '.join(result.lost) or '-'}",
            highlight=False,
        )
    return {"a": name_a, "b": name_b, "comparison": found}


def evaluate(files: dict[str, Predictions], tasks: dict[str, Task]) -> dict[str, dict[str, Scores]]:
    """Returns group -> row -> scores, baselines first."""
    chosen = {task_id: tasks[task_id] for task_id in next(iter(files.values())).attempts}
    answers = {name: baseline(name, chosen) for name in BASELINES}
    answers |= {name: p.attempts for name, p in files.items()}
    return {
        group: {name: score(attempts, tasks, ids) for name, attempts in answers.items()}
        for group, ids in groups_of(files).items()
    }


def remarks(
    files: dict[str, Predictions],
    results: dict[str, dict[str, Scores]],
    retained: dict[str, Retention],
) -> list[str]:
    """Returns all there is to say beside the scores."""
    runs = describe_runs(files, results[HELD_OUT]) if HELD_OUT in results else []
    lines = [*runs, *describe_stops(files), *describe_costs(files), *describe_retentions(retained)]
    readers = readers_of(files)
    if len(readers) > 1:
        lines.append(
            "what is kept of the teacher's score is told of one reader of its features at a time; "
            f"here are {len(readers)}: {'; '.join(readers)}"
        )
    return [*lines, *missing_controls(files)]


if __name__ == "__main__":
    configs.command(main, EvaluateConfig)
