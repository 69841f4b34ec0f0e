"""The feature store: what a teacher said about each view, on disk, bit for bit.

In the shape descriptions: `S` teacher tokens of one example, `F` teacher feature width.

    store.json                     provenance: whose features, of which views
    examples/{example_id}/         one zarr3 array bf16[S, F] in one chunk, crc32c
    manifest/{example_id}.json     written after its data: the example is complete
    statistics.json                mean and std per channel, written when the store is complete

Every file is written atomically by TensorStore's kvstore, so a killed run leaves whole examples or
none. A missing chunk is an error, not zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from bridge.errors import InputError

SCHEMA = 1
GOLDEN_TOLERANCE = 0.02  # stds; bf16 and f32 differ by less in the mean over a view
Features = npt.NDArray[Any]  # bf16[S, F]


@dataclass(frozen=True)
class FrameTokens:
    """Which grid a frame shows and where its image tokens lie among the example's `S`.

    A frame of `tile_rows x tile_cols` tiles holds 256 tokens a tile, row-major inside the tile,
    then 256 more for the thumbnail if there is more than one tile.
    """

    role: str  # input | output | query
    demonstration: int  # -1 for the query
    rows: int  # of the grid shown, cells
    cols: int
    first_token: int
    tile_rows: int = 1
    tile_cols: int = 1


@dataclass(frozen=True)
class Record:
    """The manifest entry of one example."""

    example_id: str
    num_tokens: int
    digest: str  # sha256 of the features' bytes
    shown_digest: str  # sha256 of the grids and the prompt that the teacher was shown
    frames: tuple[FrameTokens, ...]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each feature channel over all tokens of the store."""

    mean: npt.NDArray[np.float32]  # f32[F]
    std: npt.NDArray[np.float32]  # f32[F]
    num_tokens: int


class FeatureStore:
    """Reads and appends examples. `FeatureStore.create` resumes a store of the same provenance."""

    def __init__(self, path: str | Path) -> None:
        """Opens an existing store.

        Args:
            path: a folder, or a kvstore URL such as gs://bucket/folder/.

        Raises:
            InputError: if there is no store.
        """
        self.path = str(path)
        self._kv = _open_kvstore(self.path)
        text = self._read("store.json")
        if text is None:
            raise InputError(
                f"store {path}: expected a feature store, got none; "
                "write one with python -m teacher_torch.extract"
            )
        self.provenance: dict[str, Any] = json.loads(text)
        self._has_statistics = self._read("statistics.json") is not None
        self.records: dict[str, Record] = dict(sorted(self._load_records()))

    @staticmethod
    def create(
        path: str | Path, provenance: dict[str, Any], golden: dict[str, float] | None = None
    ) -> FeatureStore:
        """Makes a store, or opens the one there if it is of the same provenance.

        Args:
            path: as for `FeatureStore`.
            provenance: JSON values that say whose features of which views these are. It must hold
                `feature_width`.
            golden: mean and std of the teacher's features on a fixed view. Rounding differs between
                machines, so these may be `GOLDEN_TOLERANCE` apart; more means another computation.

        Raises:
            InputError: if a store of another provenance is there, naming the first difference.
        """
        wanted = json.loads(json.dumps({"schema": SCHEMA, **provenance}))
        kv = _open_kvstore(str(path))
        there = kv.read("store.json").result()
        if there.state != "value":
            # Only if still missing: of two writers that start together, one makes the store and
            # the other is held against it.
            text = json.dumps({**wanted, "golden": golden}, indent=1)
            kv.write("store.json", text, if_equal=there.stamp.generation).result()
        store = FeatureStore(path)
        check_provenance(store.provenance, wanted, str(path))
        check_golden(store.provenance.get("golden"), golden, str(path))
        return store

    @property
    def feature_width(self) -> int:
        """`F`."""
        return int(self.provenance["feature_width"])

    def append(
        self,
        example_id: str,
        features: Features,
        frames: Iterable[FrameTokens],
        shown_digest: str = "",
    ) -> None:
        """Writes one example; when this returns it is on disk and counted.

        Args:
            example_id: its name; an example already complete is written over.
            features: bf16[S, F].
            frames: where each frame's tokens lie.
            shown_digest: of the grids and the prompt, so that a changed task is noticed.

        Raises:
            ValueError: if the features have another dtype or width than the store.
        """
        if features.dtype != ml_dtypes.bfloat16 or features.shape[1:] != (self.feature_width,):
            raise ValueError(
                f"features of {example_id}: expected bfloat16 [S, {self.feature_width}], "
                f"got {features.dtype} {list(features.shape)}"
            )
        if self._has_statistics:  # of fewer examples: no longer true
            self._kv.write("statistics.json", None).result()
            self._has_statistics = False
        spec = _array_spec(self._kv, example_id, features.shape)
        # What a killed writer left of this example goes first.
        array = ts.open(spec, create=True, delete_existing=True).result()
        array[...].write(features).result()
        record = Record(example_id, len(features), digest(features), shown_digest, tuple(frames))
        self._kv.write(f"manifest/{example_id}.json", json.dumps(asdict(record))).result()
        self.records[example_id] = record

    def write_config(self, text: str) -> None:
        """Keeps the resolved config that filled the store, as config.yaml."""
        self._kv.write("config.yaml", text.encode()).result()

    def read(self, example_id: str) -> Features:
        """Returns one example's features, bf16[S, F].

        Raises:
            InputError: if the example is not there or its bytes are not those written.
        """
        record = self.record(example_id)
        shape = (record.num_tokens, self.feature_width)
        try:
            return ts.open(_array_spec(self._kv, example_id, shape)).result()[...].read().result()
        except ValueError as error:
            raise InputError(
                f"store {self.path}: example {example_id} is damaged "
                f"({str(error).split('[')[0][:120]}); delete manifest/{example_id}.json and run "
                "the extract command again"
            ) from None

    def record(self, example_id: str) -> Record:
        """Returns the manifest entry of an example.

        Raises:
            InputError: if the store does not hold it.
        """
        if example_id not in self.records:
            raise InputError(
                f"store {self.path}: expected the example {example_id}, got "
                f"{len(self.records)} others; run extract with a config that covers its task"
            )
        return self.records[example_id]

    def write_statistics(self) -> Statistics:
        """Computes mean and std per channel in one pass over the store, in f64, and saves them.

        Source: pairwise update of mean and sum of squares, Chan et al. 1979, eq. 2.1.
        """
        count = 0
        mean = np.zeros(self.feature_width, np.float64)
        squares = np.zeros(self.feature_width, np.float64)
        for example_id in sorted(self.records):
            values = self.read(example_id).astype(np.float64)
            shift = values.mean(0) - mean
            total = count + len(values)
            squares += ((values - values.mean(0)) ** 2).sum(0)
            squares += shift**2 * (count * len(values) / total)
            mean += shift * (len(values) / total)
            count = total
        std = np.sqrt(squares / max(count, 1))
        self._kv.write(
            "statistics.json",
            json.dumps({"num_tokens": count, "mean": mean.tolist(), "std": std.tolist()}),
        ).result()
        return self.statistics()

    def statistics(self) -> Statistics:
        """Returns the saved statistics.

        Raises:
            InputError: if extraction has not finished.
        """
        text = self._read("statistics.json")
        if text is None:
            raise InputError(
                f"store {self.path}: has no statistics, so its extraction did not finish; "
                "run the extract command again, it goes on where it stopped"
            )
        value = json.loads(text)
        mean, std = (np.array(value[name], np.float32) for name in ("mean", "std"))
        return Statistics(mean, std, value["num_tokens"])

    def _read(self, key: str) -> bytes | None:
        result = self._kv.read(key).result()
        return result.value if result.state == "value" else None

    def _load_records(self) -> Iterable[tuple[str, Record]]:
        names = [k for k in self._kv.list().result() if k.startswith(b"manifest/")]
        for key in names:
            if not key.endswith(b".json"):  # a lock file that a killed writer left
                continue
            value = json.loads(self._kv.read(key).result().value)
            frames = tuple(FrameTokens(**frame) for frame in value.pop("frames"))
            yield value["example_id"], Record(frames=frames, **value)


def digest(features: Features) -> str:
    """Returns the sha256 of an array's bytes, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(features).view(np.uint16).tobytes()).hexdigest()


def check_provenance(
    got: dict[str, Any],
    expected: dict[str, Any],
    path: str,
    hint: str = "give another --out, or delete the store",
) -> None:
    """Refuses a store whose features are not those expected.

    Raises:
        InputError: naming the first field that differs.
    """
    # "golden" may differ within a tolerance, see `check_golden`.
    for key in [key for key in (*expected, *got) if key != "golden"]:
        if key == "weights" and got.get("weights_digest") == expected.get("weights_digest"):
            continue  # the same weights by another path
        if got.get(key) != expected.get(key):
            raise InputError(
                f"store {path}: {key}: expected {expected.get(key)!r}, got {got.get(key)!r}; {hint}"
            )


def check_golden(
    got: dict[str, float] | None, expected: dict[str, float] | None, path: str
) -> None:
    """Refuses to go on with a teacher that computes other features than the store's did.

    Raises:
        InputError: if mean or std on the fixed view differ by more than `GOLDEN_TOLERANCE` stds.
    """
    if got is None or expected is None:
        return
    for name, value in expected.items():
        if abs(got[name] - value) > GOLDEN_TOLERANCE * abs(got["std"]):
            raise InputError(
                f"store {path}: the teacher's features of the check view have {name} {value:.4g}, "
                f"expected {got[name]:.4g}; same weights, other computation: check dtype and "
                "versions, or give another --out"
            )


def _open_kvstore(path: str) -> ts.KvStore:
    if "://" in path:
        return ts.KvStore.open(path if path.endswith("/") else path + "/").result()
    return ts.KvStore.open({"driver": "file", "path": f"{Path(path).resolve()}/"}).result()


def _array_spec(kv: ts.KvStore, example_id: str, shape: tuple[int, ...]) -> ts.Spec:
    spec = kv.spec().to_json()
    return ts.Spec(
        {
            "driver": "zarr3",
            "kvstore": {**spec, "path": f"{spec['path']}examples/{example_id}/"},
            "metadata": {
                "shape": list(shape),
                "data_type": "bfloat16",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
            },
            # TensorStore's defaults read a missing chunk as zeros and do not store a zero chunk.
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
    )
