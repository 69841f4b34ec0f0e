"""Full disks and damaged files: one line, nothing lost, and the next start goes on."""

import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from bridge import config as configs
from student_jax.checkpoints import Checkpoints, digests_of
from student_jax.config import TrainConfig
from student_jax.log import TrainLog
from student_jax.train import train
from tests.conftest import ROOT, metric_lines, train_dict
from tests.student_jax.runs import (
    FAILED,
    FIRST,
    HARMED,
    LONG,
    command_line,
    complete_steps,
    contents,
    without_bar,
)

pytestmark = HARMED


def leave_free(folder, size):
    """Fills a small disk up to so many bytes; returns what to delete to have them back."""
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * (shutil.disk_usage(folder).free - size))
    return ballast


def told(command):
    """Runs a command that fails; returns its exit code and its lines but for the progress bar."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, without_bar(done.stderr)


def assert_it_says_what_was_not_saved(code, lines):
    """A full disk may meet the log before the checkpoint: it is one line all the same."""
    assert len(lines) == 1, [line[:150] for line in lines]
    assert lines[0].startswith("error: ")
    assert "free space, then start again" in lines[0]
    if lines[0].startswith("error: checkpoint "):
        assert f"step {FAILED} could not be written" in lines[0]
        assert f"the latest complete one is step {FIRST}:" in lines[0]
    else:
        assert "metrics.jsonl" in lines[0]
    assert code == 2


def assert_it_goes_on_to_the_same_end(value, whole):
    out = value["out"]
    config = configs.from_dict(TrainConfig, value)
    assert complete_steps(config.out) == [10, FIRST]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(config.out) as checkpoints:
        for step in checkpoints.steps():
            checkpoints.restore(step, one)
    train(config)
    assert contents(config.out) == contents(whole), out
    assert metric_lines(config.out) == metric_lines(whole)


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_disk_that_is_full_is_one_line_and_costs_nothing(
    task_folder, store_path, small_disk, half, whole
):
    value = train_dict(task_folder, store_path, small_disk / "run", **LONG)
    shutil.copytree(half, small_disk / "run")
    ballast = leave_free(small_disk, 250_000)
    code, lines = told(command_line(value, small_disk.parent / "config.yaml"))
    assert_it_says_what_was_not_saved(code, lines)
    ballast.unlink()
    assert_it_goes_on_to_the_same_end(value, whole)


LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_largest_file_size_is_one_line_and_costs_nothing(
    task_folder, store_path, tmp_path, half, whole
):
    """A quota stops a write in the same way."""
    value = train_dict(task_folder, store_path, tmp_path / "run", **LONG)
    shutil.copytree(half, tmp_path / "run")
    size = 50_000  # more than the lines of 40 steps, less than a checkpoint's arrays
    command = command_line(value, tmp_path / "config.yaml")
    code, lines = told([sys.executable, "-c", LIMITED, str(size), *command])
    assert_it_says_what_was_not_saved(code, lines)
    assert_it_goes_on_to_the_same_end(value, whole)


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_disk_that_the_log_fills_is_one_line(task_folder, store_path, small_disk):
    """No checkpoint is due: what a run tells of itself takes the last of the space."""
    changes = {**LONG, "optim.total_steps": 100_000, "checkpoint_steps": 50_000}
    value = train_dict(task_folder, store_path, small_disk / "run", **changes)
    leave_free(small_disk, 60_000)
    code, lines = told(command_line(value, small_disk.parent / "config.yaml"))
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "No space left on device" in lines[0]
    assert "metrics.jsonl" in lines[0] or "tensorboard" in lines[0]


@pytest.mark.parametrize("missing", [1, 2, 3, 40, 300])
def test_log_whose_last_line_was_cut_anywhere_is_taken_up(whole, tmp_path, train_config, missing):
    """As a disk that fills up in the middle of a line leaves it."""
    text = (whole / "metrics.jsonl").read_text()
    config = replace(train_config(**LONG), out=tmp_path)
    (tmp_path / "metrics.jsonl").write_text(text[:-missing])
    about = {"peak_flops": 1.0, "name_batch": str, "last_good": lambda: None, "quiet": False}
    with TrainLog(config, 40, **about):
        kept = metric_lines(tmp_path)
    assert kept == metric_lines(whole)[: len(kept)]
    assert len(kept) in (39, 40)


def harm(path, rng):
    """Does to a file what a bad disk may do; returns what that was."""
    data = bytearray(path.read_bytes())
    fault = rng.choice(["delete", "truncate", "flip", "zero"]) if data else "delete"
    start, end = sorted(int(i) for i in rng.integers(len(data) + 1, size=2))
    if fault == "delete":
        path.unlink()
        return f"delete {path.name}"
    if fault == "truncate":
        data = data[:start]
    elif fault == "flip":
        data[start % len(data)] ^= 1 << int(rng.integers(8))
    else:
        data[start:end] = bytes(end - start)
    path.write_bytes(bytes(data))
    return f"{fault} {path.name} {start} {end}"


def test_any_fault_in_any_file_gives_the_newest_whole_step(whole, tmp_path):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(whole) as checkpoints:
        right = {step: checkpoints.about(step)["digests"] for step in checkpoints.steps()}
    assert list(right) == [40, 30]
    rng = np.random.default_rng(0)
    for trial in range(10):
        out = tmp_path / str(trial)
        shutil.copytree(whole, out)
        files = sorted(path for path in (out / "checkpoints/40").rglob("*") if path.is_file())
        fault = harm(files[rng.integers(len(files))], rng)
        with Checkpoints(out) as checkpoints:
            step, about, state = checkpoints.restore_newest(one)
        assert digests_of(state) == about["digests"] == right[step], fault
