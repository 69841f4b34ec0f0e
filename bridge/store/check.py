"""Finds what is wrong with a store; an outage is no damage and ends the search."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.errors import InputError
from bridge.store import storage
from bridge.store.feature_store import FeatureStore
from bridge.store.records import Record

AHEAD = 4  # views read at the same time
LEFTOVER_AGE = 600  # seconds; younger files may be a running writer's


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    num_examples: int  # looked at
    faults: dict[str, str]  # example_id -> what is wrong with it
    statistics_fault: str | None
    leftovers: list[str]  # keys that no example needs: of killed writers, or of changed tasks

    @property
    def is_whole(self) -> bool:
        """Whether everything acknowledged is as it was written."""
        return not self.faults and self.statistics_fault is None


def verify(store: FeatureStore, progress: Callable[[int], object] = lambda _: None) -> Report:
    """Reads everything and holds it against the manifest.

    Args:
        store: any store.
        progress: called with the number of examples done since the last call.
    """
    faults = dict(store.damaged)
    progress(len(faults))
    sharing: dict[str, list[Record]] = defaultdict(list)
    for record in store.records.values():
        sharing[record.view_digest].append(record)
    for digest, fault in _view_faults(store, sharing):
        progress(len(sharing[digest]))
        if fault:
            faults |= {record.example_id: fault for record in sharing[digest]}
    return Report(
        num_examples=len(store.records) + len(store.damaged),
        faults=dict(sorted(faults.items())),
        statistics_fault=None if faults else _statistics_fault(store),
        leftovers=_leftovers(store),
    )


def free(store: FeatureStore, leftovers: list[str]) -> list[str]:
    """Deletes old leftovers and the folders they leave empty; only a file system tells ages.

    Returns:
        What was deleted.
    """
    root = storage.local_folder(store.kv)
    if root is None:
        return []
    old = [key for key in leftovers if _is_old(root / key)]
    for key in old:
        (root / key).unlink()
        for parent in list((root / key).parents)[: key.count("/")]:
            if any(parent.iterdir()):
                break
            parent.rmdir()
    return old


def _view_faults(
    store: FeatureStore, sharing: dict[str, list[Record]]
) -> Iterator[tuple[str, str | None]]:
    """Yields each view's digest with what is wrong with it, reading some ahead."""
    upcoming = iter(sharing.items())
    started: deque = deque()
    while True:
        while len(started) < AHEAD and (following := next(upcoming, None)):
            digest, records = following
            specs = store.encoding.array_specs(records[0].num_tokens, store.feature_width)
            arrays = storage.read_arrays(store.kv, f"views/{digest}", specs)
            started.append((digest, records, specs, arrays))
        if not started:
            return
        digest, records, specs, arrays = started.popleft()
        try:
            found = {name: future.result() for name, future in arrays.items()}
            if any(storage.digest_arrays(found) != record.digest for record in records):
                raise ValueError("its bytes are not those that the manifest tells")
            storage.check_metadata(store.kv, f"views/{digest}", specs)
            store.finish_moments(records[0], store.kv.read(f"moments/{digest}"))
        except ValueError as error:
            if storage.is_outage(error):
                raise InputError(
                    f"store {store.path}: cannot be read: {storage.short(error)}; this says "
                    "nothing of its contents: try again"
                ) from None
            yield digest, storage.short(error)
        else:
            yield digest, None


def _statistics_fault(store: FeatureStore) -> str | None:
    """Says what is wrong with statistics.json; a store without it is unfinished, not damaged."""
    text = storage.read_key(store.kv, "statistics.json")
    if text is None:
        return None
    try:
        found = json.loads(text)
        expected = store.statistics()
        same = found["num_tokens"] == expected.num_tokens and all(
            np.allclose(found[name], getattr(expected, name), rtol=1e-6, atol=1e-9)
            for name in ("mean", "std")
        )
    except (ValueError, KeyError, TypeError):
        return "statistics.json is not readable"
    return None if same else "statistics.json is not of the examples that are there"


def _leftovers(store: FeatureStore) -> list[str]:
    if store.is_subset or store.damaged:  # what the others need is not known
        return []
    known = {record.view_digest for record in store.records.values()}
    keys = [key for folder in ("moments", "views") for key in storage.list_keys(store.kv, folder)]
    keys = [key for key in keys if key.split("/")[1] not in known]
    if (folder := storage.local_folder(store.kv)) is not None:
        # TensorStore does not list its own lock files.
        locks = [path.relative_to(folder).as_posix() for path in folder.rglob("*.__lock")]
        keys = sorted({*keys, *locks})
    return keys


def _is_old(path: Path) -> bool:
    """Whether a file is surely no running writer's."""
    return path.exists() and time.time() - path.stat().st_mtime > LEFTOVER_AGE
