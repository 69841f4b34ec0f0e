"""What a run says while it trains."""

import json

import numpy as np
import pytest

from bridge.errors import InputError
from student_jax.log import RECENT, TrainLog


def numbers(loss):
    names = ("loss", "task", "mse", "cosine", "learning_rate", "grad_norm")
    return {name: np.float32(loss) for name in names}


@pytest.fixture
def log(train_config):
    config = train_config(log_steps=2)
    config.out.mkdir()
    log = TrainLog(
        config,
        0,
        peak_flops=1e9,
        name_batch=lambda step: f"example_{step}",
        last_good=lambda: 7,
        quiet=False,
    )
    with log:
        yield log


@pytest.fixture
def clock(log, monkeypatch):
    """The log's clock, in seconds, which stands still until it is moved."""
    clock = [0.0]
    monkeypatch.setattr("student_jax.log.time.perf_counter", lambda: clock[0])
    log._window.__init__()
    return clock


def see(log, step, loss=1.0, flops=1e6, waited=0.0):
    log.see(step, numbers(loss), examples=4, flops=flops, waited=waited)


def test_loss_spike_is_told_once_with_its_examples(log, capsys):
    for step in range(1, 31):
        see(log, step, loss=9.0 if step in (20, 22) else 1.0)
    told = [line for line in capsys.readouterr().out.splitlines() if "times the median" in line]
    assert len(told) == 1
    assert "step 20: loss 9, 9.0 times the median" in told[0]
    assert "example_19" in told[0]


def test_drop_of_throughput_is_told(log, clock, capsys):
    for step in range(1, RECENT):
        clock[0] += 10.0 if step > 40 else 1.0
        see(log, step, waited=9.0 if step > 40 else 0.0)
    told = [line for line in capsys.readouterr().out.splitlines() if "usual speed" in line]
    assert told
    assert "10% of the usual speed" in told[-1] or "11% of the usual speed" in told[-1]
    assert "waiting for data" in told[-1]


def test_not_finite_stops_with_step_examples_and_last_good(log):
    see(log, 1)
    see(log, 2, loss=np.nan)
    with pytest.raises(InputError, match=r"step 2: .*loss.* not finite; .*example_1; .*step 7"):
        log.settle()


def speed_of(log, config, clock, waits):
    """What the first line says of steps of half a second, each of which waited so long before."""
    for step, waited in enumerate(waits, 1):
        clock[0] += 0.5
        see(log, step, waited=waited)
    return json.loads((config.out / "metrics.jsonl").read_text().splitlines()[0])["speed"]


def test_waiting_before_a_new_shape_is_not_of_the_time_after_it(log, train_config, clock):
    assert speed_of(log, train_config(), clock, [8.0, 0.1, 0.1])["waiting"] <= 1


def test_speed_adds_up(log, train_config, clock):
    speed = speed_of(log, train_config(), clock, [0.1] * 3)
    # The clock starts once the first batch's shape is compiled: two steps took 1 s.
    assert speed["examples_per_second"] == pytest.approx(8)
    assert speed["mfu"] == pytest.approx(2e6 / 1e9)
    assert speed["waiting"] == pytest.approx(0.2)
