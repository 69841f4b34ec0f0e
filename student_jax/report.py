"""Answers to look at: one HTML page with no other file, a sheet of pictures, or the terminal.

python -m student_jax.report --predictions runs/quickstart/grid/predictions.json --out page.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from bridge import config as configs
from bridge.arc import Task
from bridge.arc_files import load_tasks
from bridge.files import write_text
from bridge.predictions import Predictions
from student_jax.evaluate import evaluate
from student_jax.goals import read_latency
from student_jax.outcome import OUTCOMES, outcomes_of
from student_jax.report_page import make_page
from student_jax.report_pictures import make_sheet, write_png, write_svg
from student_jax.rows import load_predictions, split_tasks
from student_jax.tables import make_table
from student_jax.terminal import color_text


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to show, and where."""

    predictions: tuple[Path, ...]
    """files written by python -m student_jax.solve, over the same tasks"""
    source: str = "arcagi/training"
    """where the answers are: as --source of solve"""
    latency: Path | None = None
    """what tools/bench_latency.py measured of one of the students, to show beside the goals"""
    out: Path = Path("report.html")
    """the page to write"""
    png: Path | None = None
    """also a picture: query, truth and attempts of the held-out tasks"""
    svg: Path | None = None
    """the same, sharp at any size"""
    terminal: bool = False
    """also print the scores and the held-out tasks, in colors"""

    def __post_init__(self) -> None:
        """Checks that there is something to show."""
        if not self.predictions:
            raise ValueError("predictions: expected at least one file")


def main(config: ReportConfig) -> None:
    """Write one HTML page: scores, curves, kinds of failure, and every task with its answers.

    The page needs no network and no other file. Tasks held out from training and tasks trained on
    are kept apart; the views besides the page show held-out tasks, or all where none is held out.
    """
    tasks = load_tasks(config.source)
    files = load_predictions(config.predictions, tasks)
    latency = read_latency(config.latency, files) if config.latency else None
    write_text(config.out, make_page(files, tasks, latency))
    configs.save(config, config.out.with_suffix(".config.yaml"))
    print(f"report: {config.out}")
    held_out, trained_on = split_tasks(files)
    ids = held_out or trained_on
    for path, write in ((config.png, write_png), (config.svg, write_svg)):
        if path is not None:
            write(make_sheet(files, tasks, ids), path)
            print(f"sheet: {path}")
    if config.terminal:
        print_report(Console(), files, tasks, ids)


def print_report(
    console: Console, files: dict[str, Predictions], tasks: dict[str, Task], ids: list[str]
) -> None:
    """Prints the scores, then query, truth and attempts of the tasks named."""
    for group, rows in evaluate(files, tasks).items():
        console.print(make_table(group, rows))
    for task_id in ids:
        console.rule(f"[bold]{task_id}", align="left")
        for index in range(len(tasks[task_id].test_inputs)):
            console.print(_question(files, tasks[task_id], index))


def _question(files: dict[str, Predictions], task: Task, index: int) -> Columns:
    expected = (task.test_outputs or ())[index]
    grids = [("\n\nquery", task.test_inputs[index]), ("\n\nexpected", expected)]
    for name, predictions in files.items():
        items = predictions.attempts[task.task_id]
        outcome = OUTCOMES[outcomes_of(items, task)[index]]
        note = f"{name}\n{outcome}, confidence {items[index].confidence:.0%}"
        grids += [
            (f"{note}\nattempt 1", items[index].first),
            ("\n\nattempt 2", items[index].second),
        ]
    # Columns flow into the next line where the terminal is too narrow.
    return Columns(
        Padding(Group(Text(label), Text.from_markup(color_text(grid))), (0, 2, 1, 0))
        for label, grid in grids
    )


if __name__ == "__main__":
    configs.command(main, ReportConfig)
