"""Repeats the original's experiment, leak and all, and shows what an all-black answer scores there.

    python tools/original_run.py --out tools/measurements/original_run.json

Each of the 1718 pairs of the training set is shown to the teacher with its answer beside it; pairs,
not tasks, are split 90 : 10 with torch's seed 42; padding is color 0 and counts as correct. Nothing
here measures skill. It is kept as a warning, so this file alone may show a teacher an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from conditions import conditions
from tqdm import tqdm

from bridge import config as configs
from bridge.arc import MAX_SIDE, Pair
from bridge.arc_files import load_tasks
from bridge.files import write_text
from bridge.scaling import no_scaling
from bridge.store import FeatureStore
from bridge.views import pair_digest, pair_view
from student_jax.batch import Batch, feature_batch, whole_answer
from student_jax.config import TrainConfig
from student_jax.state import first_state, make_optimizer
from student_jax.step import make_mesh, make_train_step, replicated
from student_jax.students import make_student

PROMPT = "Solve ARC task {task_id}"  # the original's, which tells the task


@dataclass(frozen=True, kw_only=True)
class OriginalRunConfig:
    """How long, on whose features."""

    checkpoint: str = "pretrained"
    """of dinov2-s: pretrained, or random as its control"""
    store: str = "runs/original_run/features"
    limit: int | None = None
    """only so many pairs; the original's counts need all 1718"""
    steps: int = 194
    """of 8 pairs; 194 are one epoch, after which the original kept its best checkpoint"""
    out: Path | None = None
    """JSON file for the numbers"""


def main(config: OriginalRunConfig) -> None:
    """Repeat the original's leaky experiment beside the black image that beats it."""
    under = conditions("jax", "flax", "torch")
    pairs = leaky_pairs(config.limit)
    store = extract(config, pairs)
    train, held_out = split(list(pairs))  # tasks by id, train before test: the original's order
    answers = np.stack([whole_answer(pairs[name].output, MAX_SIDE) for name in held_out])
    inputs = np.stack([whole_answer(pairs[name].input, MAX_SIDE) for name in held_out])
    sides = np.array([pairs[name].output.shape for name in held_out])
    predictions, seconds = train_and_predict(config, store, pairs, train, held_out)
    rows = {
        "all black": score(np.zeros_like(answers), answers, sides),
        "copy of the input": score(inputs, answers, sides),
        f"original student, dinov2-s {config.checkpoint}": score(predictions, answers, sides),
    }
    for name, row in rows.items():
        print(f"{name:40}" + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    if config.out:
        result = {
            **under,
            "pairs": {"trained on": len(train), "held out": len(held_out)},
            "steps": config.steps,
            "seconds_a_step": seconds,
            "held_out": rows,
        }
        write_text(config.out, json.dumps(result, indent=1) + "\n")


def leaky_pairs(limit: int | None) -> dict[str, Pair]:
    """Returns every pair of the training set by name, test pairs with their answers."""
    pairs: dict[str, Pair] = {}
    for task in load_tasks("arcagi/training").values():
        for i, pair in enumerate(task.demonstrations):
            pairs[f"{task.task_id}_train_{i}"] = pair
        tests = zip(task.test_inputs, task.test_outputs or (), strict=True)
        for i, (shown, answer) in enumerate(tests):
            pairs[f"{task.task_id}_test_{i}"] = Pair(shown, answer)
    return dict(list(pairs.items())[:limit])


def split(names: list[str]) -> tuple[list[str], list[str]]:
    """Splits as `torch.utils.data.random_split` with a generator of seed 42 did."""
    import torch

    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(42)).tolist()
    cut = int(0.9 * len(names))
    return [names[i] for i in order[:cut]], [names[i] for i in order[cut:]]


def extract(config: OriginalRunConfig, pairs: dict[str, Pair]) -> FeatureStore:
    """Shows the teacher each input and its answer, side by side; goes on where it stopped."""
    from teacher_torch.fill import Item, fill, merge_identical, plan_batches
    from teacher_torch.teacher import provenance
    from teacher_torch.teachers import load_teacher

    teacher = load_teacher("dinov2-s", config.checkpoint)
    items = []
    for name, pair in pairs.items():
        prompt = PROMPT.replace("{task_id}", name.split("_")[0])
        view = partial(pair_view, name, pair, prompt)
        grids = (pair.input.shape, pair.output.shape)
        items.append(Item((name,), pair_digest(pair, prompt), grids, view))
    about = {**provenance(teacher), "view": "pair with its answer: leaky", "prompt": PROMPT}
    store = FeatureStore.create(config.store, about)
    fill(store, teacher, plan_batches(merge_identical(items), 4), quiet=False)
    return FeatureStore(config.store, "ram")


def train_and_predict(
    config: OriginalRunConfig,
    store: FeatureStore,
    pairs: dict[str, Pair],
    train: list[str],
    held_out: list[str],
) -> tuple[npt.NDArray[np.uint8], float]:
    """Trains the original student; returns u8[N, 30, 30] for the held-out pairs, and its speed."""
    settings = configs.load(TrainConfig, Path("configs/original.yaml"))
    settings = replace(settings, optim=replace(settings.optim, total_steps=config.steps))
    size = settings.optim.batch_size
    model = make_student(settings.model, store.feature_width)
    tx = make_optimizer(settings.optim, settings.loss.form)
    mesh, scaling = make_mesh(1), no_scaling(store.feature_width)
    state = first_state(settings, model, tx, scaling, replicated(mesh))
    step = make_train_step(settings, model, tx, mesh)
    seconds: list[float] = []
    bar = tqdm(shuffled(train, size, config.steps), "train", config.steps)
    for names in bar:
        started = time.perf_counter()
        state, metrics = step(state, make_batch(store, pairs, names))
        bar.set_postfix(loss=f"{metrics['loss'].item():.1f}", task=f"{metrics['task'].item():.3f}")
        seconds.append(time.perf_counter() - started)
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch).logits.argmax(-1))  # pyright: ignore[reportAttributeAccessIssue]
    answers = []
    for start in range(0, len(held_out), 4):
        batch = make_batch(store, pairs, held_out[start : start + 4])
        answers.append(np.asarray(apply(state.params, batch), np.uint8))
    return np.concatenate(answers), float(np.median(seconds))


def make_batch(store: FeatureStore, pairs: dict[str, Pair], names: list[str]) -> Batch:
    """Draws a batch of pairs."""
    answers = np.stack([whole_answer(pairs[name].output, MAX_SIDE) for name in names])
    return feature_batch(*store.batch(names), answers)


def shuffled(names: list[str], size: int, steps: int) -> Iterator[list[str]]:
    """Yields whole batches, epoch after epoch."""
    rng, order = np.random.default_rng(0), []
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(names).tolist()
        yield [order.pop() for _ in range(size)]


def score(predictions: Any, answers: Any, sides: Any) -> dict[str, float]:
    """Returns the original's measure, padding included, and the honest ones beside it."""
    same = predictions == answers
    rows, cols = np.mgrid[:MAX_SIDE, :MAX_SIDE]
    inside = (rows < sides[:, :1, None]) & (cols < sides[:, 1:, None])
    colored = answers > 0
    return {
        "pixel accuracy, padding included": float(same.mean()),
        "pixel accuracy, inside the grid": float(same[inside].mean()),
        "colored pixels found": float(same[colored].mean()),
        "exact grids": float(same.all((1, 2)).mean()),
    }


if __name__ == "__main__":
    configs.command(main, OriginalRunConfig)
