"""Measures of likeness between two sets of features, over any number of patches. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Similarity:
    """Of one kind of frame, over all of its patches."""

    patches: int
    cosine_scaled: float
    cosine_raw: float
    cka: float


class Sums:
    """What the measures need, added up patch by patch: memory does not grow with the examples."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.patches = 0
        self._cosines = np.zeros(2)
        self._sums: list[Any] = [0.0] * 5  # of x, y, x x', y y', x y'

    def add(
        self,
        states: npt.NDArray[np.float64],
        raw: npt.NDArray[np.float64],
        target: npt.NDArray[np.float64],
        guess: npt.NDArray[np.float64],
        raw_guess: npt.NDArray[np.float64],
    ) -> None:
        """Takes patches: the student's states f[n, M], and features f[n, F].

        Args:
            states: the student's own.
            raw: the teacher's features as stored.
            target: as the loss sees them.
            guess: what the student's projectors say of `target`.
            raw_guess: the same of `raw`.
        """
        self.patches += len(states)
        self._cosines += [cosines(guess, target).sum(), cosines(raw_guess, raw).sum()]
        x, y = states, target
        new = (x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)
        self._sums = [old + each for old, each in zip(self._sums, new, strict=True)]

    def result(self) -> Similarity:
        """Returns the means and the alignment."""
        x, y, xx, yy, xy = self._sums
        n = self.patches
        centred = [xx - np.outer(x, x) / n, yy - np.outer(y, y) / n, xy - np.outer(x, y) / n]
        own, theirs, both = (float(np.linalg.norm(each)) for each in centred)
        scaled, raw = (self._cosines / n).tolist()
        cka = both**2 / (own * theirs) if own * theirs else 0.0
        return Similarity(patches=n, cosine_scaled=scaled, cosine_raw=raw, cka=cka)


def cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the cosine of each row's angle; 0 where either is 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.where(norms > 0, norms, np.inf)
