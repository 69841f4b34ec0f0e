"""Measures adaptation: task-steps a second, many tasks in one JAX program and in eager PyTorch.

    python tools/bench_adapt.py --out tools/measurements/adapt_cpu.json

A task-step is one update of one task's weights and tokens on augmented copies of its
demonstrations. PyTorch learns in two ways: one task after the other on all cores, and apart, a
process of one thread for each of JAX's devices, see `tools/torch_learners.py`. All start from the
same weights, see the same drawings and make the same updates, clipping and AdamW included. They
take turns of several steps, after a pause in which the others' threads come to rest, and ratios are
taken inside a round. Their losses must stay together: the proof that all do the same work. How
often JAX could be as fast as PyTorch, if it did nothing but matrix products as fast as this machine
can, is told beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import jax
import numpy as np
from conditions import conditions
from rich.console import Console
from rich.table import Table
from timing import PAUSE
from torch_learners import Apart, TorchTask, learn

from bridge import config as configs
from bridge import weights
from bridge.arc import Task, parse_task
from bridge.errors import InputError
from bridge.files import write_text
from bridge.tree import flatten
from student_jax.config import AdaptConfig
from student_jax.cores import use_every_core
from student_jax.flops import matmul_ceiling
from student_jax.learner import Learner, learner_of
from student_jax.lesson import Lesson, Shown, make_lesson, show_augmented, show_plainly, stack
from student_jax.memory import begin_with_mimalloc
from student_jax.solver import Solver, load_solver

TOLERANCE = 2e-3  # of the loss, relative, after all steps
RATE = 3e-4  # low: at a tenth of the default rate rounding grows too slowly to part the losses
PAIRS = 3
SIDES = ("jax", "torch", "torch_apart")


@dataclass(frozen=True, kw_only=True)
class BenchAdaptConfig:
    """What to measure."""

    checkpoint: Path = Path("student_jax/nano")
    """a run, or a released student's folder"""
    sides: tuple[int, ...] = (8, 12)
    """of the canvases"""
    colors: tuple[int, ...] = (4, 10)
    """that tasks show: cost follows them"""
    tasks: tuple[int, ...] = (1, 8)
    """at once on each of JAX's devices, a CPU's cores"""
    copies: int = 1
    rounds: int = 5
    """timed ones, after one that warms up"""
    steps: int = 10
    """of every task in a side's turn"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: BenchAdaptConfig) -> None:
    """Measure every canvas side, number of colors and number of tasks."""
    under = conditions("jax", "flax", "optax", "torch")
    use_every_core(apart=True)
    solver = load_solver(config.checkpoint)
    ceiling = matmul_ceiling(solver.config.model.compute) / 1e9  # GFLOP/s, all cores
    rows = [
        measure(config, solver, side, colors, count, ceiling)
        for side in config.sides
        for colors in config.colors
        for count in config.tasks
    ]
    result = {
        **under,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "parameters": solver.num_parameters,
        "ceiling_gflops": ceiling,
        "config": configs.to_dict(config),
        "rows": rows,
    }
    columns = ("canvas", "colors", "tasks a\ndevice", "JAX", "PyTorch", "ratio", "PyTorch\napart")
    columns += ("ratio", "at\nmost", "of the\nceiling")
    table = Table(*columns, title="task-steps a second", box=None, padding=(0, 1, 0, 0))
    names = ("jax", "torch", "jax_over_torch", "torch_apart", "jax_over_torch_apart")
    names += ("at_most", "share_of_ceiling")
    for row in rows:
        numbers = (f"{row[name]:.2f}" for name in names)
        table.add_row(*(str(row[name]) for name in ("side", "colors", "tasks")), *numbers)
    Console().print(table)
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def measure(
    config: BenchAdaptConfig, solver: Solver, side: int, colors: int, count: int, ceiling: float
) -> dict[str, Any]:
    """Times all sides in turn, each with `count` tasks for every device."""
    model = solver.config.model
    learning = AdaptConfig(copies=config.copies, lr=RATE)
    learner = learner_of(model, solver.feature_width, learning)
    devices = jax.local_devices()
    lessons = [random_lesson(side, colors, i) for i in range(count * len(devices))]
    plain = [show_plainly(lesson) for lesson in lessons]
    shares = shared_out(plain)
    groups = [
        Group(learner, learning, jax.device_put(solver.params, device), share)
        for device, share in zip(devices, shares, strict=True)
    ]
    state = weights.to_torch(flatten(jax.device_get(solver.params)), model.kind)
    begin = partial(TorchTask, asdict(model), solver.feature_width, state, learning)
    with closing(Apart(begin, shares)) as apart:
        times, losses = take_turns(config, lessons, groups, [begin(each) for each in plain], apart)
    for name in SIDES[1:]:
        if not np.allclose(losses["jax"], losses[name], rtol=TOLERANCE):
            raise InputError(f"losses: expected the same on all sides, got {losses}")
    first = [show_augmented(each, config.copies, 0, 0) for each in shared_out(lessons)[0]]
    gflop = groups[0].flops(first) / 1e9
    pace = {name: config.steps * len(lessons) / median(times[name]) for name in SIDES}
    ratios = {
        f"jax_over_{name}": [t / j for t, j in zip(times[name], times["jax"], strict=True)]
        for name in SIDES[1:]
    }
    return {
        "side": side,
        "colors": colors,
        "tasks": count,
        **pace,
        **{name: median(found) for name, found in ratios.items()},
        "gflop": gflop,
        "share_of_ceiling": gflop * pace["jax"] / ceiling,
        "at_most": ceiling / gflop / pace["torch"],
        "losses": losses,
        "seconds_of_rounds": {name: rounded(found) for name, found in times.items()},
        "ratios_of_rounds": {name: rounded(found) for name, found in ratios.items()},
    }


def take_turns(
    config: BenchAdaptConfig,
    lessons: Sequence[Lesson],
    groups: Sequence[Group],
    tasks: Sequence[TorchTask],
    apart: Apart,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Has the sides make the same steps, round after round.

    Returns:
        Each side's seconds in the timed rounds; its mean loss at the first step of every round.
    """
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    losses: dict[str, list[float]] = {name: [] for name in SIDES}
    with ThreadPoolExecutor(len(groups)) as pool:
        for turn in range(config.rounds + 1):
            steps = range(turn * config.steps, (turn + 1) * config.steps)
            drawn = [[show_augmented(x, config.copies, 0, step) for x in lessons] for step in steps]
            shares = list(zip(*map(shared_out, drawn), strict=True))
            apart.show(shares)
            losses["jax"].append(
                mean([group.loss(share[0]) for group, share in zip(groups, shares, strict=True)])
            )
            seconds, _ = timed(lambda *args: list(pool.map(Group.learn, *args)), groups, shares)
            times["jax"].append(seconds)
            seconds, said = timed(learn, tasks, drawn)
            times["torch"].append(seconds)
            losses["torch"].append(mean(said[0]))
            seconds, said = timed(apart.learn)
            times["torch_apart"].append(seconds)
            losses["torch_apart"].append(mean(mean(share[0]) for share in said))
    return {name: found[1:] for name, found in times.items()}, losses


def shared_out(each: Sequence[Any]) -> list[Sequence[Any]]:
    """Deals out what there is of each task, a share for each device."""
    count = jax.local_device_count()
    return [each[i::count] for i in range(count)]


def timed(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Calls when all threads have come to rest; returns the seconds that took, and what it said."""
    time.sleep(PAUSE)
    started = time.perf_counter()
    said = call(*args)
    return time.perf_counter() - started, said


def rounded(values: Sequence[float]) -> list[float]:
    """Returns values to four significant digits."""
    return [float(f"{value:.4g}") for value in values]


class Group:
    """Tasks that learn at once on one device."""

    def __init__(
        self, learner: Learner, config: AdaptConfig, params: Any, plain: Sequence[Shown]
    ) -> None:
        """Begins; the parameters say which device."""
        self.learner, self.params = learner, params
        self.rates = np.full(len(plain), config.lr, np.float32)
        self.learnt, self.state, self.tasks = learner.begin(params, stack(plain))

    def loss(self, shown: Sequence[Shown]) -> float:
        """The mean loss before an update."""
        loss = jax.vmap(self.learner.loss, in_axes=(0, None, 0, 0))
        losses, _ = loss(self.learnt, self.params, self.tasks, stack(shown))
        return float(losses.mean())

    def flops(self, shown: Sequence[Shown]) -> float:
        """Counts one task's update, as XLA does."""
        args = (self.learnt, self.state, self.params, self.tasks, stack(shown), self.rates)
        counted: Any = self.learner.update.lower(*args).compile().cost_analysis()
        return counted["flops"] / len(self.rates)

    def learn(self, shown: Sequence[Sequence[Shown]]) -> None:
        """Makes an update with each step's drawings, and waits for it, as an adaptation does."""
        for each in shown:
            self.learnt, self.state, *_ = jax.block_until_ready(
                self.learner.update(
                    self.learnt, self.state, self.params, self.tasks, stack(each), self.rates
                )
            )


def random_lesson(side: int, colors: int, seed: int) -> Lesson:
    """A task of random grids that fills its canvas; its time does not hang on what it shows."""
    rng = np.random.default_rng(seed)
    grid = lambda: rng.integers(0, colors, (side - 1, side - 1)).tolist()  # noqa: E731
    pairs = [{"input": grid(), "output": grid()} for _ in range(PAIRS)]
    task: Task = parse_task(f"r{seed}", {"train": pairs, "test": [{"input": grid()}]}, "random")
    return make_lesson(task)


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, BenchAdaptConfig)
