"""A run that is killed anywhere ends as if it was not."""

import functools
import subprocess
import time

import chex
import numpy as np
import pytest

from bridge import config as configs
from student_jax.config import TrainConfig
from student_jax.solver import load_solver
from student_jax.train import train
from tests.conftest import ROOT, metric_lines, train_dict
from tests.student_jax.runs import (
    HARMED,
    command_line,
    complete_steps,
    contents,
)

pytestmark = HARMED


PATIENCE = 120  # seconds, for whatever a busy machine does in a few
EVERYTHING = {  # that a start has to take up where it was
    "model.dropout": 0.1,
    "optim.ema_decay": 0.9,
    "optim.accumulate": 2,
    "optim.batch_size": 8,
    "data.augmented_fraction": 0.5,
    "checkpoint_steps": 10,
    "dev_questions": 4,
}


@pytest.fixture
def start():
    """Starts commands; leaves none behind."""
    started = []

    def make(command, errors):
        with errors.open("a") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file)
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()


class Killed:
    """A run that is killed on its way, by `kill -9`."""

    def __init__(self, begin, out):
        self.begin, self.out = begin, out
        self.metrics = out / "metrics.jsonl"
        self.start_up = 0.0  # seconds until it trains

    def kill_in_start_up(self, share):
        """Kills it after a share of the time that it takes to start."""
        before, began = self._inode(), time.monotonic()
        process = self.begin()
        while time.monotonic() - began < share * self.start_up and self._inode() == before:
            time.sleep(0.001)
        self._kill(process)

    def kill_in_training(self, steps, later):
        """Kills it some seconds after it has made so many steps."""
        last = max(complete_steps(self.out), default=0) + steps
        before, began = self._inode(), time.monotonic()
        process = self.begin()
        while self._inode() == before or self._lines() < last:
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() - began < PATIENCE
            if not self.start_up and self._lines():
                self.start_up = time.monotonic() - began
            time.sleep(0.001)
        time.sleep(later)
        self._kill(process)

    def _inode(self):
        """A start writes the file anew."""
        return self.metrics.stat().st_ino if self.metrics.is_file() else None

    def _lines(self):
        return self.metrics.read_text().count("\n") if self.metrics.is_file() else 0

    def _kill(self, process):
        assert process.poll() is None, "ended before it was killed"
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("kills", "steps"),
    [
        (2, 40),
        pytest.param(20, 300, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_run_that_is_killed_anywhere_ends_as_if_it_was_not(
    task_folder, store_path, tmp_path, start, kills, steps
):
    """Every other kill comes while training, at most so late that none finds the run at its end."""
    changes = {**EVERYTHING, "optim.total_steps": steps}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    train(configs.from_dict(TrainConfig, train_dict(task_folder, store_path, whole, **changes)))
    value = train_dict(task_folder, store_path, out, **changes)
    command = command_line(value, tmp_path / "killed.yaml")
    begin = functools.partial(start, command, tmp_path / "killed.err")
    run, rng = Killed(begin, out), np.random.default_rng(kills)
    most = int(1.6 * steps / kills)
    newest = 0
    for kill in range(kills):
        if kill % 2 == 0:
            run.kill_in_training(int(rng.integers(most // 3, most)), rng.uniform(0, 0.5))
        else:
            run.kill_in_start_up(rng.uniform())
        saved = max(complete_steps(out), default=0)
        assert saved >= newest
        newest = saved
    assert newest > 0
    assert begin().wait(PATIENCE) == 0
    assert "is damaged" not in (tmp_path / "killed.err").read_text()
    assert metric_lines(out) == metric_lines(whole)
    assert contents(out) == contents(whole)
    chex.assert_trees_all_equal(load_solver(out).params, load_solver(whole).params)
