"""Answers ARC tasks with a trained student: one in the terminal, or many into a file.

python -m student_jax.solve 007bbfb7 --checkpoint runs/quickstart/grid
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from bridge import config as configs
from bridge.arc import MAX_SIDE, Grid, Question, Task, open_questions
from bridge.arc_files import ARC_AGI_1, find_task, load_tasks
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.predictions import write_predictions
from bridge.render import PALETTE
from bridge.stop import Stop
from bridge.weights import is_release
from student_jax.config import AdaptConfig, Tier
from student_jax.memory import begin_with_mimalloc

if TYPE_CHECKING:
    from student_jax.adapter import Adapted
    from student_jax.solver import Solver

NANO = Path(__file__).parent / "nano"  # comes with the package
TIERS = {
    None: "zero-shot",
    "tokens": "adapted task tokens",
    "weights": "adapted weights",
    "joint": "adapted jointly",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which tasks, of which student."""

    task: Annotated[str | None, tyro.conf.Positional] = None
    """an ARC-AGI-1 task id or a task's JSON file; none: all tasks of --source or --split"""
    checkpoint: Path = NANO
    """a training run's folder, or a released student's; by default the one of the package"""
    which: Literal["latest", "best"] = "latest"
    """a run's latest checkpoint, or the one that answered the most held-out questions"""
    untrained: bool = False
    """the control: the same student with new random weights, as its training began with"""
    views: int = 1
    """of each question, turned and mirrored, to vote on, at most 8; all in few calls"""
    source: str | None = None
    """arcagi/evaluation, a folder, a Kaggle file; by default the tasks of the training run. With
    TASK: where its id is looked up"""
    split: Literal["dev", "train", "all"] = "dev"
    """which of the training run's tasks: held out, trained on, or both"""
    max_side: int = MAX_SIDE
    """only tasks whose grids, test outputs aside, have at most so many rows and columns"""
    out: Path | None = None
    """predictions file to write; by default predictions.json, or untrained.json, in the run's
    folder, or in runs/solve of a released student"""

    def __post_init__(self) -> None:
        """Checks that no option would go unheeded."""
        if self.task is not None and self.out is not None:
            raise ValueError("out: one TASK is printed; leave TASK out to write predictions")
        if self.task is not None and self.max_side != MAX_SIDE:
            raise ValueError(
                "max_side: one TASK is answered whatever its size; leave one of them out"
            )
        if self.views < 1:
            raise ValueError(f"views: expected at least 1, got {self.views}")
        if not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"max_side: expected 1..{MAX_SIDE}, got {self.max_side}")


@dataclass(frozen=True, kw_only=True)
class SolveConfig(Asked):
    """What to solve with which student."""

    adapt: Tier | None = None
    """learn the demonstrations first: the task tokens alone, or with the weights that answer, per
    task, or for all tasks together; python -m student_jax.adapt has all settings"""
    steps: int = 2000
    """adapt: at most, for each task"""
    seconds: float = 60.0
    """adapt: at most, for each task on average; what is learnt by then answers"""
    store: str | None = None
    """feature student: the teacher's features; by default those it was trained on"""

    def __post_init__(self) -> None:
        """Checks how tasks are learnt, too."""
        super().__post_init__()
        _ = self.learning

    @property
    def learning(self) -> AdaptConfig | None:
        """How each task is learnt first; None for not at all."""
        if self.adapt is None:
            return None
        return AdaptConfig(tier=self.adapt, steps=self.steps, seconds=self.seconds)


def main(config: SolveConfig) -> None:
    """Answer ARC tasks with a trained student.

    With a TASK it prints the attempts in color, beside the expected grid where that is known.
    Without, it writes a predictions file for python -m student_jax.evaluate. The student is given
    tasks with the test outputs removed. With --adapt the confidence says how well the
    demonstrations were learnt, not whether the answer is right.
    """
    solve(config, config.learning, config.store)


def solve(config: Asked, learning: AdaptConfig | None, store: str | None = None) -> None:
    """Answers the tasks and prints or writes the attempts.

    Args:
        config: which tasks.
        learning: how each task is learnt first; None for not at all.
        store: of a feature student, see `Solver.solve`.
    """
    sources = (config.source,) if config.source else ARC_AGI_1
    single = find_task(config.task, sources) if config.task else None
    # JAX takes a second to import; a bad task should not.
    from student_jax.cores import use_every_core
    from student_jax.keep import keep_memory_and_programs
    from student_jax.solver import begin_again, by_task, load_solver

    keep_memory_and_programs()
    if learning is not None:
        use_every_core(apart=learning.tier != "joint")

    solver = load_solver(config.checkpoint, config.which, store)
    if config.untrained:
        solver = begin_again(solver)
    tasks = {single.task_id: single} if single else choose_tasks(config, solver)
    blind = [task.blind() for task in tasks.values()]
    started = time.perf_counter()
    stop = Stop(exits=True)
    adapted = learn(solver, learning, blind, config.views, stop) if learning else {}
    attempts = {task_id: each.attempts for task_id, each in adapted.items()}
    took = None
    if learning is None:
        questions = [question for task in blind for question in open_questions(task)]
        if single is not None and not solver.config.model.reads_features:
            attempts[single.task_id], took = answer_at_once(solver, questions, config.views)
        else:
            attempts = by_task(blind, solver.solve(questions, store, config.views))
    seconds = time.perf_counter() - started
    if single is not None:
        note = "trained on" if single.task_id in solver.trained_on else "not trained on"
        print_attempts(Console(), single, attempts[single.task_id], note)
        if took:
            print(took)
        if stop.requested:
            raise KeyboardInterrupt
        return
    folder = Path("runs/solve") if is_release(config.checkpoint) else config.checkpoint
    name = "untrained.json" if config.untrained else "predictions.json"
    out = config.out or folder / name
    about = {
        "student": solver.config.model.kind,
        "parameters": solver.num_parameters,
        "needs_teacher": solver.config.model.reads_features,
        "tier": TIERS[learning.tier if learning else None],
        "teacher": solver.teacher,
        "taught_before": solver.taught_before,  # the weights that training began with
        "untrained": config.untrained,
        "checkpoint": str(config.checkpoint),
        "step": solver.step,
        "which": config.which,
        "views": config.views,
        # Of all tasks together, compilation included.
        "answering": {"tasks": len(attempts), "seconds": seconds},
        "stopped": stop.requested,  # then tasks are missing, and the last ones hardly learnt
        "learning": asdict(learning) if learning else None,
        "adapted": {
            task_id: {name: getattr(each, name) for name in ("fit", "steps", "seconds", "rounds")}
            for task_id, each in adapted.items()
        },
        "source": config.source or solver.config.data.tasks.source,
        "max_side": config.max_side,  # larger tasks were not asked
        "trained_on": sorted(set(attempts) & solver.trained_on),
    }
    write_predictions(out, about, attempts)
    configs.save(config, out.with_suffix(".config.yaml"))
    inputs = sum(map(len, attempts.values()))
    print(f"predictions: {out}: {len(attempts)} tasks, {inputs} test inputs")
    if stop.requested:
        print(f"stopped: {len(tasks) - len(attempts)} of {len(tasks)} tasks are left out")
        raise KeyboardInterrupt


def answer_at_once(
    solver: Solver, questions: list[Question], views: int
) -> tuple[tuple[Attempts, ...], str]:
    """Answers one task's questions, and says how long that takes.

    Returns:
        The attempts, and a line: of an answer from the question to the grid, and of the first.
    """
    from student_jax.engine import Engine

    engine = Engine(solver)
    times, attempts = [], []
    for question in (questions[0], *questions):  # the first one compiles
        started = time.perf_counter()
        attempts.append(engine.answer(question, views))
        times.append(time.perf_counter() - started)
    later = 1e3 * min(times[1:])
    return tuple(attempts[1:]), f"{later:.1f} ms an answer; {times[0]:.1f} s the first, compiling"


def choose_tasks(config: Asked, solver: Solver) -> dict[str, Task]:
    """Returns the tasks that are asked for.

    Raises:
        InputError: if there are none.
    """
    if config.source is not None:
        tasks = load_tasks(config.source)
    else:
        task_set = solver.config.data.tasks
        trained, held_out = task_set.split(task_set.load())
        tasks = {"dev": held_out, "train": trained, "all": trained | held_out}[config.split]
        if not tasks:
            raise InputError(f"split: the run holds no {config.split} tasks; pass --split all")
    small = {name: task for name, task in tasks.items() if task.largest_side <= config.max_side}
    if not small:
        least = min(task.largest_side for task in tasks.values())
        raise InputError(
            f"max_side: expected at least {least}, as the smallest task; got {config.max_side}"
        )
    return small


def learn(
    solver: Solver, learning: AdaptConfig, blind: list[Task], views: int, stop: Stop
) -> dict[str, Adapted]:
    """Learns each task and says what became of it; in the order of the tasks.

    A signal ends the learning: what is learnt by then answers, and what has not begun is left out.
    """
    from student_jax.adapter import Adapter

    found = {}
    with stop:
        for task_id, adapted in Adapter(solver, learning).adapt(blind, views, stop=stop):
            found[task_id] = adapted
            print(
                f"{task_id}: {adapted.fit:.1%} of the demonstrations' cells after {adapted.steps} "
                f"steps in {adapted.rounds} rounds, {adapted.seconds:.1f} s"
            )
    return {task.task_id: found[task.task_id] for task in blind if task.task_id in found}


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


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, SolveConfig)
