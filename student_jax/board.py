"""TensorBoard's file, written by whoever calls.

The records are TensorBoard's own; its event writer is not used, nor tensorboardX': they write in a
thread with a queue, which a full disk kills with a traceback, and the next to write waits for
ever. tensorboardX also imports torch wherever it is installed.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

# Both make their classes while they are imported, where no type checker sees them.
_EVENT: Any = event_pb2
_SUMMARY: Any = summary_pb2
VALUE = _SUMMARY.Summary.Value


class Board:
    """One run's scalars and pictures. Every method but `close` raises OSError on a full disk."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Opens a file that takes the place of all that was written from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files that have "tfevents" in their names, in the order of the names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        start = _EVENT.SessionLog(status=_EVENT.SessionLog.START)
        self._write(step=purge_step, session_log=start)
        self._records.flush()

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers by name."""
        self._add(step, [VALUE(tag=k, simple_value=v) for k, v in values.items()])

    def add_pictures(self, step: int, pictures: dict[str, npt.NDArray[np.uint8]]) -> None:
        """Writes pictures u8[H, W, 3] by name."""
        self._add(step, [VALUE(tag=k, image=to_image(x)) for k, x in pictures.items()])

    def close(self) -> None:
        """Closes the file, or gives it up."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _add(self, step: int, values: list[Any]) -> None:
        self._write(step=step, summary=_SUMMARY.Summary(value=values))
        self._records.flush()

    def _write(self, **fields: Any) -> None:
        self._records.write(_EVENT.Event(wall_time=time.time(), **fields).SerializeToString())


def to_image(pixels: npt.NDArray[np.uint8]) -> Any:
    """Packs a picture u8[H, W, 3] as a PNG, for `Summary.Value`."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    height, width, channels = pixels.shape
    return _SUMMARY.Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=data.getvalue()
    )
