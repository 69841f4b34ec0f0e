"""The data contract between the bridge and a student.

In the shape descriptions: `B` batch, `P` demonstrations, `N` canvas side, `T` teacher tokens,
`F` teacher feature width. Canvases hold classes 0..11, see `bridge/canvas.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bridge.arc import Grid, Question
from bridge.canvas import to_canvas
from bridge.store import Features, Record
from bridge.views import PATCHES

TOKEN_BUCKET = 2048  # feature sequences are padded to a multiple of this, one compilation each

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One batch; a feature student reads `teacher`, a grid student the canvases."""

    demonstrations: Array  # u8[B, P, 2, N, N], input and output
    demonstration_mask: Array  # bool[B, P]
    query: Array  # u8[B, N, N]
    answer: Array  # u8[B, N, N]
    teacher: Array  # bf16[B, T, F]; standardised f32 once inside a step
    teacher_mask: Array  # bool[B, T], True where a feature was recorded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """The teacher's mean and std per channel; travels with the student's weights."""

    mean: Array  # f32[F]
    std: Array  # f32[F]


def standardise(batch: Batch, statistics: Statistics) -> Batch:
    """Returns the batch with f32 teacher features of mean 0 and std 1 per channel, 0 where masked.

    Without it a few channels of a language model's residual stream decide every distance
    (arXiv 2601.22966).
    """
    mean, std = (jnp.asarray(x)[None, None] for x in (statistics.mean, statistics.std))
    values = (jnp.asarray(batch.teacher, jnp.float32) - mean) / jnp.maximum(std, 1e-6)
    return replace(batch, teacher=jnp.where(batch.teacher_mask[..., None], values, 0.0))


def demonstration_canvases(
    question: Question, side: int, count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draws a question's first `count` demonstrations.

    Returns:
        u8[count, 2, N, N], and bool[count], False for the empty places.
    """
    canvases = np.zeros((count, 2, side, side), np.uint8)
    mask = np.zeros(count, bool)
    for i, pair in enumerate(question.demonstrations[:count]):
        canvases[i] = to_canvas(pair.input, side), to_canvas(pair.output, side)
        mask[i] = True
    return canvases, mask


def frame_maps(
    features: Features, record: Record, side: int, count: int
) -> tuple[Features, npt.NDArray[np.bool_]]:
    """Cuts the teacher's patch maps to what a grid student's canvases cover.

    Args:
        features: bf16[S, F] of one task view.
        record: where its frames lie.
        side: N.
        count: demonstrations that the student reads.

    Returns:
        bf16[(2 * count + 1) * N/2 * N/2, F] in the order in1 out1 in2 out2 ... query, and the mask:
        True for patches that show at least one cell.
    """
    half = side // 2
    maps = np.zeros((2 * count + 1, half, half, features.shape[1]), features.dtype)
    mask = np.zeros((2 * count + 1, half, half), bool)
    for frame in record.frames:
        if frame.role == "query":
            place = 2 * count
        elif frame.demonstration < count:
            place = 2 * frame.demonstration + (frame.role == "output")
        else:
            continue
        tokens = features[frame.first_token : frame.first_token + PATCHES**2]
        maps[place] = tokens.reshape(PATCHES, PATCHES, -1)[:half, :half]
        mask[place, : -(-frame.rows // 2), : -(-frame.cols // 2)] = True
    return maps.reshape(-1, features.shape[1]), mask.reshape(-1)


def answer_canvas(answer: Grid | None, side: int) -> npt.NDArray[np.uint8]:
    """Draws the answer to train on, or zeros where a question is only to be solved. u8[N, N]."""
    return np.zeros((side, side), np.uint8) if answer is None else to_canvas(answer, side)
