"""Dihedral x color transforms of grids and questions, each with its exact inverse.

A transform keeps an ARC rule a rule: the same one is applied to every grid of a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bridge.arc import NUM_COLORS, Grid, Pair, Question

NUM_DIHEDRAL = 8  # the symmetries of the square
Cell = TypeVar("Cell", bound=np.generic)


@dataclass(frozen=True)
class Transform:
    """Mirrors a grid if `dihedral >= 4`, gives it `dihedral % 4` quarter turns, then recolors it.

    `colors[k]` is the new color of color `k`: a permutation of 0..9.
    """

    dihedral: int = 0
    colors: tuple[int, ...] = tuple(range(NUM_COLORS))

    def __post_init__(self) -> None:
        """Checks that the transform can be undone."""
        if not 0 <= self.dihedral < NUM_DIHEDRAL:
            raise ValueError(f"dihedral: expected 0..{NUM_DIHEDRAL - 1}, got {self.dihedral}")
        if sorted(self.colors) != list(range(NUM_COLORS)):
            raise ValueError(f"colors: expected a permutation of 0..9, got {self.colors}")

    def grid(self, grid: Grid) -> Grid:
        """Returns the transformed grid: u8[R, C] or, for odd quarter turns, u8[C, R]."""
        result = np.array(self.colors, np.uint8)[self.turn(grid)]
        result.setflags(write=False)
        return result

    def turn(self, cells: npt.NDArray[Cell]) -> npt.NDArray[Cell]:
        """Mirrors and turns whatever there is of each cell, [R, C]; recolors nothing."""
        mirrored = cells[:, ::-1] if self.dihedral >= 4 else cells
        return np.rot90(mirrored, self.dihedral % 4)

    def question(self, question: Question) -> Question:
        """Returns the question with every grid it shows transformed alike."""
        return Question(
            question.example_id,
            question.task_id,
            tuple(
                Pair(self.grid(pair.input), self.grid(pair.output))
                for pair in question.demonstrations
            ),
            self.grid(question.query),
        )

    def inverse(self) -> Transform:
        """Returns the transform that undoes this one."""
        # A mirrored turn is its own inverse: turn, mirror, turn, mirror gives back the square.
        dihedral = self.dihedral if self.dihedral >= 4 else -self.dihedral % 4
        return Transform(dihedral, tuple(np.argsort(self.colors).tolist()))
