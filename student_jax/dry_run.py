"""What a run will take, found out without training: shapes, parameters, memory, time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from bridge.tree import flatten
from student_jax.batch import Batch
from student_jax.config import TrainConfig
from student_jax.data import Examples
from student_jax.log import describe
from student_jax.plan import Plan
from student_jax.processes import is_first
from student_jax.state import TrainState, empty_scaling, first_state, make_optimizer
from student_jax.step import compile_each, make_placer, make_train_step, replicated
from student_jax.students import make_student

TIMED = 3  # steps a bucket, after one that warms up
MIB = 1 << 20
DTYPES = {"bool": "bool", "uint8": "u8", "int32": "i32", "bfloat16": "bf16", "float32": "f32"}


def dry_run(config: TrainConfig, examples: Examples, plan: Plan, mesh: Mesh) -> None:
    """Compiles the step of every bucket, takes a few on weights that are thrown away, prints.

    Args:
        config: of the run.
        examples: to train on.
        plan: of the batches.
        mesh: of devices.
    """
    console = Console(quiet=not is_first())
    model = make_student(config.model, examples.feature_width)
    tx = make_optimizer(config.optim, config.loss.form)
    scaling = empty_scaling(config.loss.scaling, examples.feature_width)
    state = first_state(config, model, tx, scaling, replicated(mesh))
    console.print(describe(config, examples, plan, state))
    console.print(parameter_table(state))
    kept = {"parameters": state.params, "optimizer": state.opt_state, "average": state.ema}
    sizes = {
        name: sum(x.nbytes for x in jax.tree.leaves(tree)) / MIB for name, tree in kept.items()
    }
    console.print("MiB on every device:", ", ".join(f"{n} {s:,.1f}" for n, s in sizes.items()))

    step_fn, place = make_train_step(config, model, tx, mesh), make_placer(config, mesh)
    rows, epoch_seconds = [], 0.0
    buckets = sorted(examples.buckets(plan).items())
    batches = [examples.train_batch(plan, first) for _, (first, _) in buckets]
    placed_ones = [place(batch) for batch in batches]
    programs = compile_each(step_fn, state, placed_ones)
    for (bucket, (_, count)), batch, placed, compiled in zip(
        buckets, batches, placed_ones, programs, strict=True
    ):
        shapes = describe_shapes(batch)
        memory = peak_bytes(compiled)
        state, seconds = time_steps(compiled, state, placed)
        epoch_seconds += count * seconds
        rows.append(
            (
                " x ".join(str(n) for n in bucket if n),
                shapes,
                str(count),
                f"{seconds:.3f}",
                f"{memory / MIB:,.0f}",
            )
        )
    table = Table(title="batches", title_justify="left", title_style="bold")
    table.add_column("bucket")
    table.add_column("shapes", no_wrap=True)
    for name in ("steps", "s/step", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("MiB: that one device needs for a step, as XLA plans it")
    steps = examples.steps_per_epoch(plan.batch_size)
    whole = config.optim.total_steps / steps * epoch_seconds
    console.print(
        f"an epoch: {steps} steps, {epoch_seconds:.1f} s; the run: {config.optim.total_steps} "
        f"steps, {whole / 60:.1f} min without checkpoints; nothing was written"
    )


def parameter_table(state: TrainState) -> Table:
    """Returns the parameters by module."""
    counts: Counter[str] = Counter()
    for name, leaf in flatten(state.params).items():
        counts[".".join(name.split(".")[:2])] += leaf.size
    title = f"{counts.total():,} parameters"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("module")
    table.add_column("parameters", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    return table


def describe_shapes(batch: Batch) -> str:
    """Returns what a batch holds, one array a line; those of size 0 are left out."""
    return "\n".join(
        f"{name} {DTYPES[np.asarray(value).dtype.name]}{list(value.shape)}"
        for name, value in vars(batch).items()
        if value is not None and value.size
    )


def peak_bytes(compiled: Any) -> int:
    """Returns what XLA says a program needs on one device: arguments, results and in between."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def time_steps(compiled: Any, state: TrainState, batch: Batch) -> tuple[TrainState, float]:
    """Returns the state after a few steps, and the shortest step's seconds."""
    seconds = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    return state, min(seconds[1:])
