"""Answers in the terminal: grids in color, beside what is expected."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bridge.arc import Grid, Task
from bridge.canvas import Attempts
from bridge.render import PALETTE


def print_attempts(console: Console, task: Task, attempts: tuple[Attempts, ...], note: str) -> None:
    """Prints each test input with the attempts, and the expected grid where it is known."""
    for i, attempt in enumerate(attempts):
        expected = task.test_outputs[i] if task.test_outputs else None
        columns: dict[str, Grid] = {
            f"test input {i}": task.test_inputs[i],
            f"attempt 1 {_verdict(attempt.first, expected)}": attempt.first,
            f"attempt 2 {_verdict(attempt.second, expected)}": attempt.second,
        }
        if expected is not None:
            columns["expected"] = expected
        table = Table(
            *columns,
            title=f"{task.task_id} ({note})   confidence {attempt.confidence:.0%}",
            title_justify="left",
            box=None,
            padding=(0, 3, 0, 0),
        )
        table.add_row(*(color_text(grid) for grid in columns.values()))
        console.print(table)


def color_text(grid: Grid) -> str:
    """Returns a grid as rich markup; the digits stay readable where there is no color."""
    lines = []
    for row in grid:
        cells = []
        for value in row:
            red, green, blue = (int(x) for x in PALETTE[value])
            ink = "black" if red + green + blue > 380 else "white"
            cells.append(f"[{ink} on rgb({red},{green},{blue})]{value} [/]")
        lines.append("".join(cells))
    return "\n".join(lines)


def _verdict(grid: Grid, expected: Grid | None) -> str:
    if expected is None:
        return ""
    return "✓" if grid.shape == expected.shape and (grid == expected).all() else "✗"
