"""A student in ONNX Runtime, ready for single questions, or a few: the faster one on some CPUs.

Compute stays float32. Nothing is compiled, so sizes are never filled up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np

from bridge import config as configs
from bridge import manifest
from bridge.errors import InputError
from bridge.onnx_student import OnnxStudent, Task
from bridge.weights import Array
from student_jax.answerer import Answerer, Drawn, Shape
from student_jax.config import DataConfig


class OnnxEngine(Answerer):
    """A grid student in ONNX Runtime; answers are `Engine`'s in float32, near-ties aside."""

    def __init__(self, folder: Path, *, patient: bool = False) -> None:
        """Loads an export.

        Args:
            folder: that `python -m student_jax.export --format onnx` wrote.
            patient: see `bridge.onnx_student.open_session`.

        Raises:
            InputError: if it holds no ONNX of a grid student, or another than its manifest tells.
        """
        told = manifest.read_manifest(folder)
        if told.get("student", {}).get("kind") != "grid" or "onnx" not in told["formats"]:
            raise InputError(
                f"{folder}: expected an export of a grid student with ONNX; run "
                f"python -m student_jax.export --checkpoint ... --out {folder} --format onnx"
            )
        manifest.verify(folder, "onnx")
        data = json.loads((folder / "config.json").read_text())["data"]
        super().__init__(configs.from_dict(DataConfig, data).max_demonstrations)
        self.student = OnnxStudent(folder, patient=patient)

    def warm_up(self, shape: Shape) -> None:
        """Has nothing to compile."""

    def read(self, drawn: Sequence[Drawn]) -> Sequence[Task]:
        """Reads the tasks of questions of one shape in one call."""
        demonstrations, mask, palette = (
            np.concatenate(each) for each in zip(*(each[:3] for each in drawn), strict=True)
        )
        read = self.student.encode(demonstrations, mask, palette)
        parts = [np.split(array, len(drawn)) for array in vars(read).values()]
        return [Task(*each) for each in zip(*parts, strict=True)]

    def ask(self, tasks: Sequence[Task], drawn: Sequence[Drawn]) -> Callable[[], Array]:
        """Returns what answers."""
        task = Task(*(np.concatenate([getattr(t, f.name) for t in tasks]) for f in fields(Task)))
        queries = np.concatenate([each.queries for each in drawn])
        return partial(self.student.answer, task, queries)
