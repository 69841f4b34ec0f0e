"""How features are written: which tokens are kept, and in how many bits.

Sizes as a share of the original's 36.3 GB and errors are in the README, measured by
`tools/bench_store.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bridge.store.records import Features, FrameTokens, frame_map
from bridge.views import PATCH_CELLS, PATCHES

POOL = 2  # patches a side that "pooled" averages
FP8_MAX = 448.0  # largest finite e4m3fn value, OCP 8-bit floating point specification, table 1
Arrays = dict[str, npt.NDArray[Any]]

# Byte shuffle puts the well-compressible exponents beside each other; crc32c covers what is on
# disk, so damage is found before anything is decompressed. Blocks of 1 MiB: smaller ones compressed
# a tenth worse (0.76 to 0.65 of raw on random GR00T, 0.70 to 0.58 on DINOv2; larger, no better).
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_SHUFFLE_ZSTD = {
    "name": "blosc",
    "configuration": {
        "cname": "zstd",
        "clevel": 1,
        "shuffle": "shuffle",
        "typesize": 2,
        "blocksize": 1 << 20,
    },
}
_ZSTD = {"name": "zstd", "configuration": {"level": 1}}
_CRC = {"name": "crc32c"}
# Stored by raw size, measured on 5 task views of random full-size GR00T; DINOv2 does better, and
# noise with a scale per channel worse (0.81).
_TYPICAL_RATIO = {"bf16": 0.65, "fp8": 0.82}
_E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is kept of a view's features."""

    tokens: Literal["all", "shown", "pooled"] = "all"
    """all; shown: only patches that show a grid's cells; pooled: 8 x 8 means of each frame's map"""
    values: Literal["bf16", "fp8"] = "bf16"
    """bf16: exact; fp8: e4m3 with one scale a token, half the size"""

    def __post_init__(self) -> None:
        """Checks the names."""
        for name, kind in get_type_hints(Encoding).items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name}: expected one of {get_args(kind)}, got {getattr(self, name)!r}"
                )

    def encode(
        self, features: Features, frames: Sequence[FrameTokens]
    ) -> tuple[Arrays, tuple[FrameTokens, ...]]:
        """Returns the arrays to store and where each frame's tokens lie in them.

        Args:
            features: bf16[S, F].
            frames: where each frame's tokens lie.

        Raises:
            ValueError: if frames of several tiles are to be cut or pooled.
        """
        kept, frames = self._choose(features, tuple(frames))
        if self.values == "bf16":
            return {"values": np.ascontiguousarray(kept)}, frames
        values = kept.astype(np.float32)
        scale = np.abs(values).max(1) / FP8_MAX
        scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
        return {
            "values": (values / scale[:, None]).astype(ml_dtypes.float8_e4m3fn),
            "scale": scale,
        }, frames

    def decode(self, arrays: Arrays) -> Features:
        """Returns bf16[S, F] of the stored arrays."""
        if self.values == "bf16":
            return arrays["values"]
        values = _E4M3[arrays["values"].view(np.uint8)] * arrays["scale"][:, None]
        return values.astype(ml_dtypes.bfloat16)

    def array_specs(self, num_tokens: int, width: int) -> dict[str, dict[str, Any]]:
        """Returns the zarr3 metadata of each array of an example."""
        shape = (num_tokens, width)
        if self.values == "bf16":
            return {"values": array_metadata("bfloat16", shape, _SHUFFLE_ZSTD)}
        return {
            "values": array_metadata("float8_e4m3fn", shape, _ZSTD),
            "scale": array_metadata("float32", (num_tokens,)),
        }

    def num_tokens(self, total: int, grids: Sequence[tuple[int, int]]) -> int:
        """Returns how many of a view's `total` tokens are kept, given its grids' sides in cells."""
        if self.tokens == "all":
            return total
        return sum(rows * cols for rows, cols in (self._map_sides(*grid) for grid in grids))

    def typical_bytes(self, num_bytes: int) -> int:
        """Returns what so many bytes take once compressed, going by what was measured."""
        return round(num_bytes * _TYPICAL_RATIO[self.values])

    def num_bytes(self, num_tokens: int, width: int) -> int:
        """Returns the size of an example with `num_tokens` kept tokens before compression."""
        size = num_tokens * width * (2 if self.values == "bf16" else 1)
        return size + (4 * num_tokens if self.values == "fp8" else 0) + 8 * width

    def _choose(
        self, features: Features, frames: tuple[FrameTokens, ...]
    ) -> tuple[Features, tuple[FrameTokens, ...]]:
        if self.tokens == "all":
            return features, frames
        cut = self._cut(frames)
        parts = []
        for before, after in zip(frames, cut, strict=True):
            patches = frame_map(features, before)
            if self.tokens == "pooled":
                side = PATCHES // POOL
                blocks = patches.reshape(side, POOL, side, POOL, -1).astype(np.float32)
                patches = blocks.mean((1, 3)).astype(features.dtype)
            own = patches[: after.map_rows, : after.map_cols]
            parts.append(own.reshape(-1, features.shape[1]))
        return np.concatenate(parts), cut

    def _map_sides(self, rows: int, cols: int) -> tuple[int, int]:
        """Returns the sides of the map that is kept of a frame with a grid of so many cells."""
        if self.tokens == "pooled":
            return PATCHES // POOL, PATCHES // POOL
        return -(-rows // PATCH_CELLS), -(-cols // PATCH_CELLS)

    def _cut(self, frames: tuple[FrameTokens, ...]) -> tuple[FrameTokens, ...]:
        """Returns the frames as they lie once the tokens left out are gone."""
        cut: list[FrameTokens] = []
        first = 0
        for frame in frames:
            if frame.tile_rows * frame.tile_cols != 1:
                raise ValueError(f"tokens {self.tokens}: expected frames of one tile; use all")
            rows, cols = self._map_sides(frame.rows, frame.cols)
            pool = POOL if self.tokens == "pooled" else 1
            after = replace(frame, first_token=first, map_rows=rows, map_cols=cols, pool=pool)
            first += after.num_tokens
            cut.append(after)
        return tuple(cut)


def array_metadata(
    dtype: str, shape: tuple[int, ...], compressor: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Returns zarr3 metadata of an array in one chunk: all that its zarr.json holds."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "fill_value": 0.0,
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        # One file beside zarr.json: every folder more is one more for the disk to make durable.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [_BYTES, *([compressor] if compressor else []), _CRC],
    }
