"""Many views of one question, one vote: exact grids are counted, then their probability decides.

A view is the question turned and mirrored; the answer is mapped back before it counts.
Source: VARC (arXiv 2511.14761) and HRM's evaluation (arXiv 2506.21734): exact-grid majority over
augmented views, two attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import numpy.typing as npt

from bridge.arc import Grid
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

    Only each view's first attempt votes; where all views agree, the runner-up of the view that is
    surest of the winner is the second attempt.

    Args:
        answers: each view with what was answered to it.

    Returns:
        Attempts whose confidence is the winner's share of the votes; with one view, that view's.
    """
    candidates: dict[tuple[tuple[int, ...], bytes], _Candidate] = {}
    for view, attempts in answers:
        grid = view.inverse().grid(attempts.first)
        candidate = candidates.setdefault((grid.shape, grid.tobytes()), _Candidate(grid))
        candidate.log_probs.append(attempts.log_prob)
    ranked = sorted(candidates.values(), key=lambda c: (-len(c.log_probs), -fmean(c.log_probs)))
    first = ranked[0]
    if len(ranked) > 1:
        second = ranked[1].grid
    else:
        view, surest = max(answers, key=lambda answer: answer[1].log_prob)
        second = view.inverse().grid(surest.second)
    single = len(answers) == 1
    return Attempts(
        first.grid,
        second,
        answers[0][1].confidence if single else len(first.log_probs) / len(answers),
        log_prob=fmean(first.log_probs),
        candidates=() if single else tuple(c.grid for c in ranked),
        certainty=_certainty(first.grid, answers),
    )


def _certainty(
    winner: Grid, answers: Sequence[tuple[Transform, Attempts]]
) -> npt.NDArray[np.float32] | None:
    """Averages how sure the views are of each cell; one that says something else there is not."""
    total = np.zeros(winner.shape)
    for view, attempts in answers:
        if attempts.certainty is None:
            return None
        back = view.inverse()
        grid, certainty = back.grid(attempts.first), back.turn(attempts.certainty)
        rows, cols = (min(sides) for sides in zip(winner.shape, grid.shape, strict=True))
        same = winner[:rows, :cols] == grid[:rows, :cols]
        total[:rows, :cols] += same * certainty[:rows, :cols]
    return (total / len(answers)).astype(np.float32)
