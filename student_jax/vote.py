"""Many views of one question, one vote: exact grids are counted, then their probability decides.

A view is the question turned and mirrored; the answer is mapped back before it counts.
Source: VARC (arXiv 2511.14761) and HRM's evaluation (arXiv 2506.21734): exact-grid majority over
augmented views, two attempts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt

from bridge.arc import NUM_COLORS, Grid
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.transforms import NUM_DIHEDRAL, Transform


def views_of(count: int) -> list[Transform]:
    """Returns `count` different views of a question: as it is, then its other symmetries.

    None is recolored: a grid student answers a recolored question alike, so its vote says nothing.

    Raises:
        InputError: if there are not so many.
    """
    if not 1 <= count <= NUM_DIHEDRAL:
        raise InputError(f"views: expected 1 to {NUM_DIHEDRAL}, the symmetries, got {count}")
    return [Transform(dihedral=i) for i in range(count)]


@dataclass
class _Candidate:
    grid: Grid
    log_probs: list[float] = field(default_factory=list)


def tally(answers: Sequence[tuple[Transform, Attempts]]) -> Attempts:
    """Returns the two grids that most views answered; ties go to the higher mean log-probability.

    Only each view's first attempt votes. Views that err in different cells may all be wrong and yet
    know the answer, so they also vote on each cell by itself: what comes of that is the first
    attempt where no two views answered alike, else the second, unless it is the winner again. Where
    all views agree, the runner-up of the view that is surest is the second attempt.

    Args:
        answers: each view with what was answered to it.

    Returns:
        Attempts whose confidence is the winner's share of the votes; with one view, that view's.
    """
    if len(answers) == 1:
        return _of_one(*answers[0])
    ranked = _ranked(answers)
    winner, grids = ranked[0], [candidate.grid for candidate in ranked]
    by_cell = _cell_by_cell(grids, answers)
    if by_cell is not None and not np.array_equal(by_cell, winner.grid):
        place = 1 if len(winner.log_probs) > 1 else 0
        grids = [grid for grid in grids if not np.array_equal(grid, by_cell)]
        grids.insert(place, by_cell)
    if len(grids) > 1:
        second = grids[1]
    else:
        view, surest = max(answers, key=lambda answer: answer[1].log_prob)
        second = view.inverse().grid(surest.second)
    return Attempts(
        grids[0],
        second,
        len(winner.log_probs) / len(answers),
        log_prob=fmean(winner.log_probs),
        candidates=tuple(grids),
        certainty=_certainty(grids[0], answers),
    )


def _ranked(answers: Sequence[tuple[Transform, Attempts]]) -> list[_Candidate]:
    """Counts the exact grids, the one with most votes first."""
    candidates: dict[tuple[tuple[int, ...], bytes], _Candidate] = {}
    for view, attempts in answers:
        grid = view.inverse().grid(attempts.first)
        candidate = candidates.setdefault((grid.shape, grid.tobytes()), _Candidate(grid))
        candidate.log_probs.append(attempts.log_prob)
    return sorted(candidates.values(), key=lambda c: (-len(c.log_probs), -fmean(c.log_probs)))


def _cell_by_cell(
    ranked: Sequence[Grid], answers: Sequence[tuple[Transform, Attempts]]
) -> Grid | None:
    """Returns each cell's most probable color, in the shape that most views answered.

    Probabilities are averaged, not their logarithms: one view that is sure and wrong must not
    overrule all others.
    """
    shapes = Counter(view.inverse().grid(attempts.first).shape for view, attempts in answers)
    shape = max((grid.shape for grid in ranked), key=shapes.__getitem__)  # ties: the best ranked
    colors = _mean_colors(shape, answers)
    return None if colors is None else colors.argmax(-1).astype(np.uint8)


def _of_one(view: Transform, attempts: Attempts) -> Attempts:
    """Maps a single view's attempts back; nobody votes."""
    back = view.inverse()
    certainty = None if attempts.certainty is None else back.turn(attempts.certainty)
    first, second = back.grid(attempts.first), back.grid(attempts.second)
    return replace(attempts, first=first, second=second, certainty=certainty, colors=None)


def _mean_colors(
    shape: tuple[int, ...], answers: Sequence[tuple[Transform, Attempts]]
) -> npt.NDArray[np.float32] | None:
    """Averages the views' probabilities of each color in the cells of a grid of that shape.

    A view that answered another shape says nothing of them: it counts as probability 0.

    Returns:
        f32[R, C, 10]; None where a view has no probabilities.
    """
    total = np.zeros((*shape, NUM_COLORS), np.float32)
    for view, attempts in answers:
        if attempts.colors is None:
            return None
        rows, cols = attempts.first.shape
        if view.inverse().grid(attempts.first).shape == shape:
            total += view.inverse().turn(attempts.colors[:rows, :cols])
    return total / len(answers)


def _certainty(
    grid: Grid, answers: Sequence[tuple[Transform, Attempts]]
) -> npt.NDArray[np.float32] | None:
    """Returns the mean probability of each cell of a grid, f32[R, C]."""
    colors = _mean_colors(grid.shape, answers)
    if colors is None:
        return None
    return np.take_along_axis(colors, grid[..., None].astype(np.intp), axis=-1)[..., 0]
