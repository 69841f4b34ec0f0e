"""A student in ONNX Runtime, which needs neither torch nor jax; see docs/export.md.

A grid student is two graphs, so that a task is read once: every weight but the traits' is of one of
them alone. One that reads features is a single graph.

In the shape descriptions: `B` batch, `P` demonstrations, `N` canvas side, `C` colors, `V` cell
classes, `K` task tokens a demonstration, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from bridge.errors import InputError
from bridge.weights import Array

WHOLE, ENCODE, ANSWER = "model.onnx", "encode.onnx", "answer.onnx"  # in an export's folder
CPU = ("CPUExecutionProvider",)
ANY = ("CUDAExecutionProvider", *CPU)
# What each graph takes and returns, in this order, and the name of each size that is free.
_TASK = {
    "tokens": ("batch", "tokens", "colors", ""),
    "shown": ("batch", "places", "colors"),
}
_PALETTE, _MASK = {"palette": ("batch", "colors")}, {"mask": ("batch", "demonstrations")}
Axes = Mapping[str, tuple[str, ...]]
GRAPHS: dict[str, tuple[Axes, Axes]] = {
    ENCODE: (
        {"demonstrations": ("batch", "demonstrations", "", "side", "side"), **_PALETTE},
        _TASK,
    ),
    ANSWER: (
        {**_TASK, **_MASK, **_PALETTE, "query": ("batch", "side", "side")},
        {"log_probs": ("batch", "side", "side", "")},
    ),
    WHOLE: (
        {"features": ("batch", "tokens", ""), "mask": ("batch", "tokens")},
        {"log_probs": ("batch", "", "", "")},
    ),
}


@dataclass(frozen=True)
class Task:
    """What is kept of tasks' demonstrations."""

    tokens: Array  # f32[B, P * K, C, D]; with a table K more
    shown: Array  # bool[B, P, C], which colors each shows; with a table one more
    mask: Array  # bool[B, P]
    palette: Array  # u8[B, C]


class OnnxStudent:
    """A grid student."""

    def __init__(
        self, folder: Path, providers: Sequence[str] = ANY, *, patient: bool = False
    ) -> None:
        """Loads both graphs; arguments as for `open_session`."""
        self._encode, self._answer = (
            open_session(folder / name, providers, patient=patient) for name in (ENCODE, ANSWER)
        )

    def encode(self, demonstrations: Array, mask: Array, palette: Array) -> Task:
        """Reads demonstrations u8[B, P, 2, N, N] of tasks with the colors u8[B, C]."""
        tokens, shown = run(self._encode, {"demonstrations": demonstrations, "palette": palette})
        return Task(tokens, shown, mask, palette)

    def answer(self, task: Task, query: Array) -> Array:
        """Answers queries u8[B, N, N]: log-probabilities f32[B, N, N, V]."""
        return run(self._answer, {**vars(task), "query": query})[0]


def open_session(
    path: Path, providers: Sequence[str] = ANY, *, patient: bool = False
) -> onnxruntime.InferenceSession:
    """Loads a graph.

    Args:
        path: the file.
        providers: onnxruntime's names of what may compute; the first that it knows does.
        patient: whether its threads give way while they wait for each other: slower by an eighth
            on idle cores, twice as fast where others want them.

    Raises:
        InputError: if it cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    # Between runs no session's threads wait for work: the other's would lack their core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if patient:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        known = onnxruntime.get_available_providers()
        chosen = [name for name in providers if name in known]
        return onnxruntime.InferenceSession(path, options, providers=chosen)
    except Exception as error:  # onnxruntime's own kinds have no base but this
        fault = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: expected an ONNX file that onnxruntime loads: {fault}") from None


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> list[Any]:
    """Runs a graph.

    Raises:
        RuntimeError: if onnxruntime fails.
    """
    try:
        return list(session.run(None, dict(inputs)))
    except Exception as error:  # as above
        raise RuntimeError(str(error)) from None
