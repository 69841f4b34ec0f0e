"""Trains a student; a killed run goes on from its latest checkpoint.

python -m student_jax.train --config configs/quickstart_grid.yaml
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bridge import config as configs
from bridge.arc import all_questions, known_answers
from bridge.errors import InputError
from bridge.files import write_text
from bridge.scaling import Scaling, covariance_of, layer_norm, no_scaling, phi_s, standardise
from bridge.stop import Stop
from bridge.store import FeatureStore, check_provenance
from bridge.tree import flatten
from student_jax.checkpoints import Checkpoints
from student_jax.config import TrainConfig
from student_jax.data import Examples, to_devices
from student_jax.state import (
    init_state,
    make_mesh,
    make_optimizer,
    make_schedule,
    make_train_step,
    over_devices,
    replicated,
)
from student_jax.students import make_student

# A moved store is known by its provenance, see `check_same_data`.
MAY_DIFFER = ("out", "log_steps", "checkpoint_steps", "data.store", "data.cache")


def main(config: TrainConfig) -> None:
    """Train a student on ARC tasks, with a teacher's features where a store is given.

    A run that was stopped goes on from its latest checkpoint when started again; its result is
    that of an unbroken run. Held-out tasks are never trained on.
    """
    train(config)


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to `optim.total_steps` and returns the last step's metrics."""
    check_same_config(config)
    configs.save(config, config.out / "config.yaml")
    mesh = make_mesh()
    if config.optim.batch_size % mesh.devices.size:
        raise InputError(
            f"optim.batch_size: expected a multiple of {mesh.devices.size} devices, "
            f"got {config.optim.batch_size}"
        )

    store = FeatureStore(config.data.store, config.data.cache) if config.data.store else None
    examples, scaling = load_examples(config, store)
    first_batch = examples.train_batch(config.seed, 0, config.optim.batch_size)

    model = make_student(config.model, examples.feature_width)
    tx = make_optimizer(config.optim, config.loss.form)
    schedule = make_schedule(config.optim)
    init = jax.jit(
        lambda: init_state(model, tx, first_batch, scaling, config.seed),
        out_shardings=replicated(mesh),
    )
    step_fn = make_train_step(config, model, tx, mesh)
    about = {
        "feature_width": examples.feature_width,
        "teacher": store.provenance if store else None,
        "trained_on": sorted({example.question.task_id for example in examples.examples}),
    }

    with Checkpoints(config.out, create=True) as checkpoints, Stop() as stop:
        newest = checkpoints.restore_newest(replicated(mesh))
        if newest is not None:
            first_step, there, state = newest
            check_same_data(there, about, config)
            for damaged in [step for step in checkpoints.steps() if step > first_step]:
                checkpoints.set_aside(damaged)  # to be made again
        else:
            first_step, state = 0, init()
        log = MetricsLog(config.out, first_step, config.optim.total_steps)
        log.say(describe(config, examples, state, first_step))
        drawn = examples.train_batches(config.seed, first_step, config.optim.batch_size)
        batches = to_devices(drawn, over_devices(config, mesh))
        metrics: dict[str, float] = {}
        # One pass more than steps: the last save happens without repeating its code.
        for step in range(first_step, config.optim.total_steps + 1):
            done = step == config.optim.total_steps or stop.requested
            if step > first_step and (done or step % config.checkpoint_steps == 0):
                checkpoints.save(step, state, config, about)
            if done:
                break
            state, values = step_fn(state, next(batches))
            metrics = {name: value.item() for name, value in jax.device_get(values).items()}
            metrics["learning_rate"] = np.asarray(schedule(step)).item()
            # The update is checked too, so that no checkpoint ever holds a broken state.
            broken = [name for name, value in metrics.items() if not np.isfinite(value)]
            if broken:
                raise InputError(
                    f"step {step}: {', '.join(broken)} not finite; last good checkpoint: step "
                    f"{checkpoints.latest_step()}; lower --optim.peak_lr and give another --out"
                )
            log.write(step + 1, metrics, keep=(step + 1) % config.log_steps == 0)
        batches.close()
        log.close()
        checkpoints.wait()
        if stop.requested:
            raise KeyboardInterrupt
    return metrics


def load_examples(config: TrainConfig, store: FeatureStore | None) -> tuple[Examples, Scaling]:
    """Returns the examples of the training tasks, and how the teacher's features are scaled."""
    tasks, _ = config.data.tasks.split(config.data.tasks.load())
    questions = [question for task in tasks.values() for question in all_questions(task)]
    answers = {name: grid for task in tasks.values() for name, grid in known_answers(task).items()}
    questions = [question for question in questions if question.example_id in answers]
    examples = Examples(questions, answers, config.model, config.data, store)
    if not examples.examples:
        raise InputError("data.tasks: no training example is left; raise max_side or limit")
    if store is None:
        return examples, no_scaling(examples.feature_width)
    return examples, make_scaling(config.loss.scaling, store, examples)


def make_scaling(kind: str, store: FeatureStore, examples: Examples) -> Scaling:
    """Returns how features are scaled, going by the examples that are trained on and no others."""
    if kind == "none":
        return no_scaling(store.feature_width)
    if kind == "layer_norm":
        return layer_norm(store.feature_width)
    names = [example.question.example_id for example in examples.examples]
    statistics = store.statistics(names)
    if kind == "standardise":
        return standardise(statistics)
    covariance = covariance_of((store.read(name) for name in tqdm(names, "covariance")), statistics)
    return phi_s(statistics, covariance)


def check_same_config(config: TrainConfig) -> None:
    """Refuses to go on with a run under another config.

    Raises:
        InputError: naming the first key that differs.
    """
    path = config.out / "config.yaml"
    if not path.is_file() or not (config.out / "checkpoints").is_dir():
        return
    there = flatten(configs.to_dict(configs.load(TrainConfig, path)))
    for key, value in flatten(configs.to_dict(config)).items():
        if key not in MAY_DIFFER and there[key] != value:
            raise InputError(
                f"{config.out} holds a run with {key} = {there[key]}, got {value}; "
                "give another --out, or delete that folder to start again"
            )


def check_same_data(there: dict[str, Any], now: dict[str, Any], config: TrainConfig) -> None:
    """Refuses to resume on another teacher's features or on other tasks.

    Raises:
        InputError: naming what differs.
    """
    if there["teacher"] is not None and now["teacher"] is not None:
        hint = f"{config.out} was trained on another store; give another --out"
        check_provenance(now["teacher"], there["teacher"], str(config.data.store), hint)
    if there["trained_on"] != now["trained_on"]:
        task = sorted(set(there["trained_on"]) ^ set(now["trained_on"]))[0]
        raise InputError(
            f"{config.out} was trained on other tasks: {config.data.tasks.source} changed in "
            f"{task}; give another --out"
        )


def describe(config: TrainConfig, examples: Examples, state: Any, first_step: int) -> str:
    """Returns what a user should know before the first step."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    teacher = examples.store.provenance["weights"] if examples.store else "none"
    left_out = f", {examples.left_out} left out (answer off the canvas)" * bool(examples.left_out)
    return (
        f"student: {config.model.kind}, {count:,} parameters, {len(jax.devices())} device(s)\n"
        f"data: {len(examples.examples)} examples{left_out}; teacher: {teacher}\n"
        + (f"resuming at step {first_step}" if first_step else "starting")
    )


class MetricsLog:
    """Shows a progress bar and keeps the metrics: TensorBoard, and one JSON line a log step.

    After a resume, lines that the checkpoint does not know are dropped, so the file reads like
    that of an unbroken run.
    """

    def __init__(self, out: Path, first_step: int, total_steps: int) -> None:
        """Opens the files and cuts them back to `first_step`."""
        self._path = out / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        # A killed run can leave half a line.
        whole = [line for line in lines if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= first_step]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step")
        self._time, self._step = time.perf_counter(), first_step

    def say(self, text: str) -> None:
        """Prints above the bar."""
        self._bar.write(text)

    def write(self, step: int, metrics: dict[str, float], *, keep: bool) -> None:
        """Shows a step; keeps it if asked to."""
        self._bar.update()
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in metrics.items() if k != "learning_rate"})
        if not keep:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        now = time.perf_counter()
        rate = (step - self._step) / max(now - self._time, 1e-9)
        self._time, self._step = now, step
        for name, value in {**metrics, "steps_per_second": rate}.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the files."""
        self._bar.close()
        self._board.close()


if __name__ == "__main__":
    configs.command(main, TrainConfig)
