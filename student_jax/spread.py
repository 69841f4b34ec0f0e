"""Independent work, spread over the devices of this machine."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from bridge.stop import Stop

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")
Device = Any  # jax.Device, which no type checker sees


def use_every_core(share: int = 0) -> None:
    """Makes a CPU device of every core, unless the environment tells how many; before JAX is used.

    One device would leave most of them idle: small arrays are not worth cutting up to XLA.

    Args:
        share: what the devices have to share out evenly, and so many of them; 0 for no matter.
    """
    told = "JAX_NUM_CPU_DEVICES" in os.environ
    if not told and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        count = max(n for n in range(1, (cores or 1) + 1) if share % n == 0)
        jax.config.update("jax_num_cpu_devices", count)


def spread(
    work: Mapping[K, Sequence[T]], do: Callable[[T, Device], Iterable[R]], stop: Stop
) -> Iterator[R]:
    """Does pieces of work on all local devices at once, and yields what they yield as it comes.

    Args:
        work: pieces by kind. A device keeps to one kind as long as there is any of it, since each
            device compiles its own program for a kind; then it takes the largest that no other has.
        do: does a piece on a device, which is the default in its thread.
        stop: requested when the caller wants no more.
    """
    left = {kind: deque(pieces) for kind, pieces in work.items() if pieces}
    busy: dict[Device, K] = {}
    lock, results = threading.Lock(), queue.SimpleQueue()

    def take(device: Device) -> T | None:
        with lock:
            if not left:
                return None
            kind = busy.get(device)
            if kind not in left:
                taken = set(busy.values())
                kind = max(left, key=lambda each: (each not in taken, len(left[each])))
            busy[device] = kind
            piece = left[kind].popleft()
            if not left[kind]:
                del left[kind]
            return piece

    def run(device: Device) -> None:
        try:
            with jax.default_device(device):
                while (piece := take(device)) is not None:
                    for result in do(piece, device):
                        results.put((result,))
            results.put(None)
        except BaseException as error:
            results.put(error)

    devices = jax.local_devices()
    with ThreadPoolExecutor(len(devices), thread_name_prefix="device") as pool:
        for device in devices:
            pool.submit(run, device)
        try:
            running = len(devices)
            while running:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    running -= 1
                else:
                    yield from result
        finally:
            left.clear()
            stop.requested = True
