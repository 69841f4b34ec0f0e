"""Two solvers on the same tasks, task by task. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.arc import Task
from student_jax.metrics import Answers, is_exact, pass_2, score


@dataclass(frozen=True)
class Comparison:
    """Two solvers on the same tasks, B against A."""

    num_tasks: int
    gained: list[str]  # solved by B alone, all test inputs
    lost: list[str]  # solved by A alone
    difference: float  # of pass@2
    low: float  # its 95 % interval, over tasks drawn anew
    high: float
    p_value: float  # that so uneven a split comes by chance


def compare(a: Answers, b: Answers, tasks: Mapping[str, Task], ids: Sequence[str]) -> Comparison:
    """Compares two solvers task by task.

    The p-value is McNemar's exact one, two-sided: of the tasks that only one of them solves, each
    is equally likely to solve either (McNemar 1947). The interval is a bootstrap of 10,000 draws of
    tasks (Efron 1979), percentiles.
    """
    scores = np.array([[pass_2(x.get(i, ()), tasks[i]) for x in (a, b)] for i in ids])
    gained = [i for i, (of_a, of_b) in zip(ids, scores, strict=True) if of_b == 1 > of_a]
    lost = [i for i, (of_a, of_b) in zip(ids, scores, strict=True) if of_a == 1 > of_b]
    differences = scores[:, 1] - scores[:, 0]
    low, high = np.percentile(resampled_means(differences), [2.5, 97.5])
    return Comparison(
        num_tasks=len(ids),
        gained=gained,
        lost=lost,
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_value=sign_test(len(gained), len(lost)),
    )


@dataclass(frozen=True)
class Retention:
    """How much of a teacher's score a student keeps, on the same tasks."""

    student: float  # pass@2
    teacher: float
    share: float | None  # the one by the other; None where the teacher solves nothing
    low: float | None  # its 95 % interval, over tasks drawn anew
    high: float | None
    agreement: float  # share of test inputs with the same first attempt, right or wrong
    cells: float | None  # student's right cells / teacher's: not what the goal is about


def retention(
    student: Answers, teacher: Answers, tasks: Mapping[str, Task], ids: Sequence[str]
) -> Retention:
    """Compares a student that stands alone with the readout of the teacher's frozen features.

    The interval is a bootstrap of 10,000 draws of tasks, percentiles; draws in which the teacher
    solves nothing say nothing and are left out.
    """
    scores = np.array([[pass_2(x.get(i, ()), tasks[i]) for x in (student, teacher)] for i in ids])
    same = [
        is_exact(mine.first, theirs.first)
        for i in ids
        for mine, theirs in zip(student.get(i, ()), teacher.get(i, ()), strict=True)
    ]
    of_student, of_teacher = scores.mean(0).tolist()
    share = low = high = None
    if of_teacher:
        means = resampled_means(scores)
        means = means[means[:, 1] > 0]
        share = of_student / of_teacher
        low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5]).tolist()
    mine, theirs = (score(x, tasks, ids).cell for x in (student, teacher))
    return Retention(
        student=of_student,
        teacher=of_teacher,
        share=share,
        low=low,
        high=high,
        agreement=float(np.mean(same)),
        cells=mine / theirs if theirs else None,
    )


def resampled_means(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the means over 10,000 draws of tasks with replacement; the first axis is theirs."""
    count = len(scores)
    return scores[np.random.default_rng(0).integers(count, size=(10_000, count))].mean(1)


def sign_test(gained: int, lost: int) -> float:
    """Returns the chance of a split at least as uneven, if both sides were equally likely."""
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total)
