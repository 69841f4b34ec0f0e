"""The grid student's transformer: it treats all colors but black alike.

A cell has a state for each color, and every layer does the same to each color's state. A question
in other colors is therefore answered in those colors, exactly, and never has to be learnt as a
question of its own. Colors meet in the mean over those that a task shows. The idea of states per
color is CompressARC's (arXiv 2512.06104).

In the shape descriptions: `B` batch, `T` tokens, `C` colors, `D` width, `H` heads, `K` = M / H key
width, `M` MLP width, `N` canvas side.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from student_jax.trunk import DType, keep_bias

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


class ColorBlock(nn.Module):
    """Pre-norm attention and gated MLP, for every color the same.

    Who attends whom is decided once for all colors, from their mean; what is then read is each
    color's own. The MLP mixes neighbouring cells: a 3 x 3 depthwise convolution inside the gate
    (LoopViT, arXiv 2602.02156).
    """

    heads: int
    mlp_width: int
    convolution: bool = True
    dropout: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        shown: jax.Array,
        mask: jax.Array | None,
        angles: jax.Array,
        side: int,
        train: bool,
    ) -> jax.Array:
        """Maps [B, T, C, D] to [B, T, C, D].

        Args:
            x: the last N * N tokens are a canvas' cells.
            shown: bool[B, C], the colors that the task shows.
            mask: bool[B, T], True where a token may be attended; None for everywhere.
            angles: f32[T, K / 2] of the rotary embedding.
            side: N.
            train: whether dropout is on.
        """
        normed = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + self._drop(self._attention(normed, shown, mask, angles), train)
        normed = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        return x + self._drop(self._mlp(normed, shown, side), train)

    def _attention(
        self, x: jax.Array, shown: jax.Array, mask: jax.Array | None, angles: jax.Array
    ) -> jax.Array:
        batch, tokens, colors, width = x.shape
        key_width = self.mlp_width // self.heads
        mean = mean_color(x, shown)
        query, key = (
            rotate(self._dense((self.heads, key_width), name, mean), angles)
            for name in ("query", "key")
        )
        scores = jnp.einsum("bqhk,bthk->bhqt", query, key).astype(jnp.float32)
        scores = scores / math.sqrt(key_width)
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        value = self._dense((self.heads, width // self.heads), "value", x)  # [B, T, C, H, D / H]
        value = value.transpose(0, 3, 1, 2, 4).reshape(batch, self.heads, tokens, -1)
        read = (weights @ value).reshape(batch, self.heads, tokens, colors, -1)
        return self._dense(width, "out", read.transpose(0, 2, 3, 1, 4), axis=(-2, -1))

    def _mlp(self, x: jax.Array, shown: jax.Array, side: int) -> jax.Array:
        mean = mean_color(x, shown)
        gate, up = (
            self._dense(self.mlp_width, name, x)
            + self._dense(self.mlp_width, f"mean_{name}", mean)[:, :, None]
            for name in ("gate", "up")
        )
        hidden = nn.silu(gate) * up  # [B, T, C, M]
        if not self.convolution:
            return self._dense(x.shape[-1], "down", hidden)
        prefix = x.shape[1] - side**2
        kernel = self.param("conv", _identity_3x3, (3, 3, self.mlp_width))
        cells = hidden[:, prefix:].reshape(len(x), side, side, *hidden.shape[2:])
        mixed = depthwise_3x3(cells, kernel).astype(self.dtype)
        mixed = mixed.reshape(len(x), side**2, *hidden.shape[2:])
        mixed = jnp.concatenate([hidden[:, :prefix], mixed], 1)
        return self._dense(x.shape[-1], "down", mixed)

    def _dense(
        self,
        shape: int | tuple[int, ...],
        name: str,
        x: jax.Array,
        axis: int | tuple[int, ...] = -1,
    ) -> jax.Array:
        layer = nn.DenseGeneral(shape, axis, dtype=self.dtype, promote_dtype=keep_bias, name=name)
        return layer(x).astype(self.dtype)

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class ColorTrunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm.

    A learned embedding tells each round which one it is. Plain Python loops: `nn.scan` does not
    convert to ONNX.
    """

    depth: int
    heads: int
    mlp_width: int
    loops: int = 1
    convolution: bool = True
    dropout: float = 0.0
    dtype: DType = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        shown: jax.Array,
        mask: jax.Array | None,
        angles: jax.Array,
        side: int,
        *,
        train: bool,
    ) -> jax.Array:
        """Maps [B, T, C, D] to [B, T, C, D]; arguments as for `ColorBlock`."""
        block_type = nn.remat(ColorBlock, static_argnums=(5, 6)) if self.remat else ColorBlock
        blocks = [
            block_type(
                self.heads,
                self.mlp_width,
                self.convolution,
                self.dropout,
                self.dtype,
                name=f"block_{i}",
            )
            for i in range(self.depth)
        ]
        rounds = self.param("rounds", nn.initializers.zeros, (self.loops, x.shape[-1]))
        for loop in range(self.loops):
            x = (x + rounds[loop].reshape(1, 1, 1, -1)).astype(self.dtype)
            for block in blocks:
                x = block(x, shown, mask, angles, side, train)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


def _identity_3x3(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Starts the convolution as the identity with a little noise, so that it can only help."""
    noise = 0.1 * jax.random.normal(key, shape)
    return noise.at[1, 1].add(1.0)
