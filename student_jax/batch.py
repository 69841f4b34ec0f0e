"""The data contract between the bridge and a student.

In the shape descriptions: `B` batch, `R` those of its examples that come with a teacher's features,
`P` demonstrations, `N` canvas side, `T` teacher tokens, `F` teacher feature width. Canvases hold
classes 0..11, see `bridge/canvas.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bridge.arc import NUM_COLORS, Grid, Pair
from bridge.canvas import Placement, to_canvas
from bridge.errors import InputError
from bridge.scaling import LAYER_NORM_EPSILON, Scaling
from bridge.store import Features, Record, frame_map
from bridge.transforms import NUM_DIHEDRAL, Transform
from bridge.views import PATCH_CELLS
from student_jax.config import ModelConfig

NO_COLOR = 255  # in a palette: a slot that is left over
ROOMS = (4, 6, NUM_COLORS)  # slots of a palette: a student's cost follows them
PLACES = (2, 3, 4, 6, 10)  # for demonstrations: so does the cost of reading them
TOKEN_BUCKET = 2048  # feature sequences are padded to a multiple of this, one compilation each

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One batch; a feature student reads `teacher`, a grid student the canvases."""

    demonstrations: Array  # u8[B, P, 2, N, N], input and output
    demonstration_mask: Array  # bool[B, P]
    palette: Array  # u8[B, C], the colors shown, each once; NO_COLOR fills up
    query: Array  # u8[B, N, N]
    answer: Array  # u8[B, N, N]
    teacher: Array  # bf16[R, T, F], of every (B / R)-th example; scaled f32 once inside a step
    teacher_mask: Array  # bool[R, T], True where a feature was recorded
    row: Array | None = None  # i32[B, 2], the task's row of the table and the symmetry that it is
    # drawn in; row -1: none. Without any: none for all

    @property
    def taught(self) -> slice:
        """Which examples `teacher` is of; the others come without, and so cost nothing."""
        count = len(self.teacher)
        return slice(None, None, len(self.query) // count) if count else slice(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StudentOutput:
    """What a student says of a batch; `V` cell classes."""

    logits: jax.Array  # f32[B, N, N, V]
    features: jax.Array  # f32[R, T, F], to be held against the scaled teacher
    left_out: jax.Array | None = None  # f32[B, P, N, N, V], of the demonstrations


# Travels with the student's weights.
jax.tree_util.register_dataclass(Scaling, ["mean", "std", "rotation"], ["per_token"])


def scale_teacher(batch: Batch, scaling: Scaling) -> Batch:
    """Returns the batch with scaled teacher features in f32, 0 where masked.

    The same as `bridge.scaling.apply`, on the device.
    """
    values = jnp.asarray(batch.teacher, jnp.float32) - jnp.asarray(scaling.mean)[None, None]
    if scaling.rotation is not None:
        # A GPU's default would round to TF32.
        values = jnp.matmul(values, scaling.rotation, precision=jax.lax.Precision.HIGHEST)
    values = values / jnp.asarray(scaling.std)[None, None]
    if scaling.per_token:
        values -= values.mean(-1, keepdims=True)
        values *= jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return replace(batch, teacher=jnp.where(batch.teacher_mask[..., None], values, 0.0))


def feature_batch(features: Array, mask: Array, answer: Array) -> Batch:
    """Returns the batch of a student that reads features: no demonstrations, an empty query.

    Args:
        features: bf16|f32[B, T, F].
        mask: bool[B, T].
        answer: u8[B, N, N].
    """
    size, side, _ = answer.shape
    return Batch(
        demonstrations=np.zeros((size, 0, 2, side, side), np.uint8),
        demonstration_mask=np.zeros((size, 0), bool),
        palette=np.zeros((size, 0), np.uint8),
        query=np.zeros((size, side, side), np.uint8),
        answer=answer,
        teacher=features,
        teacher_mask=mask,
    )


def check_features(features: Array, mask: Array, width: int, max_tokens: int) -> None:
    """Refuses what a student cannot read; the mask is looked at outside jit only.

    Raises:
        InputError: naming what was expected.
    """
    if features.shape[-1] != width:
        raise InputError(f"features: expected width {width}, got {features.shape[-1]}")
    if features.shape[1] > max_tokens:
        raise InputError(
            f"features: expected at most {max_tokens} tokens, got {features.shape[1]}; "
            "raise --model.max_tokens"
        )
    if isinstance(mask, np.ndarray) and not mask.any(1).all():
        raise InputError("features: expected a valid token in every example, got one without")


@dataclass(frozen=True)
class Augmentation:
    """How a question is shown: turned, mirrored, and where its grids lie.

    It draws no recoloring: the grid student answers a recolored question alike by construction.
    """

    transform: Transform = field(default_factory=Transform)
    place: Placement = field(default_factory=Placement)

    @staticmethod
    def draw(rng: np.random.Generator, longest: int, side: int) -> Augmentation:
        """Draws one for grids of up to `longest` cells a side."""
        turned = Transform(int(rng.integers(NUM_DIHEDRAL)))
        return Augmentation(turned, Placement.draw(rng, longest, side))

    def canvas(self, grid: Grid, side: int) -> npt.NDArray[np.uint8]:
        """Draws a grid so, u8[N, N]."""
        return to_canvas(self.transform.grid(grid), side, self.place)


def demonstration_canvases(
    pairs: Sequence[Pair], side: int, count: int, augmentation: Augmentation
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draws the first `count` demonstrations.

    Returns:
        u8[count, 2, N, N], and bool[count], False for the empty places.
    """
    canvases = np.zeros((count, 2, side, side), np.uint8)
    for i, pair in enumerate(pairs[:count]):
        canvases[i] = [augmentation.canvas(grid, side) for grid in (pair.input, pair.output)]
    return canvases, np.arange(count) < len(pairs)


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
        maps[place] = frame_map(features, frame)[:half, :half]
        rows, cols = (-(-n // PATCH_CELLS) for n in (frame.rows, frame.cols))
        mask[place, :rows, :cols] = True
    return maps.reshape(-1, features.shape[1]), mask.reshape(-1)


def colors_of(pairs: Sequence[Pair], *queries: Grid) -> tuple[int, ...]:
    """Returns the colors that demonstrations and queries show; an answer is never looked at."""
    grids = [grid for pair in pairs for grid in (pair.input, pair.output)]
    return tuple(sorted({int(color) for grid in (*grids, *queries) for color in np.unique(grid)}))


def room_for(colors: Sequence[int]) -> int:
    """Returns C: the smallest number of slots that holds so many colors."""
    return next(room for room in ROOMS if room >= len(colors))


def places_for(count: int, most: int = PLACES[-1]) -> int:
    """Returns P: the smallest number of places that holds so many demonstrations, or the most."""
    return min(next((places for places in PLACES if places >= count), most), most)


def palette_of(
    colors: Sequence[int], augmentation: Augmentation, room: int | None = None
) -> npt.NDArray[np.uint8]:
    """Returns the colors as they are shown, u8[C]; `NO_COLOR` in the slots that are left over.

    Args:
        colors: of the task.
        augmentation: how they are shown.
        room: `C`, if not the smallest that will do.
    """
    palette = np.full(room or room_for(colors), NO_COLOR, np.uint8)
    palette[: len(colors)] = np.array(augmentation.transform.colors, np.uint8)[list(colors)]
    return palette


def all_colors(size: int) -> npt.NDArray[np.uint8]:
    """Returns palettes of all ten colors, u8[size, 10]: as good as any, and the dearest."""
    return np.tile(np.arange(NUM_COLORS, dtype=np.uint8), (size, 1))


def answer_canvas(
    answer: Grid | None,
    side: int,
    augmentation: Augmentation = Augmentation(),
) -> npt.NDArray[np.uint8]:
    """Draws the answer to train on, or zeros where a question is only to be solved. u8[N, N]."""
    return np.zeros((side, side), np.uint8) if answer is None else augmentation.canvas(answer, side)


def whole_answer(answer: Grid | None, side: int) -> npt.NDArray[np.uint8]:
    """Draws the answer as the original did: padded with color 0. u8[N, N]."""
    canvas = np.zeros((side, side), np.uint8)
    if answer is not None:
        canvas[: answer.shape[0], : answer.shape[1]] = answer
    return canvas


def smallest_batch(model: ModelConfig, width: int) -> Batch:
    """A batch of one with the fewest tokens: parameter shapes depend on neither."""
    reads_features = model.reads_features
    side = model.answer_side if reads_features else 8
    tokens = 1 if reads_features else 3 * (side // 2) ** 2
    return Batch(
        demonstrations=np.zeros((1, 1, 2, side, side), np.uint8),
        demonstration_mask=np.ones((1, 1), bool),
        palette=np.zeros((1, 1), np.uint8),
        query=np.zeros((1, side, side), np.uint8),
        answer=np.zeros((1, side, side), np.uint8),
        teacher=np.zeros((1, tokens, width), np.float32),
        teacher_mask=np.ones((1, tokens), bool),
    )
