"""Which answers stand beside each other: their names, the tasks that count, the teacher's score.

`files` is everywhere a row's name -> what it answered, all to the same tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.arc import Task
from bridge.errors import InputError
from bridge.predictions import Predictions, check_covers, read_predictions
from student_jax.paired import Retention, retention

# Tasks of arcagi/evaluation whose answers arcagi/training holds (python -m bridge.arc audit).
KNOWN_LEAKS = frozenset({"070dd51e", "50a16a69"})
HELD_OUT = "held-out tasks"


def load_predictions(paths: tuple[Path, ...], tasks: dict[str, Task]) -> dict[str, Predictions]:
    """Reads predictions over one set of tasks, named by student.

    Raises:
        InputError: if a file is faulty or covers other tasks than the first.
    """
    read: dict[Path, Predictions] = {}
    for path in paths:
        read[path] = predictions = read_predictions(path)
        check_covers(predictions.attempts, tasks, str(path))
        differing = sorted(set(read[paths[0]].attempts) ^ set(predictions.attempts))
        if differing:
            raise InputError(f"{path}: expected the tasks of {paths[0]}, differs in {differing[0]}")
    for task_id in read[paths[0]].attempts:
        if tasks[task_id].test_outputs is None:
            raise InputError(f"task {task_id}: its test outputs are not known; nothing to score")
    return name_rows(read)


def name_rows(files: dict[Path, Predictions]) -> dict[str, Predictions]:
    """Names each row by its student; where that is not enough, by its teacher, then by its file."""
    plain = {path: row_name(p.about, path) for path, p in files.items()}
    named: dict[str, Predictions] = {}
    for path, predictions in files.items():
        name = plain[path]
        alike = [files[other] for other in files if plain[other] == name]
        if len({teacher_name(each) for each in alike}) > 1:
            name += f", {teacher_name(predictions)}"
        named[f"{name}, {path}" if name in named else name] = predictions
    return named


def row_name(about: dict[str, Any], path: Path) -> str:
    """Says what a student is and what it needs at inference."""
    name = f"{about.get('student', path.stem)} student"
    if about.get("needs_teacher"):
        name += " (reads the teacher)"
    if about.get("untrained"):
        name += ", untrained"
    if about.get("tier", "zero-shot") != "zero-shot":
        name += f", {about['tier']}"
    if about.get("views", 1) > 1:
        name += f", {about['views']} views"
    return name


def teacher_name(predictions: Predictions) -> str:
    """Says which teacher a student had, and whether that knew anything."""
    teacher, before = predictions.about.get("teacher"), predictions.about.get("taught_before")
    if not teacher and before:
        return f"no teacher since it was taught by {before[0]['teacher']}"
    if not teacher:
        return "no teacher"
    return f"teacher {'random ' * has_random_teacher(predictions)}{teacher['teacher']}"


def has_random_teacher(predictions: Predictions) -> bool:
    """Whether a student was taught, and by none that knows anything."""
    about = predictions.about
    teachers = [about["teacher"]] if about.get("teacher") else about.get("taught_before") or []
    return bool(teachers) and all("random weights" in each["weights"] for each in teachers)


def groups_of(files: dict[str, Predictions]) -> dict[str, list[str]]:
    """Sorts the tasks into those held out from all students and those any was trained on.

    Where the two tasks are among them whose answers ARC-AGI-1's training set holds, two more groups
    follow: without them, and with them as others report it.
    """
    ids = list(next(iter(files.values())).attempts)
    held_out, trained_on = split_tasks(files)
    groups = {HELD_OUT: held_out, "tasks trained on, answers included": trained_on}
    if KNOWN_LEAKS & set(ids):
        if KNOWN_LEAKS & set(held_out):
            name = "held-out tasks without the two that training tasks give away"
            groups[name] = [i for i in held_out if i not in KNOWN_LEAKS]
        elif set(trained_on) <= KNOWN_LEAKS:
            groups["all, with the two given away, as others report it"] = ids
    return {group: found for group, found in groups.items() if found}


def split_tasks(files: dict[str, Predictions]) -> tuple[list[str], list[str]]:
    """Returns the tasks held out from all of the students, and those any was trained on."""
    trained = trained_tasks(files)
    ids = list(next(iter(files.values())).attempts)
    return [i for i in ids if i not in trained], [i for i in ids if i in trained]


def trained_tasks(files: dict[str, Predictions]) -> set[str]:
    """Returns the tasks that any of the students was trained on.

    Raises:
        InputError: if a file does not say; nothing may then pass for held out.
    """
    for name, predictions in files.items():
        if "trained_on" not in predictions.about:
            raise InputError(
                f"{name}: about.trained_on: expected the tasks it was trained on, got nothing; "
                "write the predictions with python -m student_jax.solve"
            )
    return {i for p in files.values() for i in p.about["trained_on"]}


def retentions(
    files: dict[str, Predictions], tasks: dict[str, Task], ids: list[str]
) -> dict[str, Retention]:
    """Returns what each other student keeps of the teacher's score, on the tasks named.

    The teacher's own score is that of the student that reads its features; without one, or with
    several, there is nothing to compare with.
    """
    reader = reader_of(files)
    if reader is None or not ids:
        return {}
    return {
        name: retention(p.attempts, files[reader].attempts, tasks, ids)
        for name, p in files.items()
        if name != reader
    }


def reader_of(files: dict[str, Predictions]) -> str | None:
    """Names the one student whose score is the teacher's, if there is such a one."""
    readers = readers_of(files)
    return readers[0] if len(readers) == 1 else None


def readers_of(files: dict[str, Predictions]) -> list[str]:
    """Names the students that read a teacher's features.

    Of these, one that is untrained, and one whose teacher has random weights, are controls where
    there is another.
    """
    readers = [name for name, p in files.items() if p.about.get("needs_teacher")]
    trained = [name for name in readers if not files[name].about.get("untrained")] or readers
    return [name for name in trained if not has_random_teacher(files[name])] or trained
