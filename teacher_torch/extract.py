"""Runs the teacher on views of ARC tasks and fills a feature store; a killed run goes on.

python -m teacher_torch.extract --config configs/quickstart_extract.yaml
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from bridge import config as configs
from bridge.arc import Task, all_questions
from bridge.store import FeatureStore
from bridge.task_set import TaskSet
from bridge.views import (
    PAIR_CELL_PX,
    TASK_CELL_PX,
    TASK_PROMPT,
    View,
    pair_digest,
    pair_view,
    prompt_for,
    task_digest,
    task_view,
)
from teacher_torch.gr00t_config import Size
from teacher_torch.teachers import Dtype, Name, load_teacher

AHEAD = 2  # batches prepared, and batches waiting to be written


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


@dataclass(frozen=True)
class Item:
    """An example to extract. Its view is drawn when needed: all of them would fill the memory."""

    example_id: str
    shown_digest: str
    num_frames: int
    view: Callable[[], View]


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


def describe_speed(ranks: Sequence[Throughput]) -> str:
    """Says how fast the ranks were, and how much of that storing and preparing cost."""
    examples = sum(rank.num_examples for rank in ranks)
    if not examples:
        return "nothing was missing"
    slowest = max(rank.seconds for rank in ranks)
    share = sum(r.bare_forward_seconds for r in ranks) / sum(r.seconds for r in ranks)
    return f"{examples / slowest:.2f} examples/s, {share:.0%} of the bare teacher's throughput"


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


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Groups examples of like length.

    The plan depends on the whole list, never on what is already done: a batch's arithmetic, and so
    its bytes, are the same in a resumed run as in an unbroken one.
    """
    ordered = sorted(items, key=lambda item: (item.num_frames, item.example_id))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


@dataclass(frozen=True)
class Throughput:
    """How fast one rank was."""

    num_examples: int
    seconds: float
    bare_forward_seconds: float


def fill(
    store: FeatureStore, teacher: Any, batches: Sequence[Sequence[Item]], *, quiet: bool
) -> Throughput:
    """Extracts what the store lacks.

    While the teacher runs, one thread draws and tokenises the next views and another writes the
    last features. An example whose task changed since it was written counts as missing.
    """

    def is_there(item: Item) -> bool:
        record = store.records.get(item.example_id)
        return record is not None and record.shown_digest == item.shown_digest

    missing = {i.example_id for batch in batches for i in batch if not is_there(i)}
    todo = [batch for batch in batches if any(i.example_id in missing for i in batch)]
    total = sum(map(len, batches))
    progress = tqdm(
        desc="extract", unit="example", total=total, initial=total - len(missing), disable=quiet
    )

    def prepare(batch: Sequence[Item]) -> Any:
        return teacher.prepare([item.view() for item in batch])

    def write(batch: Sequence[Item], output: Any) -> None:
        for row, item in enumerate(batch):
            if item.example_id in missing:
                features, frames = output.example(row), output.frames[row]
                store.append(item.example_id, features, frames, item.shown_digest)
                progress.update()

    started = time.perf_counter()
    seconds: list[float] = []  # of each forward
    with progress, ThreadPoolExecutor(1) as preparer, ThreadPoolExecutor(1) as writer:
        upcoming = deque(preparer.submit(prepare, batch) for batch in todo[:AHEAD])
        writing: deque[Future[None]] = deque()
        for i, batch in enumerate(todo):
            inputs = upcoming.popleft().result()
            if i + AHEAD < len(todo):
                upcoming.append(preparer.submit(prepare, todo[i + AHEAD]))
            # Bounds the memory, and raises what failed. The last forward runs with nothing beside
            # it, which tells what a bare one costs.
            while len(writing) > (0 if i + 1 == len(todo) else AHEAD):
                writing.popleft().result()
            before = time.perf_counter()
            output = teacher.forward(inputs)
            seconds.append(time.perf_counter() - before)
            writing.append(writer.submit(write, batch, output))
        for pending in writing:
            pending.result()
    return Throughput(len(missing), time.perf_counter() - started, bare_seconds(todo, seconds))


def bare_seconds(todo: Sequence[Sequence[Item]], seconds: Sequence[float]) -> float:
    """Estimates what all forwards would have taken with nothing beside them.

    The last one ran so; those of the same size before it say how much company costs.
    """
    if not todo:
        return 0.0
    size = (len(todo[-1]), todo[-1][0].num_frames)
    alike = [
        taken
        for batch, taken in zip(todo[:-1], seconds[:-1], strict=True)
        if (len(batch), batch[0].num_frames) == size
    ][-8:]
    company = max(1.0, float(np.median(alike)) / seconds[-1]) if alike else 1.0
    return sum(seconds) / company


def start_ranks() -> tuple[int, int]:
    """Returns (rank, number of ranks): torchrun's, or (0, 1)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    import torch.distributed

    # A rank may wait for days until the slowest is done.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return torch.distributed.get_rank(), world


def rank_device() -> int:
    """Returns which of the machine's GPUs this rank takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def finish_ranks(world: int, own: Throughput) -> list[Throughput]:
    """Waits until every rank has written its examples; returns how each of them did."""
    if world == 1:
        return [own]
    import torch.distributed

    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, own)
    torch.distributed.destroy_process_group()
    return everyone


if __name__ == "__main__":
    configs.command(main, ExtractConfig)
