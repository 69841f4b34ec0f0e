"""Pairs that are the same but for how they are turned, mirrored and recolored.

A solver trained on one of them has seen the other's answer, whatever their ids say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from bridge.arc import NUM_COLORS, Grid, Pair, Task, all_questions, known_answers
from bridge.transforms import NUM_DIHEDRAL, Transform


def content_key(pair: Pair) -> str:
    """Returns a digest that two pairs share if a dihedral x color transform maps one to the other.

    All ten colors may be permuted. Grids of one pair are transformed alike.
    """
    shown = []
    for dihedral in range(NUM_DIHEDRAL):
        turned = [Transform(dihedral).grid(grid) for grid in (pair.input, pair.output)]
        shown.append(repr([grid.shape for grid in turned]).encode() + _relabelled(turned))
    return hashlib.sha256(min(shown)).hexdigest()


def _relabelled(grids: list[Grid]) -> bytes:
    """The cells with colors numbered in the order in which they first appear."""
    cells = np.concatenate([grid.ravel() for grid in grids])
    _, first = np.unique(cells, return_index=True)
    names = np.zeros(NUM_COLORS, np.uint8)
    names[cells[np.sort(first)]] = np.arange(len(first))
    return names[cells].tobytes()


def keys_of(tasks: Iterable[Task]) -> dict[str, list[str]]:
    """Returns content key -> ids of the pairs that have it: demonstrations and known test pairs."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        answers = known_answers(task)
        for question in all_questions(task):
            if question.example_id in answers:
                pair = Pair(question.query, answers[question.example_id])
                found.setdefault(content_key(pair), []).append(question.example_id)
    return found
