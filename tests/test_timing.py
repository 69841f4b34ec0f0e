import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import timing
from timing import Contender, fitted_exponent, race


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def test_race_takes_turns_and_tells_percentiles():
    order = []
    slow = Contender(lambda: (order.append("slow"), time.sleep(0.02)), flops=2e6)
    fast = Contender(lambda: order.append("fast"), answers=8, notes="8 at once")
    found = race({"slow": slow, "fast": fast}, runs=6, seconds=5, rounds=3)
    assert order == ["slow", "fast", *(["slow"] * 2 + ["fast"] * 2) * 3]
    assert found["slow"]["runs"] == 6
    assert 20 <= found["slow"]["p50"] <= found["slow"]["p95"] <= found["slow"]["p99"]
    assert found["slow"]["flops_per_second"] == pytest.approx(2e9 / found["slow"]["p50"])
    assert (found["fast"]["answers"], found["fast"]["notes"]) == (8, "8 at once")


def test_race_ends_in_time_with_two_runs():
    found = race({"": Contender(lambda: time.sleep(0.05))}, runs=99, seconds=0.01, rounds=3)
    assert found[""]["runs"] == 2


def test_fitted_exponent():
    assert fitted_exponent([(n, 3 * n**1.5) for n in (1, 2, 4, 8)]) == pytest.approx(1.5)
