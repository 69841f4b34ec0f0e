"""The best checkpoint is kept, and no run goes on for nothing."""

import io

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bridge.errors import InputError
from student_jax.checkpoints import Checkpoints, best_of
from student_jax.development import Development, is_stale
from student_jax.solver import load_solver
from student_jax.train import train
from tests.conftest import metric_lines
from tests.student_jax.runs import SCORES, TRIED, scripted

HALF = {"data.tasks.dev_fraction": 0.5, "dev_questions": 64}


def test_best_and_latest_checkpoints_are_kept(train_config, monkeypatch, write_run):
    config = train_config(**TRIED)
    scripted(monkeypatch, SCORES)
    write_run(config)
    with Checkpoints(config.out) as checkpoints:
        assert checkpoints.steps() == [4, 3, 1]  # the latest two, and the best
        assert [row["exact"] for row in checkpoints.about()["dev"]] == SCORES
    best, latest = load_solver(config.out, "best"), load_solver(config.out)
    assert (best.step, latest.step) == (1, 4)


def test_run_stops_early_and_stays_stopped(train_config, monkeypatch, capsys, write_run):
    config = train_config(**TRIED, patience=2)
    scripted(monkeypatch, SCORES)
    write_run(config)
    assert "stopped early at step 3: none since step 1 is better" in capsys.readouterr().out
    assert load_solver(config.out).step == 3
    write_run(config)  # asks for no more scores
    assert load_solver(config.out).step == 3
    assert metric_lines(config.out)[-1]["step"] == 3


def test_best_is_the_most_exact_then_the_most_cells_then_the_first():
    rows = [(0.0, 0.9), (0.5, 0.1), (0.5, 0.2), (0.5, 0.2), (0.4, 1.0)]
    dev = [{"step": i, "exact": e, "cells": c} for i, (e, c) in enumerate(rows)]
    assert best_of(dev) == 2
    assert best_of([]) is None
    assert [is_stale(dev[:n], 2) for n in range(6)] == [False] * 5 + [True]
    assert not is_stale(dev, 0)


def test_run_without_held_out_tasks_has_no_best(train_config, write_run):
    config = train_config()
    write_run(config)
    with pytest.raises(InputError, match="never tried on held-out questions"):
        load_solver(config.out, "best")


def test_patience_without_held_out_tasks_is_refused(train_config):
    with pytest.raises(InputError, match="patience: expected held-out tasks"):
        train(train_config(**{**HALF, "patience": 1, "data.tasks.dev_fraction": 0.0}))


def test_development_answers_as_solve_does_and_trains_on_none_of_it(train_config, store_path):
    from bridge.store import FeatureStore

    config = train_config(**HALF, **{"optim.ema_decay": 0.5})
    train(config)
    solver = load_solver(config.out)
    task_set = config.data.tasks
    _, held_out = task_set.split(task_set.load())
    development = Development(config, held_out, FeatureStore(store_path), 64)
    assert development.tasks == held_out
    assert not solver.trained_on & development.tasks.keys()
    with Checkpoints(config.out) as checkpoints:
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        about, state = checkpoints.restore(4, one)
    scores, pictures = development.try_on(state)
    assert {**scores, "step": 4} == about["dev"][-1]
    assert set(pictures) == set(list(held_out)[:4])
    image = pictures[next(iter(held_out))]
    assert image.dtype == np.uint8
    # The input, the attempt and the truth of a 3 x 3 task; the attempt may be larger.
    assert image.shape[1] >= 2 * 3 * 10 + 3 * 10
    assert "black 0.0%" in development.describe(scores)


def test_pictures_of_answers_reach_tensorboard(train_config):
    config = train_config(**HALF)
    train(config)
    events = EventAccumulator(str(config.out / "tensorboard"), {"scalars": 0, "images": 0})
    tags = events.Reload().Tags()
    task_set = config.data.tasks
    _, held_out = task_set.split(task_set.load())
    assert set(tags["images"]) <= {f"dev/{name}" for name in held_out}
    assert len(tags["images"]) == min(4, len(held_out))
    for name in tags["images"]:
        *_, picture = events.Images(name)  # one a checkpoint
        assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (
            picture.width,
            picture.height,
        )
    assert {"dev/exact", "dev/cells", "speed/mfu"} <= set(tags["scalars"])
    written = {event.step: event.value for event in events.Scalars("loss")}
    lines = {line["step"]: line["loss"] for line in metric_lines(config.out)}
    assert written == pytest.approx(lines)
