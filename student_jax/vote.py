"""Many views of one question, one vote: which grid do all of them find likely?

A view is the question turned and mirrored. Counting exact grids, as VARC (arXiv 2511.14761) and
HRM's evaluation (arXiv 2506.21734) do, asks each view for its own favorite alone; here every view
judges every grid that any of them answered, as the ARChitects did with their transcriptions (arXiv
2505.07859), and one that no view answered as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bridge.arc import NUM_COLORS, Grid
from bridge.canvas import Attempts, decode, log_probs_of
from bridge.errors import InputError
from bridge.transforms import NUM_DIHEDRAL, Transform

# A view, which recolors nothing, and the log-probabilities f32[N, N, V] that were answered to it.
Said = tuple[Transform, npt.NDArray[np.floating]]


def views_of(count: int) -> list[Transform]:
    """Returns `count` different views of a question: as it is, then its other symmetries.

    None is recolored: a grid student answers a recolored question alike, so its vote says nothing.

    Raises:
        InputError: if there are not so many.
    """
    if not 1 <= count <= NUM_DIHEDRAL:
        raise InputError(f"views: expected 1 to {NUM_DIHEDRAL}, the symmetries, got {count}")
    return [Transform(dihedral=i) for i in range(count)]


def tally(*models: Sequence[Said]) -> Attempts:
    """Returns two grids: that which models find likeliest in all their views, and another.

    Candidates are what the views answered, and what they say cell by cell: views that err in
    different cells may all be wrong and yet know the answer. A model's views multiply their
    probabilities of each candidate, so that one may veto; several models, each of which may be the
    one that understood, are averaged. The best of that is the first attempt. The second is, of
    those left, that of the highest mean over all views, for which one sure view suffices. Where
    there is but one candidate, it is the runner-up of the view that is surest of it.

    Args:
        models: what was answered to each view, on canvases of one size; by one model or several.

    Returns:
        Attempts whose confidence is the share of views that answered the first one; with one view,
        that view's.
    """
    said = [each for model in models for each in model]
    read = [_back(view, decode(values)) for view, values in said]
    if len(said) == 1:
        return read[0]
    answered = [attempts.first for attempts in read]
    candidates = _different([*answered, _cell_by_cell(answered, said)])
    judged = [
        [[_log_prob(grid, *each) for each in model] for grid in candidates] for model in models
    ]
    products = np.stack([np.sum(each, 1) for each in judged], 1)  # [candidates, models]
    posterior = np.logaddexp.reduce(products - np.logaddexp.reduce(products, 0), 1)
    first, *others = np.argsort(-posterior, kind="stable").tolist()
    log_probs = np.hstack(judged)  # [candidates, views]
    others.sort(key=lambda i: -np.logaddexp.reduce(log_probs[i]))
    grid = candidates[first]
    return Attempts(
        grid,
        candidates[others[0]] if others else read[int(log_probs[first].argmax())].second,
        sum(np.array_equal(each, grid) for each in answered) / len(answered),
        log_prob=float(log_probs[first].mean() / said[0][1][..., 0].size),
        candidates=tuple(candidates[i] for i in (first, *others)),
        certainty=np.mean([_certainty(grid, *each) for each in said], 0),
    )


def _back(view: Transform, attempts: Attempts) -> Attempts:
    """Maps attempts at a view back."""
    back = view.inverse()
    first, second = back.grid(attempts.first), back.grid(attempts.second)
    certainty = None if attempts.certainty is None else back.turn(attempts.certainty)
    return replace(attempts, first=first, second=second, certainty=certainty)


def _different(grids: Sequence[Grid]) -> list[Grid]:
    return list({(grid.shape, grid.tobytes()): grid for grid in grids}.values())


def _cell_by_cell(answered: Sequence[Grid], said: Sequence[Said]) -> Grid:
    """Returns each cell's color of the highest mean probability, in the shape answered most often.

    The mean of probabilities, not of their logarithms: one view that is sure and wrong of a cell
    must not overrule all others.
    """
    (shape, _), *_ = Counter(grid.shape for grid in answered).most_common(1)
    total = np.zeros((*shape, NUM_COLORS))
    for view, values in said:
        rows, cols = view.turn(np.zeros(shape)).shape
        total += view.inverse().turn(np.exp(values[:rows, :cols, :NUM_COLORS]))
    return total.argmax(-1).astype(np.uint8)


def _log_prob(grid: Grid, view: Transform, values: npt.NDArray[np.floating]) -> float:
    """Returns the log-probability of a grid's whole canvas in a view, nats."""
    return float(log_probs_of(view.grid(grid), values).sum(dtype=np.float64))


def _certainty(
    grid: Grid, view: Transform, values: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Returns the probability of each cell of a grid in a view, f32[R, C]."""
    seen = view.grid(grid)
    rows, cols = seen.shape
    return view.inverse().turn(np.exp(log_probs_of(seen, values)[:rows, :cols]))
