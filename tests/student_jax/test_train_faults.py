"""Whatever stops a run, the next start goes on as if nothing had: kills, full disks, bad data."""

import functools
import gc
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
import yaml

from bridge import config as configs
from bridge.errors import InputError
from bridge.store import FeatureStore, feature_store
from bridge.store.statistics import statistics_of
from student_jax import train as module
from student_jax.checkpoints import Checkpoints, digests_of
from student_jax.config import TrainConfig
from student_jax.data import Plan
from student_jax.log import TrainLog
from student_jax.solver import load_solver
from student_jax.train import train
from tests.conftest import ROOT, examples_of, metric_lines, train_dict

# Orbax leaves what a failed save or restore did not wait for to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)


@pytest.fixture(autouse=True)
def collect():
    """Here, where what it finds is let pass."""
    yield
    gc.collect()


PATIENCE = 120  # seconds, for whatever a busy machine does in a few
EVERYTHING = {  # that a start has to take up where it was
    "model.dropout": 0.1,
    "optim.ema_decay": 0.9,
    "optim.accumulate": 2,
    "data.augmented_fraction": 0.5,
    "checkpoint_steps": 10,
    "dev_questions": 4,
}


def command_line(value, path):
    """Writes a config and returns the command that trains with it."""
    path.write_text(yaml.safe_dump(value))
    return [sys.executable, "-m", "student_jax.train", "--config", str(path)]


@pytest.fixture
def start():
    """Starts commands with two devices; leaves none behind."""
    started = []
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    def make(command, errors):
        with errors.open("a") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file
            )
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()


def complete_steps(out):
    """The steps that are there under their final names."""
    return sorted(int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit())


def contents(out):
    """Returns all that a run's newest checkpoint holds, and which steps are kept."""
    with Checkpoints(out) as checkpoints:
        about = checkpoints.about()
    return about["digests"], about["dev"], complete_steps(out)


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
    begin = {}
    for name in ("whole", "killed"):
        changes = {**EVERYTHING, "optim.total_steps": steps}
        value = train_dict(task_folder, store_path, tmp_path / name, **changes)
        command = command_line(value, tmp_path / f"{name}.yaml")
        begin[name] = functools.partial(start, command, tmp_path / f"{name}.err")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    unbroken = begin["whole"]()
    run, rng = Killed(begin["killed"], out), np.random.default_rng(kills)
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
    for process in (begin["killed"](), unbroken):
        assert process.wait(PATIENCE) == 0
    assert "is damaged" not in (tmp_path / "killed.err").read_text()
    assert metric_lines(out) == metric_lines(whole)
    assert contents(out) == contents(whole)
    chex.assert_trees_all_equal(load_solver(out).params, load_solver(whole).params)


LONG = {"optim.total_steps": 40, "checkpoint_steps": 10, "dev_questions": 0}
FIRST, FAILED = 20, 30  # the last step that is saved before a disk is full, and the next


class Stopped(TrainLog):
    """Stops a run after step 22; steps 10 and 20 are saved by then."""

    def see(self, step, *rest, **more):
        super().see(step, *rest, **more)
        if step == FIRST + 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(task_folder, store_path, tmp_path_factory):
    """A run of 40 steps that nothing stopped; steps 30 and 40 are kept."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(configs.from_dict(TrainConfig, train_dict(task_folder, store_path, out, **LONG)))
    return out


@pytest.fixture(scope="module")
def half(task_folder, store_path, tmp_path_factory):
    """The same run, stopped half-way."""
    out = tmp_path_factory.mktemp("half") / "run"
    config = configs.from_dict(TrainConfig, train_dict(task_folder, store_path, out, **LONG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TrainLog", Stopped)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert complete_steps(out) == [10, FIRST]
    return out


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


def without_bar(errors):
    lines = [line.strip() for line in errors.splitlines()]
    return [
        line for line in lines if line and not re.fullmatch(r"train: .*(s/step|step/s).*]", line)
    ]


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
    changes = {**LONG, "optim.total_steps": 400, "checkpoint_steps": 400}
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


def rewrite(store, path, change=lambda name, features: features, **about):
    """Writes a store again, with other features."""
    provenance = {key: value for key, value in store.provenance.items() if key != "golden"}
    made = FeatureStore.create(path, {**provenance, **about}, encoding=store.encoding)
    for name in store.ids:
        record = store.record(name)
        made.append(name, change(name, store.read(name)), record.frames, record.view_digest)
    return made


def first_shown(examples, plan, name):
    """Returns the first step, from 0, that shows an example as its teacher saw it."""

    def shows(step):
        shown = examples._augment(plan, step)
        chosen = zip(examples.indices(plan, step), shown, strict=True)
        return name in [
            examples.examples[i].question.example_id for i, how in chosen if how is None
        ]

    return next(step for step in itertools.count() if shows(step))


def end_of(monkeypatch, path):
    """Runs the command here and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(path)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            configs.command(module.main, TrainConfig)
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended.value.code


def test_features_that_are_not_finite_stop_the_run_before_it_saves_them(
    store_path, tmp_path, train_config, monkeypatch, capsys
):
    """As only a faulty writer leaves them: `append` refuses them."""
    config = train_config(**LONG)
    store = FeatureStore(store_path)
    examples, plan = examples_of(config, store), Plan(config.seed, config.optim.batch_size)
    shown = {
        e.question.example_id: first_shown(examples, plan, e.question.example_id)
        for e in examples.examples
    }
    name = max(shown, key=lambda name: shown[name])
    step = shown[name]  # from 0
    assert 10 <= step < 20  # between the first checkpoint and the second

    def spoil(other, features):
        return np.full_like(features, np.nan) if other == name else features

    with monkeypatch.context() as patch:
        patch.setattr(
            feature_store,
            "statistics_of",
            lambda x: statistics_of(np.nan_to_num(x.astype(np.float32))),
        )
        spoilt = rewrite(store, tmp_path / "spoilt", spoil)
    config = replace(config, data=replace(config.data, store=spoilt.path))
    configs.save(config, tmp_path / "config.yaml")
    assert end_of(monkeypatch, tmp_path / "config.yaml") == 2
    (line,) = without_bar(capsys.readouterr().err)
    assert line.startswith(f"error: step {step + 1}: ")
    assert "loss" in line.split(" not finite")[0]
    batch = [examples.examples[i].question.example_id for i in examples.indices(plan, step)]
    assert f"its examples: {', '.join(batch)} (features not finite: {name})" in line
    assert "last good checkpoint: step 10;" in line
    assert complete_steps(config.out) == [10]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(config.out) as checkpoints:
        leaves = jax.tree.leaves(checkpoints.restore(10, one)[1])
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.fixture
def never_step(monkeypatch):
    """Makes the step one that nobody may take: it is compiled when it is first called."""

    def make(*_):
        def step(*_):
            raise AssertionError("the step was taken")

        return step

    monkeypatch.setattr(module, "make_train_step", make)


def test_store_of_another_width_is_refused_before_a_step(
    store_path, tmp_path, half, train_config, never_step
):
    narrow = rewrite(
        FeatureStore(store_path),
        tmp_path / "narrow",
        lambda _, features: features[:, :32].copy(),
        feature_width=32,
    )
    config = train_config(store=narrow.path, **LONG)
    shutil.copytree(half, config.out)
    with pytest.raises(InputError, match=r"feature_width: expected 64, got 32; .* another store"):
        train(config)
    assert complete_steps(config.out) == [10, FIRST]
    assert metric_lines(config.out) == metric_lines(half)


def test_store_that_lacks_an_example_is_refused_before_a_step(
    store_path, tmp_path, half, train_config, never_step
):
    shutil.copytree(store_path, tmp_path / "lacking")
    config = train_config(store=tmp_path / "lacking", **LONG)
    name = examples_of(config).examples[-1].question.example_id
    (tmp_path / f"lacking/manifest/{name}.json").unlink()
    shutil.copytree(half, config.out)
    with pytest.raises(InputError, match=rf"expected the example {name}, got 17 others; run ext"):
        train(config)
    assert metric_lines(config.out) == metric_lines(half)


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
