"""The report's page: who answered, how well, how sure, and in which ways it went wrong."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from bridge.arc import Task
from bridge.predictions import Predictions
from student_jax.baselines import BASELINES
from student_jax.evaluate import evaluate, remarks
from student_jax.report_curves import make_curves
from student_jax.report_gallery import TRAINED_ON, make_filters, make_gallery
from student_jax.report_scores import (
    make_breakdown,
    make_goals,
    make_outcomes,
    make_retention,
    make_scores,
)
from student_jax.rows import HELD_OUT, has_random_teacher, retentions, split_tasks

STYLE = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")


def make_page(
    files: dict[str, Predictions], tasks: dict[str, Task], latency: dict[str, Any] | None = None
) -> str:
    """Returns the page. It loads nothing: style, script and pictures are inside.

    Args:
        files: a row's name -> what it answered.
        tasks: with their answers.
        latency: of one of the students, see `student_jax.goals.read_latency`.
    """
    results = evaluate(files, tasks)
    held_out, trained_on = split_tasks(files)
    groups = {HELD_OUT: held_out, TRAINED_ON: trained_on}
    # A curve over tasks trained on would say nothing.
    shown = HELD_OUT if held_out else TRAINED_ON
    over = f"Over the {len(groups[shown])} {shown}."
    retained = retentions(files, tasks, held_out)
    tables = "".join(make_scores(group, rows, files) for group, rows in results.items())
    failures = "".join(make_outcomes(group, files, tasks, i) for group, i in groups.items() if i)
    galleries = "".join(make_gallery(group, files, tasks, i) for group, i in groups.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sage-distill: ARC answers</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE.read_text()}</style></head>
<body><header><h1>ARC answers</h1>
<nav><a href="#scores">Scores</a> <a href="#goals">Goals</a> <a href="#curves">Curves</a>
<a href="#failures">Failures</a> <a href="#kinds">Kinds</a>
<a href="#tasks">Tasks</a></nav></header>
<main>{_note(files)}
<h2 id="scores">Scores</h2>
<p><b>pass@1</b>: the first attempt is the whole grid, exactly. <b>pass@2</b>: either attempt is.
<b>95 %</b>: the interval of pass@2 over tasks. <b>strict</b>: so are all of a task's test inputs.
<b>shape</b>: rows and columns are right. <b>cells</b>: right cells inside the expected grid.
<b>oracle</b>: the right grid is among all that was found, chosen or not. <b>views</b>: that vote.
<b>s a task</b>: mean seconds, compilation included. <b>{"</b>, <b>".join(BASELINES)}</b> answer
without any learning.</p>
{tables}
{make_retention(files, retained)}
{_remarks(remarks(files, results, retained))}
<h2 id="goals">Goals</h2>
<p>What was promised beside what was measured. A millisecond or a megabyte is promised on a GPU.</p>
{make_goals(files, retained, latency)}
<h2 id="curves">Curves</h2>
<p>{over}</p>
{make_curves(files, tasks, groups[shown])}
<h2 id="failures">What became of each task</h2>
<p>A task with several test inputs counts as its worst. The numbers lead to the tasks.</p>
{failures}
<h2 id="kinds">Where the score comes from</h2>
<p>{over} A task is of the size of its largest grid. <b>precision</b>: of the cells given a color,
those that have it. <b>recall</b>: of the cells that have it, those given it.</p>
{make_breakdown(shown, files, tasks, groups[shown])}
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
    taught = [p for p in files.values() if p.about.get("teacher")]
    random = bool(taught) and all(has_random_teacher(p) for p in taught)
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


def _remarks(lines: list[str]) -> str:
    """Says beside the scores what evaluate says beside them."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
