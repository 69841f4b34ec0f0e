"""The grid student's block: it treats all colors but black alike.

A cell has a state for each color, and every layer does the same to each color's state. A question
in other colors is therefore answered in those colors, exactly, and never has to be learnt as a
question of its own. Colors meet in the mean over those that a task shows. The idea of states per
color is CompressARC's (arXiv 2512.06104).

In the shape descriptions: `B` batch, `T` tokens, `C` colors, `D` width, `H` heads, `K` = M / H key
width, `M` MLP width, `N` canvas side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from student_jax.trunk import PreNorm

ROPE_BASE = 100.0  # canvases are at most 32 cells a side; VARC uses the same order of magnitude
LINE_ROPE_BASE = 10_000.0  # arXiv 2104.09864, section 3.2.2: a line has up to 1024 cells


def rotary_angles(side: int, prefix: int, key_width: int, positions: str) -> jax.Array:
    """Returns the angles of rotary position embedding for `prefix` tokens and then a canvas.

    2-d: the first half of a head turns with the row, the second with the column. 1-d: all of it
    turns with the place in reading order. Prefix tokens do not turn at all.

    Source: RoPE, arXiv 2104.09864; axial 2-D form, arXiv 2403.13298.

    Returns:
        f32[prefix + N * N, K / 2].
    """
    if positions == "1-d":
        half = key_width // 2
        frequencies = LINE_ROPE_BASE ** (-jnp.arange(half) / half)
        line = jnp.arange(side**2)[:, None] * frequencies[None]
        return jnp.concatenate([jnp.zeros((prefix, half)), line])
    quarter = key_width // 4
    frequencies = ROPE_BASE ** (-jnp.arange(quarter) / quarter)
    position = jnp.arange(side)[:, None] * frequencies[None]  # [N, K/4]
    shape = (side, side, quarter)
    rows = jnp.broadcast_to(position[:, None], shape)
    cols = jnp.broadcast_to(position[None, :], shape)
    cells = jnp.concatenate([rows, cols], -1).reshape(side * side, 2 * quarter)
    return jnp.concatenate([jnp.zeros((prefix, 2 * quarter)), cells])


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns each pair of channels by its angle.

    Args:
        x: [B, T, H, K].
        angles: f32[T, K / 2].
    """
    sin, cos = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.sin, jnp.cos))
    even, odd = jnp.split(x, 2, -1)
    return jnp.concatenate([even * cos - odd * sin, even * sin + odd * cos], -1)


def depthwise_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every channel of a canvas with its own 3 x 3 kernel, zeros outside.

    Nine shifted products: XLA's grouped convolution is slow on CPUs; this exports anywhere, too.

    Args:
        x: [B, N, N, C, M].
        kernel: [3, 3, M].
    """
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(
        (
            padded[:, i : i + side, j : j + side] * kernel[i, j].reshape(1, 1, 1, 1, -1)
            for i in range(3)
            for j in range(3)
        ),
        start=jnp.zeros(x.shape, jnp.result_type(x, kernel)),
    )


def mean_color(x: jax.Array, shown: jax.Array) -> jax.Array:
    """Averages [B, T, C, D] over the colors that are shown, bool[B, C]: [B, T, D]."""
    weights = shown / jnp.maximum(shown.sum(-1, keepdims=True), 1)
    return jnp.einsum("btcd,bc->btd", x, weights.astype(x.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """What the blocks know of a question beside its states."""

    shown: jax.Array  # bool[B, C], the colors that the task shows
    mask: jax.Array | None  # bool[B, T], True where a token may be attended; None for everywhere
    angles: jax.Array  # f32[T, K / 2] of the rotary embedding
    side: int = field(metadata={"static": True})  # N; the last N * N tokens are a canvas' cells


class ColorBlock(PreNorm):
    """Attention and gated MLP, for every color the same.

    Who attends whom is decided once for all colors, from their mean; what is then read is each
    color's own. The MLP mixes neighbouring cells: a 3 x 3 depthwise convolution inside the gate
    (LoopViT, arXiv 2602.02156).
    """

    def attention(self, x: jax.Array, where: Scene) -> jax.Array:
        """Maps [B, T, C, D] to [B, T, C, D]."""
        batch, tokens, colors, width = x.shape
        heads = self.config.heads
        key_width = self.config.mlp_width // heads
        mean = mean_color(x, where.shown)
        query, key = (
            rotate(self.dense((heads, key_width), name, mean), where.angles)
            for name in ("query", "key")
        )
        scores = jnp.einsum("bqhk,bthk->bhqt", query, key).astype(jnp.float32)
        scores = scores / math.sqrt(key_width)
        if where.mask is not None:
            scores = jnp.where(where.mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        value = self.dense((heads, width // heads), "value", x)  # [B, T, C, H, D / H]
        value = value.transpose(0, 3, 1, 2, 4).reshape(batch, heads, tokens, -1)
        read = (weights @ value).reshape(batch, heads, tokens, colors, -1)
        return self.dense(width, "out", read.transpose(0, 2, 3, 1, 4), axis=(-2, -1))

    def mlp(self, x: jax.Array, where: Scene) -> jax.Array:
        """Maps [B, T, C, D] to [B, T, C, D]."""
        hidden_width, side = self.config.mlp_width, where.side
        mean = mean_color(x, where.shown)
        gate, up = (
            self.dense(hidden_width, name, x)
            + self.dense(hidden_width, f"mean_{name}", mean)[:, :, None]
            for name in ("gate", "up")
        )
        hidden = nn.silu(gate) * up  # [B, T, C, M]
        if self.config.convolution:
            prefix = x.shape[1] - side**2
            kernel = self.param("conv", _identity_3x3, (3, 3, hidden_width))
            cells = hidden[:, prefix:]
            mixed = depthwise_3x3(cells.reshape(len(x), side, side, *cells.shape[2:]), kernel)
            mixed = mixed.astype(hidden.dtype).reshape(cells.shape)
            hidden = jnp.concatenate([hidden[:, :prefix], mixed], 1)
        return self.dense(x.shape[-1], "down", hidden)


def _identity_3x3(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Starts the convolution as the identity with a little noise, so that it can only help."""
    noise = 0.1 * jax.random.normal(key, shape)
    return noise.at[1, 1].add(1.0)
