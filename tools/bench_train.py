"""Measures the training step, in JAX and beside PyTorch: time, throughput, utilisation, memory.

    python tools/bench_train.py --out tools/measurements/train_cpu.json
    python tools/bench_train.py --student original --size full --tokens 64 --scaling False
    python tools/bench_train.py --size full --side 32 --batch_size 64 --compute bfloat16  # a GPU

Both sides train the same weights on the same batches, in turn; ratios are taken inside a pair of
steps, so the machine's mood cancels. In float32 their losses must stay together: the proof that
both do the same work. PyTorch is eager. JAX_DEFAULT_MATMUL_PRECISION=highest forbids both TF32.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table
from torch_step import allow_tf32, torch_side

from bridge import config as configs
from bridge.errors import InputError
from bridge.files import write_text
from bridge.scaling import no_scaling
from student_jax import state as states
from student_jax.batch import Batch, all_colors, feature_batch
from student_jax.config import DataConfig, TrainConfig
from student_jax.cores import use_every_core
from student_jax.dry_run import MIB, peak_bytes
from student_jax.flops import example_flops, matmul_ceiling
from student_jax.keep import keep_programs
from student_jax.memory import begin_with_mimalloc
from student_jax.step import make_mesh, make_placer, make_train_step, replicated
from student_jax.students import make_student
from student_jax.train import check_divides

TOLERANCE = 1e-3  # of the loss, relative: rounding grows from step to step
BATCHES = 2  # different ones, taken in turn
HOST_DEVICES = (1, 2, 4)
LIMITS = {"nano": 2_000_000, "full": 48_500_000}  # parameters
# The original at full size is what its own config says.
SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("grid", "nano"): {"width": 32, "heads": 4, "mlp_width": 64, "depth": 4, "encoder_depth": 2},
    ("grid", "full"): {
        "width": 64,
        "heads": 8,
        "mlp_width": 192,
        "invariant_width": 512,
        "depth": 8,
        "encoder_depth": 3,
    },
    ("feature", "nano"): {"width": 48, "heads": 4, "mlp_width": 96, "depth": 4},
    ("feature", "full"): {"width": 512, "heads": 8, "mlp_width": 2048, "depth": 9},
    ("original", "nano"): {"width": 32, "heads": 4, "mlp_width": 128, "depth": 2},
}


@dataclass(frozen=True, kw_only=True)
class BenchTrainConfig:
    """What to train, how, and how often; by default small enough for a CPU."""

    student: Literal["original", "feature", "grid"] = "grid"
    size: Literal["nano", "full"] = "nano"
    """nano: at most 2 million parameters; full: at most 48.5 million"""
    preset: Path = Path("configs/original.yaml")
    """original: the training config that gives its full size, its loss and its optimizer"""
    side: int = 16
    """of the canvas; the original's answers are always 30 x 30"""
    demonstrations: int = 3
    """grid: at most, of a question"""
    tokens: int = 512
    """feature, original: of the longest example; the shortest has half as many"""
    feature_width: int = 2048
    """of the teacher's features, drawn at random"""
    batch_size: int = 8
    steps: int = 8
    """timed ones"""
    warmup: int = 2
    """steps before them"""
    accumulate: int = 1
    """micro-batches a step, on both sides"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast in PyTorch"""
    remat: bool = False
    """JAX alone: PyTorch keeps its activations"""
    dropout: float = 0.0
    """original: above 0 both sides draw other numbers, so losses are not compared"""
    against_torch: bool = True
    """take PyTorch's steps, too"""
    devices: int | None = None
    """that JAX spreads a batch over; by default one GPU, or every core of a CPU as training does"""
    scaling: bool = True
    """repeat on 1, 2 and 4 host devices: as configured if nano, else this student by default"""
    out: Path | None = None
    """JSON file for the numbers"""


Step = Callable[[int], float]  # takes the step of this number, returns its loss


def main(config: BenchTrainConfig) -> None:
    """Measure the training step in JAX and in PyTorch, and JAX's on 1, 2 and 4 host devices."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some, too
    use_every_core(config.batch_size // max(1, config.accumulate))
    if jax.default_backend() != "cpu":
        keep_programs()  # a step takes a GPU's compiler minutes
    exact = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION") in ("highest", "float32")
    tf32 = jax.default_backend() != "cpu" and not exact  # as JAX itself has it
    allow_tf32(tf32)
    result = {
        **conditions("jax", "flax", "optax", "torch"),
        "device": jax.devices()[0].device_kind,
        "devices": devices_of(config),
        "torch": {"eager": True, "tf32": tf32, "threads": torch.get_num_threads()},
        "config": configs.to_dict(config),
        **measure(config, settings_of(config)),
    }
    if config.scaling:
        result["host_devices"] = scaling_table(config)
    show(result)
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def devices_of(config: BenchTrainConfig) -> int:
    """Returns how many devices JAX spreads a batch over."""
    each_core = jax.default_backend() == "cpu"
    by_itself = jax.local_device_count() if each_core else 1
    return by_itself if config.devices is None else config.devices


def measure(config: BenchTrainConfig, settings: TrainConfig) -> dict[str, Any]:
    """Returns what the steps took and came to, on both sides."""
    batches = [random_batch(config, settings, seed) for seed in range(BATCHES)]
    jax_step, params, step_bytes = jax_side(settings, config, batches)
    sides = {"jax": jax_step}
    if config.against_torch:
        sides["torch"] = torch_side(
            settings, config.feature_width, config.warmup + config.steps, params, batches
        )
    losses, seconds = take_steps(sides, config)
    memory = device_bytes()  # asked now: the ceiling's factors are large
    ceiling = matmul_ceiling(config.compute) * devices_of(config) / jax.local_device_count()
    flops = config.batch_size * example_flops(settings.model, config.feature_width, batches[0])
    result = {
        "model": configs.to_dict(settings.model),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "model_flops_per_step": flops,
        "matmul_ceiling_flops_per_second": ceiling,
        "xla_step_bytes": step_bytes,
        "sides": {
            name: rates(seconds[:, i], config.batch_size, flops, ceiling) | memory.get(name, {})
            for i, name in enumerate(sides)
        },
        "losses": dict(zip(sides, losses.T.tolist(), strict=True)),
    }
    if config.against_torch:
        result["torch_over_jax"] = float(np.median(seconds[:, 1] / seconds[:, 0]))
        result["largest_loss_gap"] = float(np.abs(losses[:, 0] / losses[:, 1] - 1).max())
    return result


def settings_of(config: BenchTrainConfig) -> TrainConfig:
    """Returns the training run whose step is measured; refuses what cannot be."""
    base = TrainConfig()
    if config.student == "original":
        base = configs.load(TrainConfig, config.preset)
        if base.model.kind != "original":
            raise InputError(f"preset {config.preset}: expected model.kind original")
    elif config.dropout:
        raise InputError(f"dropout: expected 0 with student {config.student}: its mirror has none")
    for name in ("demonstrations", "tokens", "feature_width", "steps", "warmup"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(config, name)}")
    most = jax.local_device_count()
    most = 1 if config.against_torch and jax.default_backend() != "cpu" else most
    if not 1 <= devices_of(config) <= most:
        raise InputError(f"devices: expected 1 to {most}, got {config.devices}")
    model = {"kind": config.student, "canvas": config.side, "compute": config.compute}
    model |= {"remat": config.remat, "dropout": config.dropout}
    model |= SIZES.get((config.student, config.size), {})
    optim = {"batch_size": config.batch_size, "accumulate": config.accumulate}
    try:
        settings = replace(
            base,
            data=DataConfig(store="drawn at random"),
            model=replace(base.model, **model),
            optim=replace(base.optim, **optim),
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    scaled = config.scaling and config.size == "nano"
    check_divides(settings, max(HOST_DEVICES) if scaled else devices_of(config))
    return settings


def random_batch(config: BenchTrainConfig, settings: TrainConfig, seed: int) -> Batch:
    """Draws cells, and features like the ones recorded of the original's teacher, std 2.1.

    A grid student's teacher has seen every second example, as where training augments the others,
    or all, where micro-batches are odd.
    """
    rng, size = np.random.default_rng(seed), config.batch_size

    def cells(*shape: int) -> np.ndarray:
        return rng.integers(0, 10, (size, *shape)).astype(np.uint8)

    def features(*shape: int) -> np.ndarray:
        values = rng.standard_normal((*shape, config.feature_width), np.float32)
        return (2.1 * values).astype(ml_dtypes.bfloat16)

    if settings.model.reads_features:
        side, tokens = settings.model.answer_side, config.tokens
        lengths = np.linspace((tokens + 1) // 2, tokens, size).astype(int)[:, None]
        return feature_batch(features(size, tokens), np.arange(tokens) < lengths, cells(side, side))
    side, pairs = config.side, config.demonstrations
    known = np.arange(pairs) < rng.integers(1, pairs + 1, (size, 1))
    frames = np.concatenate([known.repeat(2, 1), np.ones((size, 1), bool)], 1)
    each = size // (max(*HOST_DEVICES, devices_of(config)) * config.accumulate)
    mask = frames[:: math.gcd(2, each or 1)].repeat((side // 2) ** 2, 1)
    return Batch(
        demonstrations=cells(pairs, 2, side, side),
        demonstration_mask=known,
        palette=all_colors(size),
        query=cells(side, side),
        answer=cells(side, side),
        teacher=features(*mask.shape),
        teacher_mask=mask,
    )


def jax_side(
    settings: TrainConfig, config: BenchTrainConfig, batches: list[Batch]
) -> tuple[Step, Any, int]:
    """Returns JAX's step, the parameters it starts with, and the bytes it takes as XLA says."""
    model = make_student(settings.model, config.feature_width)
    tx = states.make_optimizer(settings.optim, settings.loss.form)
    mesh, scaling = make_mesh(devices_of(config)), no_scaling(config.feature_width)
    init = lambda: states.init_state(settings, model, tx, scaling)  # noqa: E731
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(init).params))
    if count > LIMITS[config.size]:
        limit = f"at most {LIMITS[config.size]:,} parameters when {config.size}"
        raise InputError(f"size: expected {limit}, got {count:,}; lower side or feature_width")
    state = states.first_state(settings, model, tx, scaling, replicated(mesh))
    params = jax.device_get(state.params)
    step_fn, place = make_train_step(settings, model, tx, mesh), make_placer(settings, mesh)
    placed = [place(batch) for batch in batches]
    compiled = step_fn.lower(state, placed[0]).compile()  # pyright: ignore[reportFunctionMemberAccess]

    def step(number: int) -> float:
        nonlocal state
        state, metrics = compiled(state, placed[number % BATCHES])
        return metrics["loss"].item()  # waits for the step

    return step, params, peak_bytes(compiled)


def take_steps(sides: dict[str, Step], config: BenchTrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Takes all steps, the sides in turn, as long as they agree.

    Returns:
        Losses [warmup + steps, sides], and the timed steps' seconds [steps, sides].
    """
    losses, seconds = [], []
    for number in range(config.warmup + config.steps):
        loss, took = zip(*(timed(step, number) for step in sides.values()), strict=True)
        gap = abs(loss[0] / loss[-1] - 1)
        if config.compute == "float32" and not config.dropout and not gap <= TOLERANCE:  # or NaN
            raise InputError(f"step {number}: expected the same loss, got {gap:.1e} apart: {loss}")
        losses.append(loss)
        seconds.append(took)
    return np.array(losses), np.array(seconds[config.warmup :])


def timed(step: Step, number: int) -> tuple[float, float]:
    """Returns a step's loss and seconds; asking for the loss waits for the step."""
    started = time.perf_counter()
    loss = step(number)
    return loss, time.perf_counter() - started


def rates(seconds: np.ndarray, batch_size: int, flops: float, ceiling: float) -> dict[str, float]:
    """Returns what a side's steps come to, from the seconds of each; FLOPs are a step's.

    Utilisation is model FLOPs over the ceiling's: PaLM (arXiv 2204.02311), appendix B.
    """
    median = float(np.median(seconds))
    return {
        "seconds_median": median,
        "seconds_p95": float(np.percentile(seconds, 95)),
        "examples_per_second": batch_size / median,
        "model_flops_per_second": flops / median,
        "utilisation": flops / median / ceiling,
    }


def device_bytes() -> dict[str, dict[str, int]]:
    """Returns the most memory that each side held on the GPU; nothing on a CPU."""
    if jax.default_backend() == "cpu":
        return {}
    peaks = {"jax": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)}
    if torch.cuda.is_available():
        peaks["torch"] = torch.cuda.max_memory_allocated()
    return {name: {"device_peak_bytes": peak} for name, peak in peaks.items()}


def scaling_table(config: BenchTrainConfig) -> dict[str, Any]:
    """Repeats JAX's steps on 1, 2 and 4 host devices with one global batch, a process each."""
    base = BenchTrainConfig(student=config.student, preset=config.preset)
    base = config if config.size == "nano" else base
    rows, first = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for count in HOST_DEVICES:
            out, file = Path(folder, "result.json"), Path(folder, "config.yaml")
            single = replace(base, against_torch=False, scaling=False, devices=count, out=out)
            configs.save(single, file)
            flag = f"--xla_force_host_platform_device_count={count}"
            # Collectives can deadlock on few cores unless XLA's thread pool is larger than they.
            forced = {"JAX_PLATFORMS": "cpu", "NPROC": "16", "XLA_FLAGS": flag}
            command = [sys.executable, __file__, "--config", str(file)]
            done = subprocess.run(command, env=os.environ | forced, capture_output=True, text=True)
            if done.returncode:
                reason = done.stderr.strip().rpartition("\n")[2]
                raise InputError(f"{count} host devices: expected to train, got: {reason}")
            result = json.loads(out.read_text())
            side, losses = result["sides"]["jax"], np.array(result["losses"]["jax"])
            first = first or {"seconds": side["seconds_median"], "losses": losses}
            rows.append({
                "devices": count,
                "seconds_median": side["seconds_median"],
                "examples_per_second": side["examples_per_second"],
                "times_1_device": first["seconds"] / side["seconds_median"],
                "loss_gap": float(np.abs(losses / first["losses"] - 1).max()),
            })  # fmt: skip
    note = "host devices share the cores, which one device does not fill"
    return {"note": note, "size": base.size, "global_batch": base.batch_size, "rows": rows}


def show(result: dict[str, Any]) -> None:
    """Prints the numbers as tables."""
    console, sides = Console(), result["sides"]
    if result["load"] > (os.cpu_count() or 1) / 4:
        console.print(f"the machine was busy, load {result['load']:.1f}: these times mean little")
    table = Table(title=f"a training step, {result['parameters']:,} parameters, {result['device']}")
    for name in ("", *sides):
        table.add_column(name, justify="right" if name else "left")
    for name in sides["jax"]:
        table.add_row(name, *(f"{side[name]:.4g}" for side in sides.values()))
    console.print(table)
    for name in ("torch_over_jax", "largest_loss_gap", "matmul_ceiling_flops_per_second"):
        if name in result:
            console.print(f"{name} {result[name]:.4g}")
    console.print(f"XLA says a step takes {result['xla_step_bytes'] / MIB:,.0f} MiB")
    if scaling := result.get("host_devices"):
        table = Table(title=scaling["note"])
        for name in scaling["rows"][0]:
            table.add_column(name, justify="right")
        for row in scaling["rows"]:
            table.add_row(*(f"{value:.4g}" for value in row.values()))
        console.print(table)


if __name__ == "__main__":
    begin_with_mimalloc()
    configs.command(main, BenchTrainConfig)
