"""Compiles a student's programs for an H100 on a machine without one: how long, how much memory.

    pip install 'jax[cuda12]'    # beside what is installed; no GPU is needed
    python tools/plan_gpu.py --preset configs/small.yaml --out plan.json

XLA compiles for a GPU that it is only told of, so two things are left out that it would try out on
one: which of cuBLAS' algorithms is the fastest, and its own matrix products in Triton. Seconds are
those of one core of this machine. Memory is as XLA plans it, beside weights and what is asked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conditions import conditions
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from bridge import config as configs
from bridge.errors import InputError
from bridge.files import write_text
from bridge.scaling import no_scaling
from student_jax import state as states
from student_jax.batch import Batch, smallest_batch
from student_jax.config import AdaptConfig, TrainConfig
from student_jax.dry_run import MIB
from student_jax.learner import learner_of
from student_jax.lesson import Shown
from student_jax.plan import Plan
from student_jax.step import AXIS, make_train_step
from student_jax.students import make_student

# What CUDA says of an H100 SXM; XLA's `GpuTargetConfigProto` as text.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
UNTRIED = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
VIEWS = 8


@dataclass(frozen=True, kw_only=True)
class PlanGpuConfig:
    """Which programs."""

    preset: Path = Path("configs/small.yaml")
    """training config of a grid student"""
    side: int = 16
    """of the canvas"""
    colors: int = 6
    """slots of the palette"""
    demonstrations: int = 4
    batch_size: int | None = None
    """of a training step; by default the config's"""
    accumulate: int | None = None
    teacher_width: int = 2048
    """of the features that a training step is given; 0 for no teacher"""
    tasks: int = 16
    """that learn at once"""
    scan_layers: tuple[bool, ...] = (False, True)
    """compile the training step so"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: PlanGpuConfig) -> None:
    """Compile the training step and what adaptation takes, and tell seconds and memory."""
    settings = configs.load(TrainConfig, config.preset)
    if settings.model.reads_features:
        raise InputError(f"{config.preset}: expected a grid student")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it would ask for a driver
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNTRIED}".strip()
    size = config.batch_size or settings.optim.batch_size
    accumulate = config.accumulate or settings.optim.accumulate
    optim = replace(settings.optim, batch_size=size, accumulate=accumulate)
    settings = replace(settings, optim=optim)
    mesh = mesh_of_an_h100()
    # Code asks where it runs. Only now: until here that was the truth.
    jax.default_backend = lambda: "gpu"
    rows = []
    for scan in config.scan_layers:
        model = replace(settings.model, scan_layers=scan)
        name = f"training step, {'scanned' if scan else 'unrolled'}"
        rows.append(
            compiled(name, partial(train_step, config, replace(settings, model=model), mesh))
        )
    for name, lower in learning(config, settings, mesh).items():
        rows.append(compiled(name, lower))
    result = {
        **conditions("jax", "flax", "optax"),
        "target": "NVIDIA H100 80GB HBM3, none at hand",
        "xla_flags": os.environ["XLA_FLAGS"],
        "config": configs.to_dict(config),
        "rows": rows,
    }
    show(config, rows)
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def mesh_of_an_h100() -> Mesh:
    """Returns a mesh of one GPU that is not there.

    Raises:
        InputError: if JAX's CUDA plugin is not installed.
    """
    try:
        found = topologies.get_topology_desc(
            "h100", platform="cuda", topology="1x1x1", target_config=H100
        )
    except NotImplementedError:
        raise InputError("jax: expected its CUDA plugin: pip install 'jax[cuda12]'") from None
    return Mesh(np.array(found.devices), (AXIS,), axis_types=(AxisType.Auto,))


def compiled(name: str, lower: Callable[[], Any]) -> dict[str, Any]:
    """Lowers and compiles a program, and returns what that took and takes."""
    started = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    plan = lowered.compile().memory_analysis()
    return {
        "program": name,
        "seconds_to_trace": round(traced - started, 1),
        "seconds_to_compile": round(time.perf_counter() - traced, 1),
        "mib_beside": round(plan.temp_size_in_bytes / MIB),
        "mib_given": round(plan.argument_size_in_bytes / MIB),
    }


def train_step(config: PlanGpuConfig, settings: TrainConfig, mesh: Mesh) -> Any:
    """Lowers the training step of one bucket."""
    width = max(config.teacher_width, 1)
    model, scaling = make_student(settings.model, width), no_scaling(width)
    tx = states.make_optimizer(settings.optim, settings.loss.form)
    state = jax.eval_shape(lambda: states.init_state(settings, model, tx, scaling))
    size, side, pairs = settings.optim.batch_size, config.side, config.demonstrations
    tokens = (2 * pairs + 1) * (side // 2) ** 2
    plan = Plan(0, size, share=size // settings.optim.accumulate)
    stride = plan.stride(settings.data.augmented_fraction)
    taught = size // stride if stride and config.teacher_width else 0
    batch = Batch(
        demonstrations=like((size, pairs, 2, side, side)),
        demonstration_mask=like((size, pairs), bool),
        palette=like((size, config.colors)),
        query=like((size, side, side)),
        answer=like((size, side, side)),
        teacher=like((taught, tokens, width), jnp.bfloat16),
        teacher_mask=like((taught, tokens), bool),
        row=like((size, 2), jnp.int32) if settings.model.table else None,
    )
    step = make_train_step(settings, model, tx, mesh)
    return step.lower(on(mesh, state), on(mesh, batch, AXIS))  # pyright: ignore[reportFunctionMemberAccess]


def learning(
    config: PlanGpuConfig, settings: TrainConfig, mesh: Mesh
) -> dict[str, Callable[[], Any]]:
    """Returns what lowers the programs by which tasks of one form learn."""
    learner = learner_of(settings.model.to_learn_many(), 1, AdaptConfig())
    student, empty = make_student(settings.model, 1), smallest_batch(settings.model, 1)
    params = jax.eval_shape(lambda: student.init(jax.random.key(0), empty)["params"])

    def shown(copies: int) -> Shown:
        lead, side = (config.tasks, copies), config.side
        return Shown(
            view=like(lead, jnp.int32),
            demonstrations=like((*lead, config.demonstrations, 2, side, side)),
            mask=like((*lead, config.demonstrations), bool),
            palette=like((*lead, config.colors)),
        )

    learnt, opt_state, tasks = jax.eval_shape(learner.begin, params, shown(VIEWS))
    one = jax.tree.map(lambda x: like(x.shape[1:], x.dtype), (learnt, tasks))
    queries = like((VIEWS, 1, config.side, config.side))
    update = learnt, opt_state, params, tasks, shown(1), like((config.tasks,), jnp.float32)
    say = one[0], params, one[1], queries
    return {
        f"{config.tasks} tasks begin": lambda: jax.jit(learner.begin).lower(
            *on(mesh, (params, shown(VIEWS)))
        ),
        f"{config.tasks} tasks make a step": lambda: learner.update.lower(*on(mesh, update)),
        "one task answers": lambda: learner.say.lower(*on(mesh, say)),
    }


def like(shape: tuple[int, ...], dtype: Any = jnp.uint8) -> Any:
    """Returns what stands for an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def on(mesh: Mesh, tree: Any, axis: str | None = None) -> Any:
    """Places what stands for arrays on the GPU, whole or split along an axis."""
    sharding = NamedSharding(mesh, PartitionSpec(axis) if axis else PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def show(config: PlanGpuConfig, rows: list[dict[str, Any]]) -> None:
    """Prints the numbers as a table."""
    case = f"{config.side} x {config.colors}, {config.demonstrations} demonstrations"
    table = Table(title=f"{config.preset}, {case}, for an H100", title_justify="left")
    for heading in ("program", "s to trace", "s to compile", "MiB beside", "MiB given"):
        table.add_column(heading, justify="left" if heading == "program" else "right")
    for row in rows:
        table.add_row(*(f"{x:,}" if isinstance(x, int) else str(x) for x in row.values()))
    Console().print(table)


if __name__ == "__main__":
    configs.command(main, PlanGpuConfig)
