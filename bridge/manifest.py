"""manifest.json: what an export's folder holds, file by file, and how far each is from JAX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bridge.errors import InputError
from bridge.files import write_text
from bridge.proofs import INPUTS, PROOFS, TOLERANCE, Proof, Verdict
from bridge.weights import MODEL

MANIFEST = "manifest.json"
# All files that a format may consist of; a re-export removes those of other weights.
FORMATS = {
    "safetensors": (MODEL, "config.json", "README.md", PROOFS),
    "stablehlo": ("stablehlo",),
    "torchscript": ("model.torchscript.pt", "model.pt2"),
    "onnx": ("model.onnx", "encode.onnx", "answer.onnx"),
}
LIBRARIES = {
    "safetensors": ("safetensors", "numpy"),
    "stablehlo": ("jax", "jaxlib"),
    "torchscript": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
}


def digest_of(path: Path) -> str:
    """Returns a file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what the folder's manifest tells; an empty one where there is none.

    Raises:
        InputError: if it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text())
        return {**told, "formats": dict(told["formats"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected an export's manifest, got: {error!r}; remove it and export again"
        ) from None


def remove(folder: Path, formats: Sequence[str]) -> None:
    """Removes a format's files, and what the manifest tells of them."""
    told = read_manifest(folder)
    for name in formats:
        for file in FORMATS[name]:
            path = folder / file
            for each in sorted(path.iterdir()) if path.is_dir() else [path]:
                each.unlink(missing_ok=True)
        told.get("formats", {}).pop(name, None)
    if told:
        write_text(folder / MANIFEST, json.dumps(told, indent=1) + "\n")


def record(folder: Path, name: str, verdict: Verdict, more: Mapping[str, Any] = {}) -> None:
    """Adds a format to the manifest, with the digest of each of its files.

    Args:
        folder: the export's.
        name: of the format.
        verdict: of the comparison with JAX.
        more: what else is to be told of it.
    """
    told = read_manifest(folder)
    paths = [folder / file for file in FORMATS[name] if (folder / file).exists()]
    files = [each for path in paths for each in (path.iterdir() if path.is_dir() else [path])]
    told.setdefault("formats", {})[name] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {library: _version(library) for library in LIBRARIES[name]},
        "max_error": verdict.largest,
        "inputs": verdict.inputs,
        "questions": verdict.questions,
        "near_ties": verdict.ties,
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": digest_of(path),
            }
            for path in sorted(files)
        },
        **more,
    }
    write_text(folder / MANIFEST, json.dumps(told, indent=1) + "\n")


def verify(folder: Path, name: str) -> None:
    """Refuses a format whose files are not those that the manifest tells.

    Raises:
        InputError: naming the first.
    """
    for file, told in read_manifest(folder)["formats"][name]["files"].items():
        path = folder / file
        if not path.exists() or digest_of(path) != told["sha256"]:
            raise InputError(
                f"{path}: expected the file that {MANIFEST} tells; export the student again"
            )


def begin(folder: Path, kind: str, step: int, weights_sha256: str, proofs: Sequence[Proof]) -> None:
    """Begins a manifest: which student, and what it takes.

    Formats that were made of the same weights stay in it; there must be none of others.
    """
    first = proofs[0].inputs
    inputs = {
        name: {
            "dtype": str(first[name].dtype),
            "shape": [word or size for word, size in zip(axes, first[name].shape, strict=True)],
        }
        for name, axes in INPUTS[kind].items()
    }
    told = {
        "student": {"kind": kind, "step": step, "weights_sha256": weights_sha256},
        "tolerance": TOLERANCE,
        "inputs": inputs,
        "formats": read_manifest(folder).get("formats", {}),
    }
    write_text(folder / MANIFEST, json.dumps(told, indent=1) + "\n")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
