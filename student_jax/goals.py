"""What was promised beside what was measured: parameters, latency, accuracy, memory.

The goals are this project's own, see docs/evaluation.md. Nothing here is typed in: the numbers come
from `tools/bench_latency.py` and from the scored predictions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
ELSEWHERE = "not measured on a GPU"
GOAL_COLUMNS = ("", "verdict", "goal", "student", "teacher")  # a phone shows the first ones
WHOLE, ANSWER = "GR00T: whole", "JAX: JSON to grid"  # as the bench names them


@dataclass(frozen=True)
class Goal:
    """One row."""

    what: str
    teacher: str
    student: str
    goal: str
    met: bool | None  # None: see `open`
    open: str = "not measured"  # why it is neither met nor missed

    @property
    def verdict(self) -> str:
        """Says how it stands."""
        return self.open if self.met is None else "met" if self.met else "not met"

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns what stands in the columns behind `what`."""
        return self.verdict, self.goal, self.student, self.teacher


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


def whose_goals(files: Mapping[str, Predictions], latency: dict[str, Any] | None) -> str:
    """Names the student that is held against the goals: that was timed, or that stands alone."""
    about = {name: p.about for name, p in files.items()}
    alone = [n for n, a in about.items() if not (a.get("needs_teacher") or a.get("untrained"))]
    alone = alone or list(files)
    timed = (latency or {}).get("parameters")
    return next((name for name in alone if about[name].get("parameters") == timed), alone[0])


def goals(
    parameters: int | None, latency: dict[str, Any] | None, retained: Retention | None
) -> list[Goal]:
    """Returns a row for each promise.

    Args:
        parameters: of the student, where its predictions tell them.
        latency: see `read_latency` and `judged`. None: not measured.
        retained: of the student's score against the teacher's, if both are scored.
    """
    latency = latency or {"cases": {}, "device": ""}
    timings = latency["cases"][judged(latency)]["timings"] if latency["cases"] else {}
    return [
        _parameters(parameters, (latency.get("teacher") or {}).get("released_parameters")),
        *_times(timings.get(WHOLE), timings.get(ANSWER), latency["device"]),
        _accuracy(retained),
        _memory(latency),
    ]


def goals_title(name: str, latency: dict[str, Any] | None) -> str:
    """Says whose goals, and where they were measured."""
    if latency is None:
        return f"goals: {name}"
    where = f"{latency['device']}, {latency['date']}, task {judged(latency)}"
    return f"goals: {name}, on {where}"


def judged(latency: dict[str, Any]) -> str:
    """Names the case that counts: the last, the dearest, that the teacher answered in the same run.

    Times of different runs say nothing of each other. Without a teacher, the last of all.
    """
    cases = latency["cases"]
    beside = [name for name, case in cases.items() if WHOLE in case["timings"]]
    return (beside or list(cases))[-1]


def make_goals_table(title: str, rows: list[Goal]) -> Table:
    """Returns the rows as a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in GOAL_COLUMNS:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(row.what, *row.texts)
    return table


def _parameters(ours: int | None, theirs: int | None) -> Goal:
    goal = f"{SMALLER}x fewer"
    if not (ours and theirs):
        return Goal("parameters", "", f"{ours:,}" if ours else "", goal, None)
    text = f"{ours:,} ({theirs / ours:,.0f}x fewer)"
    return Goal("parameters", f"{theirs:,}", text, goal, theirs / ours >= SMALLER)


def _times(
    teacher: dict[str, Any] | None, student: dict[str, Any] | None, device: str
) -> tuple[Goal, Goal]:
    """The ratio holds anywhere; milliseconds are promised for a GPU alone."""
    ratio_goal, goal = f"{FASTER}x faster", f"{MILLISECONDS:.0f} ms on a GPU"
    if student is None:
        median = Goal("latency, median", "", "", ratio_goal, None)
        return median, Goal("latency, 99 of 100", "", "", goal, None)
    ours = student["p50"]
    if teacher is None:
        median = Goal("latency, median", "", f"{ours:,.1f} ms", ratio_goal, None)
    else:
        ratio = teacher["p50"] / ours
        text, met = f"{ours:,.1f} ms ({ratio:,.0f}x faster)", ratio >= FASTER
        median = Goal("latency, median", f"{teacher['p50']:,.0f} ms", text, ratio_goal, met)
    slow = student["p99"]
    met = slow <= MILLISECONDS if _is_gpu(device) else None
    return median, Goal("latency, 99 of 100", "", f"{slow:,.1f} ms", goal, met, ELSEWHERE)


def _accuracy(retained: Retention | None) -> Goal:
    goal = f"> {GOAL:.0%} of the teacher's"
    if retained is None:
        return Goal("accuracy, pass@2", "", "", goal, None)
    teacher, student = (f"{100 * x:.1f} %" for x in (retained.teacher, retained.student))
    if retained.share is None:
        return Goal("accuracy, pass@2", teacher, student, goal, None, "undefined")
    text = f"{student} ({retained.share:.0%})"
    return Goal("accuracy, pass@2", teacher, text, goal, retained.share > GOAL)


def _memory(latency: dict[str, Any]) -> Goal:
    """Of the dearest case: weights, inputs and activations as XLA plans them."""
    goal = f"{MEGABYTES:.0f} MB on a GPU"
    if not latency["cases"]:
        return Goal("memory", "", "", goal, None)
    ours = max(case["device_bytes"] for case in latency["cases"].values()) / 1e6
    teacher = (latency.get("teacher") or {}).get("bytes")
    theirs = f"{teacher / 1e6:,.0f} MB (weights)" if teacher else ""
    met = ours <= MEGABYTES if _is_gpu(latency["device"]) else None
    return Goal("memory", theirs, f"{ours:,.0f} MB (planned)", goal, met, ELSEWHERE)


def _is_gpu(device: str) -> bool:
    return "cpu" not in device.lower()
