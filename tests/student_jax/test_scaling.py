"""What of the store reaches the loss: scalings, encodings, caches."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bridge.scaling import Scaling, apply, covariance_of, phi_s, standardise
from bridge.store import Encoding, FeatureStore, frame_map
from student_jax.batch import scale_teacher
from student_jax.plan import Plan
from student_jax.solver import load_solver
from student_jax.step import AXIS, make_mesh, make_placer
from student_jax.train import make_scaling, train
from teacher_torch.extract import main as extract
from tests.conftest import examples_of


@pytest.mark.parametrize("kind", ["standardise", "phi_s"])
def test_device_scales_as_the_bridge_does(store_path, train_config, kind):
    store = FeatureStore(store_path)
    scaling = standardise(store.statistics())
    if kind == "phi_s":
        scaling = phi_s(store.statistics(), covariance_of(store, store.statistics()))
    batch = examples_of(train_config(), store).train_batch(Plan(0, 4), 0)
    got = np.asarray(scale_teacher(batch, scaling).teacher)
    mask = np.asarray(batch.teacher_mask)
    np.testing.assert_allclose(
        got[mask], apply(scaling, np.asarray(batch.teacher))[mask], atol=1e-4, rtol=1e-4
    )
    assert (got[~mask] == 0).all()


def test_scaling_goes_by_the_training_examples_alone(store_path, train_config):
    config, store = train_config(), FeatureStore(store_path)
    examples = examples_of(config, store)
    scaling = make_scaling("standardise", store, examples)
    trained = [example.question.example_id for example in examples.examples]
    assert 0 < len(trained) < len(store)
    values = np.concatenate([store[name] for name in trained]).astype(np.float64)
    np.testing.assert_allclose(scaling.mean, values.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaling.std, values.std(0), rtol=1e-4)


def test_phi_s_goes_by_the_training_examples_and_travels_with_the_weights(store_path, train_config):
    config = train_config(**{"loss.scaling": "phi_s", "optim.total_steps": 2})
    metrics = train(config)
    assert np.isfinite(metrics["mse"])
    scaling = load_solver(config.out).scaling
    assert scaling.rotation.shape == (64, 64)
    store = FeatureStore(store_path)
    trained = [e.question.example_id for e in examples_of(config, store).examples]
    assert len(trained) < len(store)
    scaled = apply(
        Scaling(*(np.asarray(x) for x in (scaling.mean, scaling.std, scaling.rotation))),
        np.concatenate([store[name] for name in trained]),
    )
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-3)


def test_no_scaling_gives_features_as_they_are(store_path, train_config):
    store = FeatureStore(store_path)
    scaling = make_scaling("none", store, examples_of(train_config(), store))
    chex.assert_trees_all_equal(scaling, Scaling(np.zeros(64, "f4"), np.ones(64, "f4")))


@pytest.mark.parametrize("tokens", ["shown", "pooled"])
def test_encodings_give_the_student_the_same_maps(
    store_path, extract_config, train_config, tmp_path, tokens
):
    """`shown` keeps just what a grid student reads; `pooled` keeps its means."""
    encoding = Encoding(tokens=tokens)
    extract(replace(extract_config, out=str(tmp_path / "s"), encoding=encoding))
    batches = [
        examples_of(train_config(), FeatureStore(path)).train_batch(Plan(0, 4), 0)
        for path in (store_path, tmp_path / "s")
    ]
    mask = batches[0].teacher_mask
    np.testing.assert_array_equal(mask, batches[1].teacher_mask)
    whole, cut = (np.asarray(batch.teacher, np.float32)[mask] for batch in batches)
    if tokens == "shown":
        np.testing.assert_array_equal(whole, cut)
    else:
        store = FeatureStore(store_path)
        example = examples_of(train_config(), store).examples[0]
        record = store.record(example.question.example_id)
        frame = record.frames[0]
        exact = frame_map(store.read(record.example_id), frame).astype(np.float64)
        means = exact.reshape(8, 2, 8, 2, -1).mean((1, 3))
        other = FeatureStore(tmp_path / "s")
        cut_frame = other.record(record.example_id).frames[0]
        got = frame_map(other.read(record.example_id), cut_frame).astype(np.float64)
        np.testing.assert_allclose(got, means.repeat(2, 0).repeat(2, 1), rtol=2**-8)


def test_feature_student_reads_padded_batches_of_the_store(store_path, train_config, tmp_path):
    config = train_config(**{"model.kind": "feature", "model.max_tokens": 2048})
    store = FeatureStore(store_path, str(tmp_path / "cache"))
    examples = examples_of(config, store)
    batch = examples.batch([1, 0])
    for row, i in enumerate((1, 0)):
        expected = store[examples.examples[i].question.example_id]
        np.testing.assert_array_equal(batch.teacher[row][batch.teacher_mask[row]], expected)
    assert batch.teacher.shape[1] == 2048
    assert (batch.teacher[~batch.teacher_mask] == 0).all()


def test_prefetch_keeps_order_and_places_batches_over_devices(store_path, train_config):
    examples = examples_of(train_config(), FeatureStore(store_path))
    mesh, plan = make_mesh(), Plan(0, 4)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    placed = examples.train_batches(plan, 0, make_placer(train_config(), mesh))
    for step in range(3):
        batch = next(placed)
        assert batch.query.sharding == sharding
        assert len(batch.query.addressable_shards) == 4
        for a, b in zip(
            jax.tree.leaves(batch), jax.tree.leaves(examples.train_batch(plan, step)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    placed.close()
