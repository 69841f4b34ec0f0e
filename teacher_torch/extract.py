"""Runs the teacher on views of ARC tasks and fills a feature store; a killed run goes on.

python -m teacher_torch.extract --config configs/quickstart_extract.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from bridge import config as configs
from bridge.arc import Task, all_questions
from bridge.store import FeatureStore
from bridge.task_set import TaskSet
from bridge.views import (
    PAIR_CELL_PX,
    TASK_CELL_PX,
    TASK_PROMPT,
    pair_digest,
    pair_view,
    prompt_for,
    task_digest,
    task_view,
)
from teacher_torch.fill import Item, describe_speed, fill, plan_batches
from teacher_torch.gr00t_config import Size
from teacher_torch.ranks import finish_ranks, rank_device, start_ranks
from teacher_torch.teachers import Dtype, Name, load_teacher


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which teacher, with which weights, on which device."""

    name: Name = "gr00t-n1.5"
    """gr00t-n1.5: its vision-language backbone; dinov2-s: a small pretrained image encoder"""
    checkpoint: str = "random"
    """gr00t-n1.5: a folder, a hub id, or random; dinov2-s: pretrained or random"""
    size: Size = "tiny"
    """of gr00t-n1.5's random weights: toy width, or the released 1.33 billion parameters"""
    seed: int = 0
    """of random weights"""
    device: str = "cpu"
    """cpu, cuda, cuda:1; under torchrun each rank takes its own GPU"""
    dtype: Dtype = "float32"
    """of weights and computation; what is stored is bfloat16 either way"""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract, with which teacher, to where."""

    out: str = "runs/features"
    """the feature store: a folder, or a kvstore URL such as gs://bucket/folder"""
    tasks: TaskSet = field(default_factory=TaskSet)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    view: Literal["task", "pair"] = "task"
    """task: demonstrations and one query, leak-free; pair: the original's, demonstrations only"""
    prompt: str = TASK_PROMPT
    """text after the pictures; {task_id} is replaced, which leaks it and is for parity only"""
    batch_size: int = 1
    """views a call; like lengths share one"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")


def main(config: ExtractConfig) -> None:
    """Run the teacher on views of ARC tasks and fill a feature store.

    Needs no GPU and no weights by default: the teacher is GR00T N1.5's backbone with seeded random
    weights. A run that was stopped goes on with the first missing example when started again.
    Under torchrun, ranks share one store and take disjoint examples.
    """
    items = [item for task in config.tasks.load().values() for item in items_of(task, config)]
    rank, world = start_ranks()
    batches = plan_batches(items, config.batch_size)[rank::world]

    from teacher_torch.teacher import check_teacher, provenance

    choice = config.teacher
    device = f"cuda:{rank_device()}" if choice.device == "cuda" and world > 1 else choice.device
    teacher = load_teacher(
        choice.name, choice.checkpoint, choice.size, choice.seed, device, choice.dtype
    )
    say = print if rank == 0 else lambda _: None
    say(f"teacher: {teacher.name}, {teacher.weights}, F = {teacher.feature_width}")
    golden = check_teacher(teacher)
    store = FeatureStore.create(
        config.out,
        {
            **provenance(teacher),
            "compute_dtype": choice.dtype,
            "source": config.tasks.source,
            "view": config.view,
            "prompt": config.prompt,
            "cell_px": TASK_CELL_PX if config.view == "task" else PAIR_CELL_PX,
        },
        golden,
    )
    if rank == 0:
        store.write_config(configs.to_yaml(config))
    own = fill(store, teacher, batches, quiet=rank > 0)
    ranks = finish_ranks(world, own)
    if rank == 0:
        say(describe_speed(ranks))
        store = FeatureStore(config.out)  # with what the other ranks wrote
        tokens = store.write_statistics().num_tokens
        width = store.feature_width
        say(
            f"store: {config.out}: {len(store.records)} examples, {tokens} tokens, bf16[S, {width}]"
        )


def items_of(task: Task, config: ExtractConfig) -> list[Item]:
    """Returns the examples to extract of one task."""
    prompt = prompt_for(config.prompt, task.task_id)
    if config.view == "task":
        return [
            Item(
                q.example_id,
                task_digest(q, prompt),
                2 * len(q.demonstrations) + 1,
                partial(task_view, q, prompt),
            )
            for q in all_questions(task)
        ]
    names = [f"{task.task_id}_train_{i}" for i in range(len(task.demonstrations))]
    return [
        Item(name, pair_digest(pair, prompt), 2, partial(pair_view, name, pair, prompt))
        for name, pair in zip(names, task.demonstrations, strict=True)
    ]


if __name__ == "__main__":
    configs.command(main, ExtractConfig)
