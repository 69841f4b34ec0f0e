"""Runs the teacher on views of ARC tasks and fills a feature store; a killed run goes on.

python -m teacher_torch.extract --config configs/quickstart_extract.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from bridge import config as configs
from bridge.arc import Task, all_questions
from bridge.store import FeatureStore
from bridge.task_set import TaskSet
from bridge.views import PAIR_CELL_PX, TASK_CELL_PX, TASK_PROMPT, View, pair_view, task_view


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which teacher."""

    size: Literal["tiny", "full"] = "tiny"
    """tiny: the architecture at toy width; full: 1.33 billion parameters"""
    seed: int = 0
    """of the random weights"""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract, with which teacher, to where."""

    out: Path = Path("runs/features")
    """the feature store: a folder"""
    tasks: TaskSet = field(default_factory=TaskSet)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    view: Literal["task", "pair"] = "task"
    """task: demonstrations and one query, leak-free; pair: the original's, demonstrations only"""
    prompt: str = TASK_PROMPT
    """text after the pictures; {task_id} is replaced, which leaks it and is for parity only"""


def main(config: ExtractConfig) -> None:
    """Run the teacher on views of ARC tasks and fill a feature store.

    Needs no GPU and no weights: the teacher is GR00T N1.5's backbone with seeded random weights.
    A run that was stopped goes on with the first missing example when started again.
    """
    tasks = config.tasks.load()
    views = {view.example_id: view for task in tasks.values() for view in views_of(task, config)}

    # Imported late: torch takes seconds, and a mistyped flag should not.
    from teacher_torch.gr00t import Gr00tTeacher
    from teacher_torch.teacher import check_teacher, provenance

    teacher = Gr00tTeacher(config.teacher.size, config.teacher.seed)
    print(f"teacher: {teacher.name}, {teacher.weights}, F = {teacher.feature_width}")  # noqa: T201
    check_teacher(teacher)
    store = FeatureStore.create(
        config.out,
        {
            **provenance(teacher),
            "source": config.tasks.source,
            "view": config.view,
            "prompt": config.prompt,
            "cell_px": TASK_CELL_PX if config.view == "task" else PAIR_CELL_PX,
        },
    )
    configs.save(config, config.out / "config.yaml")

    missing = [example_id for example_id in views if example_id not in store.records]
    progress = tqdm(
        desc="extract", unit="example", total=len(views), initial=len(views) - len(missing)
    )
    # One view a call: an example's bytes then never depend on what shared its batch, so a resumed
    # run writes the same store as an unbroken one.
    for example_id in missing:
        output = teacher.features([views[example_id]])
        store.append(example_id, output.example(0), output.frames[0])
        progress.update()
    progress.close()
    statistics = store.write_statistics()
    print(  # noqa: T201
        f"store: {config.out}: {len(store.records)} examples, {statistics.num_tokens} tokens, "
        f"bf16[S, {store.feature_width}]"
    )


def views_of(task: Task, config: ExtractConfig) -> list[View]:
    """Returns the views to extract of one task."""
    prompt = config.prompt.replace("{task_id}", task.task_id)
    if config.view == "task":
        return [task_view(question, prompt) for question in all_questions(task)]
    return [
        pair_view(f"{task.task_id}_train_{i}", pair, prompt)
        for i, pair in enumerate(task.demonstrations)
    ]


if __name__ == "__main__":
    configs.command(main, ExtractConfig)
