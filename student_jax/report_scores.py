"""The report's tables: scores, what is kept of the teacher's, goals, where a score comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from bridge.arc import Task
from bridge.predictions import Predictions
from bridge.render import PALETTE
from student_jax.breakdown import OUTPUTS, ColorScore, color_scores, kinds_of
from student_jax.goals import GOAL_COLUMNS, goals, goals_title, whose_goals
from student_jax.metrics import Scores, score
from student_jax.outcome import OUTCOMES, task_outcome
from student_jax.paired import Retention
from student_jax.rows import reader_of
from student_jax.tables import columns_of, costs_of, retention_columns, retention_title

SHOWN = ("pass@1", "pass@2", "shape", "cells")  # by kind of task


def make_scores(group: str, rows: dict[str, Scores], files: dict[str, Predictions]) -> str:
    """Returns one group's scores, with what the answers took."""
    count = next(iter(rows.values())).num_tasks
    texts = {name: {**columns_of(s), **costs_of(files.get(name))} for name, s in rows.items()}
    return _rows_table(f"{group} ({count})", "answers by", texts)


def make_retention(files: dict[str, Predictions], retained: Mapping[str, Retention]) -> str:
    """Returns what is kept of the teacher's score, or nothing where no reader tells that."""
    reader = reader_of(files)
    if reader is None or not retained:
        return ""
    texts = {name: retention_columns(found) for name, found in retained.items()}
    return _rows_table(retention_title(reader, retained), "answers by", texts)


def make_goals(
    files: dict[str, Predictions],
    retained: Mapping[str, Retention],
    latency: dict[str, Any] | None,
) -> str:
    """Returns what was promised beside what was measured; what was not says so."""
    name = whose_goals(files, latency)
    rows = goals(files[name].about.get("parameters"), latency, retained.get(name))
    body = [(row.what, [*map(escape, row.texts)]) for row in rows]
    return _table(goals_title(name, latency), GOAL_COLUMNS, body)


def make_outcomes(
    group: str, files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]
) -> str:
    """Counts what became of the tasks; each number links to the gallery, filtered to its tasks."""
    counts = [_count(p, tasks, ids) for p in files.values()]
    body = [
        (
            text,
            [
                _link(count[kind], result=kind, student=i, group=group)
                for i, count in enumerate(counts)
            ],
        )
        for kind, text in OUTCOMES.items()
    ]
    return _table(f"{group} ({len(ids)})", ["tasks", *files], body)


def make_breakdown(
    group: str, files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]
) -> str:
    """Returns each student's scores and failures by kind of task, and its scores by color."""
    return "".join(
        f"<details{' open' if i == 0 else ''}><summary>{escape(name)}</summary>"
        f"{_by_kind(i, group, p, tasks, ids)}{_by_color(p, tasks, ids)}</details>"
        for i, (name, p) in enumerate(files.items())
    )


def _by_kind(
    student: int, group: str, predictions: Predictions, tasks: dict[str, Task], ids: Sequence[str]
) -> str:
    columns = []
    for kind, found in kinds_of(tasks, ids).items():
        texts = columns_of(score(predictions.attempts, tasks, found))
        counts = _count(predictions, tasks, found)
        where = {"output" if kind in OUTPUTS else "size": kind, "student": student, "group": group}
        links = {
            text: _link(counts[outcome], result=outcome, **where)
            for outcome, text in OUTCOMES.items()
        }
        columns.append({"kind": f"{kind} ({len(found)})", **{k: texts[k] for k in SHOWN}, **links})
    heads, *rows = ((name, [each[name] for each in columns]) for name in columns[0])
    return _table("by kind of task", [heads[0], *heads[1]], rows)


def _by_color(predictions: Predictions, tasks: dict[str, Task], ids: Sequence[str]) -> str:
    body = [
        (_swatch(color), [f"{found.cells:,}", *_shares(found)])
        for color, found in enumerate(color_scores(predictions.attempts, tasks, ids))
    ]
    columns = ["color", "cells", "precision", "recall", "F1"]
    return _table("by color, cells of first attempts", columns, body)


def _shares(found: ColorScore) -> list[str]:
    if not found.cells:
        return ["-"] * 3  # no answer has it: there is nothing to find
    return [f"{100 * x:.1f} %" for x in (found.precision, found.recall, found.f1)]


def _swatch(color: int) -> str:
    red, green, blue = PALETTE[color]
    return f'<span class="swatch" style="--ink: rgb({red} {green} {blue})"></span> {color}'


def _count(predictions: Predictions, tasks: dict[str, Task], ids: Sequence[str]) -> Counter[str]:
    return Counter(task_outcome(predictions.attempts[i], tasks[i]) for i in ids)


def _link(count: int, **where: Any) -> str:
    """Returns a number that leads to the tasks it counts."""
    return f'<a href="#{escape(urlencode(where))}">{count}</a>' if count else "0"


def _rows_table(caption: str, first: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    columns = [first, *next(iter(rows.values()))]
    body = [(escape(name), [escape(text) for text in each.values()]) for name, each in rows.items()]
    return _table(caption, columns, body)


def _table(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Lays out a table that scrolls by itself; captions and columns are text, cells are HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
