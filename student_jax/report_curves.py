"""The report's curves, as SVG inside the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bridge.arc import Task
from bridge.predictions import Predictions
from student_jax.breakdown import area_under, risk_coverage
from student_jax.outcome import is_solved

WIDTH, HEIGHT = 420, 260  # of a drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 68, 28, 10, 50  # room for the axes
MAX_POINTS = 400  # of a line; more cannot be seen
NUM_STYLES = 6  # of lines, in report.css
ROUND = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 4.8, 6, 8, 10)  # ends of an axis

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """An axis from 0 up."""

    label: str
    high: float
    percent: bool = False

    @classmethod
    def covering(cls, label: str, value: float) -> Axis:
        """Returns an axis whose end and quarters are short numbers, the value on it."""
        size = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
        return cls(label, next(size * step for step in ROUND if size * step >= value))

    def text(self, value: float) -> str:
        """Writes a value beside the axis."""
        return f"{100 * value:.0f} %" if self.percent else f"{value:,.6g}"


def make_curves(files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]) -> str:
    """Draws what the files hold of confidence, adaptation and training, on the tasks named."""
    charts = [_risk_chart(files, tasks, ids)]
    for name, predictions in files.items():
        adapted = predictions.about.get("adapted") or {}
        spent = {i: adapted[i] for i in ids if {"fit", "seconds"} <= set(adapted.get(i, ()))}
        if spent:
            charts += _adaptation_charts(name, predictions, tasks, spent)
    losses = _losses(files)
    if losses:
        charts.append(_loss_chart(losses))
    return f'<div class="charts">{"".join(charts)}</div>'


def _risk_chart(files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]) -> str:
    lines = {}
    for name, predictions in files.items():
        curve = risk_coverage(predictions.attempts, tasks, ids)
        lines[f"{name}; {100 * area_under(curve):.0f} % wrong on average"] = curve
    return chart(
        "Wrong answers, when only the surest are given",
        "Right end: every test input answered. A line that falls to the left belongs to a student "
        "that knows when it is right. Wrong: neither attempt is exact.",
        Axis("test inputs answered, surest first", 1, percent=True),
        Axis("of those, wrong", 1, percent=True),
        lines,
    )


def _adaptation_charts(
    name: str, predictions: Predictions, tasks: dict[str, Task], spent: dict[str, dict[str, float]]
) -> list[str]:
    solved = {i for i in spent if is_solved(predictions.attempts[i], tasks[i])}
    order = sorted(spent, key=lambda i: spent[i]["seconds"])
    seconds = Axis.covering("seconds of learning a task", spent[order[-1]]["seconds"])
    ended, right = [(0.0, 0.0)], [(0.0, 0.0)]
    for task_id in order:  # both lines are stairs: a step at each task
        for line, rises in ((ended, 1), (right, task_id in solved)):
            x, y = spent[task_id]["seconds"], line[-1][1]
            line += [(x, y), (x, y + rises)]
    dots = {
        "solved": [(spent[i]["seconds"], spent[i]["fit"]) for i in order if i in solved],
        "not solved": [(spent[i]["seconds"], spent[i]["fit"]) for i in order if i not in solved],
    }
    return [
        chart(
            f"{name}: solved by seconds",
            f"{len(solved)} of {len(spent)} tasks solved. A step is a task whose learning ended.",
            seconds,
            Axis.covering("tasks", len(spent)),
            {"solved": right, "learning ended": ended},
        ),
        chart(
            f"{name}: how well the demonstrations were learnt",
            "A dot is a task. Low dots never fitted their demonstrations; high ones that are not "
            "solved fitted them by another rule.",
            seconds,
            Axis("demonstrations' cells right", 1, percent=True),
            dots,
            dots=True,
        ),
    ]


def _loss_chart(losses: dict[str, Points]) -> str:
    points = [point for line in losses.values() for point in line]
    # The first steps' losses can be many times the rest: they would flatten everything.
    ordered = sorted(y for _, y in points)
    axis = Axis.covering("loss", ordered[int(0.99 * (len(ordered) - 1))])
    return chart(
        "Training",
        "The loss at each recorded step.",
        Axis.covering("steps", max(x for x, _ in points)),
        axis,
        {name: [(x, min(y, axis.high)) for x, y in line] for name, line in losses.items()},
    )


def _losses(files: dict[str, Predictions]) -> dict[str, Points]:
    """Reads the runs' losses, where their folders are still there."""
    folders = {str(p.about["checkpoint"]) for p in files.values() if p.about.get("checkpoint")}
    found = {}
    for folder in sorted(folders):
        try:
            text = (Path(folder) / "metrics.jsonl").read_text()
            rows = [json.loads(line) for line in text.splitlines()]
            line = [(float(r["step"]), float(r["loss"])) for r in rows if "loss" in r]
            line = [point for point in line if math.isfinite(point[1])]
        except (OSError, ValueError, TypeError, KeyError):
            continue  # a run's log is an extra: the page does not hang on it
        if line:
            found[folder] = line[:: max(1, len(line) // MAX_POINTS)]
    return found


def chart(
    title: str, note: str, x: Axis, y: Axis, lines: Mapping[str, Points], *, dots: bool = False
) -> str:
    """Draws lines or dots as a figure with a legend; the note says what to look for."""
    draw = _dots if dots else _line
    marks = "".join(
        f'<g class="s{i % NUM_STYLES}">{draw([_place(p, x, y) for p in points])}</g>'
        for i, points in enumerate(lines.values())
    )
    legend = "".join(
        f'<li class="s{i % NUM_STYLES}"><svg viewBox="0 0 24 10" width="24" height="10" '
        f'aria-hidden="true">{_dots([(12, 5)]) if dots else _line([(0, 5), (24, 5)])}</svg> '
        f"{escape(name)}</li>"
        for i, name in enumerate(lines)
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><br>{escape(note)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_spoken(title, lines, x, y))}">{_axes(x, y)}{marks}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _spoken(title: str, lines: Mapping[str, Points], x: Axis, y: Axis) -> str:
    ends = "; ".join(
        f"{name}: {len(points)} points, the last at {x.text(points[-1][0])}, "
        f"{y.text(points[-1][1])}"
        for name, points in lines.items()
        if points
    )
    return f"{title}. {y.label} against {x.label}. {ends}"


def _axes(x: Axis, y: Axis) -> str:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        h, v = _place((share * x.high, share * y.high), x, y)
        parts.append(
            f'<path class="axis" d="M{LEFT} {v}H{WIDTH - RIGHT}M{h} {HEIGHT - BOTTOM}V{TOP}"/>'
            f'<text x="{LEFT - 6}" y="{v + 4}" text-anchor="end">{y.text(share * y.high)}</text>'
            f'<text x="{h}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">'
            f"{x.text(share * x.high)}</text>"
        )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text x="{(WIDTH + LEFT - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f'{escape(x.label)}</text><text transform="translate(13 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _place(point: tuple[float, float], x: Axis, y: Axis) -> tuple[float, float]:
    right = LEFT + point[0] / x.high * (WIDTH - LEFT - RIGHT)
    down = HEIGHT - BOTTOM - point[1] / y.high * (HEIGHT - BOTTOM - TOP)
    return round(right, 1), round(down, 1)


def _line(places: Points) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in places)
    dot = _dots(places) if len(places) == 1 else ""  # a line of one point cannot be seen
    return f'<polyline points="{path}"/>{dot}'


def _dots(places: Points) -> str:
    return "".join(f'<circle cx="{x:g}" cy="{y:g}" r="4"/>' for x, y in places)
