"""Several processes train one student, as one process with as many devices would."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import yaml

from bridge import config as configs
from bridge.errors import InputError
from student_jax import processes
from student_jax import train as module
from student_jax.checkpoints import Checkpoints
from student_jax.config import TrainConfig
from student_jax.step import make_mesh
from student_jax.train import check_divides
from tests.conftest import ROOT, metric_lines, train_dict, virtual_devices

TOTAL, EVERY, LOG = 40, 20, 5  # steps: all, between checkpoints, between log lines
PATIENCE = 120  # seconds, for whatever a busy machine does in a few


def environment(devices, **more):
    return {
        **os.environ,
        "XLA_FLAGS": virtual_devices(devices),
        **more,
    }


def start(config, env, own=0):
    with (config.parent / f"errors.{own}").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "student_jax.train", "--config", str(config)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def start_pair(config):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    count = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start(config, environment(1, **count, JAX_PROCESS_ID=str(i)), i) for i in range(2)]


def ends(config, started):
    """Returns the processes' exit codes and what each wrote to stderr; leaves none behind."""
    deadline = time.monotonic() + PATIENCE
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
    for process in started:
        process.kill()
        process.wait()
    errors = [(config.parent / f"errors.{i}").read_text() for i in range(len(started))]
    return [process.returncode for process in started], errors


def config_file(folder, task_folder, store_path, **changes):
    value = train_dict(task_folder, store_path, folder / "run", **changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def newest(out):
    """Returns the newest step and what it says of itself."""
    with Checkpoints(out) as checkpoints:
        return checkpoints.latest_step(), checkpoints.about()


@pytest.fixture(scope="module")
def runs(task_folder, store_path, tmp_path_factory):
    """Two processes, of which the second is told to stop on the way; and one process with two."""
    changes = {
        "optim.total_steps": TOTAL,
        "checkpoint_steps": EVERY,
        "log_steps": LOG,
        "dev_questions": 1,
    }
    pair, one = (
        config_file(tmp_path_factory.mktemp(name), task_folder, store_path, **changes)
        for name in ("pair", "one")
    )
    told = stop_the_second(pair, start_pair(pair))
    goes_on = start_pair(pair)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "make_mesh", lambda: make_mesh(2))
            module.train(configs.load(TrainConfig, one))
    finally:
        codes, errors = ends(pair, goes_on)
    assert codes == [0, 0], errors
    return pair.parent / "run", one.parent / "run", told


def stop_the_second(config, pair):
    metrics = config.parent / "run" / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not (metrics.is_file() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.005)
    pair[1].send_signal(signal.SIGTERM)
    codes, errors = ends(config, pair)
    step, _ = newest(metrics.parent)
    return {"codes": codes, "errors": errors, "step": step, "lines": metric_lines(metrics.parent)}


def test_signal_to_one_process_stops_both_at_the_same_step(runs):
    _, _, told = runs
    assert told["codes"] == [130, 130], told["errors"]
    assert not any("Traceback" in errors for errors in told["errors"])
    assert "finishing what is in hand" in told["errors"][1]
    assert told["step"] == told["lines"][-1]["step"]
    assert told["step"] in range(LOG, TOTAL, LOG)


def test_two_processes_learn_what_one_learns(runs):
    pair, one, _ = runs
    assert metric_lines(pair) == metric_lines(one)  # to the bit


def test_two_processes_write_one_line_a_log_step(runs):
    pair, _, _ = runs
    text = (pair / "metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert steps == list(range(LOG, TOTAL + 1, LOG))


def test_two_processes_leave_the_checkpoints_that_one_leaves(runs):
    (step, pair), (other, one) = (newest(out) for out in runs[:2])
    assert step == other == TOTAL
    assert pair["digests"] == one["digests"]
    assert pair["dev"] == one["dev"]


@pytest.mark.slow
def test_two_processes_go_on_from_the_step_before_a_damaged_one(runs):
    """Both see the damage, and both want the step out of the way."""
    pair, one, _ = runs
    for path in (pair / f"checkpoints/{TOTAL}/state").rglob("d/*"):
        path.write_bytes(b"")
    config = pair.parent / "config.yaml"
    codes, errors = ends(config, start_pair(config))
    assert codes == [0, 0], errors
    assert newest(pair)[1]["digests"] == newest(one)[1]["digests"]
    assert [path.name for path in (pair / "damaged_checkpoints").iterdir()] == [str(TOTAL)]


def test_process_that_is_not_told_how_many_there_are_says_so(task_folder, store_path, tmp_path):
    config = config_file(tmp_path, task_folder, store_path)
    env = environment(1, JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_PROCESS_ID="0")
    codes, (errors,) = ends(config, [start(config, env)])
    assert codes == [2]
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: processes: expected JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES")
    assert not (tmp_path / "run").exists()


def test_pmap_is_refused_with_several_processes(monkeypatch, train_config):
    check_divides(train_config(map="pmap"), devices=2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    check_divides(train_config(), devices=2)
    with pytest.raises(
        InputError, match="map: expected shard_map with several processes, got pmap"
    ):
        check_divides(train_config(map="pmap"), devices=2)


@pytest.mark.parametrize(("count", "size"), [(1, 4), (2, 4), (3, 12), (4, 8)])
def test_own_rows_of_all_processes_are_the_batch_in_order(monkeypatch, count, size):
    rows = []
    monkeypatch.setattr(jax, "process_count", lambda: count)
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        own = list(range(size))[processes.own_rows(size)]
        assert len(own) == size // count
        rows += own
    assert rows == list(range(size))


def test_one_process_asks_nobody(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(processes.multihost_utils, "process_allgather", refuse)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", refuse)
    monkeypatch.setattr(processes.multihost_utils, "sync_global_devices", refuse)
    assert processes.is_first()
    assert processes.anyone(True) is True
    assert processes.anyone(False) is False
    assert processes.first_says({"exact": 0.5}) == {"exact": 0.5}
    processes.wait_for_all("nothing")
