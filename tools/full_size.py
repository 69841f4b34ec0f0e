"""Builds GR00T N1.5 at its released size with random weights, counts it, and runs it once.

    python tools/full_size.py --out tools/measurements/full_size_cpu.json

Two 224 px images, one tile each: the smallest prompt of the original's form. f32 needs about 10 GB
of memory.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from conditions import conditions

from bridge import config as configs
from bridge.arc import Pair
from bridge.files import write_text
from bridge.views import pair_view
from teacher_torch.gr00t_config import Size
from teacher_torch.teachers import Dtype


@dataclass(frozen=True, kw_only=True)
class FullSizeConfig:
    """What to build and run."""

    size: Size = "full"
    dtype: Dtype = "float32"
    device: str = "cpu"
    runs: int = 3
    """timed forward passes, after a cold one"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: FullSizeConfig) -> None:
    """Build GR00T N1.5 with random weights at its released size, count it and time one prompt."""
    import torch

    from teacher_torch.policy import UNUSED, load_policy

    under = conditions("torch", "transformers")
    started = time.perf_counter()
    dtype = getattr(torch, config.dtype)
    policy = load_policy("random", config.size, 0, config.device, dtype)
    build = time.perf_counter() - started
    counts = policy.parameter_counts()
    if config.size == "full":
        counts |= UNUSED
        counts["released file"] = counts["taking part"] + sum(UNUSED.values())
    for name, count in counts.items():
        print(f"{name:32} {count:>14,}")

    rng = np.random.default_rng(0)
    grids = (rng.integers(0, 10, (10, 10)).astype(np.uint8) for _ in range(2))
    view = replace(pair_view("size_train_0", Pair(*grids)), dynamic_tiling=False)
    inputs = policy.prepare([view])
    state, noise = torch.zeros(1, 1, 64), torch.randn(1, 16, 32)
    backbone_seconds, action_seconds = [], []
    output = policy.teacher.forward(inputs)  # cold: not timed
    for _ in range(config.runs):
        begin = time.perf_counter()
        output = policy.teacher.forward(inputs)  # ends on the host, so it is synchronised
        backbone_seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        policy.get_action(inputs, state, torch.tensor([0]), noise).cpu()
        action_seconds.append(time.perf_counter() - begin)
    features = output.example(0).astype(np.float32)
    assert np.isfinite(features).all()
    assert features.std() > 0
    result = {
        **under,
        "device": config.device,
        "weights": policy.teacher.weights,
        "parameters": counts,
        "tokens": len(features),
        "feature_mean": float(features.mean()),
        "feature_std": float(features.std()),
        "build_seconds": round(build, 1),
        "backbone_seconds": [round(x, 1) for x in backbone_seconds],
        "whole_model_seconds": [round(x, 1) for x in action_seconds],
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "parameters"}, indent=1))
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    configs.command(main, FullSizeConfig)
