"""One HTML page, with no other file: the table, and every task with its answers as pictures.

python -m student_jax.report --predictions runs/quickstart/grid/predictions.json --out page.html
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bridge import config as configs
from bridge.arc import Grid, Task
from bridge.arc_files import load_tasks
from bridge.files import write_text
from bridge.predictions import Predictions
from bridge.render import render, to_data_uri
from student_jax.evaluate import evaluate, load_predictions, trained_tasks
from student_jax.metrics import Scores, cell_accuracy, is_exact

CELL_PX = 16
STYLE = """
:root { color-scheme: light dark; --line: #8885; --good: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h3 { margin: 0 0 .5rem; font-family: ui-monospace, monospace; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid var(--line); }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
caption { text-align: left; font-weight: 600; }
.note { border-left: 4px solid #c80; padding: .4rem 1rem; background: #c8015; }
.task { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.row + .row { margin-top: 1rem; padding-top: 1rem; border-top: 1px dashed var(--line); }
figure { margin: 0; } figcaption { font-size: .85rem; margin-bottom: .25rem; }
img { image-rendering: pixelated; display: block; } .pair { display: flex; gap: .6rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
"""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to show."""

    predictions: tuple[Path, ...]
    """files written by python -m student_jax.solve, over the same tasks"""
    source: str = "arcagi/training"
    """where the answers are: as --source of solve"""
    out: Path = Path("report.html")
    """the page to write"""

    def __post_init__(self) -> None:
        """Checks that there is something to show."""
        if not self.predictions:
            raise ValueError("predictions: expected at least one file")


def main(config: ReportConfig) -> None:
    """Write one HTML page with scores and pictures of demonstrations, answers and truth."""
    tasks = load_tasks(config.source)
    files = load_predictions(config.predictions, tasks)
    write_text(config.out, make_page(files, tasks))
    configs.save(config, config.out.with_suffix(".config.yaml"))
    print(f"report: {config.out}")


def make_page(files: dict[str, Predictions], tasks: dict[str, Task]) -> str:
    """Returns the page."""
    results = evaluate(files, tasks)
    trained = trained_tasks(files)
    ids = list(next(iter(files.values())).attempts)
    tables = "".join(_table(group, rows) for group, rows in results.items())
    held_out = "".join(_task(tasks[i], files) for i in ids if i not in trained)
    seen = "".join(_task(tasks[i], files) for i in ids if i in trained)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sage-distill: ARC answers</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><h1>ARC answers</h1>
{_note(files)}
<h2>Scores</h2>
<p><b>pass@1</b>: the first attempt is the whole grid, exactly. <b>pass@2</b>: either attempt is.
<b>shape</b>: rows and columns are right. <b>cells</b>: right cells inside the expected grid.
<b>black</b> and <b>copy</b> answer without any learning.</p>
<div class="scroll">{tables}</div>
<h2>Held-out tasks</h2>{held_out or "<p>none</p>"}
<h2>Tasks trained on</h2>
<p>Their answers were training data: this shows fit, not skill.</p>
{seen or "<p>none</p>"}
</body></html>
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


def _table(group: str, rows: dict[str, Scores]) -> str:
    count = next(iter(rows.values())).num_tasks
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{100 * v:.1f} %</td>" for v in (s.pass_1, s.pass_2, s.shape, s.cell))
        + "</tr>"
        for name, s in rows.items()
    )
    head = "<tr><th>answers by</th><th>pass@1</th><th>pass@2</th><th>shape</th><th>cells</th></tr>"
    return f"<table><caption>{escape(group)} ({count})</caption>{head}{body}</table>"


def _task(task: Task, files: dict[str, Predictions]) -> str:
    demonstrations = "".join(
        f'<figure><figcaption>demonstration {i + 1}</figcaption><div class="pair">'
        f"{_image(pair.input, 'input')}<span>→</span>{_image(pair.output, 'output')}</div></figure>"
        for i, pair in enumerate(task.demonstrations)
    )
    tests = "".join(_test(task, i, files) for i in range(len(task.test_inputs)))
    return (
        f'<section class="task"><h3>{escape(task.task_id)}</h3>'
        f'<div class="row">{demonstrations}</div>{tests}</section>'
    )


def _test(task: Task, index: int, files: dict[str, Predictions]) -> str:
    expected = (task.test_outputs or ())[index]
    figures = [
        _figure("query", task.test_inputs[index]),
        _figure("expected", expected),
        *_attempts(task, index, expected, files),
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def _attempts(
    task: Task, index: int, expected: Grid, files: dict[str, Predictions]
) -> Iterable[str]:
    for name, predictions in files.items():
        item = predictions.attempts[task.task_id][index]
        pictures = "".join(
            f"<div>{_verdict(grid, expected)}{_image(grid, f'{name}, attempt {number}')}</div>"
            for number, grid in ((1, item.first), (2, item.second))
        )
        short = escape(name.split(" (")[0])
        yield (
            f"<figure><figcaption>{short}, two attempts</figcaption>"
            f'<div class="pair">{pictures}</div></figure>'
        )


def _verdict(grid: Grid, expected: Grid) -> str:
    if is_exact(grid, expected):
        return '<div class="good">✓ exact</div>'
    return f'<div class="bad">✗ {cell_accuracy(grid, expected):.0%}</div>'


def _figure(caption: str, grid: Grid) -> str:
    picture = f"<div>&nbsp;{_image(grid, caption)}</div>"  # the blank line aligns with verdicts
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def _image(grid: Grid, label: str) -> str:
    rows, cols = grid.shape
    alt = f"{label}, {rows} by {cols} cells"
    return (
        f'<img alt="{escape(alt)}" width="{cols * CELL_PX}" height="{rows * CELL_PX}" '
        f'src="{to_data_uri(render(grid, CELL_PX, 1))}">'
    )


if __name__ == "__main__":
    configs.command(main, ReportConfig)
