"""What a dump will take, before it starts: bytes and hours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.errors import InputError
from bridge.store import Encoding
from teacher_torch.fill import Item


@dataclass(frozen=True)
class DumpSize:
    """Of the views that are still to be extracted."""

    num_views: int
    num_tokens: int  # kept by the encoding
    raw_bytes: int  # before compression
    typical_bytes: int  # after it, going by what was measured on GR00T


def estimate_size(teacher: Any, items: Sequence[Item], encoding: Encoding) -> DumpSize:
    """Counts tokens by preparing one view of each length; the network does not run."""
    lengths: dict[int, int] = {}
    for item in items:
        if len(item.grids) not in lengths:
            inputs = teacher.prepare([item.view()])
            lengths[len(item.grids)] = teacher.num_tokens(inputs)
    tokens = [encoding.num_tokens(lengths[len(item.grids)], item.grids) for item in items]
    raw = sum(encoding.num_bytes(count, teacher.feature_width) for count in tokens)
    return DumpSize(len(items), sum(tokens), raw, encoding.typical_bytes(raw))


def estimate_seconds(teacher: Any, batches: Sequence[Sequence[Item]]) -> float:
    """Runs the teacher on the shortest and the longest batch and interpolates by length."""
    if not batches:
        return 0.0
    ends = [batches[0], batches[-1]]
    prepared = [teacher.prepare([item.view() for item in batch]) for batch in ends]
    for inputs in prepared:
        teacher.forward(inputs)  # the first call of a shape can cost more
    seconds = [_time(teacher.forward, inputs) for inputs in prepared]
    frames = np.array([sum(len(item.grids) for item in batch) for batch in batches])
    if frames[0] == frames[-1]:
        return float(np.mean(seconds)) * len(batches)
    slope = (seconds[1] - seconds[0]) / (frames[-1] - frames[0])
    return float((seconds[0] + slope * (frames - frames[0])).clip(min(seconds)).sum())


def check_fits(size: DumpSize, free: int | None, path: str) -> str | None:
    """Refuses a dump that cannot fit; returns a warning if it might not.

    Raises:
        InputError: with needed and free bytes.
    """
    advice = "free some space, or try --encoding.values fp8 or --encoding.tokens shown"
    if free is not None and size.typical_bytes > free:
        raise InputError(
            f"--out {path}: the dump needs about {size.typical_bytes:,} bytes, "
            f"{free:,} are free; {advice}"
        )
    if free is not None and size.raw_bytes > free:
        return (
            f"warning: {free:,} bytes are free; the dump needs about {size.typical_bytes:,}, and "
            f"{size.raw_bytes:,} if its features compress badly"
        )
    return None


def describe(size: DumpSize, encoding: Encoding, free: int | None, seconds: float) -> str:
    """Returns what a dry run prints."""
    hours, minutes = divmod(round(seconds / 60), 60)
    lines = {
        "views": f"{size.num_views} to extract, {size.num_tokens:,} tokens to keep",
        "disk": f"about {size.typical_bytes:,} bytes, at most {size.raw_bytes:,} "
        f"(tokens {encoding.tokens}, values {encoding.values})",
        "free": "unknown" if free is None else f"{free:,} bytes",
        "time": f"about {hours} h {minutes} min" if seconds >= 60 else f"about {seconds:.0f} s",
    }
    return "\n".join(f"{name + ':':<10} {value}" for name, value in lines.items())


def _time(call: Callable[[Any], Any], inputs: Any) -> float:
    started = time.perf_counter()
    call(inputs)
    return time.perf_counter() - started
