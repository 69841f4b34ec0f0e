"""Features that are not finite, or are another store's, stop a run before they harm it."""

import itertools
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from bridge import config as configs
from bridge.errors import InputError
from bridge.store import FeatureStore, feature_store
from bridge.store.statistics import statistics_of
from student_jax import train as module
from student_jax.checkpoints import Checkpoints
from student_jax.config import TrainConfig
from student_jax.plan import Plan
from student_jax.train import train
from tests.conftest import examples_of, metric_lines
from tests.student_jax.runs import FIRST, HARMED, LONG, complete_steps, end_of, without_bar

pytestmark = HARMED


def rewrite(store, path, change=lambda name, features: features, **about):
    """Writes a store again, with other features."""
    provenance = {key: value for key, value in store.provenance.items() if key != "golden"}
    made = FeatureStore.create(path, {**provenance, **about}, encoding=store.encoding)
    for name in store.ids:
        record = store.record(name)
        made.append(name, change(name, store.read(name)), record.frames, record.view_digest)
    return made


def first_shown(examples, plan, name):
    """Returns the first step, from 0, that shows an example as its teacher saw it."""

    def shows(step):
        shown = examples._augment(plan, step)
        chosen = zip(examples.indices(plan, step), shown, strict=True)
        return name in [
            examples.examples[i].question.example_id for i, how in chosen if how is None
        ]

    return next(step for step in itertools.count() if shows(step))


def test_features_that_are_not_finite_stop_the_run_before_it_saves_them(
    store_path, tmp_path, train_config, monkeypatch, capsys
):
    """As only a faulty writer leaves them: `append` refuses them."""
    config = train_config(**LONG)
    store = FeatureStore(store_path)
    examples, plan = examples_of(config, store), Plan(config.seed, config.optim.batch_size)
    shown = {
        e.question.example_id: first_shown(examples, plan, e.question.example_id)
        for e in examples.examples
    }
    name = max(shown, key=lambda name: shown[name])
    step = shown[name]  # from 0
    assert 10 <= step < 20  # between the first checkpoint and the second

    def spoil(other, features):
        return np.full_like(features, np.nan) if other == name else features

    with monkeypatch.context() as patch:
        patch.setattr(
            feature_store,
            "statistics_of",
            lambda x: statistics_of(np.nan_to_num(x.astype(np.float32))),
        )
        spoilt = rewrite(store, tmp_path / "spoilt", spoil)
    config = replace(config, data=replace(config.data, store=spoilt.path))
    configs.save(config, tmp_path / "config.yaml")
    assert end_of(monkeypatch, module.main, TrainConfig, "--config", tmp_path / "config.yaml") == 2
    (line,) = without_bar(capsys.readouterr().err)
    assert line.startswith(f"error: step {step + 1}: ")
    assert "loss" in line.split(" not finite")[0]
    batch = [examples.examples[i].question.example_id for i in examples.indices(plan, step)]
    assert f"its examples: {', '.join(batch)} (features not finite: {name})" in line
    assert "last good checkpoint: step 10;" in line
    assert complete_steps(config.out) == [10]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(config.out) as checkpoints:
        leaves = jax.tree.leaves(checkpoints.restore(10, one)[1])
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.fixture
def never_step(monkeypatch):
    """Makes the step one that nobody may take: it is compiled when it is first called."""

    def make(*_):
        def step(*_):
            raise AssertionError("the step was taken")

        return step

    monkeypatch.setattr(module, "make_train_step", make)


def test_store_of_another_width_is_refused_before_a_step(
    store_path, tmp_path, half, train_config, never_step
):
    narrow = rewrite(
        FeatureStore(store_path),
        tmp_path / "narrow",
        lambda _, features: features[:, :32].copy(),
        feature_width=32,
    )
    config = train_config(store=narrow.path, **LONG)
    shutil.copytree(half, config.out)
    with pytest.raises(InputError, match=r"feature_width: expected 64, got 32; .* another store"):
        train(config)
    assert complete_steps(config.out) == [10, FIRST]
    assert metric_lines(config.out) == metric_lines(half)


def test_store_that_lacks_an_example_is_refused_before_a_step(
    store_path, tmp_path, half, train_config, never_step
):
    shutil.copytree(store_path, tmp_path / "lacking")
    config = train_config(store=tmp_path / "lacking", **LONG)
    name = examples_of(config).examples[-1].question.example_id
    (tmp_path / f"lacking/manifest/{name}.json").unlink()
    shutil.copytree(half, config.out)
    with pytest.raises(InputError, match=rf"expected the example {name}, got 17 others; run ext"):
        train(config)
    assert metric_lines(config.out) == metric_lines(half)
