"""Measures of likeness between two sets of features, over any number of patches. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """Of one kind of frame, over all of its patches."""

    patches: int
    cosine_scaled: float | None  # None: no projectors to this teacher
    cosine_raw: float | None
    cka: float  # of the states that projectors read
    layers: dict[str, float]  # CKA of what each block leaves behind


class Sums:
    """What the measures need, added up patch by patch: memory does not grow with the examples."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.patches = 0
        self._cosines: Any = np.zeros(2)
        self._theirs: list[Any] = [0.0] * 2  # of y, y y'
        self._own: dict[str, list[Any]] = {}  # of x, x x', x y', for each layer

    def add(
        self,
        states: Mapping[str, Values],
        raw: Values,
        target: Values,
        guesses: tuple[Values, Values] | None,
    ) -> None:
        """Takes n patches.

        Args:
            states: the student's own, f[n, M] by layer; `""` are those that projectors read.
            raw: the teacher's features as stored, f[n, F].
            target: as the loss sees them.
            guesses: what the student's projectors say of `target` and of `raw`, if it has any.
        """
        y = target
        self.patches += len(y)
        if guesses:
            guess, raw_guess = guesses
            self._cosines += [cosines(guess, target).sum(), cosines(raw_guess, raw).sum()]
        else:
            self._cosines = None
        self._theirs = _added(self._theirs, [y.sum(0), y.T @ y])
        for layer, x in states.items():
            before = self._own.get(layer, [0.0] * 3)
            self._own[layer] = _added(before, [x.sum(0), x.T @ x, x.T @ y])

    def result(self) -> Similarity:
        """Returns the means and the alignments."""
        scaled, raw = (None, None)
        if self._cosines is not None:
            scaled, raw = (self._cosines / self.patches).tolist()
        cka = {layer: self._cka(layer) for layer in self._own}
        return Similarity(self.patches, scaled, raw, cka.pop(""), cka)

    def _cka(self, layer: str) -> float:
        (x, xx, xy), (y, yy), n = self._own[layer], self._theirs, self.patches
        centred = [xx - np.outer(x, x) / n, yy - np.outer(y, y) / n, xy - np.outer(x, y) / n]
        own, theirs, both = (float(np.linalg.norm(each)) for each in centred)
        return both**2 / (own * theirs) if own * theirs else 0.0


def _added(before: list[Any], new: list[Values]) -> list[Any]:
    return [old + each for old, each in zip(before, new, strict=True)]


def cosines(a: Values, b: Values) -> Values:
    """Returns the cosine of each row's angle; 0 where either is 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.where(norms > 0, norms, np.inf)
