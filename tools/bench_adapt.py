"""Measures adaptation: task-steps a second, many tasks in one JAX program and in eager PyTorch.

    python tools/bench_adapt.py --out tools/measurements/adapt_cpu.json

A task-step is one update of one task's weights and tokens on augmented copies of its
demonstrations. Both sides start from the same weights, see the same drawings and make the same
updates, clipping and AdamW included. They take turns of several steps, after a pause in which the
other's threads come to rest, and ratios are taken inside a round. Their losses must stay together:
the proof that both do the same work. How often JAX could be as fast as PyTorch, if it did nothing
but matrix products as fast as this machine can, is told beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from bridge import config as configs
from bridge import weights
from bridge.arc import Task, parse_task
from bridge.canvas import NUM_CLASSES
from bridge.errors import InputError
from bridge.files import write_text
from bridge.torch_grid_student import GridMirror
from bridge.tree import flatten
from student_jax.config import AdaptConfig
from student_jax.cores import use_every_core
from student_jax.flops import matmul_ceiling
from student_jax.learner import TOKENS_RATE, Learner, learner_of
from student_jax.lesson import Lesson, Shown, make_lesson, show_augmented, show_plainly, stack
from student_jax.memory import begin_with_mimalloc
from student_jax.solver import Solver, load_solver

TOLERANCE = 2e-3  # of the loss, relative, after all steps
RATE = 3e-4  # low: at a tenth of the default rate rounding grows too slowly to part the losses
PAIRS = 3
PAUSE = 0.5  # seconds before a turn: OpenMP's threads spin for up to 0.2 s after their last work


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
    """at once on each of JAX's devices, a CPU's cores; PyTorch takes all in turn, on all cores"""
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
    table = Table(
        *(
            "canvas",
            "colors",
            "tasks a device",
            "JAX\ntask-steps/s",
            "PyTorch\ntask-steps/s",
            "ratio",
        ),
        *("at most", "share of\nceiling"),
    )
    for row in rows:
        names = ("jax", "torch", "jax_over_torch", "at_most", "share_of_ceiling")
        numbers = (f"{row[name]:.2f}" for name in names)
        table.add_row(*(str(row[name]) for name in ("side", "colors", "tasks")), *numbers)
    Console().print(table)
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def measure(
    config: BenchAdaptConfig, solver: Solver, side: int, colors: int, count: int, ceiling: float
) -> dict[str, Any]:
    """Times both sides in turn: `count` tasks at once on every device, and all of them in turn."""
    learning = AdaptConfig(copies=config.copies, lr=RATE)
    learner = learner_of(solver.config.model, solver.feature_width, learning)
    devices = jax.local_devices()
    lessons = [random_lesson(side, colors, i) for i in range(count * len(devices))]
    plain = [show_plainly(lesson) for lesson in lessons]
    groups = [
        Group(learner, learning, jax.device_put(solver.params, device), plain[i :: len(devices)])
        for i, device in enumerate(devices)
    ]
    others = [TorchTask(solver, learning, each) for each in plain]
    times: dict[str, list[float]] = {"jax": [], "torch": []}
    losses: dict[str, list[float]] = {"jax": [], "torch": []}
    with ThreadPoolExecutor(len(devices)) as pool:
        for turn in range(config.rounds + 1):
            steps = range(turn * config.steps, (turn + 1) * config.steps)
            shown = [
                [show_augmented(lesson, config.copies, 0, step) for lesson in lessons]
                for step in steps
            ]
            parts = [[each[i :: len(devices)] for each in shown] for i in range(len(devices))]
            said = [group.loss(part[0]) for group, part in zip(groups, parts, strict=True)]
            losses["jax"].append(float(np.mean(said)))
            time.sleep(PAUSE)
            started = time.perf_counter()
            list(pool.map(Group.learn, groups, parts))
            times["jax"].append(time.perf_counter() - started)
            time.sleep(PAUSE)
            started = time.perf_counter()
            said = [
                [other.step(one) for other, one in zip(others, each, strict=True)] for each in shown
            ]
            times["torch"].append(time.perf_counter() - started)
            losses["torch"].append(float(np.mean(said[0])))
    if not np.allclose(losses["jax"], losses["torch"], rtol=TOLERANCE):
        raise InputError(f"losses: expected the same on both sides, got {losses}")
    ratios = [t / j for t, j in zip(times["torch"][1:], times["jax"][1:], strict=True)]
    pace = {
        name: config.steps * len(lessons) / median(seconds[1:]) for name, seconds in times.items()
    }
    first = [show_augmented(each, config.copies, 0, 0) for each in lessons[:: len(devices)]]
    gflop = groups[0].flops(first) / 1e9
    return {
        "side": side,
        "colors": colors,
        "tasks": count,
        **pace,
        "jax_over_torch": median(ratios),
        "gflop": gflop,
        "share_of_ceiling": gflop * pace["jax"] / ceiling,
        "at_most": ceiling / gflop / pace["torch"],
        "losses": losses,
    }


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


class TorchTask:
    """One task that learns in eager PyTorch."""

    def __init__(self, solver: Solver, config: AdaptConfig, plain: Shown) -> None:
        """Gives the mirror the student's weights, and the task its tokens."""
        model = solver.config.model
        self.mirror = GridMirror(asdict(model), solver.feature_width)
        state = weights.to_torch(flatten(jax.device_get(solver.params)), model.kind)
        self.mirror.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
        with torch.no_grad():
            palette = torch.tensor(np.asarray(plain.palette))
            drawn = torch.tensor(np.asarray(plain.demonstrations))
            tokens, self.colors = self.mirror.encode_task(drawn, palette)
        self.tokens = torch.nn.Parameter(tokens)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.mirror.parameters())},
                {"params": [self.tokens], "lr": TOKENS_RATE * config.lr},
            ],
            lr=config.lr,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
        )

    def step(self, shown: Shown) -> float:
        """Makes one update and returns the loss before it."""
        demonstrations = torch.tensor(np.asarray(shown.demonstrations))
        mask = torch.tensor(np.asarray(shown.mask))
        copies, pairs, side = *mask.shape, demonstrations.shape[-1]
        view = torch.tensor(np.asarray(shown.view)).repeat_interleave(pairs)
        logits = self.mirror.answer(
            self.tokens[view],
            self.colors[view],
            mask.repeat_interleave(pairs, 0),
            torch.tensor(np.asarray(shown.palette)).repeat_interleave(pairs, 0),
            demonstrations[:, :, 0].reshape(-1, side, side),
        )
        answers = demonstrations[:, :, 1].reshape(-1).long()
        nats = functional.cross_entropy(logits.reshape(-1, NUM_CLASSES), answers, reduction="none")
        loss = (nats.reshape(copies, pairs, -1).mean(-1) * mask).sum() / mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.mirror.parameters(), self.tokens], 1.0)
        self.optimizer.step()
        return loss.item()


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, BenchAdaptConfig)
