"""The feature student's transformer, and what the grid student's shares with it.

In the shape descriptions: `B` batch, `T` tokens, `D` width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from student_jax.terms import orthogonal

DType = Any  # jnp.float32 or jnp.bfloat16, of activations; weights are f32


def keep_bias(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts a layer's input and kernel, and leaves its bias in f32.

    Added in f32, a bias gets its gradient in f32: summed over tokens in bf16, ones stop at 256.
    """
    del inexact
    values, bias = args[:2], args[2:]
    return [*(jnp.asarray(value, dtype) for value in values), *bias]


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
    """Pre-norm attention and MLP."""

    heads: int
    mlp_width: int
    dropout: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Maps [B, T, D] to [B, T, D].

        Args:
            x: [B, T, D].
            mask: bool[B, T], True where a token may be attended.
            train: whether dropout is on.
        """
        normed = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + self._drop(self._attention(normed, mask), train)
        normed = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        hidden = nn.gelu(self._dense(self.mlp_width, "up", normed), approximate=False)
        return x + self._drop(self._dense(x.shape[-1], "down", hidden), train)

    def _attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        shape = (self.heads, x.shape[-1] // self.heads)
        query, key, value = (self._dense(shape, name, x) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
        return self._dense(x.shape[-1], "out", attended, axis=(-2, -1))

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


class Trunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm.

    A learned embedding tells each round which one it is. Plain Python loops: `nn.scan` does not
    convert to ONNX.
    """

    depth: int
    heads: int
    mlp_width: int
    loops: int = 1
    dropout: float = 0.0
    dtype: DType = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; arguments as for `Block`."""
        block_type = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        blocks = [
            block_type(self.heads, self.mlp_width, self.dropout, self.dtype, name=f"block_{i}")
            for i in range(self.depth)
        ]
        rounds = self.param("rounds", nn.initializers.zeros, (self.loops, x.shape[-1]))
        for loop in range(self.loops):
            x = (x + rounds[loop].reshape(1, 1, -1)).astype(self.dtype)
            for block in blocks:
                x = block(x, mask, train)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)
