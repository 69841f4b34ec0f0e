"""The report's tasks, each with demonstrations, truth, attempts and where these are wrong.

Everything is there without JavaScript. With it, report.js shows a task once it comes near the
window, filters the tasks and moves through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from bridge.arc import Grid, Task
from bridge.canvas import Attempts
from bridge.predictions import Predictions
from student_jax.breakdown import OUTPUTS, SIZES, kinds_of_task, longest_side
from student_jax.metrics import is_exact
from student_jax.outcome import OUTCOMES, RESULTS, outcome_of, task_outcome
from student_jax.report_pictures import diff_uri, grid_uri
from student_jax.rows import HELD_OUT

TRAINED_ON = "tasks trained on"
ARROW = '<span aria-hidden="true">→</span>'
CODES = {kind: str(i) for i, kind in enumerate(OUTCOMES)}  # best first, as report.js relies on
LEARNT: dict[str, Callable[[Any], str]] = {  # what predictions say of a task's adaptation
    "fit": lambda share: (
        f"{100 * share:.1f}\N{NO-BREAK SPACE}% of the demonstrations' cells learnt"
    ),
    "seconds": lambda seconds: f"{seconds:.1f} s",
    "steps": lambda steps: f"{steps} steps",
    "rounds": lambda rounds: f"rounds: {rounds}",
}
RESULT_OF = {kind: result for result, kinds in RESULTS.items() for kind in kinds}


def make_filters(files: dict[str, Predictions]) -> str:
    """Makes the form that report.js shows; without JavaScript it would do nothing."""
    results = [("", "any", "".join(CODES.values()))]
    for result, kinds in RESULTS.items():
        results.append((result, result, "".join(CODES[kind] for kind in kinds)))
        results += [(kind, f"· {OUTCOMES[kind]}", CODES[kind]) for kind in kinds]
    result = "".join(
        f'<option value="{value}" data-kinds="{codes}">{escape(text)}</option>'
        for value, text, codes in results
    )
    sizes = [("", "any"), *((name, name) for name in SIZES.values())]
    outputs = [("", "any"), *((name, name) for name in OUTPUTS)]
    students = [("", "best of all"), *((str(i), name) for i, name in enumerate(files))]
    groups = [("", "all"), (HELD_OUT, "held out"), (TRAINED_ON, "trained on")]
    return f"""<form id="filters" aria-label="which tasks to show" hidden>
<label>Task id <input type="search" name="task_id" autocomplete="off" aria-keyshortcuts="/"></label>
<label>Result <select name="result">{result}</select></label>
<label>By <select name="student">{_options(students)}</select></label>
<label>Size <select name="size">{_options(sizes)}</select></label>
<label>Output <select name="output">{_options(outputs)}</select></label>
<label>Tasks <select name="group">{_options(groups)}</select></label>
<button type="reset">Show all</button>
<output aria-live="polite"></output>
<p class="keys"><kbd>/</kbd> find a task <kbd>j</kbd> or <kbd>→</kbd> next
<kbd>k</kbd> or <kbd>←</kbd> previous</p>
</form>
<p><b>diff</b>: attempt 1 on the truth. Right cells are pale; wrong ones have the right color
inside. <b>near</b>: the right grid was found but not chosen, or has at least 90 % of its cells.</p>
<p id="nothing" hidden>No task is like that.</p>"""


def _options(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(v)}">{escape(text)}</option>' for v, text in pairs)


def make_gallery(
    group: str, files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]
) -> str:
    """Returns the tasks of one group under its heading, or nothing where it has none."""
    if not ids:
        return ""
    note = (
        "<p>Their answers were training data: this shows fit, not skill.</p>"
        if group == TRAINED_ON
        else ""
    )
    items = "".join(_task(group, tasks[i], files) for i in ids)
    return (
        f'<section class="group"><h3 class="title">{group.capitalize()}</h3>{note}'
        f'<ol class="gallery">{items}</ol></section>'
    )


def _task(group: str, task: Task, files: dict[str, Predictions]) -> str:
    name = escape(task.task_id)
    side, (size, output) = longest_side(task), kinds_of_task(task)
    outcomes = "".join(CODES[task_outcome(p.attempts[task.task_id], task)] for p in files.values())
    demonstrations = "".join(
        f'<div class="pair" role="group" aria-label="demonstration {i}">'
        f"{_figure(f'input {i}', pair.input, side)}{ARROW}"
        f"{_figure(f'output {i}', pair.output, side)}</div>"
        for i, pair in enumerate(task.demonstrations, 1)
    )
    tests = "".join(_test(task, i, files, side) for i in range(len(task.test_inputs)))
    # With a script, what is in noscript is mere text until report.js shows it: 400 tasks open fast.
    return (
        f'<li id="task={name}" data-kinds="{outcomes}" data-size="{size}" data-output="{output}" '
        f'data-group="{group}">'
        f'<section class="task"><h3>{name}</h3> '
        f'<a class="link" href="#task={name}" aria-label="link to task {name}">#</a>'
        f'<noscript><div class="row">{demonstrations}</div>{tests}</noscript></section></li>'
    )


def _test(task: Task, index: int, files: dict[str, Predictions], side: int) -> str:
    query, expected = task.test_inputs[index], (task.test_outputs or ())[index]
    number = f" {index + 1}" if len(task.test_inputs) > 1 else ""
    students = "".join(
        f'<div class="student" data-student="{i}">{_heading(name, p, task, index)}'
        f'<div class="pair">{_attempts(p.attempts[task.task_id][index], expected, side)}</div>'
        "</div>"
        for i, (name, p) in enumerate(files.items())
    )
    return (
        f'<div class="row"><div class="pair">{_figure(f"query{number}", query, side)}{ARROW}'
        f"{_figure(f'truth{number}', expected, side)}</div>{students}</div>"
    )


def _heading(name: str, predictions: Predictions, task: Task, index: int) -> str:
    """Says who answered, how it went, how sure the student was, and what learning took."""
    item = predictions.attempts[task.task_id][index]
    kind = outcome_of(item, task.test_inputs[index], (task.test_outputs or ())[index])
    facts = [f"confidence {100 * item.confidence:.0f}\N{NO-BREAK SPACE}%"]
    spent = (predictions.about.get("adapted") or {}).get(task.task_id, {})
    facts += [escape(write(spent[key])) for key, write in LEARNT.items() if key in spent]
    return (
        f'<p><b>{escape(name)}</b><br><span class="{RESULT_OF[kind]}">{OUTCOMES[kind]}</span>, '
        f"{', '.join(facts)}</p>"
    )


def _attempts(item: Attempts, expected: Grid, side: int) -> str:
    parts = []
    for number, grid in ((1, item.first), (2, item.second)):
        parts.append(_figure(f"attempt {number}", grid, side, _verdict(grid, expected)))
    if not is_exact(item.first, expected):
        rows, cols = (max(sides) for sides in zip(item.first.shape, expected.shape, strict=True))
        alt = "attempt 1 on the truth: wrong cells have the right color inside, right ones are pale"
        picture = _picture("diff 1", alt, diff_uri(item.first, expected), (rows, cols), side)
        parts.insert(1, picture)
    return "".join(parts)


def _verdict(grid: Grid, expected: Grid) -> str:
    if is_exact(grid, expected):
        return "✓ right"
    if grid.shape != expected.shape:
        return "✗ wrong shape"
    return f"✗ {(grid != expected).sum()} of {grid.size} wrong"  # 99.6 % would look like right


def _figure(caption: str, grid: Grid, side: int, verdict: str = "") -> str:
    rows, cols = grid.shape
    text = f"{caption} {verdict}".strip()
    alt = f"{caption}, {rows} by {cols} cells" + (f", {verdict}" if verdict else "")
    return _picture(text, alt, grid_uri(grid), (rows, cols), side)


def _picture(caption: str, alt: str, uri: str, shape: tuple[int, int], side: int) -> str:
    """Shows a picture; `side`, of the task, sets the size of its cells if they all fit."""
    rows, cols = shape
    size = next(size for size in SIZES if max(rows, cols, side) <= size)  # as in report.css
    return (
        f'<figure class="c{size}"><figcaption>{caption}</figcaption><div><img alt="{alt}" '
        f'style="--w:{cols}" width="{cols}" height="{rows}" src="{uri}"></div></figure>'
    )
