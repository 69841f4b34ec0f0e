"""Reads and appends examples; the package's docstring shows the layout."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, SupportsIndex

import ml_dtypes
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from bridge.errors import InputError
from bridge.store import storage
from bridge.store.cache import make_cache
from bridge.store.encoding import Encoding
from bridge.store.provenance import (
    SCHEMA,
    check_golden,
    check_provenance,
    is_same_code,
    parse_provenance,
)
from bridge.store.records import (
    Features,
    FrameTokens,
    Record,
    check_example_id,
    check_frames,
    read_record,
)
from bridge.store.statistics import Statistics, merge, read_moments, statistics_of


class FeatureStore:
    """A store of teacher features. `store[i]` and `store["8be77c9e_test_0"]` are bf16[S, F]."""

    def __init__(self, path: str | Path | ts.KvStore, cache: str = "none") -> None:
        """Opens an existing store.

        Args:
            path: a folder, a kvstore URL such as gs://bucket/folder, a kvstore spec as JSON, or an
                open kvstore.
            cache: `ram` keeps what was decoded in up to half of the free memory; a folder keeps it
                in memory-mapped files; `none` decodes on every read.

        Raises:
            InputError: if there is no store, or one of another schema.
        """
        self.kv = storage.open_kvstore(path)
        self.path = storage.name_of(self.kv) if isinstance(path, ts.KvStore) else str(path)
        text = storage.read_key(self.kv, "store.json")
        if text is None:
            raise InputError(
                f"store {self.path}: expected a feature store, got none; "
                "write one with python -m teacher_torch.extract"
            )
        self.provenance = parse_provenance(text, self.path)
        self.encoding = Encoding(**self.provenance["encoding"])
        self.cache = make_cache(cache)
        self.is_subset = False
        self.records: dict[str, Record] = {}
        self.damaged: dict[str, str] = {}  # example_id -> what is wrong with its manifest entry
        self._load_records()
        self._is_complete = storage.read_key(self.kv, "statistics.json") is not None

    @staticmethod
    def create(
        path: str | Path | ts.KvStore,
        provenance: Mapping[str, Any],
        golden: dict[str, float] | None = None,
        encoding: Encoding | None = None,
        *,
        accept_code: bool = False,
    ) -> FeatureStore:
        """Makes a store, or opens the one there if it is of the same provenance.

        Args:
            path: as for `FeatureStore`.
            provenance: JSON values that say whose features of which views these are. It must hold
                `feature_width`; `code` is a list of one digest.
            golden: mean and std of the teacher's features on a fixed view. Rounding differs between
                machines, so these may be a little apart; more means another computation.
            encoding: what is kept of the features; all tokens in bf16 by default.
            accept_code: go on with a store that other code wrote, and note that this one did too.

        Raises:
            InputError: if a store of another provenance is there, naming the first difference.
        """
        kv = storage.open_kvstore(path)
        wanted = {"schema": SCHEMA, **provenance, "encoding": asdict(encoding or Encoding())}
        # Of two writers that start together, one makes the store and the other is held against it.
        text = json.dumps({**wanted, "golden": golden}, indent=1)
        storage.write_key(kv, "store.json", text, if_missing=True)
        store = FeatureStore(kv if isinstance(path, ts.KvStore) else path)
        store.check_same(provenance, encoding, accept_code=accept_code)
        check_golden(store.provenance.get("golden"), golden, store.path)
        written_by = store.provenance.get("code")
        if not is_same_code(written_by, provenance.get("code")):
            store.provenance["code"] = sorted({*(written_by or ()), *provenance["code"]})
            storage.write_key(kv, "store.json", json.dumps(store.provenance, indent=1))
        return store

    def check_same(
        self,
        provenance: Mapping[str, Any],
        encoding: Encoding | None = None,
        *,
        accept_code: bool = False,
    ) -> None:
        """Refuses to be written to by a run of another provenance; arguments as for `create`.

        Raises:
            InputError: naming the first difference.
        """
        about = {"schema": SCHEMA, **provenance, "encoding": asdict(encoding or Encoding())}
        wanted = json.loads(json.dumps(about))
        hint = "give another --out, or delete the store"
        if not is_same_code(self.provenance.get("code"), wanted.get("code")):
            hint += "; if the change cannot alter features, --accept_code True"
            if accept_code:
                wanted["code"] = self.provenance.get("code")
        check_provenance(self.provenance, wanted, self.path, hint)

    @property
    def feature_width(self) -> int:
        """`F`."""
        return int(self.provenance["feature_width"])

    @property
    def ids(self) -> list[str]:
        """The examples by name, sorted: `store[i]` is that of `ids[i]`."""
        return list(self.records)

    @property
    def views(self) -> dict[str, Record]:
        """One record of each distinct view, by its digest."""
        return {record.view_digest: record for record in self.records.values()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, which: SupportsIndex | str) -> Features:
        return self.read(which if isinstance(which, str) else self.ids[operator.index(which)])

    def of_tasks(self, task_ids: Iterable[str]) -> FeatureStore:
        """Returns the same store with only these tasks' examples, to read; it shares the cache."""
        wanted = set(task_ids)
        subset = FeatureStore.__new__(FeatureStore)
        subset.__dict__.update(self.__dict__, is_subset=True)
        subset.records = {n: r for n, r in self.records.items() if r.task_id in wanted}
        return subset

    def append(
        self,
        example_ids: str | Sequence[str],
        features: Features,
        frames: Iterable[FrameTokens],
        view_digest: str,
    ) -> None:
        """Writes one view; when this returns it is durable and counted.

        Args:
            example_ids: the example, or all that show this same view; one already complete is
                written over.
            features: bf16[S, F].
            frames: where each frame's tokens lie.
            view_digest: sha256 of the grids and the prompt, so that a changed task is noticed.

        Raises:
            ValueError: if the features have another dtype or width than the store.
            InputError: if they are not finite, or the disk is full.
        """
        names = [example_ids] if isinstance(example_ids, str) else list(example_ids)
        for name in names:
            check_example_id(name)
        if features.dtype != ml_dtypes.bfloat16 or features.shape[1:] != (self.feature_width,):
            raise ValueError(
                f"features of {names[0]}: expected bfloat16 [S, {self.feature_width}], "
                f"got {features.dtype} {list(features.shape)}"
            )
        arrays, kept = self.encoding.encode(features, tuple(frames))
        check_frames(kept, len(arrays["values"]))
        moments = statistics_of(self.encoding.decode(arrays))
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.std).all()):
            raise InputError(f"features of {names[0]}: not finite; nothing was stored of it")
        self._forget_completeness()
        specs = self.encoding.array_specs(len(arrays["values"]), self.feature_width)
        beside = {f"moments/{view_digest}": moments.to_bytes()}
        wait = storage.start_write(self.kv, f"views/{view_digest}", arrays, specs, beside)
        digest = storage.digest_arrays(arrays)
        wait()
        record = Record(names[0], view_digest, moments.num_tokens, digest, kept)
        # Of a copy: other threads that write here add to it.
        sharing = [n for n, r in list(self.records.items()) if r.view_digest == view_digest]
        for name in dict.fromkeys([*names, *sharing]):
            self.link(name, record)

    def link(self, example_id: str, record: Record) -> None:
        """Acknowledges an example whose view is already stored."""
        check_example_id(example_id)
        self._forget_completeness()
        record = replace(record, example_id=example_id)
        storage.write_key(self.kv, f"manifest/{example_id}.json", record.to_json())
        self.records[example_id] = record
        self.damaged.pop(example_id, None)

    def expect(self, example_ids: Iterable[str], config: str) -> None:
        """Notes which examples a run is to fill in, and its config, before it starts.

        The store is complete when it holds what all runs together were to fill in; `repair` finds
        there how to extract an example again.
        """
        key = hashlib.sha256(config.encode()).hexdigest()[:16]
        expected = self.expected()
        wanted = {**dict.fromkeys(example_ids, key), **expected}  # the first config stays
        if wanted != expected:
            storage.write_key(self.kv, f"configs/{key}.yaml", config)
            text = json.dumps(dict(sorted(wanted.items())), indent=0)
            storage.write_key(self.kv, "expected.json", text)

    def expected(self) -> dict[str, str]:
        """Returns example_id -> the key of the config that was to fill it in."""
        text = storage.read_key(self.kv, "expected.json")
        try:
            value = {} if text is None else json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InputError(
                f"store {self.path}: expected.json is damaged; delete it and run the extract "
                "command again, which writes it anew and extracts nothing twice"
            )
        return value

    def record(self, example_id: str) -> Record:
        """Returns the manifest entry of an example.

        Raises:
            InputError: if the store does not hold it.
        """
        if example_id in self.damaged:
            raise self._damage(example_id, self.damaged[example_id])
        if example_id not in self.records:
            raise InputError(
                f"store {self.path}: expected the example {example_id}, got "
                f"{len(self.records)} others; run extract with a config that covers its task"
            )
        return self.records[example_id]

    def read(self, example_id: str) -> Features:
        """Returns one example's features, bf16[S, F], read-only.

        Raises:
            InputError: if the example is not there or its bytes are not those written.
        """
        return self.read_many([example_id])[0]

    def read_many(self, example_ids: Sequence[str]) -> list[Features]:
        """Returns examples' features, bf16[S, F] each, read at the same time.

        Raises:
            InputError: as `read`.
        """
        records = [self.record(name) for name in example_ids]
        pending = {r.digest: self._start(r) for r in records if not self.cache.has(r.digest)}

        def decode(record: Record) -> Callable[[], Features]:
            return lambda: self.encoding.decode(
                self._finish(record, pending.get(record.digest) or self._start(record))
            )

        return [self.cache.get(record.digest, decode(record)) for record in records]

    def batch(
        self, example_ids: Sequence[str], bucket: int = 1, longest: int | None = None
    ) -> tuple[Features, npt.NDArray[np.bool_]]:
        """Returns examples padded to one length.

        Args:
            example_ids: `B` examples.
            bucket: the length is the longest example's, rounded up to a multiple of this.
            longest: no further up than this.

        Returns:
            bf16[B, L, F], 0 where padded, and bool[B, L], True where valid.
        """
        parts = self.read_many(example_ids)
        needed = max(map(len, parts))
        length = -(-needed // bucket) * bucket
        length = length if longest is None else max(needed, min(length, longest))
        features = np.empty((len(parts), length, self.feature_width), ml_dtypes.bfloat16)
        mask = np.arange(length) < np.array([len(part) for part in parts])[:, None]
        for place, part in zip(features, parts, strict=True):
            place[: len(part)] = part
            place[len(part) :] = 0
        return features, mask

    def statistics(self, example_ids: Sequence[str] | None = None) -> Statistics:
        """Returns mean and std per channel over all tokens of some examples, or of all.

        No features are read: every view's own moments are stored beside it and merged.

        Raises:
            InputError: if the store holds none of them.
        """
        records = [self.record(n) for n in (self.ids if example_ids is None else example_ids)]
        if not records:
            raise InputError(
                f"store {self.path}: holds no example yet; run the extract command again, it goes "
                "on where it stopped"
            )
        pending = [self.kv.read(f"moments/{record.view_digest}") for record in records]
        moments: list[Statistics] = []
        for record, future in zip(records, pending, strict=True):
            try:
                moments.append(self.finish_moments(record, future))
            except ValueError as error:
                raise self._read_error(record.example_id, error) from None
        return merge(moments)

    def finish_moments(self, record: Record, future: ts.Future) -> Statistics:
        """Returns a view's statistics once its key is read.

        Raises:
            ValueError: TensorStore's own, or if they are missing or damaged.
        """
        found = future.result()
        data = found.value if found.state == "value" else None
        return read_moments(data, record.num_tokens, self.feature_width)

    def write_statistics(self) -> Statistics:
        """Saves the statistics of the whole store, which says that it is complete."""
        self._check_whole()
        statistics = self.statistics()
        storage.write_key(self.kv, "statistics.json", json.dumps(statistics.to_json()))
        self._is_complete = True
        return statistics

    @property
    def is_complete(self) -> bool:
        """Whether everything expected is there, and the statistics of it."""
        return self._is_complete

    def _forget_completeness(self) -> None:
        """The statistics are about to be of fewer examples than there are."""
        self._check_whole()
        if self._is_complete:
            storage.delete_key(self.kv, "statistics.json")
            self._is_complete = False

    def _check_whole(self) -> None:
        if self.is_subset:
            raise ValueError(f"store {self.path}: a subset by task is to be read only")

    def _start(self, record: Record) -> dict[str, ts.Future]:
        specs = self.encoding.array_specs(record.num_tokens, self.feature_width)
        return storage.read_arrays(self.kv, f"views/{record.view_digest}", specs)

    def _finish(self, record: Record, pending: Mapping[str, ts.Future]) -> dict[str, Any]:
        try:
            return {name: future.result() for name, future in pending.items()}
        except ValueError as error:
            raise self._read_error(record.example_id, error) from None

    def _read_error(self, example_id: str, error: ValueError) -> InputError:
        if storage.is_outage(error):
            return InputError(
                f"store {self.path}: cannot read {example_id}: {storage.short(error)}"
            )
        return self._damage(example_id, storage.short(error))

    def _damage(self, example_id: str, fault: str) -> InputError:
        return InputError(
            f"store {self.path}: example {example_id} is damaged ({fault}); "
            f"python -m bridge.store repair {self.path} extracts it again"
        )

    def _load_records(self) -> None:
        # A killed writer can leave a lock file beside an entry.
        keys = [k for k in storage.list_keys(self.kv, "manifest") if k.endswith(".json")]
        reading = [self.kv.read(key) for key in keys]
        for key, entry in zip(keys, reading, strict=True):
            name = key.removeprefix("manifest/").removesuffix(".json")
            with storage.told(self.kv, f"read {key}"):
                text = entry.result().value
            try:
                self.records[name] = read_record(name, text)
            except ValueError as error:
                self.damaged[name] = str(error)
