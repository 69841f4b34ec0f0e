"""Scores as tables in the terminal, and what has to be said beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from bridge.predictions import Predictions
from student_jax.metrics import Scores
from student_jax.paired import Retention
from student_jax.rows import has_random_teacher

GOAL = 0.9  # of the teacher's pass@2: what the project set out to keep


def make_table(group: str, rows: dict[str, Scores]) -> Table:
    """Returns the scores of one group as a table."""
    count = next(iter(rows.values())).num_tasks
    headings = list(columns_of(next(iter(rows.values()))))
    if all(s.strict == s.pass_2 for s in rows.values()):
        headings.remove("strict")  # no task has several test inputs of which some are solved
    if all(s.oracle <= s.pass_2 for s in rows.values()):
        headings.remove("oracle")  # of a vote: what choosing rightly among its grids would give
    texts = {name: columns_of(s) for name, s in rows.items()}
    chosen = {name: {h: each[h] for h in headings} for name, each in texts.items()}
    return _table(f"{group} ({count})", "answers by", chosen)


def _table(title: str, first: str, rows: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for heading in next(iter(rows.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, texts in rows.items():
        table.add_row(name, *texts.values())
    return table


def columns_of(s: Scores) -> dict[str, str]:
    """Returns heading -> text of one row, in the order of the columns."""
    return {
        "pass@1": f"{100 * s.pass_1:.1f} %",
        "pass@2": f"{100 * s.pass_2:.1f} %",
        "95 %": f"{100 * s.low:.0f}-{100 * s.high:.0f} %",
        "strict": f"{100 * s.strict:.1f} %",
        "shape": f"{100 * s.shape:.1f} %",
        "cells": f"{100 * s.cell:.1f} %",
        "oracle": f"{100 * s.oracle:.1f} %",
    }


def costs_of(predictions: Predictions | None) -> dict[str, str]:
    """Returns heading -> text of what a row's answers took: views voted on, mean seconds a task.

    A task that was learnt has its own seconds. Where all were answered together, it has its share
    of them. Compilation is included either way; a baseline takes nothing worth telling.
    """
    about = predictions.about if predictions else {}
    own = [each["seconds"] for each in (about.get("adapted") or {}).values()]
    together = about.get("answering")
    seconds = ""
    if own:
        seconds = f"{np.mean(own):.1f}"
    elif together:
        seconds = f"{together['seconds'] / together['tasks']:.2f}"
    return {"views": str(about.get("views", "")), "s a task": seconds}


def make_kinds_table(details: dict[str, dict[str, Any]]) -> Table:
    """Returns pass@2 by kind of held-out task, and the area under the risk-coverage curve.

    That is the mean risk, the surest answers first; without any sense of what it knows, a student
    has its error rate there.
    """
    table = Table(title="pass@2 by kind of held-out task", title_justify="left", title_style="bold")
    table.add_column("answers by")
    for kind, scores in next(iter(details.values()))["kinds"].items():
        table.add_column(f"{kind}\n({scores['num_tasks']})", justify="right")
    table.add_column("risk", justify="right")
    for name, found in details.items():
        shares = [f"{100 * scores['pass_2']:.1f} %" for scores in found["kinds"].values()]
        table.add_row(name, *shares, f"{100 * found['area_under_risk']:.1f} %")
    return table


def describe_runs(files: Mapping[str, Predictions], rows: Mapping[str, Scores]) -> list[str]:
    """Returns a line for each student that answered in several runs, as with other seeds."""
    runs: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, predictions in files.items():
        about, teacher = predictions.about, predictions.about.get("teacher") or {}
        same = [about.get(key) for key in ("student", "tier", "views", "parameters", "untrained")]
        before = [each["weights"] for each in about.get("taught_before") or []]
        runs[(*same, teacher.get("weights"), *before)].append(name)
    lines = []
    for names in runs.values():
        if len(names) > 1:
            shares = [100 * rows[name].pass_2 for name in names]
            lines.append(
                f"{names[0]}: pass@2 {np.mean(shares):.1f} % in the mean of {len(names)} runs, "
                f"{min(shares):.1f} to {max(shares):.1f} %"
            )
    return lines


def describe_costs(files: Mapping[str, Predictions]) -> list[str]:
    """Returns a line for each student: the time that its answers took, see `costs_of`."""
    lines = []
    for name, predictions in files.items():
        about, costs = predictions.about, costs_of(predictions)
        own = [each["seconds"] for each in (about.get("adapted") or {}).values()]
        if own:
            how = f"to learn and answer it, at most {max(own):.1f} s"
        elif together := about.get("answering"):
            how = f"in {costs['views']} view(s): all {together['tasks']} together in "
            how += f"{together['seconds']:.1f} s, compilation included"
        else:
            continue
        lines.append(f"{name}: {costs['s a task']} s a task, {how}")
    return lines


def describe_stops(files: Mapping[str, Predictions]) -> list[str]:
    """Returns a line for each student that was stopped while it learnt."""
    return [
        f"{name}: stopped by a signal: tasks are missing, and the last ones were hardly learnt"
        for name, predictions in files.items()
        if predictions.about.get("stopped")
    ]


def make_retention_table(reader: str, retained: Mapping[str, Retention]) -> Table:
    """Returns what is kept of the teacher's score, which is that of the reader named."""
    rows = {name: retention_columns(found) for name, found in retained.items()}
    return _table(retention_title(reader, retained), "answers by", rows)


def retention_title(reader: str, retained: Mapping[str, Retention]) -> str:
    """Says whose score is the teacher's."""
    return f"kept of the teacher's pass@2: {100 * _teacher(retained):.1f} %, of the {reader}"


def retention_columns(found: Retention) -> dict[str, str]:
    """Returns heading -> text of one row, in the order of the columns."""
    kept, span, goal = "undefined", "-", "open"
    if found.share is not None and found.low is not None and found.high is not None:
        kept, span = f"{found.share:.0%}", f"{100 * found.low:.0f}-{100 * found.high:.0f} %"
        goal = "met" if found.share > GOAL else "not met"
    return {
        "pass@2": f"{100 * found.student:.1f} %",
        "kept": kept,
        "95 %": span,
        f"goal > {GOAL:.0%}": goal,
        "agree": f"{found.agreement:.0%}",
        "cells kept": "undefined" if found.cells is None else f"{found.cells:.0%}",
    }


def describe_retentions(retained: Mapping[str, Retention]) -> list[str]:
    """Returns what has to be said beside the table of retention."""
    if not retained:
        return []
    lines = [
        "agree: the same first attempt, right or wrong; cells kept: of the teacher's right cells, "
        "which is not what the goal is about"
    ]
    if not _teacher(retained):
        lines.append(
            "the teacher's reader solves none of these tasks: what share of its score is kept is "
            "undefined, and the goal is neither met nor missed"
        )
    return lines


def _teacher(retained: Mapping[str, Retention]) -> float:
    return next(iter(retained.values())).teacher


def missing_controls(files: dict[str, Predictions]) -> list[str]:
    """Returns a line where a teacher's worth could be read from the table but has no control."""
    trained = [p for p in files.values() if not p.about.get("untrained")]
    random = [has_random_teacher(p) for p in trained]
    taught = [bool(p.about.get("teacher") or p.about.get("taught_before")) for p in trained]
    if not any(knows and not alike for knows, alike in zip(taught, random, strict=True)):
        return []
    missing = ["the same student without a teacher"] * all(taught)
    missing += ["with a random-weights teacher"] * (not any(random))
    if not missing:
        return []
    return [f"no benefit of the teacher can be read from this; missing: {', '.join(missing)}"]
