"""Which evaluation tasks a training set already holds, whatever their ids, turns and colors.

Pairs are compared by content (`bridge/duplicates.py`): under the 8 symmetries and all recolorings.
A solver trained on an evaluation task's test pair has seen the answer, and its score means nothing
there; one trained on a demonstration has seen part of the question, which is told apart.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.arc import Task
from bridge.arc_files import load_tasks
from bridge.duplicates import keys_of


@dataclass(frozen=True)
class Leak:
    """What a training set holds of one evaluation task: its pair -> the training set's pairs."""

    answers: dict[str, list[str]] = field(default_factory=dict)
    demonstrations: dict[str, list[str]] = field(default_factory=dict)


def audit(train: Iterable[Task], evaluation: Iterable[Task]) -> dict[str, Leak]:
    """Returns evaluation task id -> what the training tasks hold of it, for tasks with anything."""
    return find_leaks(keys_of(train), keys_of(evaluation))


def find_leaks(
    train: Mapping[str, list[str]], evaluation: Mapping[str, list[str]]
) -> dict[str, Leak]:
    """The same from content keys, as `keys_of` returns them."""
    leaks: dict[str, Leak] = {}
    for key in sorted(evaluation.keys() & train.keys()):
        for name in evaluation[key]:
            task_id, kind, _ = name.rsplit("_", 2)
            leak = leaks.setdefault(task_id, Leak())
            (leak.answers if kind == "test" else leak.demonstrations)[name] = sorted(train[key])
    return dict(sorted(leaks.items()))


@functools.cache
def evaluation_answers() -> dict[str, list[str]]:
    """The content keys of ARC-AGI-1's public test pairs, which no training should hold."""
    tasks = load_tasks("arcagi/evaluation").values()
    return keys_of(replace(task, demonstrations=()) for task in tasks)


def known_answers_of(train: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Returns the public evaluation tasks whose answers training pairs hold -> those pairs."""
    return {
        task_id: sorted({name for names in leak.answers.values() for name in names})
        for task_id, leak in find_leaks(train, evaluation_answers()).items()
    }


def summarize(leaks: Mapping[str, Leak], num_tasks: int) -> dict[str, Any]:
    """Returns the findings as plain JSON."""
    answered = [task_id for task_id, leak in leaks.items() if leak.answers]
    return {
        "evaluation_tasks": num_tasks,
        "with_known_answers": len(answered),
        "with_known_demonstrations": sum(bool(leak.demonstrations) for leak in leaks.values()),
        "clean_tasks": num_tasks - len(answered),
        "tasks": {
            task_id: {"answers": leak.answers, "demonstrations": leak.demonstrations}
            for task_id, leak in leaks.items()
        },
    }
