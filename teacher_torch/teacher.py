"""What a teacher is, and how it proves itself before a dump.

In the shape descriptions: `B` views, `S` teacher tokens (left-padded), `F` feature width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bridge.arc import Question
from bridge.errors import InputError
from bridge.store import Features, FrameTokens
from bridge.store.provenance import code_digest
from bridge.views import View, task_view

# Root mean square over a view, in stds. Single elements say little: in bf16 they move by 0.1 std
# and more with the batch. Measured at 12 layers in bf16: 0.013-0.016 when right, 0.67-0.82 with the
# attention mask ignored.
BATCH_TOLERANCE = 0.1
# Decide features besides a teacher's own modules: what it is shown, how they are loaded and stored.
COMMON_CODE = (
    "bridge.render",
    "bridge.store.encoding",
    "bridge.views",
    "teacher_torch.teachers",
    "teacher_torch.tensors",
)


@dataclass(frozen=True)
class TeacherOutput:
    """Features of a batch of views."""

    features: Features  # bf16[B, S, F]
    mask: npt.NDArray[np.bool_]  # bool[B, S], True where valid
    frames: tuple[tuple[FrameTokens, ...], ...]  # per view; tokens counted without the padding

    def example(self, index: int) -> Features:
        """Returns one view's features without padding, bf16[S, F]."""
        return self.features[index][self.mask[index]]


class Teacher(Protocol):
    """A frozen network that turns views into features."""

    name: str
    weights: str  # what the weights are, in words shown beside every number made with them
    weights_digest: str
    licence: str
    tap: str  # which activation the features are
    feature_width: int
    code: tuple[str, ...]  # modules of this package whose source decides the features

    def prepare(self, views: Sequence[View]) -> Any:
        """Turns views into what the network reads, on the CPU; may run beside `forward`."""
        ...

    def num_tokens(self, inputs: Any) -> int:
        """Returns how many tokens a prepared batch of one view has, without running the network."""
        ...

    def forward(self, inputs: Any) -> TeacherOutput:
        """Runs the network on prepared views; deterministic, no gradient."""
        ...


def features(teacher: Teacher, views: Sequence[View]) -> TeacherOutput:
    """Runs a teacher on a batch of views."""
    return teacher.forward(teacher.prepare(views))


def provenance(teacher: Teacher) -> dict[str, Any]:
    """Returns what a feature store must know of its teacher."""
    return {
        "teacher": teacher.name,
        "weights": teacher.weights,
        "weights_digest": teacher.weights_digest,
        "licence": teacher.licence,
        "tap": teacher.tap,
        "feature_width": teacher.feature_width,
        "code": [code_digest([*COMMON_CODE, *(f"teacher_torch.{name}" for name in teacher.code)])],
        "versions": {name: _version(name) for name in ("sage-distill", "torch", "transformers")},
    }


def _version(package: str) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return "not installed"


def check_teacher(teacher: Teacher) -> dict[str, float]:
    """Runs the teacher on two small fixed views and refuses one whose features mean nothing.

    A published distillation once ran for weeks on an all-zero teacher; this costs a second.

    Returns:
        The check view's feature mean and std: what a store remembers of its teacher.

    Raises:
        InputError: if features are not finite, do not vary over tokens, do not depend on the
            picture, are not deterministic, or change when another view shares the batch.
    """
    plain = np.zeros((3, 3), np.uint8)
    striped = np.array([[1, 2, 3, 4]] * 2, np.uint8)
    short, long = (
        task_view(Question(f"check_test_{i}", "check", (), grid), prompt)
        for i, (grid, prompt) in enumerate([(plain, "A."), (striped, "A. B. C. D. E. F.")])
    )
    output = features(teacher, [short])
    first = output.frames[0][0].first_token
    alone = output.example(0).astype(np.float32)
    other = features(teacher, [long]).example(0).astype(np.float32)
    together = features(teacher, [short, long]).example(0).astype(np.float32)
    scale = float(alone.std())

    def refuse(fault: str) -> None:
        raise InputError(f"teacher {teacher.name} ({teacher.weights}): {fault}; no dump was made")

    if not (np.isfinite(alone).all() and np.isfinite(other).all()):
        refuse("features of the check view are not finite")
    if scale == 0 or float(alone.std(0).max()) == 0:
        refuse("features of the check view are the same for every token")
    if np.array_equal(alone[first : first + 256], other[first : first + 256]):
        refuse("features do not depend on the picture")
    if not np.array_equal(alone, features(teacher, [short]).example(0).astype(np.float32)):
        refuse("features of the same view differ from call to call")
    gap = float(np.sqrt(np.square(alone - together).mean())) / scale
    if not gap <= BATCH_TOLERANCE:  # nor may it be NaN
        refuse(f"features change by {gap:.3f} std when another view shares the batch")
    return {"mean": float(alone.mean()), "std": scale}
