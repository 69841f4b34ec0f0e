"""Looks after task files: what leaks from one set to another, tasks without answers, submissions.

python -m bridge.arc audit arcagi/training arcagi/evaluation
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bridge import config as configs
from bridge.arc_files import load_tasks, without_answers
from bridge.audit import Leak, audit, summarize
from bridge.errors import InputError
from bridge.files import write_text
from bridge.predictions import write_predictions
from bridge.submission import check_complete, read_submission, write_submission

SHOWN = 12  # leaks that are printed; all are in --out


@dataclass(frozen=True, kw_only=True)
class ArcConfig:
    """What to do with which tasks."""

    action: Annotated[Literal["audit", "blind", "submit", "import"], tyro.conf.Positional]
    """audit TRAIN EVAL: which evaluation tasks TRAIN already holds, under all symmetries and
    recolorings; blind SOURCE: write tasks without their test outputs; submit PREDICTIONS SOURCE:
    check that every task is answered and write Kaggle's submission.json; import SUBMISSION SOURCE:
    make a predictions file of anyone's submission.json, to score it"""
    what: Annotated[str, tyro.conf.Positional]
    """tasks (arcagi/training, a folder, a Kaggle *_challenges.json) or a file of attempts"""
    against: Annotated[str | None, tyro.conf.Positional] = None
    """the tasks to compare with or that are answered"""
    out: Path | None = None
    """what to write: audit: the findings as JSON; blind: a folder, or a *_challenges.json; submit:
    by default submission.json beside the predictions; import: predictions.json beside it"""
    trained_on: str | None = None
    """import: the tasks its solver was trained on, as a source, or none. A score on tasks it was
    trained on is never shown among those held out"""

    def __post_init__(self) -> None:
        """Checks that an action has what it needs and nothing else."""
        if self.action == "blind" and (self.out is None or self.against is not None):
            raise ValueError("out: expected blind SOURCE --out FOLDER")
        if self.action != "blind" and self.against is None:
            raise ValueError(f"against: expected two names after {self.action}, got one")
        if (self.action == "import") != (self.trained_on is not None):
            raise ValueError("trained_on: expected with import, and only there: a source or none")


def main(config: ArcConfig) -> None:
    """Audit task sets for leaks, strip test outputs, or check and convert Kaggle submissions.

    audit ends with exit code 1 where the training set holds answers of the evaluation set.
    """
    if config.action == "audit":
        show_audit(config)
    elif config.action == "blind":
        write_blind(config.what, config.out or Path())
    elif config.action == "submit":
        submit(config)
    else:
        import_submission(config)


def show_audit(config: ArcConfig) -> None:
    """Prints what the one set holds of the other."""
    train, evaluation = (load_tasks(source) for source in (config.what, config.against or ""))
    leaks = audit(train.values(), evaluation.values())
    found = summarize(leaks, len(evaluation))
    for task_id, leak in list(leaks.items())[:SHOWN]:
        print(describe(task_id, leak))
    if len(leaks) > SHOWN:
        print(f"... and {len(leaks) - SHOWN} more tasks; --out FILE writes them all")
    print(
        f"{config.what} holds the answers of {found['with_known_answers']} of {len(evaluation)} "
        f"tasks of {config.against}; {found['clean_tasks']} are clean"
    )
    if config.out:
        found = {"train": config.what, "evaluation": config.against, **found}
        write_text(config.out, json.dumps(found, indent=1) + "\n")
    if found["with_known_answers"]:
        raise SystemExit(1)


def describe(task_id: str, leak: Leak) -> str:
    """Returns one line on what is held of a task."""
    parts = []
    for what, pairs in (("answer", leak.answers), ("demonstration", leak.demonstrations)):
        if pairs:
            name, same = next(iter(pairs.items()))
            more = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
            parts.append(f"{what} {name} is {same[0]}{more}")
    return f"{task_id}: {'; '.join(parts)}"


def write_blind(source: str, out: Path) -> None:
    """Writes tasks with their test outputs physically removed.

    Raises:
        InputError: if the folder holds other files, whose answers would stay.
    """
    tasks = {task_id: without_answers(task) for task_id, task in load_tasks(source).items()}
    if out.name.endswith("_challenges.json"):
        beside = out.with_name(out.name.replace("_challenges.json", "_solutions.json"))
        if beside.exists():
            raise InputError(f"{beside}: expected no solutions beside blind tasks; move it away")
        write_text(out, json.dumps(tasks))
    else:
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out}: expected an empty folder; what is there may hold answers")
        out.mkdir(parents=True, exist_ok=True)
        for task_id, value in tasks.items():
            write_text(out / f"{task_id}.json", json.dumps(value))
    print(f"blind: {out}: {len(tasks)} tasks, no test outputs")


def submit(config: ArcConfig) -> None:
    """Checks attempts against all tasks of a source and writes Kaggle's file."""
    path = Path(config.what)
    attempts = read_submission(path)
    check_complete(attempts, load_tasks(config.against or ""), str(path))
    out = config.out or path.with_name("submission.json")
    if out != path:
        write_submission(out, attempts)
    print(f"submission: {out}: {len(attempts)} tasks, {sum(map(len, attempts.values()))} inputs")


def import_submission(config: ArcConfig) -> None:
    """Makes a predictions file of a submission."""
    path, tasks = Path(config.what), load_tasks(config.against or "")
    attempts = read_submission(path)
    check_complete(attempts, tasks, str(path))
    trained_on = [] if config.trained_on == "none" else load_tasks(config.trained_on or "")
    about = {
        "student": path.stem,
        "tier": "unknown",
        "source": config.against,
        "trained_on": sorted(set(trained_on) & set(tasks)),
    }
    out = config.out or path.with_name("predictions.json")
    write_predictions(out, about, attempts)
    print(f"predictions: {out}: {len(attempts)} tasks")


if __name__ == "__main__":
    configs.command(main, ArcConfig)
