"""A student's weights as few arrays: what a call takes to begin grows with how many it is given.

One of `full`'s programs would take 485 arrays, most of them biases and norms (docs/performance.md).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.tree import flatten, unflatten
from student_jax.batch import Array

SHORT = 2**14  # weights; a longer array stays apart, as taking it out of another is a copy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """Weights, the short ones one after the other."""

    short: Array  # f32[sum of their sizes]
    long: dict[str, Array]  # by dotted name
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(metadata={"static": True})  # of short


def pack(params: Any) -> Packed:
    """Packs a tree of weights, of which some are f32 and short.

    On the host: JAX would compile a program for every shape.
    """
    flat = flatten(params)
    short = {k: v for k, v in flat.items() if v.dtype == jnp.float32 and v.size <= SHORT}
    return Packed(
        short=np.concatenate([np.asarray(leaf).reshape(-1) for leaf in short.values()]),
        long={name: leaf for name, leaf in flat.items() if name not in short},
        shapes=tuple((name, leaf.shape) for name, leaf in short.items()),
    )


def unpack(packed: Packed) -> dict[str, Any]:
    """Returns the tree that `pack` was given; of use inside a program."""
    names, shapes = zip(*packed.shapes, strict=True)
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    pieces = jnp.split(packed.short, ends[:-1])
    short = {n: x.reshape(s) for n, x, s in zip(names, pieces, shapes, strict=True)}
    return unflatten({**packed.long, **short})
