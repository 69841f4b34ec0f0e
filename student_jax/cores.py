"""A device for every core of a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax

from student_jax.memory import keep_memory

T = TypeVar("T")
R = TypeVar("R")
CONTAINER = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or "200000 100000" for two cores


def use_every_core(share: int = 0, *, apart: bool = False) -> None:
    """Makes a CPU device of every core, unless the environment tells how many; before JAX is used.

    One device would leave most of them idle: small arrays are not worth cutting up to XLA.

    Args:
        share: what the devices have to share out evenly, and so many of them; 0 for no matter.
        apart: none of them ever waits for another.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    told = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    count = max(n for n in range(1, count_cores() + 1) if share % n == 0)
    keep_memory()
    if not told:
        jax.config.update("jax_num_cpu_devices", count)
    if told or count > 1:
        # Devices that wait for each other hold their threads: XLA's pool must have some to spare.
        # Where none does, more threads than cores only take each other's turn.
        waiting = max(16, 4 * count) if told else 4 * count
        os.environ.setdefault("NPROC", str(count if apart else waiting))


def map_at_once(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Maps in order; calls run at once on a GPU, whose compiler uses one core for a program."""
    if jax.default_backend() == "cpu":
        yield from map(call, items)
        return
    with ThreadPoolExecutor(count_cores(), thread_name_prefix="compile") as pool:
        yield from pool.map(call, items)


def count_cores() -> int:
    """Returns how many cores this process may use: of a container, its share (cgroups v2)."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if CONTAINER.is_file():
        quota, _, period = CONTAINER.read_text().partition(" ")
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
