"""Measures the feature store: size and error of each encoding, reads and writes beside other ways.

    python -m teacher_torch.extract --teacher.size full --out runs/bench/gr00t --only ID ID ...
    python tools/bench_store.py --store runs/bench/gr00t --out tools/measurements/store_gr00t.json

Speeds are medians over rounds in which every way has its turn, and ratios are taken inside a round:
the machine's mood cancels.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from conditions import conditions

from bridge import config as configs
from bridge.arc import all_questions
from bridge.arc_files import load_tasks
from bridge.files import write_text
from bridge.scaling import apply, standardise
from bridge.store import Encoding, Features, FeatureStore
from bridge.store.__main__ import stored_bytes
from bridge.views import PATCHES, shown_sides
from teacher_torch.fill import WRITERS

SEED_BYTES = 36.3e9  # the original's features of 1718 pair views
TEXT_TOKENS = 73.3  # of a task view besides its frames, GR00T N1.5: 1729 - 6.47 * 256


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure on."""

    store: str
    """a store with all tokens in bf16, to take features from"""
    views: int = 48
    """views written and read; those of the store are repeated if it has fewer"""
    batch_size: int = 8
    rounds: int = 7
    work: Path = Path("runs/bench")
    """a folder on the disk to be measured; what is written there goes afterwards"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: BenchConfig) -> None:
    """Measure the feature store's sizes, errors and speeds."""
    source = FeatureStore(config.store)
    config.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.work) as folder:
        result = measure(source, config, Path(folder))
    for name in ("encodings", "durable_writes", "warm_reads"):
        print(f"\n{name}")
        for row, numbers in result[name].items():
            print(f"  {row:28}" + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    if config.out:
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def measure(source: FeatureStore, config: BenchConfig, work: Path) -> dict[str, Any]:
    """Returns all measurements with what they were made on."""
    under = conditions("numpy", "tensorstore", "ml_dtypes")
    encodings = {}
    for tokens, values in itertools.product(("all", "shown", "pooled"), ("bf16", "fp8")):
        encoding = Encoding(tokens=tokens, values=values)  # pyright: ignore[reportArgumentType]
        encodings[f"{tokens} {values}"] = measure_encoding(source, encoding, work)
    writes, reads = measure_speed(source, config, work)
    return {
        **under,
        "teacher": f"{source.provenance['teacher']}, {source.provenance['weights']}",
        "features": f"{len(source)} views x {source.feature_width} channels",
        "encodings": encodings,
        "durable_writes": writes,
        "warm_reads": reads,
    }


def measure_encoding(source: FeatureStore, encoding: Encoding, work: Path) -> dict[str, float]:
    """Returns an encoding's size and its error on the tokens it keeps."""
    store = refill(source, work / "encoded", encoding)
    kept = sum(record.num_tokens for record in store.records.values())
    size = stored_bytes(store) or 0
    # A pooled map is held against the patches that its means stand for.
    whole = Encoding() if encoding.tokens == "pooled" else replace(encoding, values="bf16")
    exact = refill(source, work / "exact", whole)
    pairs = [image_tokens(store, exact, name) for name in store.ids]
    got, true = (np.concatenate(both).astype(np.float32) for both in zip(*pairs, strict=True))
    scaling = standardise(source.statistics())
    got_std, true_std = apply(scaling, got), apply(scaling, true)
    for name in ("encoded", "exact"):
        shutil.rmtree(work / name)
    return {
        "bytes_per_kept_value": size / kept / store.feature_width,
        "share_of_the_original": size / kept * tokens_of_training_set(encoding)
        * (2048 / store.feature_width) / SEED_BYTES,
        "relative_rms_error": float(np.sqrt(np.square(got - true).sum() / np.square(true).sum())),
        "rms_error_in_stds": float(np.sqrt(np.square(got_std - true_std).mean())),
        "cosine_standardised": float(cosine(got_std, true_std).mean()),
    }  # fmt: skip


def image_tokens(store: FeatureStore, exact: FeatureStore, name: str) -> tuple[Any, Any]:
    """Returns the image tokens that an encoding gives back, and the exact ones, row by row."""
    from bridge.store import frame_map

    got, true = [], []
    for a, b in zip(store.record(name).frames, exact.record(name).frames, strict=True):
        rows, cols = a.map_rows * a.pool, a.map_cols * a.pool
        for features, frame, parts in ((store[name], a, got), (exact[name], b, true)):
            parts.append(frame_map(features, frame)[:rows, :cols].reshape(-1, features.shape[1]))
    return np.concatenate(got), np.concatenate(true)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosine of rows."""
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)


def tokens_of_training_set(encoding: Encoding) -> float:
    """Returns how many tokens an encoding keeps of the 1718 task views, with GR00T's text."""
    tasks = load_tasks("arcagi/training").values()
    views = [shown_sides(question) for task in tasks for question in all_questions(task)]
    whole = [round(len(sides) * PATCHES**2 + TEXT_TOKENS) for sides in views]
    return sum(encoding.num_tokens(n, sides) for n, sides in zip(whole, views, strict=True))


def refill(source: FeatureStore, path: Path, encoding: Encoding) -> FeatureStore:
    """Writes a store's features anew in another encoding."""
    store = FeatureStore.create(path, {**source.provenance, "golden": None}, None, encoding)
    for name, record in source.records.items():
        store.append(name, source.read(name), record.frames, record.view_digest)
    return store


def measure_speed(source: FeatureStore, config: BenchConfig, work: Path) -> tuple[dict, dict]:
    """Times each way of writing and reading the same views, in turn."""
    names = [source.ids[i % len(source)] for i in range(config.views)]
    # Turned by some channels, so that no two are alike: the caches know equal content.
    views = [np.roll(source.read(name), i, axis=1) for i, name in enumerate(names)]
    ways = make_ways(source, names, views, work)
    total = sum(view.nbytes for view in views)
    written: dict[str, list[float]] = {name: [] for name, (write, _) in ways.items() if write}
    read: dict[str, list[float]] = {name: [] for name in ways}
    for lap in range(config.rounds + 1):  # the first warms up
        for name, (write, _) in ways.items():
            if write:
                seconds = timed(write)
                written[name] += [total / seconds / 1e6] if lap else []
    for lap in range(config.rounds + 1):
        for name, (_, reader) in ways.items():
            seconds = timed(lambda r=reader: read_batches(r, views, config.batch_size))
            read[name] += [total / seconds / 1e6] if lap else []
    return compare(written, "plain file"), compare(read, "numpy memmap")


def compare(rates: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Returns each way's median rate and its median ratio to the reference, round by round."""
    base = np.array(rates[reference])
    return {
        name: {
            "MB/s": float(np.median(values)),
            f"of {reference}": float(np.median(np.array(values) / base)),
        }
        for name, values in rates.items()
    }


def read_batches(
    read: Callable[[list[int]], list[Features]], views: list[Features], size: int
) -> None:
    """Reads all views as padded batches, as training does."""
    for start in range(0, len(views), size):
        parts = read(list(range(start, min(start + size, len(views)))))
        batch = np.empty((len(parts), max(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
        for place, part in zip(batch, parts, strict=True):
            place[: len(part)] = part
            place[len(part) :] = 0


Way = tuple[Callable[[], None] | None, Callable[[list[int]], list[Features]]]


def make_ways(
    source: FeatureStore, names: list[str], views: list[Features], work: Path
) -> dict[str, Way]:
    """Returns name -> (write all views durably, read some of them)."""
    import torch
    from safetensors.torch import load_file, save_file

    from bridge.from_torch import from_numpy, to_numpy

    ids = [f"v{i}_train_0" for i in range(len(views))]

    def store_way(encoding: Encoding, cache: str) -> Way:
        path = work / f"store-{encoding.values}"
        stores: list[FeatureStore] = []

        def write() -> None:
            shutil.rmtree(path, ignore_errors=True)
            store = FeatureStore.create(path, {**source.provenance, "golden": None}, None, encoding)

            def append(i: int) -> None:
                store.append(ids[i], views[i], source.record(names[i]).frames, f"{i:064x}")

            with ThreadPoolExecutor(WRITERS) as pool:  # as extract does
                list(pool.map(append, range(len(views))))

        def read(indices: list[int]) -> list[Features]:
            if not stores:
                stores.append(FeatureStore(path, cache))
            return stores[0].read_many([ids[i] for i in indices])

        return (write if cache == "none" else None), read

    def file_way(
        suffix: str, save: Callable[[Features, Path], object], load: Callable[[Path], Features]
    ) -> Way:
        paths = [work / f"{i}{suffix}" for i in range(len(views))]

        def write() -> None:
            for view, path in zip(views, paths, strict=True):
                path.unlink(missing_ok=True)
                save(view, path)
                with path.open("rb") as file:
                    os.fsync(file.fileno())

        return write, lambda indices: [load(paths[i]) for i in indices]

    shapes = {work / f"{i}.bin": view.shape for i, view in enumerate(views)}
    bf16 = ml_dtypes.bfloat16
    plain = file_way(
        ".bin",
        lambda view, path: view.tofile(path),
        lambda p: np.memmap(p, bf16, "r", 0, shapes[p]),
    )
    return {
        "plain file": plain,
        "numpy memmap": (None, plain[1]),
        "safetensors": file_way(
            ".safetensors",
            lambda view, path: save_file({"features": from_numpy(view)}, path),
            lambda path: to_numpy(load_file(path)["features"]),
        ),
        "torch.save": file_way(
            ".pt",
            lambda view, path: torch.save(from_numpy(view), path),
            lambda path: to_numpy(torch.load(path)),
        ),
        "store bf16, decoding": store_way(Encoding(), "none"),
        "store bf16, in RAM": store_way(Encoding(), "ram"),
        "store bf16, mapped": store_way(Encoding(), str(work / "cache")),
        "store fp8, decoding": store_way(Encoding(values="fp8"), "none"),
        "store fp8, in RAM": store_way(Encoding(values="fp8"), "ram"),
    }


def timed(call: Callable[[], object]) -> float:
    """Returns how long a call takes, in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    configs.command(main, BenchConfig)
