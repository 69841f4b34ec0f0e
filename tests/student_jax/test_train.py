import shutil
import subprocess
import sys
import time
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
import yaml

from bridge import config as configs
from bridge.errors import InputError
from student_jax.checkpoints import Checkpoints
from student_jax.solver import load_solver
from student_jax.train import train
from tests.conftest import ROOT, metric_lines, train_dict


def params_of(out):
    return load_solver(out).params


@pytest.fixture(scope="module")
def unbroken(task_folder, store_path, tmp_path_factory):
    """A run of 4 steps that nothing stopped."""
    from student_jax.config import TrainConfig

    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(configs.from_dict(TrainConfig, train_dict(task_folder, store_path, out)))
    return out


def test_run_leaves_checkpoint_config_metrics_and_tensorboard(unbroken):
    lines = metric_lines(unbroken)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "task", "mse", "cosine", "grad_norm", "learning_rate"} <= set(lines[0])
    assert (unbroken / "config.yaml").is_file()
    assert list((unbroken / "tensorboard").iterdir())
    with Checkpoints(unbroken) as checkpoints:
        assert checkpoints.latest_step() == 4
        assert "random weights" in checkpoints.about()["teacher"]["weights"]


def test_stopped_run_goes_on_to_the_same_curve_and_parameters(unbroken, train_config, monkeypatch):
    config = train_config()
    from student_jax import train as module

    class Stop(module.TrainLog):
        def see(self, step, *rest, **more):
            super().see(step, *rest, **more)
            if step == 4:  # the one before was read
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "TrainLog", Stop)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    assert [line["step"] for line in metric_lines(config.out)] == [1, 2, 3]
    train(config)
    assert metric_lines(config.out) == metric_lines(unbroken)
    chex.assert_trees_all_equal(params_of(config.out), params_of(unbroken))


def test_sigterm_saves_where_it_stands_and_the_run_goes_on(task_folder, store_path, tmp_path):
    out = tmp_path / "run"
    value = train_dict(task_folder, store_path, out, **{"optim.total_steps": 100_000})
    value["checkpoint_steps"] = 50_000
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(value))
    command = [sys.executable, "-m", "student_jax.train", "--config", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finishing what is in hand" in errors
    assert "Traceback" not in errors
    saved = load_solver(out).step
    assert saved == metric_lines(out)[-1]["step"] >= 5


def metric_lines_whole(out):
    return [x for x in (out / "metrics.jsonl").read_text().splitlines() if x.endswith("}")]


def test_other_config_in_the_same_folder_is_refused(unbroken, task_folder, store_path):
    from student_jax.config import TrainConfig

    changed = train_dict(task_folder, store_path, unbroken, **{"optim.peak_lr": 0.5})
    with pytest.raises(InputError, match=r"holds a run with optim.peak_lr = 0.01, got 0.5"):
        train(configs.from_dict(TrainConfig, changed))


def test_feature_student_trains_on_the_store(train_config):
    metrics = train(
        train_config(**{"model.kind": "feature", "model.max_tokens": 2048, "optim.total_steps": 1})
    )
    assert np.isfinite(metrics["loss"])
    assert metrics["mse"] > 0


def test_grid_student_trains_without_a_teacher(train_config):
    config = train_config(store=None)
    metrics = train(config)
    assert metrics["mse"] == metrics["cosine"] == 0
    assert load_solver(config.out).teacher is None


def test_run_never_goes_on_without_its_store(unbroken, train_config):
    config = replace(train_config(), out=unbroken)
    with pytest.raises(InputError, match=r"data\.store: expected one, as before"):
        train(replace(config, data=replace(config.data, store=None)))


def test_batch_that_devices_cannot_share_is_refused(train_config):
    with pytest.raises(InputError, match=r"expected a multiple of 4 devices .* got 3"):
        train(train_config(**{"optim.batch_size": 3}))


def test_run_never_goes_on_with_another_teachers_features(
    unbroken, train_config, extract_config, tmp_path
):
    from teacher_torch.extract import main as extract

    config = replace(train_config(), out=unbroken)
    other = str(tmp_path / "other")
    extract(replace(extract_config, out=other, teacher=replace(extract_config.teacher, seed=1)))
    longer = replace(config, data=replace(config.data, store=other))
    with pytest.raises(InputError, match=r"weights: expected .* seed 0', got .* seed 1"):
        train(longer)


def test_run_never_goes_on_with_other_tasks(train_config, task_folder, tmp_path):
    folder = tmp_path / "tasks"
    shutil.copytree(task_folder, folder)
    config = train_config(store=None, **{"data.tasks.source": str(folder)})
    train(config)
    shutil.copy(folder / "1a.json", folder / "1g.json")
    with pytest.raises(InputError, match=r"trained on other tasks: .* changed in 1g"):
        train(config)


def test_broken_update_stops_before_it_is_saved(train_config):
    config = train_config(**{"optim.peak_lr": 1e38, "optim.total_steps": 8})
    with pytest.raises(InputError, match=r"param_norm not finite; its examples: .*; last good"):
        train(config)
    with Checkpoints(config.out) as checkpoints:
        latest = checkpoints.latest_step()
    if latest is not None:
        leaves = jax.tree.leaves(load_solver(config.out).params)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
