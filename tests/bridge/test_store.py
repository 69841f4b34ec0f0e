import json
import threading

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from bridge.errors import InputError
from bridge.store import FeatureStore, FrameTokens, storage
from bridge.store.cache import MappedCache, RamCache
from bridge.store.provenance import code_digest
from tests.bridge.stores import PROVENANCE, WIDTH, append, digest_of, frames_of, make_store, noise


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s")


def test_every_finite_value_comes_back_bit_for_bit(tmp_path):
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    every = every[np.abs(every.astype(np.float32)) < 1e18]  # squares must fit f32
    every = every[: len(every) // WIDTH * WIDTH].reshape(-1, WIDTH)
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    store.append("all_train_0", every, frames_of((3, 2)), digest_of("all"))
    again = FeatureStore(tmp_path / "s")
    np.testing.assert_array_equal(again.read("all_train_0").view(np.uint16), every.view(np.uint16))
    assert again.record("all_train_0").frames == frames_of((3, 2))


def test_all_zero_features_are_stored_not_assumed(tmp_path):
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    zeros = np.zeros((300, WIDTH), ml_dtypes.bfloat16)
    store.append("z_train_0", zeros, frames_of((3, 2)), digest_of("z"))
    assert (tmp_path / "s/views" / digest_of("z") / "values/c.0.0").is_file()
    assert (store.read("z_train_0") == 0).all()


def test_another_zarr_reader_needs_nothing_of_ours(store, tmp_path):
    folder = tmp_path / "s/views" / digest_of("a1_train_0") / "values"
    array = ts.open({"driver": "zarr3", "kvstore": f"file://{folder}/"}).result()
    np.testing.assert_array_equal(
        array[...].read().result().view(np.uint16), noise(1, 301).view(np.uint16)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_and_not_acknowledged(store, value):
    bad = noise(0, 300)
    bad[7, 3] = value
    with pytest.raises(InputError, match="features of b_train_0: not finite"):
        store.append("b_train_0", bad, frames_of((3, 2)), digest_of("b"))
    assert len(FeatureStore(store.path)) == 3


def test_indexing_length_and_subsets_by_task(store):
    assert len(store) == 3
    assert store.ids == ["a0_train_0", "a1_train_0", "a2_train_0"]
    np.testing.assert_array_equal(store[1], store["a1_train_0"])
    some = store.of_tasks({"a2", "a0", "other"})
    assert some.ids == ["a0_train_0", "a2_train_0"]
    assert len(store) == 3
    np.testing.assert_array_equal(some[np.int64(-1)], store["a2_train_0"])
    with pytest.raises(IndexError):
        some[2]
    with pytest.raises(ValueError, match="to be read only"):
        append(some, "b_train_0")
    with pytest.raises(ValueError, match="to be read only"):
        some.write_statistics()


def test_batches_are_padded_to_a_bucket(store):
    features, mask = store.batch(["a2_train_0", "a0_train_0"], bucket=64)
    assert features.shape == (2, 320, WIDTH)
    assert mask.sum(1).tolist() == [302, 300]
    np.testing.assert_array_equal(features[0][mask[0]], store[2])
    assert (features[~mask] == 0).all()


@pytest.mark.parametrize("cache", ["ram", "none", "folder"])
def test_caches_change_nothing_but_who_decodes(store, tmp_path, cache, monkeypatch):
    cached = FeatureStore(store.path, str(tmp_path / "c") if cache == "folder" else cache)
    decoded = []
    decode = type(store.encoding).decode
    monkeypatch.setattr(
        type(store.encoding), "decode", lambda self, a: decoded.append(1) or decode(self, a)
    )
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(cached[i].view(np.uint16), noise(i, 300 + i).view("u2"))
    assert len(decoded) == (6 if cache == "none" else 3)
    if cache != "none":
        with pytest.raises(ValueError, match="read-only"):
            cached[0][0, 0] = 1


def test_ram_cache_keeps_what_came_first_and_never_more_than_it_may():
    cache = RamCache(300)
    make = lambda: np.zeros(100, np.uint16)  # 200 bytes  # noqa: E731
    first = cache.get("a", make)
    assert cache.get("b", make) is not cache.get("b", make)
    assert cache.get("a", make) is first
    assert cache.has("a")
    assert not cache.has("b")


def test_mapped_cache_makes_a_cut_file_again(tmp_path):
    cache = MappedCache(tmp_path)
    features = noise(0, 5)
    cache.get("d", lambda: features)
    path = tmp_path / "d.npy"
    whole = path.read_bytes()
    for cut in (0, 20, -4):
        path.write_bytes(whole[:cut])
        np.testing.assert_array_equal(MappedCache(tmp_path).get("d", lambda: features), features)


def test_mapped_cache_leaves_nothing_behind_when_making_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        MappedCache(tmp_path).get("d", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_is_no_folder_is_refused(store):
    with pytest.raises(InputError, match="expected ram, none or a folder"):
        FeatureStore(store.path, "RAM")


def test_identical_views_are_stored_once(tmp_path):
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    features = noise(0, 300)
    names = ["a_train_0", "b_train_0"]
    store.append(names, features, frames_of((3, 2)), digest_of("same"))
    store.link("c_train_0", store.record("a_train_0"))
    again = FeatureStore(store.path)
    assert again.ids == [*names, "c_train_0"]
    assert len(list((tmp_path / "s/views").iterdir())) == len(again.views) == 1
    for name in again.ids:
        np.testing.assert_array_equal(again[name], features)


def test_example_without_manifest_entry_does_not_count_and_is_written_again(store, tmp_path):
    (tmp_path / "s/manifest/a0_train_0.json").unlink()
    again = FeatureStore.create(store.path, PROVENANCE)
    assert again.ids == ["a1_train_0", "a2_train_0"]
    append(again, "a0_train_0", seed=9)
    np.testing.assert_array_equal(FeatureStore(store.path)["a0_train_0"], noise(9, 300))


def test_complete_is_when_all_that_runs_were_to_fill_in_is_there(store):
    store.expect(["a0_train_0", "b_train_0"], "config: 1\n")
    store.expect(["a0_train_0", "c_train_0"], "config: 2\n")
    again = FeatureStore(store.path)
    expected = again.expected()
    assert set(expected) == {"a0_train_0", "b_train_0", "c_train_0"}
    assert expected["a0_train_0"] == expected["b_train_0"] != expected["c_train_0"]
    text = storage.read_key(again.kv, f"configs/{expected['a0_train_0']}.yaml")
    assert text == b"config: 1\n"


def test_linking_forgets_what_was_true_of_fewer_examples(store):
    store.write_statistics()
    again = FeatureStore(store.path)
    again.link("z_train_0", again.record("a0_train_0"))
    assert not FeatureStore(store.path).is_complete


def test_appending_a_view_that_others_show_keeps_them_whole(store):
    store.link("z_train_0", store.record("a0_train_0"))
    append(store, "a0_train_0", seed=9)
    np.testing.assert_array_equal(FeatureStore(store.path)["z_train_0"], noise(9, 300))


def test_appending_forgets_what_was_true_of_fewer_examples(store):
    store.write_statistics()
    assert FeatureStore(store.path).is_complete
    append(FeatureStore(store.path), "b_train_0")
    assert not FeatureStore(store.path).is_complete


@pytest.mark.parametrize(
    "bad", [np.zeros((2, WIDTH), np.float32), np.zeros((2, WIDTH + 1), ml_dtypes.bfloat16)]
)
def test_append_refuses_other_shapes_and_dtypes(store, bad):
    with pytest.raises(ValueError, match=rf"expected bfloat16 \[S, {WIDTH}\]"):
        store.append("b_train_0", bad, (), digest_of("b"))


def test_frames_that_end_after_the_tokens_are_refused(store):
    with pytest.raises(ValueError, match="its tokens end after the example's 200"):
        store.append("b_train_0", noise(0, 200), frames_of((3, 2)), digest_of("b"))


def test_other_provenance_is_refused_naming_the_field(store):
    with pytest.raises(InputError, match="teacher: expected 'u', got 't'"):
        FeatureStore.create(store.path, {**PROVENANCE, "teacher": "u"})


def test_other_code_is_refused_until_it_is_accepted(store):
    changed = {**PROVENANCE, "code": ["1" * 16]}
    with pytest.raises(InputError, match=r"code: expected \['1+'\], got .*--accept_code True"):
        FeatureStore.create(store.path, changed)
    with pytest.raises(InputError, match="teacher: expected 'u'"):  # and nothing is noted
        FeatureStore.create(store.path, {**changed, "teacher": "u"}, accept_code=True)
    assert FeatureStore(store.path).provenance["code"] == ["0" * 16]
    accepted = FeatureStore.create(store.path, changed, accept_code=True)
    assert accepted.provenance["code"] == ["0" * 16, "1" * 16]
    FeatureStore.create(store.path, changed)  # from now on
    FeatureStore.create(store.path, PROVENANCE)


def test_code_digest_follows_the_source(tmp_path, monkeypatch):
    (tmp_path / "some_module.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = code_digest(["some_module"])
    assert before == code_digest(["some_module"])
    (tmp_path / "some_module.py").write_text("a = 2\n")
    assert before != code_digest(["some_module"])


def test_store_of_another_schema_is_refused(store, tmp_path):
    path = tmp_path / "s/store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    with pytest.raises(InputError, match="schema: expected 2, got 1"):
        FeatureStore(store.path)


def test_missing_things_say_what_to_do(store, tmp_path):
    with pytest.raises(InputError, match="expected the example b_test_0"):
        store.read("b_test_0")
    with pytest.raises(InputError, match=r"write one with python -m teacher_torch\.extract"):
        FeatureStore(tmp_path / "none")
    with pytest.raises(InputError, match="expected a folder, a kvstore URL"):
        FeatureStore("nothing://at/all")


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


def test_a_frame_of_several_tiles_keeps_its_place(tmp_path):
    frame = FrameTokens("input", 0, 30, 30, 2, tile_rows=1, tile_cols=2)
    store = FeatureStore.create(tmp_path / "s", PROVENANCE)
    store.append("p_train_0", noise(0, 2 + 3 * 256), [frame], digest_of("p"))
    assert FeatureStore(store.path).record("p_train_0").frames == (frame,)
