"""Kept, as it is slow to come by: memory for the next call, programs while there is room."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import jax

from student_jax.memory import keep_memory

MAPS, MOST_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")  # Linux alone


def keep_memory_and_programs() -> None:
    """Does both; of use before JAX is."""
    keep_memory()
    keep_programs()


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


def make_room_for_programs(*own: MutableMapping[Any, Any]) -> None:
    """Forgets compiled programs where the process has half of the memory maps that it may have.

    XLA compiles a program for a CPU into many functions, each of which takes maps of its own; with
    65,530, Linux's default, nothing can be compiled any more: "Cannot allocate memory". What is
    needed again is read from disk, or compiled again.

    Args:
        own: programs that the caller holds, which are forgotten, too.
    """
    if not (MAPS.is_file() and MOST_MAPS.is_file()):
        return
    if 2 * len(MAPS.read_bytes().splitlines()) > int(MOST_MAPS.read_text()):
        for programs in own:
            programs.clear()
        jax.clear_caches()
