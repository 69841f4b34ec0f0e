"""Trains the same weights on the same batches in PyTorch and in JAX, step by step, side by side.

    python tools/bench_step.py --out tools/measurements/step_cpu.json

Losses must stay together; step times are medians over steps in which both have their turn. The
PyTorch side is eager, as the original's script was: its mirror, its loss, its optimizer.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from bridge import config as configs
from bridge import weights
from bridge.arc import MAX_SIDE
from bridge.errors import InputError
from bridge.files import write_text
from bridge.scaling import no_scaling
from bridge.torch_student import make_mirror
from bridge.tree import flatten
from student_jax.batch import Batch, feature_batch
from student_jax.config import TrainConfig
from student_jax.state import (
    init_state,
    make_mesh,
    make_optimizer,
    make_schedule,
    make_train_step,
    replicated,
)
from student_jax.students import make_student

TOLERANCE = 1e-3  # of the loss, relative: rounding grows from step to step


@dataclass(frozen=True, kw_only=True)
class BenchStepConfig:
    """What to train, how often."""

    config: Path = Path("configs/original.yaml")
    """a training config of the original student"""
    width: int = 2048
    """of the teacher's features, drawn at random"""
    tokens: int = 512
    batch_size: int = 8
    steps: int = 5
    dropout: float = 0.0
    """above 0 both draw other numbers: then only times are compared"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: BenchStepConfig) -> None:
    """Compare training steps of PyTorch and JAX."""
    settings = configs.load(TrainConfig, config.config)
    settings = replace(settings, model=replace(settings.model, dropout=config.dropout))
    batches = [random_batch(config, seed) for seed in range(config.steps + 1)]
    jax_step, params = jax_side(settings, config, batches[0])
    torch_step = torch_side(settings, config, params)
    rows = []
    for i, batch in enumerate(batches):
        losses, seconds = zip(*(timed(step, batch) for step in (jax_step, torch_step)), strict=True)
        gap = abs(losses[0] / losses[1] - 1)
        print(
            f"step {i}: loss JAX {losses[0]:.6g}, PyTorch {losses[1]:.6g}; "
            f"seconds JAX {seconds[0]:.2f}, PyTorch {seconds[1]:.2f}"
        )
        if gap > TOLERANCE and not config.dropout:
            raise InputError(f"step {i}: expected the same loss, got {gap:.1e} apart")
        rows.append({"losses": losses, "seconds": seconds, "gap": gap})
    times = np.array([row["seconds"] for row in rows[1:]])  # the first compiles
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "devices": {"jax": jax.devices()[0].device_kind, "torch": torch_device()},
        "dropout": config.dropout,
        "versions": {n: version(n) for n in ("jax", "flax", "optax", "torch")},
        "batch": f"{config.batch_size} x {config.tokens} tokens x {config.width}",
        "seconds_a_step": dict(zip(("jax", "torch"), np.median(times, 0).tolist(), strict=True)),
        "torch_over_jax": float(np.median(times[:, 1] / times[:, 0])),
        "largest_loss_gap": max(row["gap"] for row in rows),
    }
    print(
        f"JAX {result['seconds_a_step']['jax']:.2f} s, PyTorch "
        f"{result['seconds_a_step']['torch']:.2f} s a step: {result['torch_over_jax']:.2f} times"
    )
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


Step = Callable[[Batch], float]


def jax_side(settings: TrainConfig, config: BenchStepConfig, first: Batch) -> tuple[Step, Any]:
    """Returns JAX's step and the parameters it starts with."""
    model = make_student(settings.model, config.width)
    tx = make_optimizer(settings.optim, settings.loss.form)
    scaling = no_scaling(config.width)
    mesh = make_mesh(1)
    init = lambda: init_state(model, tx, first, scaling, 0)  # noqa: E731
    state = jax.jit(init, out_shardings=replicated(mesh))()
    params = jax.device_get(state.params)
    step_fn = make_train_step(settings, model, tx, mesh)

    def step(batch: Batch) -> float:
        nonlocal state
        state, metrics = step_fn(state, batch)
        return metrics["loss"].item()

    return step, params


def torch_side(settings: TrainConfig, config: BenchStepConfig, params: Any) -> Step:
    """Returns PyTorch's step on the same weights: the original's loss and optimizer."""
    device = torch_device()
    mirror = make_mirror(asdict(settings.model), config.width).to(device)
    state = weights.to_torch(flatten(params), settings.model.kind)
    mirror.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    trained = [p for name, p in mirror.named_parameters() if not name.startswith("projector")]
    optim = settings.optim
    optimizer = torch.optim.AdamW(trained, lr=optim.peak_lr, weight_decay=optim.weight_decay)
    rate = torch_schedule(settings, optimizer)

    def step(batch: Batch) -> float:
        features, mask, answer = (
            torch.tensor(np.asarray(x)).to(device)
            for x in (batch.teacher, batch.teacher_mask, batch.answer.astype(np.int64))
        )
        optimizer.zero_grad()
        logits, projected = mirror(features, mask)
        kept, true = projected[mask], features[mask]
        mse = ((kept - true) ** 2).sum() / mask.sum()
        cosine = 1 - torch.nn.functional.cosine_similarity(kept, true, dim=-1).mean()
        task = torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), answer)
        loss = task + 0.5 * (mse + 0.5 * cosine)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, optim.clip_norm)
        optimizer.step()
        rate.step()
        return loss.item()

    return step


def torch_device() -> str:
    """Returns the kind of device that JAX runs on, as torch calls it; both or none on a GPU."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("torch: expected a GPU beside JAX's, got none; set JAX_PLATFORMS=cpu")
    return "cuda"


def torch_schedule(settings: TrainConfig, optimizer: Any) -> Any:
    """Returns JAX's learning rates as a PyTorch schedule."""
    schedule, peak = make_schedule(settings.optim), settings.optim.peak_lr
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: np.asarray(schedule(step)).item() / peak
    )


def random_batch(config: BenchStepConfig, seed: int) -> Batch:
    """Returns features like the ones recorded of the original's teacher, std 2.1, and answers."""
    rng = np.random.default_rng(seed)
    size, tokens = config.batch_size, config.tokens
    lengths = np.linspace(tokens // 2, tokens, size).astype(int)[:, None]
    answers = rng.integers(0, 10, (size, MAX_SIDE, MAX_SIDE)).astype(np.uint8)
    features = rng.normal(0, 2.1, (size, tokens, config.width)).astype(np.float32)
    return feature_batch(features, np.arange(tokens) < lengths, answers)


def timed(step: Step, batch: Batch) -> tuple[float, float]:
    """Returns a step's loss and seconds; asking for the loss waits for the step."""
    started = time.perf_counter()
    loss = step(batch)
    return loss, time.perf_counter() - started


if __name__ == "__main__":
    configs.command(main, BenchStepConfig)
