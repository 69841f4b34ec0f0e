"""Every fault ends in a named error, or in a correct resume."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from bridge.errors import InputError
from bridge.store import Encoding, FeatureStore, storage
from bridge.store.check import free, verify
from bridge.store.records import _digest
from tests.bridge.stores import (
    PROVENANCE,
    WIDTH,
    append,
    digest_of,
    frames_of,
    make_store,
    noise,
)

NAME = "a0_train_0"


@pytest.fixture(params=["bf16", "fp8"])
def store(tmp_path, request):
    return make_store(tmp_path / "s", encoding=Encoding(values=request.param))


def chunk(store, array="values", name=NAME):
    folder = Path(store.path) / "views" / digest_of(name) / array
    return folder / ("c.0" if array == "scale" else "c.0.0")


def damage(path, fault):
    data = bytearray(path.read_bytes())
    if fault == "flip":
        data[len(data) // 2] ^= 1
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(data[: {"flip": None, "truncate": -5, "empty": 0}[fault]]))


def assert_found_and_repaired(store):
    """verify names the example and no other; writing it again makes a whole store."""
    store = FeatureStore(store.path)
    report = verify(store)
    assert list(report.faults) == [NAME]
    features = append(store, NAME, seed=0, tokens=300)
    assert verify(FeatureStore(store.path)).is_whole
    if store.encoding.values == "bf16":
        np.testing.assert_array_equal(store[NAME].view("u2"), features.view("u2"))


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "missing"])
def test_damaged_values_are_an_error_naming_the_example(store, fault):
    damage(chunk(store), fault)
    with pytest.raises(InputError, match=f"example {NAME} is damaged .* bridge.store repair"):
        FeatureStore(store.path).read(NAME)
    assert_found_and_repaired(store)


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "missing"])
def test_damaged_moments_are_an_error_naming_the_example(store, fault):
    damage(Path(store.path) / "moments" / digest_of(NAME), fault)
    with pytest.raises(InputError, match=f"example {NAME} is damaged"):
        FeatureStore(store.path).statistics()
    assert_found_and_repaired(store)


@pytest.mark.parametrize("fault", ["flip", "missing"])
def test_damaged_scale_is_an_error_naming_the_example(tmp_path, fault):
    store = make_store(tmp_path / "s", encoding=Encoding(values="fp8"))
    damage(chunk(store, "scale"), fault)
    with pytest.raises(InputError, match=f"example {NAME} is damaged"):
        FeatureStore(store.path).read(NAME)
    assert_found_and_repaired(store)


def test_every_single_bit_of_a_chunk_is_guarded(tmp_path):
    """Flips one bit at 200 places: not one is read as features."""
    store = make_store(tmp_path / "s", count=1)
    path = chunk(store)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(data), 200):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="is damaged"):
            store.read(NAME)


def forge(path, changes):
    """A manifest entry with other fields and a right check, as only malice makes one."""
    value = {**json.loads(path.read_text()), **changes}
    del value["check"]
    return json.dumps({**value, "check": _digest(value)}).encode()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not readable"),
        (b'{"example_id": "a0_tr', "not readable"),
        (b"[" * 100_000, "not readable"),
        (b"[]", "not readable"),
        (b"\xff\xfe", "not readable"),
        ({"example_id": "a1_train_0"}, "names the example 'a1_train_0'"),
        ({"view_digest": "../../../etc"}, "view_digest is not a sha256"),
        ({"num_tokens": 10**12}, "num_tokens: expected 1.."),
        ({"num_tokens": True}, "num_tokens: expected 1.."),
        ({"extra": 1}, "not readable"),
        ({"frames": [{"role": "query"}]}, "not readable"),
        ("flip", "not as it was written"),
    ],
)
def test_damaged_manifest_entry_is_named_and_the_rest_is_served(store, text, fault):
    path = Path(store.path) / f"manifest/{NAME}.json"
    if isinstance(text, dict):
        text = forge(path, text)
    if text == "flip":  # a frame one token off: nothing but the entry's own check can tell
        text = path.read_bytes().replace(b'"first_token": 3', b'"first_token": 7')
    path.write_bytes(text)
    again = FeatureStore(store.path)
    assert again.ids == ["a1_train_0", "a2_train_0"]
    with pytest.raises(InputError, match=fault):
        again.read(NAME)
    assert_found_and_repaired(store)


@pytest.mark.parametrize(
    "frame",
    [
        {"first_token": 300},
        {"first_token": -1},
        {"map_rows": 17},
        {"pool": 10**9},
        {"tile_rows": 0},
        {"rows": "3"},
        {"rows": -9},
        {"role": "output"},
        {"role": 7},
        {"demonstration": -5},
    ],
)
def test_manifest_frames_outside_the_tokens_are_refused(store, frame):
    path = Path(store.path) / f"manifest/{NAME}.json"
    frames = json.loads(path.read_text())["frames"]
    frames[0] |= frame
    path.write_bytes(forge(path, {"frames": frames}))
    assert NAME in FeatureStore(store.path).damaged


def test_arrays_swapped_between_examples_are_found(store):
    """Each is whole and has a right checksum, but is not the example's."""
    mine, other = chunk(store), chunk(store, name="a1_train_0")
    shutil.copy(other, mine)
    report = verify(FeatureStore(store.path))
    assert list(report.faults) == [NAME]


@pytest.mark.parametrize("change", [{"data_type": "uint8"}, {"shape": [1, WIDTH]}, None])
def test_metadata_that_would_mislead_other_readers_is_found(store, change):
    path = Path(store.path) / "views" / digest_of(NAME) / "values/zarr.json"
    text = json.dumps({**json.loads(path.read_text()), **change}) if change else "{"
    path.write_text(text)
    store.read(NAME)  # ours goes by the manifest
    assert_found_and_repaired(store)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_chunk_of_another_dtype_with_a_right_checksum_is_an_error(store, dtype):
    specs = store.encoding.array_specs(300, WIDTH)
    metadata = {**specs["values"], "data_type": dtype}
    folder = chunk(store).parent
    shutil.rmtree(folder)
    other = ts.open(
        {"driver": "zarr3", "kvstore": f"file://{folder}/", "metadata": metadata}, create=True
    ).result()
    other[...].write(np.ones((300, WIDTH), dtype)).result()
    if store.encoding.values == "fp8" and dtype == "uint8":  # the same size: the digest tells
        assert not verify(FeatureStore(store.path)).is_whole
        return
    with pytest.raises(InputError, match="is damaged"):
        FeatureStore(store.path).read(NAME)


BOMB = """
import resource, sys
from bridge.errors import InputError
from bridge.store import FeatureStore
store = FeatureStore(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    store.read("a0_train_0")
except InputError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_decompression_bomb_is_refused_in_little_memory(store):
    """1 GiB of zeros in a few hundred KB, behind a right checksum."""
    codec = store.encoding.array_specs(300, WIDTH)["values"]["codecs"][1]
    if codec["name"] == "blosc":
        codec = {"name": "blosc", "configuration": {**codec["configuration"], "blocksize": 0}}
    size = 1 << 30
    bomb = ts.open(
        {
            "driver": "zarr3",
            "kvstore": "memory://",
            "metadata": {
                "shape": [size],
                "data_type": "uint8",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size]}},
                "codecs": [{"name": "bytes"}, codec, {"name": "crc32c"}],
            },
            "store_data_equal_to_fill_value": True,
        },
        create=True,
    ).result()
    bomb[...].write(np.zeros(size, np.uint8)).result()
    data = bomb.kvstore.read("c/0").result().value
    assert len(data) < size // 100
    chunk(store).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, store.path], capture_output=True, text=True, check=True
    )
    message, grown = done.stdout.strip().splitlines()
    assert "is damaged" in message
    assert int(grown) < 100_000  # KB


@pytest.mark.parametrize("name", ["../../outside", "a/b", "", ".hidden", "x" * 300, "a\0b"])
def test_names_that_would_climb_out_are_refused(store, name):
    with pytest.raises(InputError, match="example id"):
        append(store, name)
    assert len(FeatureStore(store.path)) == 3


def test_lock_files_of_killed_writers_are_ignored_and_freed_once_old(store):
    folder = Path(store.path)
    stale = [folder / "manifest/a9.json.__lock", chunk(store).with_name("0.__lock")]
    for path in stale:
        path.write_bytes(b"x" * 100)
    append(FeatureStore(store.path), NAME, seed=0, tokens=300)  # writes over a stale lock
    stale[1].write_bytes(b"x")
    again = FeatureStore(store.path)
    assert len(again) == 3
    report = verify(again)
    assert report.is_whole
    assert len(report.leftovers) == 2
    assert free(again, report.leftovers) == []  # they may be a running writer's
    for path in stale:
        os.utime(path, (0, 0))
    assert len(free(again, report.leftovers)) == 2
    assert not any(path.exists() for path in stale)
    assert verify(FeatureStore(store.path)).leftovers == []


def test_views_that_no_example_needs_are_freed_once_old(store):
    append(store, NAME, seed=0, tokens=300, shown="the task as it is now")
    again = FeatureStore(store.path)
    report = verify(again)
    assert report.is_whole
    assert report.leftovers
    for key in report.leftovers:
        os.utime(Path(store.path) / key, (0, 0))
    assert len(free(again, report.leftovers)) == len(report.leftovers)
    assert not (Path(store.path) / "views" / digest_of(NAME)).exists()
    assert verify(FeatureStore(store.path)).leftovers == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"schema": 2}',
        '{"schema": 2, "encoding": 3}',
        {"feature_width": 10**13},
        {"feature_width": 0},
        {"encoding": {"tokens": "all", "values": "int4"}},
    ],
)
def test_damaged_provenance_is_one_line(store, text):
    path = Path(store.path) / "store.json"
    if isinstance(text, dict):
        text = json.dumps({**json.loads(path.read_text()), **text})
    path.write_text(text)
    with pytest.raises(InputError, match="store") as error:
        FeatureStore(store.path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", '{"num_tokens": 1, "mean": [], "std": []}'])
def test_damaged_statistics_are_found(store, text):
    store.write_statistics()
    assert verify(FeatureStore(store.path)).is_whole
    (Path(store.path) / "statistics.json").write_text(text)
    report = verify(FeatureStore(store.path))
    assert report.statistics_fault
    assert not report.is_whole


def test_full_disk_says_needed_and_free_and_loses_nothing(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    store = FeatureStore.create(small_disk / "s", PROVENANCE)
    bits = np.random.default_rng(0).integers(0x3F00, 0x4000, (5000, WIDTH)).astype(np.uint16)
    features = bits.view(ml_dtypes.bfloat16)  # compresses badly: about 100 KB each
    done = []

    def fill():
        for i in range(100):
            name = f"d{i}_train_0"
            store.append(name, features + i, frames_of((3, 2)), digest_of(name))
            done.append(name)

    with pytest.raises(InputError, match=r"disk full: .* needs [\d,]+ bytes, [\d,]+ are free"):
        fill()
    assert len(done) > 2
    again = FeatureStore(small_disk / "s")
    assert again.ids == sorted(done)
    assert verify(again).is_whole
    ballast.unlink()
    name = f"d{len(done)}_train_0"
    again.append(name, features, frames_of((3, 2)), digest_of(name))
    np.testing.assert_array_equal(FeatureStore(small_disk / "s")[name], features)


def test_largest_file_size_counts_as_full(tmp_path):
    """A quota stops a write in the same way."""
    code = f"""
import resource, numpy as np, sys
sys.path.insert(0, {str(Path.cwd())!r})
from tests.bridge.stores import *
store = make_store({str(tmp_path / "s")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
append(store, "big_train_0", tokens=5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "disk full" in done.stderr.splitlines()[-1]
    assert verify(FeatureStore(tmp_path / "s")).is_whole


def test_write_error_that_is_not_for_want_of_space_is_told_as_it_is(store, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        storage.write_key(storage.open_kvstore(tmp_path / "s"), "store.json/below", b"x")


def test_write_over_metadata_that_does_not_fit_starts_afresh(store):
    """What a bad disk left of a view that was never acknowledged."""
    path = Path(store.path) / "views" / digest_of("new") / "values/zarr.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"zarr_format": 3, "node')
    append(store, "new_train_0", seed=4, shown="new")
    again = FeatureStore(store.path)
    assert verify(again).is_whole
    if store.encoding.values == "bf16":
        np.testing.assert_array_equal(again["new_train_0"].view("u2"), noise(4, 300).view("u2"))


def test_paths_that_cannot_be_a_store_are_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot"):
        FeatureStore.create(tmp_path / "file" / "s", PROVENANCE)
    with pytest.raises(InputError, match="path ends in '/'"):
        FeatureStore.create(ts.KvStore.open("memory://a").result(), PROVENANCE)


def test_a_path_named_quota_is_not_a_full_disk(tmp_path):
    store = make_store(tmp_path / "quota")
    with pytest.raises(InputError, match=r"cannot write store\.json/below"):
        storage.write_key(store.kv, "store.json/below", b"x")
