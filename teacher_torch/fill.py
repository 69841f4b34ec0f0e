"""Fills a store batch by batch, preparing and writing beside the teacher's forward pass."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from bridge.stop import Stop
from bridge.store import FeatureStore
from bridge.views import View

AHEAD = 2  # batches prepared, and batches waiting to be written
WRITERS = 3  # compressing some views while another is made durable


@dataclass(frozen=True)
class Item:
    """A view to extract, and the examples that show it.

    It is drawn when needed: all of them would fill the memory.
    """

    example_ids: tuple[str, ...]
    view_digest: str
    grids: tuple[tuple[int, int], ...]  # rows and columns of each frame's grid
    view: Callable[[], View]

    def missing_from(self, store: FeatureStore) -> list[str]:
        """Returns the examples that a store lacks, or holds of a task that changed since."""
        records = store.records
        return [
            name
            for name in self.example_ids
            if name not in records or records[name].view_digest != self.view_digest
        ]


def merge_identical(items: Iterable[Item]) -> list[Item]:
    """Returns one item for each distinct view: the teacher sees it once."""
    merged: dict[str, Item] = {}
    for item in items:
        first = merged.get(item.view_digest)
        names = (*first.example_ids, *item.example_ids) if first else item.example_ids
        merged[item.view_digest] = replace(first or item, example_ids=names)
    return list(merged.values())


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Groups views of like length.

    The plan depends on the whole list, never on what is already done: a batch's arithmetic, and so
    its bytes, are the same in a resumed run as in an unbroken one.
    """
    ordered = sorted(items, key=lambda item: (len(item.grids), item.example_ids))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


@dataclass(frozen=True)
class Throughput:
    """How fast one rank was."""

    num_views: int
    seconds: float
    bare_forward_seconds: float


def fill(
    store: FeatureStore,
    teacher: Any,
    batches: Sequence[Sequence[Item]],
    *,
    only: Sequence[str] = (),
    again: bool = False,
    quiet: bool,
) -> Throughput:
    """Extracts what the store lacks; the teacher runs once for each missing view.

    While the teacher runs, one thread draws and tokenises the next views and another writes the
    last features.

    Args:
        store: to fill.
        teacher: a `Teacher`.
        batches: from `plan_batches`.
        only: these examples and no others; empty: all.
        again: also what is there already, over which it is written.
        quiet: show no progress.

    Raises:
        KeyboardInterrupt: when asked to stop, after the batch in hand is stored.
    """
    wanted = set(only)
    chosen = [i for batch in batches for i in batch if not wanted or wanted & set(i.example_ids)]
    missing = (
        {i.view_digest: [n for n in i.example_ids if not only or n in wanted] for i in chosen}
        if again
        else link_known_views(store, chosen, only)
    )
    todo = [batch for batch in batches if any(item.view_digest in missing for item in batch)]
    total = len(chosen)
    progress = tqdm(
        desc="extract", unit="view", total=total, initial=total - len(missing), disable=quiet
    )

    def prepare(batch: Sequence[Item]) -> Any:
        return teacher.prepare([item.view() for item in batch])

    def write(batch: Sequence[Item], output: Any) -> None:
        for row, item in enumerate(batch):
            if names := missing.get(item.view_digest):
                store.append(names, output.example(row), output.frames[row], item.view_digest)
                progress.update()

    started = time.perf_counter()
    seconds: list[float] = []  # of each forward
    with Stop() as stop, progress, threads(1) as preparer, threads(WRITERS) as writer:
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
            if stop.requested:
                break
        for pending in writing:
            pending.result()
    if stop.requested:
        raise KeyboardInterrupt
    return Throughput(len(missing), time.perf_counter() - started, bare_seconds(todo, seconds))


@contextlib.contextmanager
def threads(count: int) -> Generator[ThreadPoolExecutor]:
    """A pool that, when the run is broken off, drops what it has not begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def link_known_views(
    store: FeatureStore, items: Iterable[Item], only: Sequence[str]
) -> dict[str, list[str]]:
    """Acknowledges missing examples whose view is stored already.

    Returns:
        view_digest -> missing examples, of the views that the teacher has to see.
    """
    known, wanted = store.views, set(only)
    missing: dict[str, list[str]] = {}
    for item in items:
        names = [n for n in item.missing_from(store) if not wanted or n in wanted]
        if names and item.view_digest in known:
            for name in names:
                store.link(name, known[item.view_digest])
        elif names:
            missing[item.view_digest] = names
    return missing


def bare_seconds(todo: Sequence[Sequence[Item]], seconds: Sequence[float]) -> float:
    """Estimates what all forwards would have taken with nothing beside them.

    The last one ran so; those of the same size before it say how much company costs.
    """
    if not seconds:
        return 0.0
    size = (len(todo[-1]), len(todo[-1][0].grids))
    alike = [
        taken
        for batch, taken in zip(todo[:-1], seconds[:-1], strict=True)
        if (len(batch), len(batch[0].grids)) == size
    ][-8:]
    company = max(1.0, float(np.median(alike)) / seconds[-1]) if alike else 1.0
    return sum(seconds) / company


def describe_speed(ranks: Sequence[Throughput]) -> str:
    """Says how fast the ranks were, and how much of that storing and preparing cost."""
    views = sum(rank.num_views for rank in ranks)
    if not views:
        return "nothing was missing"
    slowest = max(rank.seconds for rank in ranks)
    share = sum(r.bare_forward_seconds for r in ranks) / sum(r.seconds for r in ranks)
    return f"{views / slowest:.2f} views/s, {share:.0%} of the bare teacher's throughput"
