"""How far the learning of a task has come, and how large its steps are."""

from __future__ import annotations

import math
import time

WARM_UP = 20  # steps


class Clock:
    """How far a group of tasks has come on its way, by steps or by time."""

    def __init__(self, steps: int, budget: float, compiling: int = 1) -> None:
        """Starts.

        Args:
            steps: at most.
            budget: in seconds.
            compiling: so many first steps tell nothing of the pace: they are compiled.
        """
        self._steps, self._budget, self._compiling = steps, budget, compiling
        self._started = time.perf_counter()
        self._first = 0.0  # seconds until the first steps were done
        self._progress = 0.0

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def keep(self, seconds: float) -> None:
        """Keeps the end of the budget for what comes after the learning."""
        self._budget = max(self._budget - seconds, 1e-9)

    def progress(self, step: int) -> float:
        """Returns the share that is done after so many steps: of the time, if that ends first.

        It never falls, however the pace changes, and is 1 where the next step would end too late.
        """
        passed = self.seconds()
        if step == self._compiling:
            self._first = passed
        paced = step - self._compiling
        each = (passed - self._first) / paced if paced > 0 else 0.0
        done = step / self._steps
        if passed + (self._steps - step) * each > self._budget:
            done = max(done, passed / self._budget)
        if passed + each > self._budget:
            done = 1.0
        self._progress = max(self._progress, done)
        return self._progress


def rate_at(step: int, progress: float) -> float:
    """The share of the learning rate: warm-up, then a cosine (arXiv 1608.03983, no restarts)."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))
