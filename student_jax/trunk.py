"""The transformer that both students share.

In the shape descriptions: `B` batch, `T` tokens, `D` width, `H` heads, `K` = D / H head width,
`M` MLP width, `N` canvas side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from student_jax.terms import orthogonal

DType = Any  # jnp.float32 or jnp.bfloat16, of activations; weights are f32
ROPE_BASE = 100.0  # canvases are at most 32 cells a side; VARC uses the same order of magnitude
LINE_ROPE_BASE = 10_000.0  # arXiv 2104.09864, section 3.2.2: a line has up to 1024 cells


def keep_bias(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts a layer's input and kernel, and leaves its bias in f32.

    Added in f32, a bias gets its gradient in f32: summed over tokens in bf16, ones stop at 256.
    """
    del inexact
    values, bias = args[:2], args[2:]
    return [*(jnp.asarray(value, dtype) for value in values), *bias]


def rotary_angles(side: int, prefix: int, head_width: int, positions: str) -> jax.Array:
    """Returns the angles of rotary position embedding for `prefix` tokens and then a canvas.

    2-d: the first half of a head turns with the row, the second with the column. 1-d: all of it
    turns with the place in reading order. Prefix tokens do not turn at all.

    Source: RoPE, arXiv 2104.09864; axial 2-D form, arXiv 2403.13298.

    Returns:
        f32[prefix + N * N, K / 2].
    """
    if positions == "1-d":
        half = head_width // 2
        frequencies = LINE_ROPE_BASE ** (-jnp.arange(half) / half)
        line = jnp.arange(side**2)[:, None] * frequencies[None]
        return jnp.concatenate([jnp.zeros((prefix, half)), line])
    quarter = head_width // 4
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
        x: [B, N, N, M].
        kernel: [3, 3, M].
    """
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        (
            padded[:, i : i + side, j : j + side] * kernel[None, None, None, i, j]
            for i in range(3)
            for j in range(3)
        ),
        start=jnp.zeros(x.shape, jnp.result_type(x, kernel)),
    )


class Projector(nn.Module):
    """From a student's width to its teacher's, `W x + b`; see `ModelConfig.projector`."""

    width: int
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [*B, D] to [*B, F]."""
        shape = (x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = orthogonal(kernel) if self.kind == "orthogonal" else kernel
        return x @ kernel.astype(x.dtype) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class Block(nn.Module):
    """Pre-norm attention and MLP.

    On a canvas the MLP is gated and mixes neighbouring cells: a 3 x 3 depthwise convolution inside
    the gate (LoopViT, arXiv 2602.02156).
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
        mask: jax.Array | np.ndarray | None,
        angles: jax.Array | None,
        side: int | None,
        train: bool,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D].

        Args:
            x: [B, T, D].
            mask: bool[B, T], True where a token may be attended; None for everywhere.
            angles: f32[T, K / 2] of the rotary embedding, or None for none.
            side: N if the last N * N tokens are a canvas' cells, or None.
            train: whether dropout is on.
        """
        normed = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + self._drop(self._attention(normed, mask, angles), train)
        normed = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        return x + self._drop(self._mlp(normed, side), train)

    def _attention(
        self, x: jax.Array, mask: jax.Array | np.ndarray | None, angles: jax.Array | None
    ) -> jax.Array:
        head_width = x.shape[-1] // self.heads
        query, key, value = (
            self._dense((self.heads, head_width), name)(x) for name in ("query", "key", "value")
        )
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        attended = jax.nn.dot_product_attention(
            query, key, value, mask=None if mask is None else mask[:, None, None, :]
        )
        return self._dense(x.shape[-1], "out", axis=(-2, -1))(attended)

    def _dense(
        self, shape: int | tuple[int, ...], name: str, axis: int | tuple[int, ...] = -1
    ) -> Callable[[jax.Array], jax.Array]:
        layer = nn.DenseGeneral(shape, axis, dtype=self.dtype, promote_dtype=keep_bias, name=name)
        return lambda x: layer(x).astype(self.dtype)

    def _mlp(self, x: jax.Array, side: int | None) -> jax.Array:
        if side is None:
            hidden = nn.gelu(self._dense(self.mlp_width, "up")(x), approximate=False)
            return self._dense(x.shape[-1], "down")(hidden)
        gate = nn.silu(self._dense(self.mlp_width, "gate")(x))
        hidden = gate * self._dense(self.mlp_width, "up")(x)  # [B, T, M]
        if not self.convolution:
            return self._dense(x.shape[-1], "down")(hidden)
        prefix = x.shape[1] - side**2
        kernel = self.param("conv", _identity_3x3, (3, 3, self.mlp_width))
        cells = hidden[:, prefix:].reshape(len(x), side, side, -1)
        mixed = depthwise_3x3(cells, kernel).astype(self.dtype).reshape(len(x), side**2, -1)
        hidden = jnp.concatenate([hidden[:, :prefix], mixed], 1)
        return self._dense(x.shape[-1], "down")(hidden)

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Trunk(nn.Module):
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
        mask: jax.Array | np.ndarray | None = None,
        angles: jax.Array | None = None,
        side: int | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; arguments as for `Block`."""
        block_type = nn.remat(Block, static_argnums=(4, 5)) if self.remat else Block
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
            x = (x + rounds[loop].reshape(1, 1, -1)).astype(self.dtype)
            for block in blocks:
                x = block(x, mask, angles, side, train)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


def _identity_3x3(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Starts the convolution as the identity with a little noise, so that it can only help."""
    noise = 0.02 * jax.random.normal(key, shape)
    return noise.at[1, 1].add(1.0)
