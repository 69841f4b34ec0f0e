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

GOAL = 0.9  # of the teacher's pass@2: what the project set out to keep


def make_table(group: str, rows: dict[str, Scores]) -> Table:
    """Returns the scores of one group as a table."""
    count = next(iter(rows.values())).num_tasks
    table = Table(title=f"{group} ({count})", title_justify="left", title_style="bold")
    table.add_column("answers by")
    headings = list(columns_of(next(iter(rows.values()))))
    if all(s.strict == s.pass_2 for s in rows.values()):
        headings.remove("strict")  # no task has several test inputs of which some are solved
    if all(s.oracle <= s.pass_2 for s in rows.values()):
        headings.remove("oracle")  # of a vote: what choosing rightly among its grids would give
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, s in rows.items():
        texts = columns_of(s)
        table.add_row(name, *(texts[heading] for heading in headings))
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
        same = [about.get(key) for key in ("student", "tier", "views", "parameters")]
        runs[(*same, teacher.get("weights"))].append(name)
    lines = []
    for names in runs.values():
        if len(names) > 1:
            shares = [100 * rows[name].pass_2 for name in names]
            lines.append(
                f"{names[0]}: pass@2 {np.mean(shares):.1f} % in the mean of {len(names)} runs, "
                f"{min(shares):.1f} to {max(shares):.1f} %"
            )
    return lines


def describe_costs(files: dict[str, Predictions]) -> list[str]:
    """Returns a line for each student that learnt the tasks first: the time that took."""
    lines = []
    for name, predictions in files.items():
        seconds = [each["seconds"] for each in predictions.about.get("adapted", {}).values()]
        if seconds:
            lines.append(
                f"{name}: learnt {np.mean(seconds):.1f} s a task, at most {max(seconds):.1f} s"
            )
    return lines


def describe_retentions(retained: Mapping[str, Retention]) -> list[str]:
    """Returns a line for each student that stands alone: the teacher's score that it keeps."""
    lines = []
    for name, found in retained.items():
        agreement = f"first attempts agree on {found.agreement:.0%} of the test inputs"
        if found.share is None or found.low is None or found.high is None:
            goal = f"goal > {GOAL:.0%} open: the reader of the teacher solves nothing"
        else:
            met = "met" if found.share > GOAL else "not met"
            span = f"95 % interval {found.low:.0%} to {found.high:.0%}"
            goal = f"{found.share:.0%} of the teacher's pass@2 ({span}); goal > {GOAL:.0%}: {met}"
        lines.append(f"{name}: {goal}; {agreement}")
    return lines


def missing_controls(files: dict[str, Predictions]) -> list[str]:
    """Returns a line where a teacher's worth could be read from the table but has no control."""
    teachers = [p.about.get("teacher") for p in files.values()]
    random = ["random weights" in (teacher or {}).get("weights", "") for teacher in teachers]
    if all(
        teacher is None or is_random for teacher, is_random in zip(teachers, random, strict=True)
    ):
        return []
    missing = ["the same student without a teacher"] * all(t is not None for t in teachers)
    missing += ["with a random-weights teacher"] * (not any(random))
    if not missing:
        return []
    return [f"no benefit of the teacher can be read from this; missing: {', '.join(missing)}"]
