"""The queue of questions: bounded, and those of one shape that wait together share a call."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.arc import Question
from bridge.canvas import Attempts

if TYPE_CHECKING:
    from student_jax.answerer import Answerer, Shape

RECENT = 0.1  # weight of the last call in the mean time of a question


class FullError(Exception):
    """The queue takes no more; its text is the seconds after which to come again."""


@dataclass(frozen=True)
class Answered:
    """An answer with its times, on the clock of `time.perf_counter`."""

    attempts: Attempts
    arrived: float
    began: float
    ended: float


@dataclass(frozen=True, eq=False)
class Waiting:
    """A question in the queue."""

    question: Question
    views: int
    shape: Shape
    arrived: float = field(default_factory=time.perf_counter)
    future: Future[Answered] = field(default_factory=Future)


class Batcher:
    """Answers questions in a thread of its own, the oldest first."""

    def __init__(
        self,
        answerer: Answerer,
        most_waiting: int,
        most_at_once: int = 1,
        wait_seconds: float = 0.0,
        watch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Starts the thread.

        Args:
            answerer: what answers.
            most_waiting: questions in the queue.
            most_at_once: questions in one call.
            wait_seconds: that the oldest question may wait for others of its shape.
            watch: is told the number of questions of every call, in the thread that makes it.
        """
        self.answerer = answerer
        self._most_waiting, self._most_at_once = most_waiting, most_at_once
        self._wait_seconds, self._watch = wait_seconds, watch
        self._waiting: deque[Waiting] = deque()
        self._in_hand = 0
        self._seconds = 0.0  # a question takes, lately
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many questions are in the queue."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being answered."""
        with self._changed:
            return not self._waiting and not self._in_hand

    def ask(self, questions: Sequence[Question], views: int) -> list[Future[Answered]]:
        """Takes questions in, all or none; a future that is cancelled in time costs nothing.

        Raises:
            FullError: if the queue has no room for them.
        """
        asked = [Waiting(each, views, self.answerer.shape(each, views)) for each in questions]
        with self._changed:
            self._drop_cancelled()
            if len(self._waiting) + len(asked) > self._most_waiting:
                raise FullError(max(1, math.ceil(len(self._waiting) * self._seconds)))
            self._waiting.extend(asked)
            self._changed.notify()
        return [each.future for each in asked]

    def close(self, seconds: float | None = None) -> bool:
        """Answers what waits, and ends; whether that was done in so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._answer(batch)

    def _next(self) -> list[Waiting] | None:
        """Returns questions of one shape, waiting for them; None when closed.

        An empty list where all were dropped while others of their shape were waited for.
        """
        with self._changed:
            self._in_hand = 0
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            first = self._waiting[0]
            due, most = first.arrived + self._wait_seconds, self._most_at_once
            while len(batch := self._like(first)) < most and not self._closed:
                left = due - time.perf_counter()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch = batch[:most]
            for each in batch:
                self._waiting.remove(each)
            self._in_hand = len(batch)
        return batch

    def _like(self, first: Waiting) -> list[Waiting]:
        return [each for each in self._waiting if each.shape == first.shape]

    def _drop_cancelled(self) -> None:
        for each in [each for each in self._waiting if each.future.cancelled()]:
            self._waiting.remove(each)

    def _answer(self, batch: list[Waiting]) -> None:
        """Answers a batch in one call; a fault is told to all who asked."""
        batch = [each for each in batch if each.future.set_running_or_notify_cancel()]
        if not batch:
            return
        self._watch(len(batch))
        began = time.perf_counter()
        try:
            found = self.answerer.answer_all([each.question for each in batch], batch[0].views)
        except Exception as error:
            for each in batch:
                each.future.set_exception(error)
            return
        ended = time.perf_counter()
        lately = (ended - began) / len(batch)
        self._seconds += RECENT * (lately - self._seconds) if self._seconds else lately
        for each, attempts in zip(batch, found, strict=True):
            each.future.set_result(Answered(attempts, each.arrived, began, ended))
