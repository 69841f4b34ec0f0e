"""Times several contenders in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

PAUSE = 0.5  # seconds before a turn: OpenMP's threads spin for up to 0.2 s after their last work
PAUSE_OF_GPU = 0.02  # it would slow its clocks down


@dataclass(frozen=True)
class Contender:
    """What is timed."""

    run: Callable[[], Any]  # ends only when its result is there
    flops: float = 0.0  # of one run; 0 where they were not counted
    answers: int = 1  # of one run
    compute: str = ""  # float32 or bfloat16, where there is a ceiling to hold it against
    notes: str = ""


@dataclass(frozen=True)
class Timing:
    """What the runs took, milliseconds; percentiles of so few runs as `runs` says."""

    p50: float
    p95: float
    p99: float
    runs: int
    flops_per_second: float  # 0 where they were not counted
    answers: int

    @classmethod
    def of(cls, seconds: list[float], contender: Contender) -> Timing:
        """Sums up."""
        p50, p95, p99 = (float(x) for x in np.percentile(seconds, [50, 95, 99]))
        rate = contender.flops / p50
        return cls(1e3 * p50, 1e3 * p95, 1e3 * p99, len(seconds), rate, contender.answers)


def race(
    contenders: Mapping[str, Contender], runs: int, seconds: float, rounds: int = 10
) -> dict[str, dict[str, Any]]:
    """Runs all in turn, round after round, each warmed up first.

    Args:
        contenders: by name.
        runs: of each.
        seconds: that each may take, after which the rest of its runs is left out; not the first
            two, in different rounds.
        rounds: in which each has its turn, until its runs or seconds are spent.

    Returns:
        name -> `Timing` as a dict, with what it computes in, and notes.
    """
    pause = PAUSE if jax.default_backend() == "cpu" else PAUSE_OF_GPU
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender.run()
    for _ in range(rounds):
        for name, contender in contenders.items():
            if sum(taken[name]) >= seconds and len(taken[name]) > 1:
                continue
            time.sleep(pause)
            ends = time.perf_counter() + seconds / rounds
            for _ in range(-(-runs // rounds)):
                started = time.perf_counter()
                contender.run()
                taken[name].append(time.perf_counter() - started)
                if time.perf_counter() >= ends:
                    break
    return {
        name: {
            **asdict(Timing.of(taken[name], contender)),
            "compute": contender.compute,
            "notes": contender.notes,
        }
        for name, contender in contenders.items()
    }


def fitted_exponent(points: Sequence[tuple[float, float]]) -> float:
    """Returns b of y = a * x^b, by least squares on logarithms."""
    x, y = np.log(np.array(points, float).T)
    return float(np.polyfit(x, y, 1)[0])
