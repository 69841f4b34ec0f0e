"""Stopping when asked to: finish what is in hand, then go."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Stop:
    """Within `with Stop() as stop:` the first SIGTERM or Ctrl-C sets `stop.requested`.

    A second one interrupts at once. Signals only reach the main thread, so elsewhere nothing
    changes.
    """

    def __init__(self, *, exits: bool = False) -> None:
        """Nothing is requested yet.

        Args:
            exits: a second signal ends the process, where an interruption would wait for threads
                that compute.
        """
        self.requested = False
        self._exits = exits
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, *_: int | FrameType | None) -> None:
        if self.requested and self._exits:
            sys.stderr.write("\nstopped\n")
            sys.stderr.flush()
            os._exit(130)
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        sys.stderr.write("\nfinishing what is in hand; once more drops it\n")
