"""Fills a store batch by batch, preparing and writing beside the teacher's forward pass."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from bridge.store import FeatureStore
from bridge.views import View

AHEAD = 2  # batches prepared, and batches waiting to be written


@dataclass(frozen=True)
class Item:
    """An example to extract. Its view is drawn when needed: all of them would fill the memory."""

    example_id: str
    shown_digest: str
    num_frames: int
    view: Callable[[], View]


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Groups examples of like length.

    The plan depends on the whole list, never on what is already done: a batch's arithmetic, and so
    its bytes, are the same in a resumed run as in an unbroken one.
    """
    ordered = sorted(items, key=lambda item: (item.num_frames, item.example_id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


@dataclass(frozen=True)
class Throughput:
    """How fast one rank was."""

    num_examples: int
    seconds: float
    bare_forward_seconds: float


def fill(
    store: FeatureStore, teacher: Any, batches: Sequence[Sequence[Item]], *, quiet: bool
) -> Throughput:
    """Extracts what the store lacks.

    While the teacher runs, one thread draws and tokenises the next views and another writes the
    last features. An example whose task changed since it was written counts as missing.
    """

    def is_there(item: Item) -> bool:
        record = store.records.get(item.example_id)
        return record is not None and record.shown_digest == item.shown_digest

    missing = {i.example_id for batch in batches for i in batch if not is_there(i)}
    todo = [batch for batch in batches if any(i.example_id in missing for i in batch)]
    total = sum(map(len, batches))
    progress = tqdm(
        desc="extract", unit="example", total=total, initial=total - len(missing), disable=quiet
    )

    def prepare(batch: Sequence[Item]) -> Any:
        return teacher.prepare([item.view() for item in batch])

    def write(batch: Sequence[Item], output: Any) -> None:
        for row, item in enumerate(batch):
            if item.example_id in missing:
                features, frames = output.example(row), output.frames[row]
                store.append(item.example_id, features, frames, item.shown_digest)
                progress.update()

    started = time.perf_counter()
    seconds: list[float] = []  # of each forward
    with progress, ThreadPoolExecutor(1) as preparer, ThreadPoolExecutor(1) as writer:
        upcoming = deque(preparer.submit(prepare, batch) for batch in todo[:AHEAD])
        writing: deque[Future[None]] = deque()
        for i, batch in enumerate(todo):
            inputs = upcoming.popleft().result()
            if i + AHEAD < len(todo):
                upcoming.append(preparer.submit(prepare, todo[i + AHEAD]))
            # Bounds the memory, and raises what failed. The last forward runs with nothing beside
            # it, which tells what a bare one costs.
            while len(writing) > (0 if i + 1 == len(todo) else AHEAD):
                writing.popleft().result()
            before = time.perf_counter()
            output = teacher.forward(inputs)
            seconds.append(time.perf_counter() - before)
            writing.append(writer.submit(write, batch, output))
        for pending in writing:
            pending.result()
    return Throughput(len(missing), time.perf_counter() - started, bare_seconds(todo, seconds))


def bare_seconds(todo: Sequence[Sequence[Item]], seconds: Sequence[float]) -> float:
    """Estimates what all forwards would have taken with nothing beside them.

    The last one ran so; those of the same size before it say how much company costs.
    """
    if not todo:
        return 0.0
    size = (len(todo[-1]), todo[-1][0].num_frames)
    alike = [
        taken
        for batch, taken in zip(todo[:-1], seconds[:-1], strict=True)
        if (len(batch), batch[0].num_frames) == size
    ][-8:]
    company = max(1.0, float(np.median(alike)) / seconds[-1]) if alike else 1.0
    return sum(seconds) / company


def describe_speed(ranks: Sequence[Throughput]) -> str:
    """Says how fast the ranks were, and how much of that storing and preparing cost."""
    examples = sum(rank.num_examples for rank in ranks)
    if not examples:
        return "nothing was missing"
    slowest = max(rank.seconds for rank in ranks)
    share = sum(r.bare_forward_seconds for r in ranks) / sum(r.seconds for r in ranks)
    return f"{examples / slowest:.2f} examples/s, {share:.0%} of the bare teacher's throughput"
