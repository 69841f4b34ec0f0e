"""Weights and pixels by formula, so that the golden files hold outputs only.

No random numbers: a sine of growing frequency, started by the tensor's name. The square of the
index matters: the sine of a linear index would make every matrix of rank 2.
"""

import math
import zlib

import numpy as np


def weight(name, shape):
    """The f32 tensor that the checkpoint holds under its full `name`."""
    shape = tuple(shape)
    values = wave(name, shape)
    if name.endswith("bias"):
        values = 0.1 * values
    elif len(shape) == 1:  # the weight of a norm
        values = 1 + 0.2 * values
    else:
        values = math.sqrt(2 / math.prod(shape[1:])) * values
    return values.astype(np.float32)


def pixels(n_tiles, size):
    """The f32 tiles [n_tiles, 3, size, size] in [-1, 1]; a tile's values depend on its place."""
    return wave("pixels", (n_tiles, 3, size, size)).astype(np.float32)


def wave(name, shape):
    """The f64 array of values in [-1, 1] that belongs to `name`."""
    start = zlib.crc32(name.encode()) / 2**32
    index = np.arange(math.prod(shape), dtype=np.float64)
    return np.sin((math.sqrt(2) + start) * index**2 + 2 * math.pi * start).reshape(shape)
