"""Grids on square canvases, so that a student predicts a grid's shape together with its colors.

In the shape descriptions: `N` canvas side, `V` = 12 cell classes.

A grid lies at the top left unless a `Placement` says otherwise, a border runs along its right and
bottom edge, the rest is background:

    3 1 B .        3, 1: colors
    2 2 B .        B: border
    B B B .        .: background

The border (VARC, arXiv 2511.14761) makes the shape a local question; background is a class of its
own because the original padded with color 0, and a constant black answer then scored 94.5 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.arc import MAX_SIDE, NUM_COLORS, Grid, Question
from bridge.errors import InputError

BORDER = 10
BACKGROUND = 11
NUM_CLASSES = 12
SIDES = (8, 12, 16, 20, 24, 32)  # even, so that 2 x 2 cells align with the teacher's patches

Canvas = npt.NDArray[np.uint8]  # u8[N, N]


@dataclass(frozen=True)
class Placement:
    """How grids lie on their canvas: each cell `scale` x `scale`, the corner at `row`, `col`.

    An augmentation of what is trained on (VARC, arXiv 2511.14761, section 3.2); what is answered
    lies at the top left. One question's grids all lie alike, so a rule stays a rule.
    """

    scale: int = 1
    row: int = 0
    col: int = 0

    @staticmethod
    def draw(rng: np.random.Generator, longest: int, side: int) -> Placement:
        """Draws a placement that leaves room for grids of up to `longest` cells a side."""
        scale = int(rng.integers(1, (side - 1) // longest, endpoint=True))
        row, col = rng.integers(side - scale * longest, size=2).tolist()
        return Placement(scale, row, col)


@dataclass(frozen=True)
class Attempts:
    """A student's two answers to one question, and how sure it is of the first."""

    first: Grid
    second: Grid
    confidence: float  # in [0, 1]: of the first canvas' least certain cell, or the share of views
    log_prob: float = 0.0  # mean over the first canvas' cells, nats
    candidates: tuple[Grid, ...] = ()  # of a vote, best first
    certainty: npt.NDArray[np.float32] | None = None  # f32[R, C], of each cell of the first


def smallest_side(longest: int) -> int:
    """Returns the smallest canvas side that holds a grid side of that length and a border.

    Raises:
        InputError: if there is none.
    """
    for side in SIDES:
        if side > longest:
            return side
    raise InputError(f"canvas: expected a grid of at most {MAX_SIDE} cells a side, got {longest}")


def side_for(question: Question) -> int:
    """Returns the canvas side for a question: the answer's size is guessed, never looked at.

    The guess: every grid shown must fit, and so must the query grown like the demonstrations'
    outputs grow from their inputs, if they all grow by the same factor.
    """
    longest = max(question.query.shape)
    growth = set()
    for pair in question.demonstrations:
        longest = max(longest, *pair.input.shape, *pair.output.shape)
        growth.add(
            (pair.output.shape[0] / pair.input.shape[0], pair.output.shape[1] / pair.input.shape[1])
        )
    if len(growth) == 1:
        rows, cols = growth.pop()
        grown = max(question.query.shape[0] * rows, question.query.shape[1] * cols)
        longest = max(longest, min(int(grown), MAX_SIDE))
    return smallest_side(longest)


def fits(grid: Grid, side: int) -> bool:
    """Whether a canvas of that side holds the grid and its border."""
    return max(grid.shape) < side


def to_canvas(grid: Grid, side: int, place: Placement = Placement()) -> Canvas:
    """Draws a grid on a canvas.

    Returns:
        u8[N, N], classes 0..11.

    Raises:
        ValueError: if it does not fit.
    """
    scaled = grid.repeat(place.scale, 0).repeat(place.scale, 1)
    bottom, right = place.row + len(scaled), place.col + len(scaled[0])
    if max(bottom, right) >= side:
        raise ValueError(f"canvas: expected a grid of under {side} cells a side, got {grid.shape}")
    canvas = np.full((side, side), BACKGROUND, np.uint8)
    canvas[place.row : bottom + 1, place.col : right + 1] = BORDER
    canvas[place.row : bottom, place.col : right] = scaled
    return canvas


def decode(log_probs: npt.NDArray[np.float32]) -> Attempts:
    """Returns the most probable grid under independent cells, and a runner-up.

    Only canvases that `to_canvas` can draw are considered, so the answer is always a rectangle:
    every shape's log-probability is summed exactly, the best shape wins, then each cell takes its
    best color. The runner-up changes the least certain cell to its second color, or takes the
    second-best shape where that is more probable.

    Args:
        log_probs: f32[N, N, V], normalised over V; without border and background, as the original
            has them, every canvas is all grid.
    """
    if log_probs.shape[-1] == NUM_COLORS:
        return _decode_whole(log_probs)
    scores = _shape_scores(log_probs)
    order = np.argsort(-scores, axis=None, kind="stable")[:2]
    (rows, cols), (other_rows, other_cols) = (
        (int(i) + 1, int(j) + 1)
        for i, j in zip(*np.unravel_index(order, scores.shape), strict=True)
    )
    colors = log_probs[..., :NUM_COLORS]
    ranked = np.argsort(-colors, axis=-1, kind="stable")  # [N, N, 10]
    best = ranked[..., 0].astype(np.uint8)
    cells = colors[:rows, :cols]
    top = np.take_along_axis(cells, ranked[:rows, :cols, :2], axis=-1)  # [R, C, 2]
    margins = top[..., 0] - top[..., 1]
    weakest = np.unravel_index(np.argmin(margins), margins.shape)

    first = best[:rows, :cols].copy()
    # Both runner-ups are compared as whole canvases: the probability lost against the first.
    shape_loss = scores.flat[order[0]] - scores.flat[order[1]]
    if shape_loss < margins[weakest]:
        second = best[:other_rows, :other_cols].copy()
    else:
        second = first.copy()
        second[weakest] = ranked[:rows, :cols, 1][weakest]
    cells = log_probs_of(first, log_probs)
    certainty = np.exp(cells[:rows, :cols])
    log_prob = float(cells.mean())
    return Attempts(first, second, float(np.exp(cells.min())), log_prob, certainty=certainty)


def log_probs_of(grid: Grid, log_probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the log-probability of every cell of a grid's canvas, f32[N, N].

    Args:
        grid: one that fits.
        log_probs: as in `decode`.
    """
    return np.take_along_axis(log_probs, classes_of(grid, log_probs)[..., None], axis=-1)[..., 0]


def classes_of(grid: Grid, log_probs: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Returns the classes of a grid's canvas, i64[N, N]; `log_probs` as in `decode`."""
    whole = log_probs.shape[-1] == NUM_COLORS
    return (grid if whole else to_canvas(grid, len(log_probs))).astype(np.intp)


def _decode_whole(log_probs: npt.NDArray[np.float32]) -> Attempts:
    """Returns every cell's best color; the runner-up changes the least certain to its second."""
    ranked = np.argsort(-log_probs, axis=-1, kind="stable")
    top = np.take_along_axis(log_probs, ranked[..., :2], axis=-1)
    margins = top[..., 0] - top[..., 1]
    weakest = np.unravel_index(np.argmin(margins), margins.shape)
    first = ranked[..., 0].astype(np.uint8)
    second = first.copy()
    second[weakest] = ranked[..., 1][weakest]
    certainty, log_prob = np.exp(top[..., 0]), float(top[..., 0].mean())
    return Attempts(first, second, float(certainty.min()), log_prob, certainty=certainty)


def _shape_scores(log_probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns f64[R, C]: the log-probability of each shape, up to a constant; index 0 is side 1."""
    largest = min(MAX_SIDE, log_probs.shape[0] - 1)
    values = log_probs.astype(np.float64)
    background = values[..., BACKGROUND]
    # The grid's cells count with the probability of their best color: the joint optimum.
    inside = (values[..., :NUM_COLORS].max(-1) - background).cumsum(0).cumsum(1)
    border = values[..., BORDER] - background
    bottom, right = border.cumsum(1), border.cumsum(0)
    row, col = np.mgrid[1 : largest + 1, 1 : largest + 1]  # candidate rows and columns
    return inside[row - 1, col - 1] + bottom[row, col] + right[row - 1, col]
