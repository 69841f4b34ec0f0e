"""What a run does besides steps: looks ahead, compiles once, reads before it saves."""

import contextlib
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.errors import InputError
from bridge.scaling import no_scaling
from student_jax import train as train_module
from student_jax.checkpoints import Checkpoints
from student_jax.log import SHOWN
from student_jax.state import init_state, make_optimizer
from student_jax.students import make_student
from student_jax.train import train
from tests.conftest import task_json


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


def test_dry_run_shows_what_a_run_takes_and_writes_nothing(train_config, capsys):
    changes = {"optim.ema_decay": 0.9, "model.table": 6}
    config = train_config(store=None, dry_run=True, **changes)
    train(config)
    told = capsys.readouterr().out
    model, tx = make_student(config.model, 1), make_optimizer(config.optim)
    state = jax.eval_shape(lambda: init_state(config, model, tx, no_scaling(1)))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert f"{count:,} parameters" in told
    size = f"{count * 4 / (1 << 20):,.1f}"
    assert f"parameters {size}" in told
    assert f"average {size}" in told
    assert "demonstrations u8[4, 2, 2, 8, 8]" in told
    assert "row i32[4, 2]" in told
    assert "an epoch: 3 steps" in told
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

    def counted(config, model, tx, state, batch):
        """A shell: only what is traced counts here, see test_step.py for the rest."""
        traces.append(batch.query.shape)
        names = ("loss", "param_norm", *SHOWN)
        return replace(state, step=state.step + 1), dict.fromkeys(names, jnp.zeros(()))

    monkeypatch.setattr(step_module, "train_step", counted)
    monkeypatch.setattr(train_module, "make_train_step", step_module.make_train_step)
    changes = {"data.tasks.source": str(folder), "data.tasks.dev_fraction": 0.0}
    train(train_config(store=None, **changes, **{"optim.total_steps": 6}))
    assert len(traces) == len(set(traces)) == 2
