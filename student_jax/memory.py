"""Where memory comes from: XLA asks for thousands of small blocks and a large one in every call."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path

LIBRARY = "cmeel.prefix/lib/libmimalloc.so"  # as the wheel of cmeel-mimalloc has it
# glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, in bytes, and M_ARENA_MAX
KEEP = {-1: 2**31 - 1, -3: 2**31 - 1, -8: 1}


def begin_with_mimalloc() -> None:
    """Starts this command anew with mimalloc in place of glibc's malloc, on Linux.

    glibc has the threads of all devices wait for one lock, or else clears the large block anew in
    each call: two cores then learn as fast as one. Only for a process of its own, before anything
    is done: what ran until here runs twice. Where the environment has an LD_PRELOAD, even an empty
    one, that is left as it is.
    """
    if sys.platform != "linux" or "LD_PRELOAD" in os.environ:
        return
    try:
        library = Path(str(metadata.distribution("cmeel-mimalloc").locate_file(LIBRARY)))
    except metadata.PackageNotFoundError:
        return
    if not library.is_file() or set(str(library)) & set(" :"):  # which part a list of preloads
        return
    os.environ["LD_PRELOAD"] = str(library)
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")  # freed memory is kept, see `keep_memory`
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
