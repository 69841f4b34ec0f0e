"""What a run does besides steps: keeps the best, stops early, starts warm, warns, looks ahead."""

import contextlib
import json
import shutil
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge import config as configs
from bridge.errors import InputError
from student_jax import train as train_module
from student_jax.checkpoints import Checkpoints, best_of
from student_jax.config import TrainConfig
from student_jax.development import Development, is_stale
from student_jax.log import RECENT, TrainLog
from student_jax.solver import load_solver
from student_jax.train import train
from tests.conftest import metric_lines, task_json, train_dict
from tests.test_walls import invoke

SCORES = [0.1, 0.5, 0.2, 0.3, 0.2, 0.1]


def scripted(monkeypatch, exact):
    """Held-out questions are answered just so well, trial after trial."""
    script = iter(exact)

    def try_on(self, state):
        return {"exact": next(script), "shape": 0.0, "cells": 0.0}, {}

    monkeypatch.setattr(Development, "try_on", try_on)


def test_best_and_latest_checkpoints_are_kept(train_config, monkeypatch):
    config = train_config(**{"optim.total_steps": 6, "checkpoint_steps": 1})
    scripted(monkeypatch, SCORES)
    train(config)
    with Checkpoints(config.out) as checkpoints:
        assert checkpoints.steps() == [6, 5, 2]
        assert [row["exact"] for row in checkpoints.about()["dev"]] == SCORES
    best, latest = load_solver(config.out, "best"), load_solver(config.out)
    assert (best.step, latest.step) == (2, 6)
    assert invoke("student_jax.checkpoints", "verify", str(config.out)).stdout.count("whole") == 3


def test_run_stops_early_and_stays_stopped(train_config, monkeypatch, capsys):
    config = train_config(**{"optim.total_steps": 6, "checkpoint_steps": 1, "patience": 2})
    scripted(monkeypatch, SCORES)
    train(config)
    assert "stopped early at step 4: none since step 2 is better" in capsys.readouterr().out
    assert load_solver(config.out).step == 4
    train(config)  # asks for no more scores
    assert load_solver(config.out).step == 4
    assert metric_lines(config.out)[-1]["step"] == 4


def test_best_is_the_most_exact_then_the_most_cells_then_the_first():
    rows = [(0.0, 0.9), (0.5, 0.1), (0.5, 0.2), (0.5, 0.2), (0.4, 1.0)]
    dev = [{"step": i, "exact": e, "cells": c} for i, (e, c) in enumerate(rows)]
    assert best_of(dev) == 2
    assert best_of([]) is None
    assert [is_stale(dev[:n], 2) for n in range(6)] == [False] * 5 + [True]
    assert not is_stale(dev, 0)


def test_run_without_held_out_tasks_has_no_best(train_config):
    config = train_config(**{"optim.total_steps": 1, "dev_questions": 0})
    train(config)
    with pytest.raises(InputError, match="never tried on held-out questions"):
        load_solver(config.out, "best")


def test_development_answers_as_solve_does_and_trains_on_none_of_it(train_config, store_path):
    from bridge.store import FeatureStore

    config = train_config(**{"data.tasks.dev_fraction": 0.5, "optim.ema_decay": 0.5})
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
    config = train_config(**{"data.tasks.dev_fraction": 0.5, "optim.total_steps": 2})
    train(config)
    events = b"".join(path.read_bytes() for path in (config.out / "tensorboard").iterdir())
    task_set = config.data.tasks
    _, held_out = task_set.split(task_set.load())
    for name in (*held_out, "exact", "cells"):
        assert f"dev/{name}".encode() in events
    assert events.count(b"\x89PNG") == min(4, len(held_out))
    assert b"speed/mfu" in events


def test_warm_start_takes_weights_and_nothing_else(train_config, tmp_path, monkeypatch):
    first = train_config(**{"optim.total_steps": 2, "optim.ema_decay": 0.5})
    train(first)
    source = load_solver(first.out)
    states = []
    original = train_module.resume.warm_start

    def kept(*args):
        states.append(original(*args)[1])
        return args[0], states[-1]

    monkeypatch.setattr(train_module.resume, "warm_start", kept)
    second = replace(first, out=tmp_path / "second", init=first.out)
    monkeypatch.setattr(train_module, "make_train_step", spying(kept_state := []))
    train(second)
    chex.assert_trees_all_equal(kept_state[0].params, source.params)
    chex.assert_trees_all_equal(kept_state[0].ema, source.params)
    assert int(kept_state[0].step) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(kept_state[0].opt_state))
    train(second)  # goes on from its own checkpoint
    assert len(states) == 1


def spying(seen):
    """make_train_step whose step keeps a copy of the states it was given."""
    original = train_module.make_train_step

    def make(*args):
        step = original(*args)

        def spied(state, batch):
            seen.append(jax.tree.map(np.array, state))
            return step(state, batch)

        return spied

    return make


def test_what_the_other_run_was_trained_on_counts(train_config, task_folder, tmp_path):
    whole = train_config(**{"optim.total_steps": 1, "data.tasks.dev_fraction": 0.0})
    train(whole)
    half = train_config(**{"optim.total_steps": 1, "data.tasks.dev_fraction": 0.5})
    half = replace(half, out=tmp_path / "half", init=whole.out)
    train(half)
    assert load_solver(half.out).trained_on == load_solver(whole.out).trained_on
    with Checkpoints(half.out) as checkpoints:
        init = checkpoints.about()["init"]
    assert (init["run"], init["step"], len(init["trained_on"])) == (str(whole.out), 1, 6)
    shutil.rmtree(whole.out)
    longer = replace(half.optim, total_steps=2)
    train(replace(half, optim=longer, may_differ=("optim",)))  # needs the other run no more
    assert load_solver(half.out).step == 2
    assert load_solver(half.out).trained_on == set(init["trained_on"])


def test_warm_start_from_another_teacher_or_another_model(train_config, tmp_path):
    alone = train_config(store=None, **{"optim.total_steps": 1})
    train(alone)
    config = train_config(**{"optim.total_steps": 1})
    train(replace(config, out=tmp_path / "taught", init=alone.out))
    wide = replace(config.model, width=32)
    with pytest.raises(InputError, match=r"init: .*: expected .*32.*, got .*16"):
        train(replace(config, out=tmp_path / "wide", init=alone.out, model=wide))


def test_only_the_fields_that_are_named_may_differ(train_config):
    config = train_config(**{"optim.total_steps": 2})
    train(config)
    longer = replace(config, optim=replace(config.optim, total_steps=3, peak_lr=1e-3))
    named = replace(longer, may_differ=("optim.total_steps",))
    with pytest.raises(InputError, match=r"optim\.peak_lr = 0\.01, got 0\.001"):
        train(named)
    train(replace(longer, may_differ=("optim",)))
    assert load_solver(config.out).step == 3
    with pytest.raises(InputError, match=r"may_differ: expected keys of the config, got optim.lr"):
        train(replace(longer, may_differ=("optim.lr",)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("optim.ema_decay", 0.5), ("loss.scaling", "layer_norm"), ("model.width", 32)],
)
def test_what_shapes_a_checkpoint_may_never_differ(train_config, key, value):
    config = train_config(**{"optim.total_steps": 2})
    train(config)
    other = replace(train_config(**{key: value}), may_differ=("optim", "loss", "model"))
    with pytest.raises(InputError, match=rf"{key} = .*, got .*; give another --out, with --init"):
        train(other)
    train(config)  # nothing was spoilt


def test_run_without_a_checkpoint_yet_is_no_run(train_config, tmp_path):
    config = train_config(**{"optim.total_steps": 1})
    with pytest.raises(InputError, match="expected a training run with checkpoints"):
        train(replace(config, init=tmp_path / "typo"))
    train(replace(config, seed=1))


def test_tasks_that_the_warm_start_was_trained_on_are_not_held_out(train_config, tmp_path):
    whole = train_config(**{"optim.total_steps": 1, "data.tasks.dev_fraction": 0.0})
    train(whole)
    half = train_config(**{"optim.total_steps": 1, "data.tasks.dev_fraction": 0.5})
    half = replace(half, out=tmp_path / "half", init=whole.out)
    train(half)
    with Checkpoints(half.out) as checkpoints:
        assert checkpoints.about()["dev"] == []


def test_patience_without_held_out_tasks_is_refused(train_config):
    with pytest.raises(InputError, match="patience: expected held-out tasks"):
        train(train_config(**{"patience": 1, "data.tasks.dev_fraction": 0.0}))


def test_step_that_is_not_finite_is_read_before_its_checkpoint_is_saved(train_config, monkeypatch):
    original = train_module.make_train_step

    def make(*args):
        step = original(*args)

        def poisoned(state, batch):
            state, metrics = step(state, batch)
            broken = metrics["loss"] * jnp.where(state.step == 2, jnp.nan, 1.0)
            return state, {**metrics, "loss": broken}

        return poisoned

    monkeypatch.setattr(train_module, "make_train_step", make)
    monkeypatch.setattr(jax, "transfer_guard", lambda _: contextlib.nullcontext())
    config = train_config(checkpoint_steps=2)
    with pytest.raises(InputError, match=r"step 2: loss not finite"):
        train(config)
    with Checkpoints(config.out) as checkpoints:
        assert checkpoints.steps() == []


def test_best_that_is_damaged_gives_way_to_the_next_best(train_config, monkeypatch, capsys):
    config = train_config(**{"optim.total_steps": 6, "checkpoint_steps": 1})
    scripted(monkeypatch, SCORES)
    train(config)
    for path in (config.out / "checkpoints/2/state").rglob("d/*"):
        path.write_bytes(b"")
    assert load_solver(config.out, "best").step == 5
    printed = capsys.readouterr().err
    assert "step 2 is damaged" in printed
    assert "Traceback" not in printed


def test_checkpoint_knows_its_code_and_other_code_is_told(train_config, monkeypatch, capsys):
    config = train_config(**{"optim.total_steps": 2})
    train(config)
    with Checkpoints(config.out) as checkpoints:
        about = checkpoints.about()
    assert set(about["code"]) == {"version", "digest", "libraries"}
    assert about["code"]["libraries"]["jax"] == jax.__version__
    train(config)
    assert "other code" not in capsys.readouterr().err
    monkeypatch.setattr(train_module.resume, "code_digest", lambda modules: "0123456789abcdef")
    train(config)
    assert f"made by other code or libraries ({about['code']['version']}" in capsys.readouterr().err


def test_dry_run_shows_what_a_run_takes_and_writes_nothing(task_folder, tmp_path, write_yaml):
    value = train_dict(task_folder, None, tmp_path / "run", **{"optim.ema_decay": 0.9})
    done = invoke("student_jax.train", "--config", str(write_yaml(value)), "--dry_run", "True")
    assert done.returncode == 0, done.stderr
    config = configs.from_dict(TrainConfig, value)
    train(replace(config, optim=replace(config.optim, total_steps=1)))
    count = load_solver(config.out).num_parameters
    assert f"{count:,} parameters" in done.stdout
    size = f"{count * 4 / (1 << 20):,.1f}"
    assert f"parameters {size}" in done.stdout
    assert f"average {size}" in done.stdout
    assert "demonstrations u8[4, 2, 2, 8, 8]" in done.stdout
    assert "an epoch: 3 steps" in done.stdout


def test_dry_run_leaves_no_folder(train_config):
    config = train_config(store=None, dry_run=True)
    train(config)
    assert not config.out.exists()


def test_one_compilation_a_bucket(train_config, tmp_path, monkeypatch):
    from bridge.arc import Pair, Task
    from student_jax import step as step_module
    from tests.conftest import make_grid

    rng, folder = np.random.default_rng(0), tmp_path / "sizes"
    folder.mkdir()
    for i, side in enumerate((3, 11)):
        pairs = tuple(Pair(make_grid(rng, side, side), make_grid(rng, 3, 3)) for _ in range(3))
        task = Task(f"{i}", pairs, (pairs[0].input,), (pairs[0].output,))
        (folder / f"{i}.json").write_text(json.dumps(task_json(task)))
    traces = []
    original = step_module.train_step

    def counted(*args):
        traces.append(args[-1].query.shape)
        return original(*args)

    monkeypatch.setattr(step_module, "train_step", counted)
    changes = {"data.tasks.source": str(folder), "data.tasks.dev_fraction": 0.0}
    train(train_config(store=None, **changes, **{"optim.total_steps": 6}))
    assert len(traces) == len(set(traces)) == 2


def numbers(loss):
    names = ("loss", "task", "mse", "cosine", "learning_rate", "grad_norm")
    return {name: np.float32(loss) for name in names}


@pytest.fixture
def log(train_config):
    config = train_config(log_steps=2)
    config.out.mkdir()
    log = TrainLog(
        config,
        0,
        peak_flops=1e9,
        name_batch=lambda step: f"example_{step}",
        last_good=lambda: 7,
        quiet=False,
    )
    with log:
        yield log


def see(log, step, loss=1.0, flops=1e6, waited=0.0):
    log.see(step, numbers(loss), examples=4, flops=flops, waited=waited)


def test_loss_spike_is_told_once_with_its_examples(log, capsys):
    for step in range(1, 31):
        see(log, step, loss=9.0 if step in (20, 22) else 1.0)
    told = [line for line in capsys.readouterr().out.splitlines() if "times the median" in line]
    assert len(told) == 1
    assert "step 20: loss 9, 9.0 times the median" in told[0]
    assert "example_19" in told[0]


def test_drop_of_throughput_is_told(log, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("student_jax.log.time.perf_counter", lambda: clock[0])
    log._window.__init__()
    for step in range(1, RECENT):
        clock[0] += 10.0 if step > 40 else 1.0
        see(log, step, waited=9.0 if step > 40 else 0.0)
    told = [line for line in capsys.readouterr().out.splitlines() if "usual speed" in line]
    assert told
    assert "10% of the usual speed" in told[-1] or "11% of the usual speed" in told[-1]
    assert "waiting for data" in told[-1]


def test_not_finite_stops_with_step_examples_and_last_good(log):
    see(log, 1)
    see(log, 2, loss=np.nan)
    with pytest.raises(InputError, match=r"step 2: .*loss.* not finite; .*example_1; .*step 7"):
        log.settle()


def test_speed_adds_up(log, train_config, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("student_jax.log.time.perf_counter", lambda: clock[0])
    log._window.__init__()
    for step in range(1, 4):
        clock[0] += 0.5
        see(log, step, waited=0.1)
    lines = (train_config().out / "metrics.jsonl").read_text().splitlines()
    speed = json.loads(lines[0])["speed"]
    # The clock starts once the first batch's shape is compiled: two steps took 1 s.
    assert speed["examples_per_second"] == pytest.approx(8)
    assert speed["mfu"] == pytest.approx(2e6 / 1e9)
    assert speed["waiting"] == pytest.approx(0.2)
