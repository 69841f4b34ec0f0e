"""Runs the teacher on views of ARC tasks and fills a feature store; a killed run goes on.

python -m teacher_torch.extract --config configs/quickstart_extract.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from bridge import config as configs
from bridge.arc import Task, all_questions
from bridge.errors import InputError
from bridge.store import Encoding, FeatureStore, storage
from bridge.task_set import TaskSet
from bridge.views import (
    PAIR_CELL_PX,
    TASK_CELL_PX,
    TASK_PROMPT,
    pair_digest,
    pair_view,
    prompt_for,
    shown_sides,
    task_digest,
    task_view,
)
from teacher_torch.estimate import check_fits, describe, estimate_seconds, estimate_size
from teacher_torch.fill import Item, describe_speed, fill, merge_identical, plan_batches
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
    encoding: Encoding = field(default_factory=Encoding)
    only: tuple[str, ...] = ()
    """extract these examples and no others, such as 8be77c9e_train_0; empty: all"""
    again: bool = False
    """extract also what is there, and write it over; with --only, what repair does"""
    dry_run: bool = False
    """say what the dump would take, in bytes and hours, and stop"""
    accept_code: bool = False
    """go on with a store that another version of this code filled"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.view == "pair" and self.encoding.tokens != "all":
            raise ValueError(
                f"encoding.tokens: expected all with the pair view, whose frames are cut into "
                f"tiles; got {self.encoding.tokens}"
            )


def main(config: ExtractConfig) -> None:
    """Run the teacher on views of ARC tasks and fill a feature store.

    Needs no GPU and no weights by default: the teacher is GR00T N1.5's backbone with seeded random
    weights. A run that was stopped goes on with the first missing example when started again.
    Under torchrun, ranks share one store and take disjoint examples.
    """
    tasks = config.tasks.load()
    items = merge_identical(item for task in tasks.values() for item in items_of(task, config))
    check_only(config.only, items)
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
    about = {
        **provenance(teacher),
        "compute_dtype": choice.dtype,
        "source": config.tasks.source,
        "view": config.view,
        "prompt": config.prompt,
        "cell_px": TASK_CELL_PX if config.view == "task" else PAIR_CELL_PX,
    }
    missing = missing_items(config, items, about)
    size, free = estimate_size(teacher, missing, config.encoding), free_space(config.out)
    if config.dry_run:
        wanted = {item.view_digest for item in missing}
        todo = [batch for batch in batches if any(i.view_digest in wanted for i in batch)]
        say(describe(size, config.encoding, free, estimate_seconds(teacher, todo)))
    if warning := check_fits(size, free, config.out):
        say(warning)
    if config.dry_run:
        return
    golden = check_teacher(teacher)
    store = FeatureStore.create(
        config.out, about, golden, config.encoding, accept_code=config.accept_code
    )
    if rank == 0:
        names = config.only or [name for item in items for name in item.example_ids]
        store.expect(names, repeatable(config))
    own = fill(store, teacher, batches, only=config.only, again=config.again, quiet=rank > 0)
    ranks = finish_ranks(world, own)
    if rank == 0:
        say(describe_speed(ranks))
        say(finish(FeatureStore(config.out), items))  # opened again, with what other ranks wrote


def repeatable(config: ExtractConfig) -> str:
    """Returns the part of a config that decides features, to extract single examples again."""
    plain = replace(config, out=ExtractConfig.out, only=(), again=False, accept_code=False)
    return configs.to_yaml(plain)


def finish(store: FeatureStore, items: Sequence[Item]) -> str:
    """Writes the statistics if every example is there; returns what to tell."""
    expected = store.expected()
    changed = {n for item in items for n in item.missing_from(store) if n in expected}
    names = changed | (expected.keys() - store.records.keys())
    if names:
        return f"store: {store.path}: {len(store)} examples; {len(names)} are still missing"
    tokens, width = store.write_statistics().num_tokens, store.feature_width
    kept = "" if store.encoding.tokens == "all" else f" {store.encoding.tokens}"
    return (
        f"store: {store.path}: {len(store)} examples, {tokens}{kept} tokens, "
        f"{store.encoding.values}[S, {width}]"
    )


def missing_items(
    config: ExtractConfig, items: Sequence[Item], about: Mapping[str, Any]
) -> list[Item]:
    """Returns the items that this run has to extract, without touching the store.

    Raises:
        InputError: if a store of another provenance is there.
    """
    wanted = set(config.only)
    chosen = [item for item in items if not wanted or wanted & set(item.example_ids)]
    if storage.read_key(storage.open_kvstore(config.out), "store.json") is None:
        return chosen
    store = FeatureStore(config.out)
    store.check_same(about, config.encoding, accept_code=config.accept_code)
    if config.again:
        return chosen
    return [i for i in chosen if i.missing_from(store) and i.view_digest not in store.views]


def check_only(only: Sequence[str], items: Sequence[Item]) -> None:
    """Refuses examples that the chosen tasks do not have.

    Raises:
        InputError: naming the first.
    """
    known = {name for item in items for name in item.example_ids}
    for name in only:
        if name not in known:
            raise InputError(f"--only: expected an example of the chosen tasks, got {name}")


def free_space(path: str) -> int | None:
    """Returns the bytes free where a store lies or will lie, None where nobody can tell."""
    return storage.free_bytes(storage.open_kvstore(path))


def items_of(task: Task, config: ExtractConfig) -> list[Item]:
    """Returns the examples to extract of one task."""
    prompt = prompt_for(config.prompt, task.task_id)
    if config.view == "task":
        return [
            Item(
                (question.example_id,),
                task_digest(question, prompt),
                shown_sides(question),
                partial(task_view, question, prompt),
            )
            for question in all_questions(task)
        ]
    names = [f"{task.task_id}_train_{i}" for i in range(len(task.demonstrations))]
    return [
        Item(
            (name,),
            pair_digest(pair, prompt),
            (pair.input.shape, pair.output.shape),
            partial(pair_view, name, pair, prompt),
        )
        for name, pair in zip(names, task.demonstrations, strict=True)
    ]


if __name__ == "__main__":
    configs.command(main, ExtractConfig, resumes=True)
