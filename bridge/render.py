"""Grids as pictures. Pure and deterministic: the same grid gives the same bytes everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bridge.arc import Grid

Image = npt.NDArray[np.uint8]  # u8[height_px, width_px, 3], RGB

# The usual ARC palette, colors 0..9, as in the original's renderer (docs: README, Views).
PALETTE: Image = np.array(
    [
        (0, 0, 0),
        (0, 116, 217),
        (255, 65, 54),
        (46, 204, 64),
        (255, 220, 0),
        (170, 170, 170),
        (240, 18, 190),
        (255, 133, 27),
        (127, 219, 255),
        (135, 12, 37),
    ],
    np.uint8,
)
OUTSIDE = (255, 255, 255)  # white is no ARC color, so padding never looks like a cell
LINE = (85, 85, 85)


def render(grid: Grid, cell_px: int, line_px: int = 0) -> Image:
    """Draws a grid.

    Args:
        grid: u8[R, C].
        cell_px: pixels per cell, lines included.
        line_px: width of the line on each cell's right and bottom edge, pixels; 0 for none.

    Returns:
        u8[R * cell_px, C * cell_px, 3].
    """
    image = PALETTE[grid].repeat(cell_px, 0).repeat(cell_px, 1)
    for k in range(line_px):
        image[cell_px - 1 - k :: cell_px] = LINE
        image[:, cell_px - 1 - k :: cell_px] = LINE
    return image


def render_on(canvas_cells: int, grid: Grid, cell_px: int, outside: tuple[int, int, int]) -> Image:
    """Draws a grid at the top left of a square canvas filled with `outside`.

    Returns:
        u8[canvas_cells * cell_px, canvas_cells * cell_px, 3].
    """
    canvas = np.empty((canvas_cells * cell_px, canvas_cells * cell_px, 3), np.uint8)
    canvas[:] = outside
    image = render(grid, cell_px)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas
