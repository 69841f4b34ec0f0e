"""Answers ARC tasks with a trained student: one in the terminal, or many into a file.

python -m student_jax.solve 007bbfb7 --checkpoint runs/quickstart/grid
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from tqdm import tqdm

from bridge import config as configs
from bridge.arc import MAX_SIDE, Question, Task, open_questions
from bridge.arc_files import ARC_AGI_1, find_task, load_tasks
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.stop import Stop
from bridge.weights import is_release
from student_jax.config import AdaptConfig, Tier
from student_jax.memory import begin_with_mimalloc
from student_jax.terminal import print_attempts

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
        if self.split != "dev" and (self.task, self.source) != (None, None):
            raise ValueError("split: of the run's own tasks; leave it out with TASK or --source")
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
        if self.adapt is None and (self.steps, self.seconds) != (
            SolveConfig.steps,
            SolveConfig.seconds,
        ):
            raise ValueError("steps, seconds: of learning; add --adapt weights, or leave them out")
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
    from student_jax.solver import begin_again, load_solver

    keep_memory_and_programs()
    if learning is not None:
        use_every_core(apart=learning.tier != "joint")

    solver = load_solver(config.checkpoint, config.which, store)
    if config.untrained:
        solver = begin_again(solver)
    if single is not None:
        show_answer(config, learning, store, solver, single)
    else:
        write_answers(config, learning, store, solver)


def show_answer(
    config: Asked, learning: AdaptConfig | None, store: str | None, solver: Solver, task: Task
) -> None:
    """Answers one task and prints the attempts."""
    from student_jax.solver import by_task

    stop, took, blind = Stop(exits=True), None, task.blind()
    if learning is not None:
        ((_, adapted),) = learn(solver, learning, [blind], config.views, stop)
        attempts = adapted.attempts
    elif solver.config.model.reads_features:
        answers = solver.solve(open_questions(blind), store, config.views)
        attempts = by_task([blind], answers)[task.task_id]
    else:
        attempts, took = answer_at_once(solver, open_questions(blind), config.views)
    note = "trained on" if task.task_id in solver.trained_on else "not trained on"
    print_attempts(Console(), task, attempts, note)
    if took:
        print(took)
    if stop.requested:
        raise KeyboardInterrupt


def write_answers(
    config: Asked, learning: AdaptConfig | None, store: str | None, solver: Solver
) -> None:
    """Answers many tasks into a file: those that learn are in it as soon as they are done."""
    from student_jax.sheet import AnswerSheet
    from student_jax.solver import by_task

    tasks, stop = choose_tasks(config, solver), Stop(exits=True)
    told = about(config, learning, solver)
    sheet = AnswerSheet(place_of(config), told, list(tasks), solver.trained_on)
    if sheet.attempts:
        print(f"{sheet.path}: {len(sheet.attempts)} of {len(tasks)} tasks are there already")
    blind = [task.blind() for task in tasks.values() if task.task_id not in sheet.attempts]
    configs.save(config, sheet.path.with_suffix(".config.yaml"))
    if learning is None:
        questions = [question for task in blind for question in open_questions(task)]
        answers = solver.solve(questions, store, config.views)
        for task_id, attempts in by_task(blind, answers).items():
            sheet.add(task_id, attempts)
    else:
        for task_id, adapted in learn(solver, learning, blind, config.views, stop):
            sheet.add(task_id, adapted.attempts, cut=stop.requested, **told_of(adapted))
    sheet.write(stopped=stop.requested)
    inputs = sum(map(len, sheet.attempts.values()))
    print(f"predictions: {sheet.path}: {len(sheet.attempts)} tasks, {inputs} test inputs")
    if stop.requested:
        left_out = len(tasks) - len(sheet.attempts)
        print(f"stopped: {left_out} of {len(tasks)} tasks are left out; the same command goes on")
        raise KeyboardInterrupt


def place_of(config: Asked) -> Path:
    """Returns the predictions file to write."""
    folder = Path("runs/solve") if is_release(config.checkpoint) else config.checkpoint
    return config.out or folder / ("untrained.json" if config.untrained else "predictions.json")


def about(config: Asked, learning: AdaptConfig | None, solver: Solver) -> dict[str, Any]:
    """Returns what predictions say of who answered what, and how."""
    return {
        "student": solver.config.model.kind,
        "parameters": solver.num_parameters,
        "needs_teacher": solver.config.model.reads_features,
        "tier": TIERS[learning.tier if learning else None],
        "teacher": solver.teacher,
        "taught_before": solver.taught_before,  # the weights that training began with
        "untrained": config.untrained,
        "checkpoint": str(config.checkpoint),
        "step": solver.step,
        "weights": solver.digest(),
        "which": config.which,
        "views": config.views,
        "learning": asdict(learning) if learning else None,
        "source": config.source or solver.config.data.tasks.source,
        "max_side": config.max_side,  # larger tasks were not asked
    }


def told_of(adapted: Adapted) -> dict[str, Any]:
    """Returns what predictions say of how a task was learnt."""
    return {name: getattr(adapted, name) for name in ("fit", "steps", "seconds", "rounds", "agree")}


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
) -> Iterator[tuple[str, Adapted]]:
    """Learns each task and says what became of it, as they are done.

    A signal ends the learning: what is learnt by then answers, and what has not begun is left out.
    """
    from student_jax.adapter import Adapter

    with stop:
        for task_id, adapted in Adapter(solver, learning).adapt(blind, views, stop=stop):
            tqdm.write(
                f"{task_id}: {adapted.fit:.1%} of the demonstrations' cells after {adapted.steps} "
                f"steps in {adapted.rounds} rounds, {adapted.seconds:.1f} s; "
                f"{adapted.agree:.0%} of the views agree"
            )
            yield task_id, adapted


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, SolveConfig)
