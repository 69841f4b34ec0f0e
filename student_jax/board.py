"""TensorBoard's file, written by whoever calls.

tensorboardX' own writer has a thread and a queue: a full disk kills the thread with a traceback,
and the next to write waits for ever.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

_PROTO: Any = event_pb2  # makes its classes while it is imported, where no type checker sees them


class Board:
    """One run's scalars and pictures. Every method but `close` raises OSError on a full disk."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Opens a file that takes the place of all that was written from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
        self._write(step=purge_step, session_log=start)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers by name."""
        self._add(step, [summary.scalar(name, value) for name, value in values.items()])

    def add_pictures(self, step: int, pictures: dict[str, npt.NDArray[np.uint8]]) -> None:
        """Writes pictures u8[H, W, 3] by name."""
        images = [summary.image(name, x, dataformats="HWC") for name, x in pictures.items()]
        self._add(step, images)

    def close(self) -> None:
        """Closes the file, or gives it up."""
        with contextlib.suppress(OSError):
            self._events.close()

    def _add(self, step: int, values: list[Any]) -> None:
        for value in values:
            self._write(step=step, summary=value)
        self._events.flush()

    def _write(self, **fields: Any) -> None:
        self._events.write_event(_PROTO.Event(wall_time=time.time(), **fields))
