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
from bridge.errors import InputError
from bridge.files import write_text
from bridge.predictions import Predictions, check_covers, read_predictions
from student_jax.baselines import BASELINES, baseline
from student_jax.breakdown import break_down
from student_jax.goals import goals, make_goals_table, read_latency
from student_jax.metrics import Scores, pass_2, score
from student_jax.paired import Retention, compare, retention
from student_jax.tables import (
    describe_costs,
    describe_retentions,
    describe_runs,
    make_kinds_table,
    make_table,
    missing_controls,
)

# Tasks of arcagi/evaluation whose answers arcagi/training holds (python -m bridge.arc audit).
KNOWN_LEAKS = frozenset({"070dd51e", "50a16a69"})
HELD_OUT = "held-out tasks"


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
    kept = [
        Retention(**found["retention"][name])
        for name, p in files.items()
        if name in found["retention"] and p.about.get("parameters") == latency["parameters"]
    ]
    rows = goals(latency, kept[0] if kept else None)
    console.print(make_goals_table(latency, rows))
    return [asdict(row) for row in rows]


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
    retained, lines = remarks(files, tasks, results)
    for line in lines:
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


def load_predictions(paths: tuple[Path, ...], tasks: dict[str, Task]) -> dict[str, Predictions]:
    """Reads predictions over one set of tasks, named by student.

    Raises:
        InputError: if a file is faulty or covers other tasks than the first.
    """
    files: dict[str, Predictions] = {}
    for path in paths:
        predictions = read_predictions(path)
        check_covers(predictions.attempts, tasks, str(path))
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
    chosen = {task_id: tasks[task_id] for task_id in next(iter(files.values())).attempts}
    answers = {name: baseline(name, chosen) for name in BASELINES}
    answers |= {name: p.attempts for name, p in files.items()}
    return {
        group: {name: score(attempts, tasks, ids) for name, attempts in answers.items()}
        for group, ids in groups_of(files).items()
    }


def groups_of(files: dict[str, Predictions]) -> dict[str, list[str]]:
    """Sorts the tasks into those held out from all students and those any was trained on.

    Where the two tasks are among them whose answers ARC-AGI-1's training set holds, two more groups
    follow: without them, and with them as others report it.
    """
    ids = list(next(iter(files.values())).attempts)
    held_out, trained_on = split_tasks(files)
    groups = {HELD_OUT: held_out, "tasks trained on, answers included": trained_on}
    if KNOWN_LEAKS & set(ids):
        if KNOWN_LEAKS & set(held_out):
            name = "held-out tasks without the two that training tasks give away"
            groups[name] = [i for i in held_out if i not in KNOWN_LEAKS]
        elif set(trained_on) <= KNOWN_LEAKS:
            groups["all, with the two given away, as others report it"] = ids
    return {group: found for group, found in groups.items() if found}


def split_tasks(files: dict[str, Predictions]) -> tuple[list[str], list[str]]:
    """Returns the tasks held out from all of the students, and those any was trained on."""
    trained = trained_tasks(files)
    ids = list(next(iter(files.values())).attempts)
    return [i for i in ids if i not in trained], [i for i in ids if i in trained]


def remarks(
    files: dict[str, Predictions], tasks: dict[str, Task], results: dict[str, dict[str, Scores]]
) -> tuple[dict[str, Retention], list[str]]:
    """Returns what is retained of the teacher's score, and all there is to say of the scores."""
    held_out, _ = split_tasks(files)
    retained = retentions(files, tasks, held_out) if held_out else {}
    runs = describe_runs(files, results[HELD_OUT]) if held_out else []
    lines = [*runs, *describe_costs(files), *describe_retentions(retained)]
    return retained, [*lines, *missing_controls(files)]


def retentions(
    files: dict[str, Predictions], tasks: dict[str, Task], ids: list[str]
) -> dict[str, Retention]:
    """Returns what each student that stands alone keeps of the teacher's score.

    The teacher's own score is that of the student that reads its features; without one, or with
    several, there is nothing to compare with.
    """
    readers = [p for p in files.values() if p.about.get("needs_teacher")]
    if len(readers) != 1:
        return {}
    return {
        name: retention(p.attempts, readers[0].attempts, tasks, ids)
        for name, p in files.items()
        if p is not readers[0]
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


if __name__ == "__main__":
    configs.command(main, EvaluateConfig)
