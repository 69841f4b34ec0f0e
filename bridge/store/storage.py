"""Keys, values and arrays on any TensorStore kvstore, and what can go wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Generator
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
# ENOSPC, EDQUOT, EFBIG: no space, no quota, no larger file. Only a file system says these.
_FULL = re.compile(r"os_error_code='(28|122|27)'")
# What an outage answers, as against bytes that are not those written.
_OUTAGES = (
    "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE", "UNKNOWN",
)  # fmt: skip
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
        if path.path and not path.path.endswith("/"):
            raise InputError(f"store {name_of(path)}: expected a kvstore whose path ends in '/'")
        return path
    text = str(path)
    try:
        if text.startswith("{"):
            spec = json.loads(text)
            return ts.KvStore.open({**spec, "path": _folder(spec.get("path", ""))}).result()
        if "://" in text:
            return ts.KvStore.open(_folder(text)).result()
        return ts.KvStore.open({"driver": "file", "path": f"{Path(text).resolve()}/"}).result()
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"store {text}: expected a folder, a kvstore URL or a spec as JSON, got: {short(error)}"
        ) from None


@contextlib.contextmanager
def told(kv: ts.KvStore, doing: str) -> Generator[None]:
    """Turns what TensorStore raises within into one line for the user."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"store {name_of(kv)}: cannot {doing}: {short(error)}") from None


def read_key(kv: ts.KvStore, key: str) -> bytes | None:
    """Returns a key's value, or None where there is none."""
    with told(kv, f"read {key}"):
        result = kv.read(key).result()
    return result.value if result.state == "value" else None


def write_key(kv: ts.KvStore, key: str, value: bytes | str, *, if_missing: bool = False) -> None:
    """Writes a key; when this returns it is durable.

    Args:
        kv: where.
        key: which.
        value: what.
        if_missing: leave what is there, also what another writer puts there meanwhile.

    Raises:
        InputError: if it cannot be written.
    """
    data = value.encode() if isinstance(value, str) else value
    try:
        if if_missing:
            there = kv.read(key).result()
            if there.state != "value":
                kv.write(key, data, if_equal=there.stamp.generation).result()
        else:
            kv.write(key, data).result()
    except ValueError as error:
        raise write_error(kv, key, len(data), error) from None


def delete_key(kv: ts.KvStore, key: str) -> None:
    """Deletes a key if it is there."""
    with told(kv, f"delete {key}"):
        kv.write(key, None).result()


def list_keys(kv: ts.KvStore, folder: str) -> list[str]:
    """Returns the keys under a folder, relative to the store, sorted."""
    with told(kv, f"list {folder}"):
        found = kv.list(ts.KvStore.KeyRange(f"{folder}/", f"{folder}0")).result()
    return sorted(key.decode(errors="replace") for key in found)


def start_write(
    kv: ts.KvStore, folder: str, arrays: Arrays, specs: Specs, beside: dict[str, bytes]
) -> Callable[[], None]:
    """Starts writing arrays under a folder, and other keys beside, all at the same time.

    Returns:
        What waits for them: when it returns they are durable; it raises `InputError` if the disk
        is full.
    """
    size = sum(array.nbytes for array in arrays.values())
    metadata = {
        f"{folder}/{name}/zarr.json": json.dumps(specs[name], indent=1).encode() for name in arrays
    }
    with told(kv, f"write {folder}"):
        opened = _open_arrays(kv, folder, {name: specs[name] for name in arrays})
    writing = [opened[name][...].write(array) for name, array in arrays.items()]
    writing += [kv.write(key, data) for key, data in (metadata | beside).items()]

    def wait() -> None:
        try:
            for pending in writing:
                pending.result()
        except ValueError as error:
            raise write_error(kv, folder, size, error) from None

    return wait


def _open_arrays(kv: ts.KvStore, folder: str, specs: Specs) -> dict[str, ts.TensorStore]:
    """Opens arrays whose metadata is known, so that neither reading nor writing waits for it."""
    return {
        name: ts.open(
            {**_ZARR, "metadata": metadata},
            kvstore=kv / f"{folder}/{name}/",
            open=True,
            assume_metadata=True,
        ).result()
        for name, metadata in specs.items()
    }


def read_arrays(kv: ts.KvStore, folder: str, specs: Specs) -> dict[str, ts.Future]:
    """Starts reading arrays; damage shows when a future is asked.

    The metadata on disk is not read: one file less, and one less that can be damaged.
    """
    opened = _open_arrays(kv, folder, specs)
    return {name: array[...].read() for name, array in opened.items()}


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
            if is_outage(error):
                raise
            raise ValueError(f"{name}/zarr.json: {short(error)}") from None


def digest_arrays(arrays: Arrays) -> str:
    """Returns the sha256 of arrays: name, dtype, shape and bytes, little-endian."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def short(error: Exception) -> str:
    """Returns the first part of a TensorStore message, without its source locations."""
    return " ".join(str(error).split("[tensorstore_spec")[0].split("[source")[0].split())[:160]


def is_outage(error: ValueError) -> bool:
    """Whether a store could not be asked, which says nothing of its bytes."""
    return str(error).startswith(_OUTAGES)


def is_full(error: ValueError) -> bool:
    """Whether a write failed for want of space: disk, quota, or largest file."""
    return _FULL.search(str(error)) is not None


def name_of(kv: ts.KvStore) -> str:
    """Returns a store's folder or URL."""
    spec = kv.spec().to_json()  # its own URL is not written for every driver
    path = spec.get("path", "")
    return (
        path if spec["driver"] == "file" else f"{spec['driver']}://{spec.get('bucket', '')}/{path}"
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


def write_error(kv: ts.KvStore, key: str, size: int, error: ValueError) -> InputError:
    """Returns what to tell of a write that failed."""
    if not is_full(error):
        return InputError(f"store {name_of(kv)}: cannot write {key}: {short(error)}")
    free = free_bytes(kv)
    left = "" if free is None else f", {free:,} are free"
    return InputError(
        f"store {name_of(kv)}: disk full: {key} needs {size:,} bytes{left}; what is in the "
        "manifest is safe: free some space and run the same command again"
    )


def _folder(path: str) -> str:
    return path if not path or path.endswith("/") else path + "/"
