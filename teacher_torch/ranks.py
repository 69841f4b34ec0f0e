"""Ranks under torchrun: who takes what, and when all are done."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


def start_ranks() -> tuple[int, int]:
    """Returns (rank, number of ranks): torchrun's, or (0, 1)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    import torch.distributed

    # A rank may wait for days until the slowest is done.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return torch.distributed.get_rank(), world


def rank_device() -> int:
    """Returns which of the machine's GPUs this rank takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def finish_ranks(world: int, own: T) -> list[T]:
    """Waits until every rank has written its examples; returns how each of them did."""
    if world == 1:
        return [own]
    import torch.distributed

    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, own)
    torch.distributed.destroy_process_group()
    return everyone
