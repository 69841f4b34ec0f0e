"""Kept, as it is slow to come by: memory for the next call, programs for the next process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import jax

# glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes, and M_ARENA_MAX
KEEP = {-1: 2**31 - 1, -3: 2**31 - 1, -8: 1}


def keep_memory_and_programs() -> None:
    """Does both; of use before JAX is."""
    keep_memory()
    keep_programs()


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


def keep_programs() -> Path:
    """Makes JAX keep compiled programs on disk, where the environment does not say otherwise.

    Returns:
        The folder: JAX_COMPILATION_CACHE_DIR, or one in the user's cache folder.
    """
    told = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(told) if told else cache / "sage-distill" / "programs"
    if not told:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything: an answer has two programs, and small ones compile in less than JAX's second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
