"""Keeps decoded features at hand, so that a second epoch decodes nothing."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np

from bridge.errors import InputError
from bridge.store.records import Features


class Cache(Protocol):
    """Gives an example's decoded features, making them only if need be."""

    def get(self, digest: str, make: Callable[[], Features]) -> Features:
        """Returns the features of the stored arrays with this digest, bf16[S, F]; read-only.

        The cache is asked from several threads.
        """
        ...

    def has(self, digest: str) -> bool:
        """Whether `get` would make nothing."""
        ...


def make_cache(kind: str) -> Cache:
    """Returns the cache that a config names: `ram`, `none`, or a folder."""
    if kind == "none":
        return RamCache(0)
    if kind == "ram":
        return RamCache(available_memory() // 2)
    if "/" not in kind:
        raise InputError(f"cache: expected ram, none or a folder such as ./{kind}, got {kind}")
    return MappedCache(Path(kind))


class RamCache:
    """Holds what fits, first come first kept.

    Epochs read everything in turn: dropping the oldest would drop just what comes next.
    """

    def __init__(self, max_bytes: int) -> None:
        """Holds at most so many bytes."""
        self._free = max_bytes
        self._kept: dict[str, Features] = {}

    def get(self, digest: str, make: Callable[[], Features]) -> Features:
        """See `Cache`."""
        features = self._kept.get(digest)
        if features is not None:
            return features
        features = make()
        features.flags.writeable = False
        if features.nbytes <= self._free:
            self._free -= features.nbytes
            self._kept[digest] = features
        return features

    def has(self, digest: str) -> bool:
        """See `Cache`."""
        return digest in self._kept


class MappedCache:
    """Decoded files in a folder, memory-mapped: shared by processes, larger than memory.

    A file is named after the digest of what it decodes, so it can serve any number of stores.
    Losing the folder loses nothing; what is in it is trusted like memory.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, digest: str, make: Callable[[], Features]) -> Features:
        """See `Cache`."""
        path = self._folder / f"{digest}.npy"
        with contextlib.suppress(FileNotFoundError, ValueError, EOFError):  # cut short
            return np.load(path, mmap_mode="r").view(ml_dtypes.bfloat16)
        features = make()
        partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.partial")
        try:
            with partial.open("wb") as file:
                np.save(file, features.view(np.uint16))  # numpy's format does not know bf16
                file.flush()
                os.fsync(file.fileno())  # or a crash could leave the name without the bytes
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r").view(ml_dtypes.bfloat16)

    def has(self, digest: str) -> bool:
        """See `Cache`."""
        return (self._folder / f"{digest}.npy").is_file()


def available_memory() -> int:
    """Returns the bytes that are free for new work: Linux's estimate, or half of all.

    A container or a job may have less than the machine: its control group says so.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: "max"
        limit = int((group / "memory.max").read_text())
        free = min(free, max(0, limit - int((group / "memory.current").read_text())))
    return free
