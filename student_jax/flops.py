"""What a step has to compute, and how fast the devices are at most.

Model FLOPs: the matrix products of the forward pass, times three for training, whatever is
recomputed (PaLM, arXiv 2204.02311, appendix B). Padding is computed, so it counts.

In the shape descriptions: `B` batch, `T` tokens, `D` width, `M` MLP width, `N` canvas side,
`C` colors.
"""

from __future__ import annotations

import functools
import math
import time

import jax
import numpy as np

from bridge.arc import MAX_SIDE, NUM_COLORS
from bridge.canvas import NUM_CLASSES
from student_jax.batch import Batch
from student_jax.config import ModelConfig
from student_jax.linear import multiply

REPEATS = 5
LONG_ENOUGH = 2e-3  # seconds of one matrix product: launching it is then no part of the time
LARGEST = 16384


def example_flops(
    config: ModelConfig, feature_width: int, batch: Batch, *, left_out: bool = False
) -> float:
    """Returns the model FLOPs that training spends on an example of such a batch, in the mean.

    Args:
        config: of the student.
        feature_width: F.
        batch: for its shapes.
        left_out: whether the demonstrations are answered, too.
    """
    if config.reads_features:
        return 3.0 * _feature_flops(config, feature_width, batch)
    answers = 1 + left_out * batch.demonstrations.shape[-4]
    return 3.0 * _grid_flops(config, feature_width, batch, answers)


def answer_flops(config: ModelConfig, side: int, pairs: int, colors: int) -> tuple[float, float]:
    """Returns the FLOPs of reading a task of so many demonstrations, and of answering a query."""
    cells, each = side**2, config.tokens_per_pair
    lift = 2 * config.width * config.invariant_width  # a token
    encoder = config.encoder_depth * _color_block(config, each + cells, cells, colors)
    tokens = (pairs + bool(config.table)) * each + cells
    core = config.depth * config.loops * _color_block(config, tokens, cells, colors) + tokens * lift
    head = 2 * cells * (config.width * colors + 2 * (config.invariant_width or config.width))
    return pairs * (encoder + (each + cells) * lift), core + head


def _feature_flops(config: ModelConfig, feature_width: int, batch: Batch) -> float:
    tokens, width = batch.teacher.shape[-2], config.width
    trunk = config.depth * config.loops * _block(config, tokens)
    outer = 2 * (2 * tokens * feature_width * width)  # the stem and the projector
    if config.kind == "original":
        head = 2 * width * (2 * width) + 2 * (2 * width) * (4 * width)
        return trunk + outer + head + 2 * (4 * width) * MAX_SIDE**2 * NUM_COLORS
    head = 2 * width * (2 * width) + 2 * (2 * width) * config.canvas**2 * NUM_CLASSES
    return trunk + outer + head


def _grid_flops(config: ModelConfig, feature_width: int, batch: Batch, answers: int) -> float:
    pairs, side = batch.demonstrations.shape[-4], batch.demonstrations.shape[-1]
    cells, colors = side**2, batch.palette.shape[-1]
    encoder, core = answer_flops(config, side, pairs, colors)
    frames = (2 * pairs + 1) * (cells / 4)
    paint = (pairs + 1) * 2 * cells * colors * config.width * config.mlp_width
    taught = math.prod(batch.teacher.shape[:-2]) / math.prod(batch.query.shape[:-2])
    projectors = taught * frames * 2 * config.cell_width * feature_width
    return encoder + answers * core + paint + projectors


def _block(config: ModelConfig, tokens: int) -> float:
    width, hidden = config.width, config.mlp_width
    attention = 4 * 2 * tokens * width**2 + 2 * 2 * tokens**2 * width
    return attention + 2 * 2 * tokens * width * hidden


def _color_block(config: ModelConfig, tokens: int, cells: int, colors: int) -> float:
    width, hidden, keys = config.width, config.mlp_width, config.key_width
    mean = config.invariant_width or width  # of what decides for all colors
    patterns = 2 * 2 * tokens * mean * keys + 2 * tokens**2 * keys
    read = colors * (2 * 2 * tokens * width**2 + 2 * tokens**2 * width)
    mlp = (3 * colors * width + 2 * mean) * 2 * tokens * hidden
    mixing = config.convolution * 2 * 9 * cells
    return patterns + read + mlp + mixing * colors * hidden + _invariant(config, tokens, mixing)


def _invariant(config: ModelConfig, tokens: int, mixing: float) -> float:
    """Of a block's state that is of no color."""
    mean, hidden = config.invariant_width, config.invariant_mlp_width
    pool = 2 * 2 * tokens * config.width * mean
    read = 2 * 2 * tokens * mean**2 + 2 * tokens**2 * mean
    return pool + read + 3 * 2 * tokens * mean * hidden + mixing * hidden


@functools.cache
def matmul_ceiling(compute: str) -> float:
    """Measures how many FLOP/s this process' devices reach together on square matrix products.

    Args:
        compute: dtype of the factors.
    """
    devices = jax.local_devices()
    program = jax.jit(multiply)
    # Random numbers: a GPU multiplies ones faster, as fewer of its transistors switch.
    factor = np.random.default_rng(0).standard_normal((512, 512), np.float32).astype(compute)
    if jax.default_backend() != "cpu":  # each size compiles
        factor = np.tile(factor, (8, 8))
    while True:
        side = len(factor)
        factors = [jax.device_put(factor, device) for device in devices]
        seconds = min(_seconds(program, factors) for _ in range(REPEATS + 1))
        if seconds >= LONG_ENOUGH or side == LARGEST:
            return len(devices) * 2 * side**3 / seconds
        factor = np.tile(factor, (2, 2))


def _seconds(program: jax.stages.Wrapped, factors: list[jax.Array]) -> float:
    started = time.perf_counter()
    jax.block_until_ready([program(factor, factor) for factor in factors])
    return time.perf_counter() - started
