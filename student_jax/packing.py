"""A student's weights as few arrays: what a call takes to begin grows with how many it is given.

One of `full`'s programs would take 485 arrays, most of them biases and norms (docs/performance.md).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.tree import unflatten
from student_jax.batch import Array

SHORT = 2**14  # weights; a longer array stays apart, as taking it out of another is a copy

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """Weights, the short ones of a block, and those of no block, one after the other.

    Not those of all blocks: XLA compiles what is the same in each only once, and it would not be.
    """

    short: tuple[Array, ...]  # f32[sum of a block's sizes] each
    long: dict[str, Array]  # by dotted name
    shapes: tuple[Shapes, ...] = field(metadata={"static": True})  # of short, by dotted name


def pack(weights: Mapping[str, Array]) -> Packed:
    """Packs weights by dotted name, of which some are f32 and short.

    On the host: JAX would compile a program for every shape.
    """
    blocks: dict[str, dict[str, Array]] = defaultdict(dict)
    long = {}
    for name, leaf in weights.items():
        if leaf.dtype == jnp.float32 and leaf.size <= SHORT:
            blocks[_block_of(name)][name] = leaf
        else:
            long[name] = leaf
    return Packed(
        short=tuple(_in_a_row(block.values()) for block in blocks.values()),
        long=long,
        shapes=tuple(
            tuple((name, leaf.shape) for name, leaf in block.items()) for block in blocks.values()
        ),
    )


def unpack(packed: Packed) -> dict[str, Any]:
    """Returns the tree of what `pack` was given; of use inside a program."""
    flat = dict(packed.long)
    for row, named in zip(packed.short, packed.shapes, strict=True):
        names, shapes = zip(*named, strict=True)
        ends = list(itertools.accumulate(map(math.prod, shapes)))
        pieces = jnp.split(row, ends[:-1])
        flat |= {n: x.reshape(s) for n, x, s in zip(names, pieces, shapes, strict=True)}
    return unflatten(flat)


def _in_a_row(leaves: Iterable[Array]) -> Array:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])


def _block_of(name: str) -> str:
    """Returns the dotted name of the block that a weight belongs to, "" for none."""
    path = name.split(".")
    depth = next((i for i, part in enumerate(path) if part.startswith("block_")), -1)
    return ".".join(path[: depth + 1])
