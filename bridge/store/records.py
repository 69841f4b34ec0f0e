"""The manifest entry of one example, and where its frames' tokens lie."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from bridge.arc import MAX_SIDE
from bridge.errors import InputError
from bridge.views import PATCHES, Role

Features = npt.NDArray[Any]  # bf16[S, F]
# Both become parts of keys, so neither may climb out of the store.
EXAMPLE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
DIGEST = re.compile(r"[0-9a-f]{64}")
ROLES = get_args(Role)
MAX_TOKENS = 1 << 15  # bounds what a damaged or hostile manifest can make a reader allocate


@dataclass(frozen=True)
class FrameTokens:
    """Which grid a frame shows and where its image tokens lie among the example's `S`.

    A frame of `tile_rows x tile_cols` tiles holds 256 tokens a tile, row-major inside the tile,
    then 256 more for the thumbnail if there is more than one tile. Of a frame of one tile, an
    encoding may keep only the top-left `map_rows x map_cols` tokens, each the mean of
    `pool x pool` patches.
    """

    role: str  # input | output | query
    demonstration: int  # -1 for the query
    rows: int  # of the grid shown, cells
    cols: int
    first_token: int
    tile_rows: int = 1
    tile_cols: int = 1
    map_rows: int = PATCHES
    map_cols: int = PATCHES
    pool: int = 1

    @property
    def num_tokens(self) -> int:
        """How many image tokens the frame has."""
        tiles = self.tile_rows * self.tile_cols
        return (tiles + (tiles > 1)) * self.map_rows * self.map_cols


@dataclass(frozen=True)
class Record:
    """The manifest entry of one example."""

    example_id: str
    view_digest: str  # sha256 of the grids and the prompt that the teacher was shown
    num_tokens: int  # stored
    digest: str  # sha256 of the stored arrays' bytes
    frames: tuple[FrameTokens, ...]

    @property
    def task_id(self) -> str:
        """The task that the example is of: `{task_id}_train_0`, `{task_id}_test_1`."""
        return self.example_id.rsplit("_", 2)[0]

    def to_json(self) -> bytes:
        """Returns the manifest file; its last field is the sha256 of all others."""
        value = asdict(self)
        return json.dumps({**value, "check": _digest(value)}).encode()


def read_record(name: str, text: bytes) -> Record:
    """Reads a manifest file, trusting nothing in it.

    Args:
        name: the example that the file is named after.
        text: its contents.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        value = json.loads(text)
        if value.pop("check") != _digest(value):
            raise ValueError("is not as it was written")
        frames = tuple(FrameTokens(**frame) for frame in value.pop("frames"))
        record = Record(frames=frames, **value)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"manifest entry is not readable: {str(error)[:80]}") from None
    if record.example_id != name or not EXAMPLE_ID.fullmatch(name):
        raise ValueError(f"manifest entry names the example {str(record.example_id)[:80]!r}")
    for key in ("view_digest", "digest"):
        found = getattr(record, key)
        if not isinstance(found, str) or not DIGEST.fullmatch(found):
            raise ValueError(f"manifest entry: {key} is not a sha256")
    if type(record.num_tokens) is not int or not 1 <= record.num_tokens <= MAX_TOKENS:
        raise ValueError(f"manifest entry: num_tokens: expected 1..{MAX_TOKENS}")
    check_frames(record.frames, record.num_tokens)
    return record


def _digest(value: dict[str, Any]) -> str:
    """Returns the sha256 of JSON values, however they are spaced and ordered."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_frames(frames: tuple[FrameTokens, ...], num_tokens: int) -> None:
    """Refuses frames whose tokens do not lie among the example's.

    Raises:
        ValueError: naming the first such frame.
    """
    for i, frame in enumerate(frames):
        if frame.role not in ROLES:
            raise ValueError(f"frame {i}: role: expected one of {ROLES}, got {frame.role!r}")
        numbers = [value for key, value in asdict(frame).items() if key != "role"]
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"frame {i}: expected whole numbers, got {numbers}")
        sizes = (frame.tile_rows, frame.tile_cols, frame.map_rows, frame.map_cols, frame.pool)
        covered = frame.pool * max(frame.map_rows, frame.map_cols)
        if min(sizes) < 1 or covered > PATCHES or frame.first_token < 0:
            raise ValueError(f"frame {i}: sizes {sizes} do not fit a {PATCHES} x {PATCHES} map")
        if not (1 <= frame.rows <= MAX_SIDE and 1 <= frame.cols <= MAX_SIDE):
            raise ValueError(f"frame {i}: expected sides of 1..{MAX_SIDE}")
        if frame.demonstration < -1 or (frame.demonstration == -1) != (frame.role == "query"):
            raise ValueError(f"frame {i}: {frame.role} of demonstration {frame.demonstration}")
        if frame.first_token + frame.num_tokens > num_tokens:
            raise ValueError(f"frame {i}: its tokens end after the example's {num_tokens}")


def check_example_id(example_id: str) -> None:
    """Refuses a name that could not be a key.

    Raises:
        InputError: always naming the name.
    """
    if not EXAMPLE_ID.fullmatch(example_id):
        raise InputError(
            f"example id {example_id[:80]!r}: expected letters, digits, '_', '-' and '.'; "
            "rename the task's file"
        )


def frame_map(features: Features, frame: FrameTokens) -> Features:
    """Returns a one-tile frame's tokens as a patch map, whatever the encoding kept of it.

    Args:
        features: bf16[S, F] of one example.
        frame: one of its record's frames.

    Returns:
        bf16[16, 16, F]; 0 for patches that the encoding left out.

    Raises:
        ValueError: for a frame of several tiles, which is no single map.
    """
    if frame.tile_rows * frame.tile_cols != 1:
        raise ValueError(f"frame_map: expected 1 tile, got {frame.tile_rows} x {frame.tile_cols}")
    own = features[frame.first_token : frame.first_token + frame.num_tokens]
    own = own.reshape(frame.map_rows, frame.map_cols, -1)
    if frame.pool > 1:
        own = own.repeat(frame.pool, 0).repeat(frame.pool, 1)
    if own.shape[:2] == (PATCHES, PATCHES):
        return own
    whole = np.zeros((PATCHES, PATCHES, own.shape[-1]), own.dtype)
    whole[: own.shape[0], : own.shape[1]] = own
    return whole
