"""The report's page: who answered, how well, how sure, and in which ways it went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import urlencode

from bridge.arc import Task
from bridge.predictions import Predictions
from student_jax.baselines import BASELINES
from student_jax.evaluate import HELD_OUT, evaluate, remarks, split_tasks
from student_jax.metrics import Scores
from student_jax.outcome import OUTCOMES, task_outcome
from student_jax.report_curves import make_curves
from student_jax.report_gallery import TRAINED_ON, make_filters, make_gallery
from student_jax.tables import columns_of

STYLE = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")


def make_page(files: dict[str, Predictions], tasks: dict[str, Task]) -> str:
    """Returns the page. It loads nothing: style, script and pictures are inside."""
    results = evaluate(files, tasks)
    held_out, trained_on = split_tasks(files)
    groups = {HELD_OUT: held_out, TRAINED_ON: trained_on}
    shown = held_out or trained_on  # a curve over tasks trained on would say nothing
    tables = "".join(_scores(group, rows) for group, rows in results.items())
    failures = "".join(_outcomes(group, files, tasks, i) for group, i in groups.items() if i)
    galleries = "".join(make_gallery(group, files, tasks, i) for group, i in groups.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sage-distill: ARC answers</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE.read_text()}</style></head>
<body><header><h1>ARC answers</h1>
<nav><a href="#scores">Scores</a> <a href="#curves">Curves</a> <a href="#failures">Failures</a>
<a href="#tasks">Tasks</a></nav></header>
<main>{_note(files)}
<h2 id="scores">Scores</h2>
<p><b>pass@1</b>: the first attempt is the whole grid, exactly. <b>pass@2</b>: either attempt is.
<b>95 %</b>: the interval of pass@2 over tasks. <b>strict</b>: so are all of a task's test inputs.
<b>shape</b>: rows and columns are right. <b>cells</b>: right cells inside the expected grid.
<b>oracle</b>: the right grid is among all that was found, chosen or not.
<b>{"</b>, <b>".join(BASELINES)}</b> answer without any learning.</p>
{tables}
{_remarks(files, tasks, results)}
<h2 id="curves">Curves</h2>
<p>Over the {len(shown)} tasks {"held out" if groups[HELD_OUT] else "trained on"}.</p>
{make_curves(files, tasks, shown)}
<h2 id="failures">What became of each task</h2>
<p>A task with several test inputs counts as its worst. The numbers lead to the tasks.</p>
{failures}
<h2 id="tasks">Tasks</h2>
{make_filters(files)}
{galleries}
</main><script>{SCRIPT.read_text()}</script></body></html>
"""


def _note(files: dict[str, Predictions]) -> str:
    """Says who the students and their teacher are, and what random weights mean."""
    lines = []
    for name, predictions in files.items():
        about = predictions.about
        size = f"{about['parameters']:,} parameters; " if "parameters" in about else ""
        lines.append(
            f"<li><b>{escape(name)}</b>: {size}tier: {escape(about.get('tier', 'unknown'))}; "
            f"teacher: {escape(describe_teacher(about.get('teacher')))}</li>"
        )
    teachers = [p.about.get("teacher") or {} for p in files.values()]
    random = any("random weights" in teacher.get("weights", "") for teacher in teachers)
    warning = (
        """<p class="note"><b>The teacher's weights are random.</b> It has its network's
architecture and none of its knowledge: its features carry the picture, but no understanding of
it. This page shows that every part works on real tasks. It says nothing about what distilling the
pretrained weights would bring, and no benefit of a teacher can be read from it.</p>"""
        if random
        else ""
    )
    return f"{warning}<ul>{''.join(lines)}</ul>"


def describe_teacher(teacher: dict[str, str] | None) -> str:
    """Names a teacher in full: network, weights with digest, licence and the layer tapped."""
    if teacher is None:
        return "none"
    return (
        f"{teacher['teacher']}, {teacher['weights']} (sha256 {teacher['weights_digest'][:12]}), "
        f"{teacher['tap']}; licence: {teacher['licence']}"
    )


def _scores(group: str, rows: dict[str, Scores]) -> str:
    texts = {escape(name): columns_of(s) for name, s in rows.items()}
    columns = ["answers by", *next(iter(texts.values()))]
    body = [(name, list(each.values())) for name, each in texts.items()]
    count = next(iter(rows.values())).num_tasks
    return _table(f"{group} ({count})", columns, body)


def _remarks(
    files: dict[str, Predictions], tasks: dict[str, Task], results: dict[str, dict[str, Scores]]
) -> str:
    """Says beside the scores what evaluate says beside them."""
    lines = remarks(files, tasks, results)[1]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _outcomes(
    group: str, files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]
) -> str:
    """Counts what became of the tasks; each number links to the gallery, filtered to its tasks."""
    counts = [Counter(task_outcome(p.attempts[i], tasks[i]) for i in ids) for p in files.values()]
    body = []
    for kind, text in OUTCOMES.items():
        links = [
            urlencode({"result": kind, "student": i, "group": group}) for i in range(len(files))
        ]
        cells = [
            f'<a href="#{escape(link)}">{count[kind]}</a>' if count[kind] else "0"
            for link, count in zip(links, counts, strict=True)
        ]
        body.append((text, cells))
    return _table(f"{group} ({len(ids)})", ["tasks", *files], body)


def _table(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
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
