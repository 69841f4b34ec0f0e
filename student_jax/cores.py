"""What a CPU needs to be fast: a device for every core, and memory that is not asked for anew."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import jax

CONTAINER = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or "200000 100000" for two cores
# glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes, and M_ARENA_MAX
KEEP = {-1: 2**31 - 1, -3: 2**31 - 1, -8: 1}


def use_every_core(share: int = 0) -> None:
    """Makes a CPU device of every core, unless the environment tells how many; before JAX is used.

    One device would leave most of them idle: small arrays are not worth cutting up to XLA.

    Args:
        share: what the devices have to share out evenly, and so many of them; 0 for no matter.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    told = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    count = max(n for n in range(1, count_cores() + 1) if share % n == 0)
    keep_memory()
    if not told:
        jax.config.update("jax_num_cpu_devices", count)
    if told or count > 1:
        # Devices that wait for each other hold their threads: XLA's pool must have some to spare.
        os.environ.setdefault("NPROC", str(max(16, 4 * count)))


def keep_memory() -> None:
    """Keeps freed memory for the next call; of use before JAX is, where malloc is glibc's.

    XLA allocates what a call needs in one block, which glibc maps anew each time: the kernel then
    clears it page by page, which is half of a small student's step.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another libc
        return
    for option, value in KEEP.items():
        tune(option, value)


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
