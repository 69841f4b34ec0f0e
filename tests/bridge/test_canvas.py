import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.arc import Pair, Question
from bridge.canvas import (
    BACKGROUND,
    BORDER,
    NUM_CLASSES,
    SIDES,
    Placement,
    decode,
    fits,
    side_for,
    smallest_side,
    to_canvas,
)
from bridge.errors import InputError


def log_one_hot(canvas, certainty=0.9):
    rest = (1 - certainty) / (NUM_CLASSES - 1)
    return np.log(np.where(np.eye(NUM_CLASSES)[canvas] > 0, certainty, rest)).astype(np.float32)


@pytest.mark.parametrize("side", [1, 2, 5, 7, 8, 15, 29, 30])
def test_decode_undoes_to_canvas(side):
    rng = np.random.default_rng(side)
    for rows, cols in [(side, side), (1, side), (side, 1), (side, (side + 1) // 2)]:
        grid = rng.integers(0, 10, (rows, cols)).astype(np.uint8)
        attempts = decode(log_one_hot(to_canvas(grid, smallest_side(side))))
        np.testing.assert_array_equal(attempts.first, grid)
        assert not np.array_equal(attempts.second, grid)
        assert attempts.confidence == pytest.approx(0.9, rel=1e-5)
        np.testing.assert_allclose(attempts.certainty, np.full(grid.shape, 0.9), rtol=1e-5)


def test_decode_equals_brute_force_over_all_grids():
    """Oracle: score every 1..3 x 1..3 grid of two colors as a whole canvas, take the two best."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(size=(4, 4, NUM_CLASSES))
        logits[..., 2:10] -= 50  # two colors only, so that everything can be tried
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        best = []
        for rows, cols in itertools.product(range(1, 4), repeat=2):
            for cells in itertools.product((0, 1), repeat=rows * cols):
                grid = np.array(cells, np.uint8).reshape(rows, cols)
                canvas = to_canvas(grid, 4).astype(int)
                total = np.take_along_axis(log_probs, canvas[..., None], -1).sum()
                best.append((total, rows, cols, cells))
        best.sort(reverse=True)
        attempts = decode(log_probs.astype(np.float32))
        for got, (_, rows, cols, cells) in zip(
            (attempts.first, attempts.second), best[:2], strict=True
        ):
            assert (*got.shape, tuple(got.ravel().tolist())) == (rows, cols, cells)


def test_canvas_sides_are_even_and_hold_every_grid():
    assert all(side % 2 == 0 for side in SIDES)
    assert smallest_side(30) == 32
    assert smallest_side(7) == 8
    assert smallest_side(8) == 12
    with pytest.raises(InputError, match="at most 30"):
        smallest_side(32)


def zeros(rows, cols):
    return np.zeros((rows, cols), np.uint8)


def test_side_for_guesses_growth_from_demonstrations_only():
    grows = (Pair(zeros(2, 2), zeros(6, 6)), Pair(zeros(3, 3), zeros(9, 9)))
    assert side_for(Question("a_test_0", "a", grows, zeros(5, 5))) == 16  # 3 x 5 = 15
    mixed = (*grows, Pair(zeros(3, 3), zeros(3, 3)))
    assert side_for(Question("a_test_0", "a", mixed, zeros(5, 5))) == 12  # the largest seen is 9
    huge = (Pair(zeros(2, 2), zeros(20, 20)),)
    assert side_for(Question("a_test_0", "a", huge, zeros(9, 9))) == 32


def test_to_canvas_refuses_a_grid_that_does_not_fit():
    assert not fits(zeros(8, 1), 8)
    with pytest.raises(ValueError, match="under 8"):
        to_canvas(zeros(8, 1), 8)


def test_placement_scales_every_cell_and_moves_the_corner():
    grid = np.array([[3, 1]], np.uint8)
    expected = np.full((8, 8), BACKGROUND)
    expected[1:4, 2:7] = BORDER
    expected[1:3, 2:6] = [[3, 3, 1, 1]] * 2
    np.testing.assert_array_equal(to_canvas(grid, 8, Placement(2, 1, 2)), expected)


@given(st.integers(0, 1000), st.integers(1, 11))
def test_drawn_placements_leave_room_and_are_not_all_alike(seed, longest):
    rng = np.random.default_rng(seed)
    grid = np.ones((longest, longest), np.uint8)
    drawn = {Placement.draw(rng, longest, 12) for _ in range(20)}
    for place in drawn:
        canvas = to_canvas(grid, 12, place)
        assert (canvas == 1).sum() == (place.scale * longest) ** 2
    assert len(drawn) > 1 or longest == 11
