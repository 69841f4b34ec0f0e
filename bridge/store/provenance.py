"""Whose features a store holds, and when two stores hold the same."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bridge.errors import InputError
from bridge.store.encoding import Encoding

SCHEMA = 2
MAX_WIDTH = 1 << 16  # bounds what a damaged store.json can make a reader allocate
GOLDEN_TOLERANCE = 0.02  # stds; bf16 and f32 differ by less in the mean over a view
# Told, never compared: rounding and versions differ between machines; `check_golden` judges them.
TOLD = ("golden", "versions")


def code_digest(modules: Iterable[str]) -> str:
    """Returns the first 16 hex digits of the sha256 over source files of modules, by name."""
    total = hashlib.sha256()
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        total.update(Path(spec.origin).read_bytes())
    return total.hexdigest()[:16]


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
    for key in [key for key in (*expected, *got) if key not in TOLD]:
        if key == "weights" and got.get("weights_digest") == expected.get("weights_digest"):
            continue  # the same weights by another path
        if key == "code" and is_same_code(got.get(key), expected.get(key)):
            continue
        if got.get(key) != expected.get(key):
            raise InputError(
                f"store {path}: {key}: expected {expected.get(key)!r}, got {got.get(key)!r}; {hint}"
            )


def is_same_code(got: list[str] | None, expected: list[str] | None) -> bool:
    """Whether one of two lists of code digests holds the other: more were accepted since."""
    a, b = set(got or ()), set(expected or ())
    return a <= b or b <= a


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


def parse_provenance(text: bytes, path: str) -> dict[str, Any]:
    """Reads store.json.

    Raises:
        InputError: if it is damaged, or of another schema.
    """
    hint = "restore store.json from a copy, or extract to another --out"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"store {path}: store.json is damaged: expected JSON; {hint}")
    if value.get("schema") != SCHEMA:
        raise InputError(
            f"store {path}: schema: expected {SCHEMA}, got {value.get('schema')}; it was written "
            "by another version: extract again to another --out"
        )
    try:
        Encoding(**value["encoding"])
        valid = 1 <= value["feature_width"] <= MAX_WIDTH
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(f"store {path}: store.json lacks a valid encoding or width; {hint}")
    return value
