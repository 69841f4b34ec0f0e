"""A task's time: what is kept for answering, and no step that would end too late."""

import pytest

from student_jax import pace
from student_jax.pace import Clock


@pytest.fixture
def now(monkeypatch):
    """The time, which the test sets."""
    time = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: time[0])
    return time


def test_steps_are_what_ends_first(now):
    clock = Clock(steps=10, budget=1000)
    for step in range(10):
        assert clock.progress(step) == step / 10
        now[0] += 1


def test_learning_and_answering_end_in_time(now):
    """Steps of 3 s after one of 5 s that compiles, 4 s to answer: 16 s are left to learn in."""
    clock = Clock(steps=100, budget=20)
    clock.keep(4)
    step, seen = 0, []
    while (progress := clock.progress(step)) < 1:
        seen.append(progress)
        now[0] += 5 if step == 0 else 3
        step += 1
    assert step == 4  # 5 + 3 * 3 = 14; another would end at 17
    assert seen == sorted(seen)
    assert clock.seconds() + 4 <= 20


def test_no_time_to_learn_is_no_step(now):
    clock = Clock(steps=100, budget=1)
    clock.keep(2)
    now[0] += 0.1
    assert clock.progress(0) >= 1
