"""From a view to the backbone's inputs: tiles, pixels and tokens, as GR00T N1.5 prepares them.

In the shape descriptions: `N` tiles, `S` tokens.

Numbers: preprocessor_config.json and chat template of the N1.5 release; token counts checked
against all 1718 sequence lengths recorded by the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bridge.store import FrameTokens
from bridge.views import View
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.tokenizer import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Tokenizer

AREA_CAP = 0.6  # of the tiling score, see `tile_grid`


@dataclass(frozen=True)
class BackboneInputs:
    """What the backbone reads, left-padded over the batch."""

    pixel_values: torch.Tensor  # f32[N, 3, tile, tile] in [-1, 1], tiles of all views in order
    input_ids: torch.Tensor  # i64[B, S]
    attention_mask: torch.Tensor  # i64[B, S], 1 where valid
    frames: tuple[tuple[FrameTokens, ...], ...]


class Processor:
    """Prepares views for one backbone."""

    def __init__(self, config: Gr00tConfig, tokenizer: Tokenizer) -> None:
        """Takes the backbone's numbers and its tokenizer."""
        self.config = config
        self.tokenizer = tokenizer

    def prepare(self, views: Sequence[View]) -> BackboneInputs:
        """Turns views into backbone inputs."""
        tiles: list[torch.Tensor] = []
        rows: list[list[int]] = []
        frames: list[tuple[FrameTokens, ...]] = []
        for view in views:
            cut = [self.cut_tiles(image, view.dynamic_tiling) for image in view.video[0, :, 0]]
            ids = self.tokenize([len(pixels) for pixels, _ in cut], view.prompt)
            tiles += [pixels for pixels, _ in cut]
            rows.append(ids)
            frames.append(self._frame_tokens(view, [grid for _, grid in cut], ids))
        longest = max(map(len, rows))
        padded = torch.full((len(rows), longest), self.tokenizer.pad_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for i, ids in enumerate(rows):
            padded[i, longest - len(ids) :] = torch.tensor(ids)
            mask[i, longest - len(ids) :] = 1
        return BackboneInputs(torch.cat(tiles), padded, mask, tuple(frames))

    def cut_tiles(
        self, picture: npt.NDArray[np.uint8], dynamic_tiling: bool
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Resizes a picture and cuts it into tiles.

        Args:
            picture: u8[H, W, 3].
            dynamic_tiling: up to 12 tiles of the best-fitting grid, then the whole picture as a
                thumbnail if there is more than one; otherwise one tile.

        Returns:
            f32[tiles, 3, tile, tile] in [-1, 1], and the grid as (tile rows, tile columns).
        """
        side = self.config.tile_px
        tile_cols, tile_rows = self.tile_grid(*picture.shape[:2]) if dynamic_tiling else (1, 1)
        image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
        sheet = _resize(image, tile_rows * side, tile_cols * side)
        tiles = sheet.reshape(3, tile_rows, side, tile_cols, side).permute(1, 3, 0, 2, 4)
        tiles = tiles.reshape(-1, 3, side, side)
        if len(tiles) > 1 and self.config.use_thumbnail:
            tiles = torch.cat([tiles, _resize(image, side, side)])
        return (tiles.float() / 255 - 0.5) / 0.5, (tile_rows, tile_cols)

    def tile_grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (columns, rows) of tiles that fit a picture best.

        The score weighs how much of the picture's area the tiles hold (capped at 0.6) by how well
        the aspect ratio matches; the first of the smallest grids wins a tie.

        Source: image_processing_eagle2_5_vl_fast.py, NVIDIA/Isaac-GR00T @338d3ec, restated.
        """
        low, high = self.config.min_tiles, self.config.max_tiles
        sides = range(1, high + 1)
        grids = [(c, r) for c in sides for r in sides if low <= c * r <= high]
        grids.sort(key=lambda grid: grid[0] * grid[1])
        aspect = width / height

        def score(grid: tuple[int, int]) -> float:
            cols, rows = grid
            area = min(cols * rows * self.config.tile_px**2 / (height * width), AREA_CAP)
            ratio = cols / rows / aspect
            return area * min(ratio, 1 / ratio)

        return max(grids, key=score)  # the first of equals

    def tokenize(self, tiles_per_image: Sequence[int], prompt: str) -> list[int]:
        """Returns the chat-formatted prompt's ids, one image token a patch.

        26 tokens of fixed text for one image and 7 more for each further image.
        """
        per_tile = self.config.tokens_per_tile
        images = "".join(
            f"<image {i + 1}>{IMAGE_START}{IMAGE_TOKEN * (per_tile * tiles)}{IMAGE_END}"
            for i, tiles in enumerate(tiles_per_image)
        )
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        before = self.tokenizer.template(f"{system}<|im_start|>user\n{images}")
        after = self.tokenizer.template("<|im_end|>\n<|im_start|>assistant\n")
        return before + self.tokenizer.plain(prompt) + after

    def _frame_tokens(
        self, view: View, grids: Sequence[tuple[int, int]], ids: Sequence[int]
    ) -> tuple[FrameTokens, ...]:
        image_at = np.flatnonzero(np.array(ids) == self.config.image_token_id)
        frames, seen = [], 0
        for frame, grid in zip(view.frames, grids, strict=True):
            shown = (frame.role, frame.demonstration, frame.rows, frame.cols)
            frames.append(FrameTokens(*shown, int(image_at[seen]), *grid))
            tiles = grid[0] * grid[1]
            thumbnail = tiles > 1 and self.config.use_thumbnail
            seen += self.config.tokens_per_tile * (tiles + thumbnail)
        return tuple(frames)


def _resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic with antialias on u8, the kernel that torchvision v2 calls: u8[1, 3, H, W]."""
    if image.shape[2:] == (height, width):
        return image
    return torch.nn.functional.interpolate(image, (height, width), mode="bicubic", antialias=True)
