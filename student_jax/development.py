"""Held-out questions answered during a run: which checkpoint is the best, and when to stop."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from bridge.arc import Grid, Task, open_questions
from bridge.canvas import Attempts
from bridge.errors import InputError
from bridge.render import OUTSIDE, render
from bridge.store import FeatureStore
from student_jax.baselines import BASELINES, baseline
from student_jax.checkpoints import best_of
from student_jax.config import TrainConfig
from student_jax.data import Examples
from student_jax.metrics import score
from student_jax.solver import answer_all, by_task, make_predict
from student_jax.state import TrainState

PICTURES = 4
CELL_PX, GAP_PX = 10, 10


class Development:
    """Answers some of the held-out tasks; nothing is ever trained on them."""

    def __init__(
        self,
        config: TrainConfig,
        held_out: dict[str, Task],
        store: FeatureStore | None,
        feature_width: int,
    ) -> None:
        """Chooses tasks by their ids until they ask `dev_questions` questions.

        Args:
            config: of the run.
            held_out: tasks to choose from; those whose answers are not known are passed over.
            store: where a student that reads features finds them.
            feature_width: of the teacher.

        Raises:
            InputError: if a student reads features and the store lacks one, or if patience has
                no task to judge by.
        """
        self.tasks: dict[str, Task] = {}
        asked = 0
        for task_id, task in sorted(held_out.items()):
            if asked < config.dev_questions and task.test_outputs is not None:
                self.tasks[task_id] = task
                asked += len(task.test_inputs)
        if config.patience and not self.tasks:
            raise InputError("patience: expected held-out tasks to judge by, got none")
        questions = [q for task in self.tasks.values() for q in open_questions(task.blind())]
        reads = config.model.reads_features
        self._examples = Examples(
            questions, {}, config.model, config.data, store if reads else None
        )
        self._predict = make_predict(config.model, feature_width)

    def try_on(self, state: TrainState) -> tuple[dict[str, float], dict[str, npt.NDArray]]:
        """Answers the questions.

        Returns:
            Scores in [0, 1], as in `metrics.Scores`, and pictures of the first few questions.
        """
        # Every device holds the whole of it; one answers.
        params, scaling = jax.tree.map(
            lambda x: x.addressable_data(0), (state.answering, state.scaling)
        )
        answers = answer_all(self._predict, params, scaling, self._examples)
        attempts = by_task(self.tasks.values(), answers)
        found = score(attempts, self.tasks, self.tasks)
        scores = {"exact": found.pass_1, "shape": found.shape, "cells": found.cell}
        pictures = {
            task_id: picture(self.tasks[task_id], attempts[task_id])
            for task_id in list(self.tasks)[:PICTURES]
        }
        return scores, pictures

    def describe(self, scores: dict[str, float]) -> str:
        """Returns one line that holds the scores against what trivial answers get."""
        trivial = {
            name: score(baseline(name, self.tasks), self.tasks, self.tasks) for name in BASELINES
        }
        beside = "; ".join(f"{n} {s.pass_1:.1%}, {s.cell:.1%}" for n, s in trivial.items())
        return (
            f"{len(self.tasks)} held-out tasks: {scores['exact']:.1%} exact, "
            f"{scores['cells']:.1%} of cells ({beside})"
        )


def is_stale(dev: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` trials brought no better one; never with patience 0."""
    best = best_of(dev) or 0
    return bool(patience) and sum(row["step"] > best for row in dev) >= patience


def picture(task: Task, attempts: tuple[Attempts, ...]) -> npt.NDArray[np.uint8]:
    """Draws a task's test inputs in rows: the input, the first attempt, the truth. u8[H, W, 3]."""
    truths = task.test_outputs or ()
    rows = [
        _side_by_side([given, attempt.first, truth])
        for given, attempt, truth in zip(task.test_inputs, attempts, truths, strict=True)
    ]
    return _stack(rows, 0)


def _side_by_side(grids: list[Grid]) -> npt.NDArray[np.uint8]:
    return _stack([render(grid, CELL_PX, 1) for grid in grids], 1)


def _stack(images: list[npt.NDArray[np.uint8]], axis: int) -> npt.NDArray[np.uint8]:
    """Lays pictures one after the other along an axis, white between and around them."""
    across = 1 - axis
    widest = max(image.shape[across] for image in images) + GAP_PX
    padded = []
    for image in images:
        room = [(GAP_PX, 0), (GAP_PX, 0), (0, 0)]
        room[across] = (0, widest - image.shape[across])
        padded.append(np.pad(image, room, constant_values=OUTSIDE[0]))
    return np.concatenate(padded, axis)
