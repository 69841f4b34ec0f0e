"""A run that starts from another's weights, and one that goes on under a changed config."""

import shutil
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge import config as configs
from bridge.errors import InputError
from bridge.tree import flatten, unflatten
from student_jax import resume
from student_jax import train as train_module
from student_jax.checkpoints import Checkpoints
from student_jax.solver import load_solver
from student_jax.state import TrainState
from student_jax.train import train


def test_warm_start_takes_weights_and_nothing_else(train_config, tmp_path, monkeypatch):
    first = train_config(**{"optim.ema_decay": 0.5})
    train(first)
    source = load_solver(first.out)
    states = []
    original = resume.warm_start

    def kept(*args):
        states.append(original(*args)[1])
        return args[0], states[-1]

    monkeypatch.setattr(resume, "warm_start", kept)
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


def test_what_the_other_run_was_trained_on_counts_and_is_not_held_out(
    train_config, tmp_path, write_run
):
    whole = train_config(**{"data.tasks.dev_fraction": 0.0})
    write_run(whole)
    half = train_config(**{"data.tasks.dev_fraction": 0.5, "dev_questions": 64})
    half = replace(half, out=tmp_path / "half", init=whole.out)
    write_run(half)
    assert load_solver(half.out).trained_on == load_solver(whole.out).trained_on
    with Checkpoints(half.out) as checkpoints:
        init = checkpoints.about()["init"]
        assert checkpoints.about()["dev"] == []  # nothing is held out from both
    assert (init["run"], init["step"], len(init["trained_on"])) == (str(whole.out), 4, 6)
    (teacher,) = init["teachers"]
    assert teacher == load_solver(whole.out).teacher
    third = replace(half, out=tmp_path / "third", init=half.out)
    third = replace(third, data=replace(third.data, store=None))
    write_run(third)  # by no teacher, but of weights that two runs with one made
    assert load_solver(third.out).taught_before == [teacher, teacher]
    shutil.rmtree(whole.out)
    shutil.rmtree(half.out / "checkpoints/4")
    write_run(half)  # needs the other run no more
    assert load_solver(half.out).step == 4
    assert load_solver(half.out).trained_on == set(init["trained_on"])


def test_warm_start_from_another_teacher_or_another_model(train_config, tmp_path, write_run):
    alone = train_config(store=None)
    write_run(alone)
    config = train_config()
    write_run(replace(config, out=tmp_path / "taught", init=alone.out))
    wide = replace(config.model, width=32)
    with pytest.raises(InputError, match=r"init: .*: expected .*32.*, got .*16"):
        write_run(replace(config, out=tmp_path / "wide", init=alone.out, model=wide))


def test_only_the_fields_that_are_named_may_differ(train_config, write_run):
    config = train_config()
    write_run(config)
    longer = replace(config, optim=replace(config.optim, total_steps=5, peak_lr=1e-3))
    named = replace(longer, may_differ=("optim.total_steps",))
    with pytest.raises(InputError, match=r"optim\.peak_lr = 0\.01, got 0\.001"):
        write_run(named)
    write_run(replace(longer, may_differ=("optim",)))
    assert load_solver(config.out).step == 5
    with pytest.raises(InputError, match=r"may_differ: expected keys of the config, got optim.lr"):
        write_run(replace(longer, may_differ=("optim.lr",)))


def test_what_shapes_a_checkpoint_may_never_differ(train_config, write_run):
    config = train_config()
    write_run(config)
    changes = {"optim.ema_decay": 0.5, "loss.scaling": "layer_norm", "model.width": 32}
    for key, value in changes.items():
        other = replace(train_config(**{key: value}), may_differ=("optim", "loss", "model"))
        with pytest.raises(InputError, match=rf"{key} = .*, got .*; give another --out, with --in"):
            write_run(other)
    write_run(config)  # nothing was spoilt


def test_run_without_a_checkpoint_yet_is_no_run(train_config, tmp_path, write_run):
    config = train_config()
    with pytest.raises(InputError, match="expected a training run with checkpoints"):
        write_run(replace(config, init=tmp_path / "typo"))
    # Would be refused beside a run with another one.
    write_run(replace(config, data=replace(config.data, augmented_fraction=0.25)))


def test_checkpoint_knows_its_code_and_other_code_is_told(train_config, monkeypatch, capsys):
    config = train_config()
    train(config)
    with Checkpoints(config.out) as checkpoints:
        about = checkpoints.about()
    assert set(about["code"]) == {"version", "digest", "libraries"}
    assert about["code"]["libraries"]["jax"] == jax.__version__
    train(config)
    assert "other code" not in capsys.readouterr().err
    monkeypatch.setattr(resume, "code_digest", lambda modules: "0123456789abcdef")
    train(config)
    assert f"made by other code or libraries ({about['code']['version']}" in capsys.readouterr().err


def test_checkpoint_from_before_a_setting_was_there_goes_on(train_config):
    config = train_config()
    there = configs.to_dict(config)
    del there["model"]["table"]
    resume.check_same_config(there, config)
    there["model"]["width"] = 32
    with pytest.raises(InputError, match=r"with model\.width = 32, got 16"):
        resume.check_same_config(there, config)


def test_other_number_of_devices_is_told(train_config, monkeypatch, capsys):
    config = train_config()
    train(config)
    train(config)
    assert "devices, not" not in capsys.readouterr().err
    monkeypatch.setattr(resume.jax, "device_count", lambda: 3)
    train(config)
    assert "was made on 4 devices, not 3" in capsys.readouterr().err


def test_rows_of_the_table_stay_with_their_tasks(train_config, write_run):
    first = train_config(**{"model.table": 6})
    write_run(first)
    warm = load_solver(first.out)
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=x.shape) for name, x in flatten(warm.params).items()}
    params = unflatten({name: jnp.asarray(x) for name, x in drawn.items()})
    state = TrainState(jnp.zeros(()), params, {}, None, warm.scaling)
    for tasks, taken in ((sorted(warm.trained_on), True), (["another"], False)):
        _, after = resume.warm_start({"trained_on": tasks, "leaked": {}}, state, warm)
        same = np.array_equal(after.params["table"], warm.params["table"])
        assert same is taken
        np.testing.assert_array_equal(after.params["no_row"], warm.params["no_row"])
