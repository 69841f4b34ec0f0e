"""What was promised beside what was measured: parameters, latency, accuracy, memory.

The goals are this project's own, see README.md. Nothing here is typed in: the numbers come from
`tools/bench_latency.py` and from the scored predictions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bridge.errors import InputError
from bridge.predictions import Predictions
from student_jax.paired import Retention
from student_jax.tables import GOAL

SMALLER = 56  # times fewer parameters than the released teacher
FASTER = 15  # times
MILLISECONDS = 10.0  # of an answer, 99 of 100
MEGABYTES = 200.0  # of device memory
WHOLE, ANSWER = "GR00T: whole", "JAX: JSON to grid"  # as the bench names them


@dataclass(frozen=True)
class Goal:
    """One row."""

    what: str
    teacher: str
    student: str
    goal: str
    met: bool | None  # None: not measured


def read_latency(path: Path, files: dict[str, Predictions]) -> dict[str, Any]:
    """Reads what the bench measured of one of these students.

    Raises:
        InputError: if it is not such a file, or of a student of another size.
    """
    try:
        latency = json.loads(path.read_text())
        sizes = {p.about.get("parameters") for p in files.values()}
        count = latency["parameters"]
        _ = latency["cases"], latency["device"], latency["date"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"latency: {path}: expected what tools/bench_latency.py wrote, got: {error!r}"
        ) from None
    if count not in sizes:
        told = ", ".join(f"{size:,}" for size in sorted(filter(None, sizes)))
        raise InputError(
            f"latency: {path}: expected a student of {told} parameters, got one of {count:,}; "
            "run tools/bench_latency.py --checkpoint with the scored one"
        )
    return latency


def goals(latency: dict[str, Any], retained: Retention | None) -> list[Goal]:
    """Returns a row for each promise.

    Args:
        latency: see `read_latency`; the last case, the dearest, counts.
        retained: of the student's score against the teacher's, if both are scored.
    """
    timings = [case["timings"] for case in latency["cases"].values()]
    teacher = next((each[WHOLE] for each in timings if WHOLE in each), None)
    return [
        _parameters(latency),
        *_times(teacher, timings[-1][ANSWER], latency["device"]),
        _accuracy(retained),
        _memory(latency),
    ]


def make_goals_table(latency: dict[str, Any], rows: list[Goal]) -> Table:
    """Returns the rows as a table."""
    case = list(latency["cases"])[-1]
    title = f"goals, on {latency['device']}, {latency['date']}, task {case}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("", "teacher", "student", "goal", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    said = {True: "met", False: "not met", None: "not measured"}
    for row in rows:
        table.add_row(row.what, row.teacher, row.student, row.goal, said[row.met])
    return table


def _parameters(latency: dict[str, Any]) -> Goal:
    ours, teacher = latency["parameters"], latency.get("teacher") or {}
    theirs = teacher.get("released_parameters")
    if not theirs:
        return Goal("parameters", "", f"{ours:,}", f"{SMALLER}x fewer", None)
    text = f"{ours:,} ({theirs / ours:,.0f}x fewer)"
    return Goal("parameters", f"{theirs:,}", text, f"{SMALLER}x fewer", theirs / ours >= SMALLER)


def _times(
    teacher: dict[str, Any] | None, student: dict[str, Any], device: str
) -> tuple[Goal, Goal]:
    """The ratio holds anywhere; milliseconds are promised for a GPU alone."""
    ours, goal = student["p50"], f"{FASTER}x faster"
    if teacher is None:
        median = Goal("latency, median", "", f"{ours:,.1f} ms", goal, None)
    else:
        ratio = teacher["p50"] / ours
        text = f"{ours:,.1f} ms ({ratio:,.0f}x faster)"
        median = Goal("latency, median", f"{teacher['p50']:,.0f} ms", text, goal, ratio >= FASTER)
    slow, on_gpu = student["p99"], "cpu" not in device.lower()
    met = slow <= MILLISECONDS if on_gpu else None
    text = f"{slow:,.1f} ms"
    return median, Goal("latency, 99 of 100", "", text, f"{MILLISECONDS:.0f} ms on a GPU", met)


def _accuracy(retained: Retention | None) -> Goal:
    goal = f"> {GOAL:.0%} of the teacher's"
    if retained is None or retained.share is None:
        return Goal("accuracy", "", "", goal, None)
    return Goal("accuracy", "100 %", f"{retained.share:.0%}", goal, retained.share > GOAL)


def _memory(latency: dict[str, Any]) -> Goal:
    """Of the dearest case: weights, inputs and activations as XLA plans them."""
    ours = max(case["device_bytes"] for case in latency["cases"].values()) / 1e6
    teacher = (latency.get("teacher") or {}).get("bytes")
    theirs = f"{teacher / 1e6:,.0f} MB (weights)" if teacher else ""
    on_gpu = "cpu" not in latency["device"].lower()
    met = ours <= MEGABYTES if on_gpu else None
    return Goal("memory", theirs, f"{ours:,.0f} MB (planned)", f"{MEGABYTES:.0f} MB on a GPU", met)
