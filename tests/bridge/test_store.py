import threading

import ml_dtypes
import numpy as np
import pytest

from bridge.errors import InputError
from bridge.store import FeatureStore, FrameTokens

PROVENANCE = {"feature_width": 4, "teacher": "t", "view": "task"}
FRAMES = (FrameTokens("query", -1, 3, 2, 20),)


def bf16(rng, tokens, width=4):
    bits = rng.integers(0, 2**16, (tokens, width)).astype(np.uint16)
    return bits.view(ml_dtypes.bfloat16)


@pytest.fixture
def store(tmp_path):
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    rng = np.random.default_rng(0)
    for i, tokens in enumerate((3, 5, 1)):
        store.append(
            f"a_train_{i}", rng.normal(size=(tokens, 4)).astype(ml_dtypes.bfloat16), FRAMES
        )
    return store


def test_features_come_back_bit_for_bit(tmp_path):
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    every = np.arange(2**16, dtype=np.uint16).reshape(-1, 4).view(ml_dtypes.bfloat16)
    store.append("all_train_0", every, FRAMES)
    again = FeatureStore(tmp_path / "s")
    np.testing.assert_array_equal(again.read("all_train_0").view(np.uint16), every.view(np.uint16))
    assert again.record("all_train_0").frames == FRAMES


def test_all_zero_features_are_stored_not_assumed(tmp_path):
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    store.append("z_train_0", np.zeros((2, 4), ml_dtypes.bfloat16), FRAMES)
    assert (tmp_path / "s/examples/z_train_0/c/0/0").is_file()
    assert (store.read("z_train_0") == 0).all()


def chunk(store, name="a_train_0"):
    from pathlib import Path

    return Path(store.path) / f"examples/{name}/c/0/0"


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "missing"])
def test_damaged_chunk_is_an_error_naming_the_example(store, fault):
    path = chunk(store)
    data = bytearray(path.read_bytes())
    if fault == "flip":
        data[7] ^= 1
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(data[: {"flip": None, "truncate": 5, "empty": 0}[fault]]))
    with pytest.raises(InputError, match="example a_train_0 is damaged"):
        FeatureStore(store.path).read("a_train_0")


def test_example_without_manifest_entry_does_not_count_and_is_written_again(store):
    from pathlib import Path

    (Path(store.path) / "manifest/a_train_0.json").unlink()
    again = FeatureStore.create(store.path, PROVENANCE)
    assert sorted(again.records) == ["a_train_1", "a_train_2"]
    again.append("a_train_0", np.ones((9, 4), ml_dtypes.bfloat16), FRAMES)
    assert FeatureStore(store.path).read("a_train_0").shape == (9, 4)


def test_lock_file_of_a_killed_writer_is_ignored(store):
    from pathlib import Path

    (Path(store.path) / "manifest/a_train_9.json.__lock").write_bytes(b"")
    assert len(FeatureStore(store.path).records) == 3


def test_other_provenance_is_refused_naming_the_field(store):
    with pytest.raises(InputError, match="teacher: expected 'u', got 't'"):
        FeatureStore.create(store.path, {**PROVENANCE, "teacher": "u"})


def test_statistics_equal_numpy_in_f64(store):
    got = store.write_statistics()
    values = np.concatenate([store.read(name) for name in sorted(store.records)]).astype(np.float64)
    np.testing.assert_allclose(got.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.std, values.std(0), rtol=1e-6)
    assert got.num_tokens == 9


def test_unfinished_store_and_missing_things_say_what_to_do(store, tmp_path):
    with pytest.raises(InputError, match="run the extract command again"):
        store.statistics()
    with pytest.raises(InputError, match="expected the example b_test_0"):
        store.read("b_test_0")
    with pytest.raises(InputError, match=r"write one with python -m teacher_torch\.extract"):
        FeatureStore(tmp_path / "none")


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 4), np.float32), np.zeros((2, 5), ml_dtypes.bfloat16)]
)
def test_append_refuses_other_shapes_and_dtypes(store, bad):
    with pytest.raises(ValueError, match=r"expected bfloat16 \[S, 4\]"):
        store.append("b_train_0", bad, FRAMES)


def test_of_two_writers_that_start_together_one_makes_the_store(tmp_path):
    barrier = threading.Barrier(2)
    outcomes = []

    def start(teacher):
        barrier.wait()
        try:
            store = FeatureStore.create(tmp_path / "s", {**PROVENANCE, "teacher": teacher})
            outcomes.append(store.provenance["teacher"])
        except InputError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start, args=(name,)) for name in "tu"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[0] == "refused"
    assert FeatureStore(tmp_path / "s").provenance["teacher"] == sorted(outcomes)[1]
