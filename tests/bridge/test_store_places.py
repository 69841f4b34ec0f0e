"""A store on other kvstores than a folder."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import tensorstore as ts

from bridge.errors import InputError
from bridge.store import FeatureStore
from bridge.store.__main__ import describe
from bridge.store.check import verify
from tests.bridge.stores import PROVENANCE, append, make_store, noise


def live_through(place, tamper):
    """The whole life of a store: filled, read, described, damaged, repaired, finished."""
    make_store(place)
    store = FeatureStore(place, cache="ram")
    np.testing.assert_array_equal(store[2].view(np.uint16), noise(2, 302).view(np.uint16))
    store.write_statistics()
    assert verify(FeatureStore(place)).is_whole
    assert "3 of 3 tasks, 3 distinct views" in describe(FeatureStore(place))
    with pytest.raises(InputError, match="teacher: expected 'u', got 't'"):
        FeatureStore.create(place, {**PROVENANCE, "teacher": "u"})
    name = "a1_train_0"
    tamper(f"views/{store.record(name).view_digest}/values/c.0.0")
    with pytest.raises(InputError, match=f"example {name} is damaged"):
        FeatureStore(place).read(name)
    report = verify(FeatureStore(place))
    assert list(report.faults) == [name]
    again = FeatureStore.create(place, PROVENANCE)
    append(again, name, seed=1, tokens=301)
    assert verify(FeatureStore(place)).is_whole


def test_store_in_memory():
    kv = ts.KvStore.open("memory://").result()

    def tamper(key):
        data = bytearray(kv.read(key).result().value)
        data[9] ^= 4
        kv.write(key, bytes(data)).result()

    live_through(kv, tamper)


def test_store_behind_a_file_url(tmp_path):
    def tamper(key):
        (tmp_path / "s" / key).unlink()

    live_through(f"file://{tmp_path}/s", tamper)


@pytest.fixture
def s3(monkeypatch):
    """A local server that speaks S3."""
    server = shutil.which("moto_server", path=str(sys.prefix) + "/bin")
    if server is None:
        pytest.skip("moto_server is not installed: the S3 test needs a local server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
            break
        except OSError:
            time.sleep(0.1)
    yield json.dumps(
        {
            "driver": "s3",
            "bucket": "bucket",
            "path": "some/store",
            "endpoint": url,
            "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"},
        }
    )
    process.kill()
    process.wait()


def test_store_on_an_s3_compatible_server(s3):
    def tamper(key):
        spec = json.loads(s3)
        ts.KvStore.open({**spec, "path": "some/store/"}).result().write(key, b"").result()

    live_through(s3, tamper)


def test_an_outage_is_not_taken_for_damage(s3):
    store = make_store(s3)
    patience = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    gone = json.loads(s3) | {
        "endpoint": "http://127.0.0.1:9",
        "context": {"s3_request_retries": patience},
    }
    store.kv = ts.KvStore.open({**gone, "path": "some/store/"}).result()
    with pytest.raises(InputError, match=r"cannot be read: .* this says nothing of its contents"):
        verify(store)
    with pytest.raises(InputError, match="cannot read a0_train_0"):
        store.read("a0_train_0")
    with pytest.raises(InputError, match=r"cannot read store\.json"):
        FeatureStore(json.dumps(gone))
