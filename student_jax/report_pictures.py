"""Grids as small pictures for a page, and many of them on one sheet."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from bridge.arc import NUM_COLORS, Grid, Task
from bridge.files import write_text
from bridge.predictions import Predictions
from bridge.render import OUTSIDE, PALETTE, render
from student_jax.metrics import is_exact

# The palette of a diff: the colors, the same faded, and what lies outside a grid.
FADED = (0.3 * PALETTE + 0.7 * 225).astype(np.uint8)
DIFF_PALETTE = np.concatenate([PALETTE, FADED, np.array([OUTSIDE], np.uint8)])
OUT = len(DIFF_PALETTE) - 1
MARK_PX = 4  # of a diff's cell; the mark inside leaves a rim of 1

TILE_PX, LABEL_PX, GAP_PX = 120, 16, 10


def grid_uri(grid: Grid) -> str:
    """Encodes a grid as a PNG of one pixel a cell, about 300 characters; the page enlarges it."""
    return _to_uri(grid, PALETTE, bits=4)


def diff_uri(grid: Grid, expected: Grid) -> str:
    """Encodes `diff` for a page."""
    return _to_uri(diff(grid, expected), DIFF_PALETTE, bits=8)


def diff(grid: Grid, expected: Grid) -> npt.NDArray[np.uint8]:
    """Draws where a grid is wrong: right cells faded, wrong ones with the right color inside.

    Cells that only one of the two grids has are wrong; the other's color is white.

    Returns:
        u8[R * MARK_PX, C * MARK_PX] into `DIFF_PALETTE`, R and C the larger of both grids'.
    """
    rows, cols = np.maximum(grid.shape, expected.shape)
    got, true = np.full((2, rows, cols), OUT, np.uint8)
    got[: grid.shape[0], : grid.shape[1]] = grid
    true[: expected.shape[0], : expected.shape[1]] = expected
    outer = np.where(got == true, got + NUM_COLORS, got)
    inner = np.where(got == true, outer, true)
    # Outside of both there is nothing to be right or wrong about.
    outer, inner = (np.minimum(part, OUT) for part in (outer, inner))
    picture = outer.repeat(MARK_PX, 0).repeat(MARK_PX, 1)
    for y in range(1, MARK_PX - 1):
        for x in range(1, MARK_PX - 1):
            picture[y::MARK_PX, x::MARK_PX] = inner
    return picture


def _to_uri(indices: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8], bits: int) -> str:
    image = PillowImage.fromarray(indices)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=bits)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Tile:
    """A grid on a sheet, with a line of text above it."""

    label: str
    grid: Grid | None  # none: a line of text alone
    left: int  # pixels
    top: int

    @property
    def cell_px(self) -> int:
        """Pixels of a cell: the whole grid fits a tile."""
        return 0 if self.grid is None else max(1, min(20, TILE_PX // max(self.grid.shape)))


@dataclass(frozen=True)
class Sheet:
    """Tiles, and the room they take."""

    tiles: tuple[Tile, ...]
    width: int  # pixels
    height: int


def make_sheet(files: dict[str, Predictions], tasks: dict[str, Task], ids: Sequence[str]) -> Sheet:
    """Lays out query, truth and all attempts at the tasks named."""
    strips = [
        _strip(files, tasks[task_id], index)
        for task_id in ids
        for index in range(len(tasks[task_id].test_inputs))
    ]
    legend = [f"{letter}: {name}" for letter, name in zip(_letters(files), files, strict=True)]
    top = GAP_PX + LABEL_PX * (len(legend) + 1)
    step, strip_width = TILE_PX + GAP_PX, (2 + 2 * len(files)) * (TILE_PX + GAP_PX) + GAP_PX
    strip_height = TILE_PX + LABEL_PX + GAP_PX
    columns = max(1, round(math.sqrt(len(strips) * strip_height / strip_width)))
    tiles = [Tile(line, None, GAP_PX, GAP_PX + i * LABEL_PX) for i, line in enumerate(legend)]
    for i, strip in enumerate(strips):
        left, y = GAP_PX + i % columns * strip_width, top + i // columns * strip_height
        tiles += [Tile(text, g, left + k * step, y) for k, (text, g) in enumerate(strip)]
    height = top + math.ceil(len(strips) / columns) * strip_height
    return Sheet(tuple(tiles), columns * strip_width + GAP_PX, height)


def _strip(files: dict[str, Predictions], task: Task, index: int) -> list[tuple[str, Grid]]:
    expected = (task.test_outputs or ())[index]
    strip = [(f"{task.task_id} [{index}]", task.test_inputs[index]), ("truth", expected)]
    for letter, predictions in zip(_letters(files), files.values(), strict=True):
        item = predictions.attempts[task.task_id][index]
        for number, grid in ((1, item.first), (2, item.second)):
            verdict = "right" if is_exact(grid, expected) else "wrong"
            strip.append((f"{letter}{number}: {verdict}", grid))
    return strip


def _letters(files: dict[str, Predictions]) -> list[str]:
    return [chr(ord("A") + i) for i in range(len(files))]


def write_png(sheet: Sheet, path: Path) -> None:
    """Writes a sheet as PNG."""
    image = PillowImage.new("RGB", (sheet.width, sheet.height), "white")
    draw, font = ImageDraw.Draw(image), _font()
    for tile in sheet.tiles:
        draw.text((tile.left, tile.top), tile.label, "black", font)
        if tile.grid is not None:
            cells = PillowImage.fromarray(render(tile.grid, tile.cell_px))
            image.paste(cells, (tile.left, tile.top + LABEL_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=11)


def write_svg(sheet: Sheet, path: Path) -> None:
    """Writes a sheet as SVG that stays sharp at any size."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width} {sheet.height}" '
        f'width="{sheet.width}" height="{sheet.height}" font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for tile in sheet.tiles:
        parts.append(f'<text x="{tile.left}" y="{tile.top + 11}">{escape(tile.label)}</text>')
        if tile.grid is not None:
            rows, cols = (side * tile.cell_px for side in tile.grid.shape)
            parts.append(
                f'<image x="{tile.left}" y="{tile.top + LABEL_PX}" width="{cols}" height="{rows}" '
                f'style="image-rendering:pixelated" href="{grid_uri(tile.grid)}"/>'
            )
    write_text(path, "".join([*parts, "</svg>\n"]))
