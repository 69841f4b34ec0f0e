import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import InputError
from bridge.scaling import apply, covariance_of, hadamard, no_scaling, phi_s, standardise
from bridge.store import FeatureStore
from bridge.store.statistics import merge, statistics_of
from tests.bridge.stores import PROVENANCE, make_store


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s", count=5)


def everything(store):
    return np.concatenate([store[i] for i in range(len(store))]).astype(np.float64)


def test_statistics_equal_numpy_in_f64(store):
    got, values = store.write_statistics(), everything(store)
    np.testing.assert_allclose(got.mean, values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.std, values.std(0), rtol=1e-5)  # summed in f32
    assert got.num_tokens == len(values)
    energy = np.square(values).sum(0)
    assert got.top_channels == np.argsort(-energy)[:8].tolist()
    assert got.top_energy_share == pytest.approx(np.sort(energy)[-8:].sum() / energy.sum())


def test_statistics_of_some_examples_are_of_those_alone(store):
    got = store.statistics(["a1_train_0", "a3_train_0"])
    values = np.concatenate([store["a1_train_0"], store["a3_train_0"]]).astype(np.float64)
    np.testing.assert_allclose(got.std, values.std(0), rtol=1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merging_in_any_order_and_grouping_gives_the_whole(sizes, random):
    rng = np.random.default_rng(len(sizes))
    values = (rng.normal(size=(sum(sizes), 3)) * [1, 10, 0.1] + [0, 50, 0]).astype("bfloat16")
    parts = [statistics_of(part) for part in np.split(values, np.cumsum(sizes)[:-1])]
    random.shuffle(parts)
    cut = random.randint(0, len(parts) - 1)
    got = merge([merge(parts[: cut + 1]), *parts[cut + 1 :]])  # as ranks would
    exact = values.astype(np.float64)
    np.testing.assert_allclose(got.mean, exact.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.std, exact.std(0), rtol=1e-4, atol=1e-5)
    assert got.num_tokens == len(values)


def test_a_few_loud_channels_show_in_the_energy_share(tmp_path):
    values = np.random.default_rng(0).normal(size=(200, 100)).astype(ml_dtypes.bfloat16)
    assert statistics_of(values).top_energy_share < 0.15
    values[:, [3, 70]] *= 100
    loud = statistics_of(values)
    assert loud.top_energy_share > 0.99
    assert set(loud.top_channels[:2]) == {3, 70}


def test_statistics_of_an_empty_store_say_what_to_do(tmp_path):
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    with pytest.raises(InputError, match="run the extract command again"):
        store.statistics()


def test_covariance_equals_numpy(store):
    got = covariance_of(store, store.statistics())
    np.testing.assert_allclose(got, np.cov(everything(store).T, bias=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 48, 384, 768, 1152, 2048])
def test_hadamard_matrices_have_orthogonal_rows_of_ones(order):
    matrix = hadamard(order)
    assert (np.abs(matrix) == 1).all()
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [3, 6, 100 - 8, 1000 - 2])
def test_width_without_a_known_hadamard_matrix_is_one_line(order):
    with pytest.raises(InputError, match="phi_s: expected a feature width"):
        hadamard(order)


def test_standardise_gives_each_channel_mean_0_and_std_1(store):
    scaled = apply(standardise(store.statistics()), everything(store))
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)


def test_phi_s_gives_equal_variances_and_keeps_proportions(store):
    values = everything(store)
    scaling = phi_s(store.statistics(), covariance_of(store, store.statistics()))
    scaled = apply(scaling, values).astype(np.float64)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-3)
    rotation = scaling.rotation.astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-5)
    # One scale for all directions: distances between tokens keep their proportions.
    before = np.linalg.norm(values[1:50] - values[:49], axis=1)
    after = np.linalg.norm(scaled[1:50] - scaled[:49], axis=1)
    np.testing.assert_allclose(after / before, (after / before).mean(), rtol=1e-4)
    # Standardising does not: that is the difference.
    other = np.linalg.norm(np.diff(apply(standardise(store.statistics()), values[:50]), axis=0))
    assert not np.isclose(other, np.linalg.norm(after))


def test_channel_that_never_changes_stays_finite():
    constant = np.ones((5, 4), ml_dtypes.bfloat16)
    assert (apply(standardise(statistics_of(constant)), constant) == 0).all()
    np.testing.assert_array_equal(apply(no_scaling(4), constant), 1)
