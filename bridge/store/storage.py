"""Keys, values and arrays on any TensorStore kvstore, and what can go wrong with them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from bridge.errors import InputError
from bridge.store.encoding import Arrays

# TensorStore's defaults read a missing chunk as zeros and do not store a zero chunk.
_ZARR = {
    "driver": "zarr3",
    "fill_missing_data_reads": False,
    "store_data_equal_to_fill_value": True,
}
Specs = dict[str, dict[str, Any]]  # array name -> zarr3 metadata


def open_kvstore(path: str | Path | ts.KvStore) -> ts.KvStore:
    """Opens where a store lies.

    Args:
        path: a folder; a kvstore URL such as gs://bucket/folder; a TensorStore kvstore spec as
            JSON, which can also name an S3-compatible endpoint; or an open kvstore.

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(path, ts.KvStore):
        return path
    text = str(path)
    try:
        if text.startswith("{"):
            spec = json.loads(text)
            return ts.KvStore.open({**spec, "path": _folder(spec.get("path", ""))}).result()
        if "://" in text:
            return ts.KvStore.open(_folder(text)).result()
        return ts.KvStore.open({"driver": "file", "path": f"{Path(text).resolve()}/"}).result()
    except ValueError as error:
        fault = str(error).split("[")[0].strip()
        raise InputError(
            f"store {text}: expected a folder, a kvstore URL or a spec as JSON, got: {fault}"
        ) from None


def read_key(kv: ts.KvStore, key: str) -> bytes | None:
    """Returns a key's value, or None where there is none."""
    result = kv.read(key).result()
    return result.value if result.state == "value" else None


def write_key(kv: ts.KvStore, key: str, value: bytes | str) -> None:
    """Writes a key; when this returns it is durable.

    Raises:
        InputError: if the disk is full.
    """
    data = value.encode() if isinstance(value, str) else value
    try:
        kv.write(key, data).result()
    except ValueError as error:
        raise _write_error(kv, key, len(data), error) from None


def delete_key(kv: ts.KvStore, key: str) -> None:
    """Deletes a key if it is there."""
    kv.write(key, None).result()


def delete_folder(kv: ts.KvStore, folder: str) -> None:
    """Deletes every key under `folder/`, and on a file system the folder, as far as it is there."""
    kv.delete_range(ts.KvStore.KeyRange(f"{folder}/", f"{folder}0")).result()  # '0' follows '/'
    if (root := local_folder(kv)) is not None:
        shutil.rmtree(root / folder, ignore_errors=True)


def start_write(kv: ts.KvStore, folder: str, arrays: Arrays, specs: Specs) -> Callable[[], None]:
    """Starts writing arrays under a folder.

    Returns:
        What waits for them: when it returns they are durable; it raises `InputError` if the disk
        is full.
    """
    try:
        try:
            writing = _start_write(kv, folder, arrays, specs)
        except ValueError as error:
            # Metadata that does not fit: what a killed writer or a bad disk left goes first.
            if is_full(error):
                raise
            delete_folder(kv, folder)
            writing = _start_write(kv, folder, arrays, specs)
    except ValueError as error:
        raise _write_error(kv, folder, _size(arrays), error) from None

    def wait() -> None:
        try:
            for pending in writing:
                pending.result()
        except ValueError as error:
            raise _write_error(kv, folder, _size(arrays), error) from None

    return wait


def _start_write(
    kv: ts.KvStore, folder: str, arrays: Arrays, specs: Specs
) -> list[ts.WriteFutures]:
    opening = {
        name: ts.open(
            {**_ZARR, "metadata": specs[name]},
            kvstore=kv / f"{folder}/{name}/",
            create=True,
            open=True,
        )
        for name in arrays
    }
    for pending in opening.values():
        pending.exception()  # all of them end before the first error is raised
    return [opening[name].result()[...].write(array) for name, array in arrays.items()]


def read_arrays(kv: ts.KvStore, folder: str, specs: Specs) -> dict[str, ts.Future]:
    """Starts reading arrays whose metadata is known; damage shows when a future is asked.

    The metadata on disk is not read: one file less, and one less that can be damaged.
    """
    return {
        name: ts.open(
            {**_ZARR, "metadata": metadata},
            kvstore=kv / f"{folder}/{name}/",
            open=True,
            assume_metadata=True,
        )
        .result()[...]
        .read()
        for name, metadata in specs.items()
    }


def check_metadata(kv: ts.KvStore, folder: str, specs: Specs) -> None:
    """Holds the metadata on disk, which other zarr readers go by, against what it must be.

    Raises:
        ValueError: naming the array.
    """
    for name, metadata in specs.items():
        try:
            ts.open(
                {**_ZARR, "metadata": metadata}, kvstore=kv / f"{folder}/{name}/", open=True
            ).result()
        except ValueError as error:
            raise ValueError(f"{name}/zarr.json: {short(error)}") from None


def digest_arrays(arrays: Arrays) -> str:
    """Returns the sha256 of arrays' bytes, by name, little-endian."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def short(error: ValueError) -> str:
    """Returns the first part of a TensorStore message, without its source locations."""
    return " ".join(str(error).split("[tensorstore_spec")[0].split("[source")[0].split())[:160]


def is_full(error: ValueError) -> bool:
    """Whether a write failed for want of space: disk, quota, or largest file."""
    return any(
        word in str(error) for word in ("RESOURCE_EXHAUSTED", "No space left", "quota", "too large")
    )


def local_folder(kv: ts.KvStore) -> Path | None:
    """Returns the folder of a store on a file system, None for any other."""
    spec = kv.spec().to_json()
    return Path(spec["path"]) if spec["driver"] == "file" else None


def free_bytes(kv: ts.KvStore) -> int | None:
    """Returns what the file system under a store has free; None where nobody can tell."""
    folder = local_folder(kv)
    if folder is None:
        return None
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def list_keys(kv: ts.KvStore, folder: str) -> Iterable[str]:
    """Returns the keys under a folder, relative to the store, sorted."""
    found = kv.list(ts.KvStore.KeyRange(f"{folder}/", f"{folder}0")).result()
    return sorted(key.decode(errors="replace") for key in found)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _folder(path: str) -> str:
    return path if not path or path.endswith("/") else path + "/"


def _write_error(kv: ts.KvStore, key: str, size: int, error: ValueError) -> InputError:
    where = kv.url if local_folder(kv) is None else str(local_folder(kv))
    if not is_full(error):
        return InputError(f"store {where}: cannot write {key}: {short(error)}")
    free = free_bytes(kv)
    return InputError(
        f"store {where}: disk full: {key} needs {size:,} bytes, {free or 0:,} are free; "
        "what is in the manifest is safe: free some space and run the same command again"
    )
