"""Independent work, spread over the devices of this machine."""

from __future__ import annotations

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


def spread(
    work: Mapping[K, Sequence[T]],
    do: Callable[[T, Device], Iterable[R]],
    stop: Stop,
    at_once: int = 1,
) -> Iterator[R]:
    """Does pieces of work on all local devices at once, and yields what they yield as it comes.

    Args:
        work: pieces by kind. A thread keeps to one kind as long as there is any of it, since each
            device compiles its own program for a kind; then it takes the largest that no other has.
        do: does a piece on a device, which is the default in its thread.
        stop: where it is requested, a thread that has done any piece begins no other; where the
            work fails or is not wanted any more, it is requested, and what is in hand waited for.
        at_once: threads for each device.
    """
    left = {kind: deque(pieces) for kind, pieces in work.items() if pieces}
    busy: dict[int, K] = {}  # by thread
    lock = threading.Lock()
    results = queue.SimpleQueue()  # (result,), or what went wrong, or None: a thread is done

    def take(thread: int) -> T | None:
        with lock:
            if not left or (stop.requested and thread in busy):
                return None
            kind = busy.get(thread)
            if kind not in left:
                taken = set(busy.values())
                kind = max(left, key=lambda each: (each not in taken, len(left[each])))
            busy[thread] = kind
            piece = left[kind].popleft()
            if not left[kind]:
                del left[kind]
            return piece

    def run(thread: int, device: Device) -> None:
        try:
            with jax.default_device(device):
                while (piece := take(thread)) is not None:
                    for result in do(piece, device):
                        results.put((result,))
            results.put(None)
        except BaseException as error:
            results.put(error)

    devices = jax.local_devices() * at_once
    with ThreadPoolExecutor(len(devices), thread_name_prefix="device") as pool:
        try:
            for thread, device in enumerate(devices):
                pool.submit(run, thread, device)
            running = len(devices)
            while running:
                said = results.get()
                if isinstance(said, BaseException):
                    raise said
                if said is None:
                    running -= 1
                else:
                    yield said[0]
        except BaseException:  # also where the caller wants no more
            with lock:
                left.clear()
            stop.requested = True
            raise
