"""Independent work on all devices: done once, a kind on one device, faults told."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
import time

import jax
import pytest

from bridge.stop import Stop
from student_jax import keep
from student_jax.cores import count_cores, use_every_core
from student_jax.memory import keep_memory
from student_jax.spread import spread
from tests.conftest import ROOT


def test_everything_is_done_once_and_a_kind_keeps_to_a_device():
    work = {kind: [(kind, i) for i in range(6)] for kind in range(8)}

    def do(piece, device):
        assert jax.numpy.zeros(()).devices() == {device}
        time.sleep(0.002)
        yield (*piece, device)

    with Stop() as stop:
        done = list(spread(work, do, stop))
    assert sorted(piece[:2] for piece in done) == sorted(
        (kind, i) for kind in work for i in range(6)
    )
    assert {device for *_, device in done} == set(jax.local_devices())
    on = [len({device for kind, _, device in done if kind == each}) for each in work]
    assert sum(on) <= len(work) + 3 * len(jax.local_devices())  # only the last kinds are shared


def test_fault_is_raised_and_ends_the_work():
    begun = []

    def do(piece, device):
        begun.append(piece)
        if piece == 3:
            raise ValueError("piece 3")
        time.sleep(0.01)
        yield piece

    with Stop() as stop, pytest.raises(ValueError, match="piece 3"):
        list(spread({i: [i] for i in range(4)} | {9: [9] * 500}, do, stop))
    assert len(begun) < 500


def test_caller_that_wants_no_more_stops_the_work():
    begun = []

    def do(piece, device):
        begun.append(piece)
        time.sleep(0.01)
        yield piece

    with Stop() as stop:
        results = spread({0: range(1000)}, do, stop)
        assert next(results) in range(1000)
        assert not stop.requested
        results.close()
        assert stop.requested
    assert len(begun) < 1000


def test_second_signal_ends_a_command_whose_threads_compute():
    code = """
import os, signal, time
from bridge.stop import Stop
from student_jax.spread import spread
def do(piece, device):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
    yield piece
with Stop(exits=True) as stop:
    list(spread({0: [0]}, do, stop))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.split()[-1]) == (130, "stopped"), done.stderr


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)],
)
def test_containers_share_of_the_cores_counts(monkeypatch, tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("student_jax.cores.CONTAINER", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert count_cores() == cores


def count_devices(share, apart=False, **more):
    """How many devices a fresh process has."""
    code = f"from student_jax.cores import *; use_every_core({share}, apart={apart}); "
    code += "print(len(jax.devices()), os.environ.get('NPROC'))"
    own = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC")
    env = {k: v for k, v in os.environ.items() if k not in own}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**env, **more}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, threads = done.stdout.split()
    assert (threads == "None") == (count == "1")
    if count != "1":  # those that wait for each other need threads to spare
        least = 16 if more else 4 * int(count)
        assert int(threads) == int(count) if apart else int(threads) >= least
    return int(count)


def test_every_core_is_a_device_unless_told_otherwise():
    assert count_devices(0) == count_cores() <= len(os.sched_getaffinity(0))
    assert count_devices(0, apart=True) == count_cores()
    assert count_devices(1) == 1
    assert count_devices(0, JAX_NUM_CPU_DEVICES="3") == 3
    use_every_core()  # the tests' own XLA_FLAGS say how many
    assert len(jax.devices()) == 4


BEGUN = """
import os
from pathlib import Path
from student_jax.memory import begin_with_mimalloc
print("begun")
begin_with_mimalloc()
print("mimalloc" in Path("/proc/self/maps").read_text(), os.environ["MIMALLOC_PURGE_DELAY"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_command_begins_anew_with_mimalloc_unless_another_is_named():
    """What is printed twice ran twice; arguments and the environment are those that were given."""
    environment = {name: x for name, x in os.environ.items() if name != "LD_PRELOAD"}
    for more, expected in (
        ({}, ["begun", "begun", "True -1"]),
        ({"MIMALLOC_PURGE_DELAY": "100"}, ["begun", "begun", "True 100"]),
        ({"LD_PRELOAD": "", "MIMALLOC_PURGE_DELAY": "100"}, ["begun", "False 100"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", BEGUN],
            cwd=ROOT,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout.split("\n")[:-1], done.stderr) == (expected, "")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_freed_memory_serves_the_next_call_without_the_kernel():
    keep_memory()
    libc, size = ctypes.CDLL(None), 64 * 2**20
    libc.malloc.restype = ctypes.c_void_p
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
        ctypes.memset(block, 1, size)
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[2] < size / 4096 / 10


@pytest.mark.parametrize(("maps", "kept"), [(30, 1), (40, 0)])
def test_programs_are_forgotten_before_the_kernel_has_no_maps_left(
    tmp_path, monkeypatch, maps, kept
):
    cleared = []
    monkeypatch.setattr(keep, "MAPS", tmp_path / "maps")
    monkeypatch.setattr(keep, "MOST_MAPS", tmp_path / "most")
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    keep.make_room_for_programs()  # a system without such files
    (tmp_path / "maps").write_text("7f00-7f01 r-xp\n" * maps)
    (tmp_path / "most").write_text("70\n")
    keep.make_room_for_programs()
    assert len(cleared) == 1 - kept
