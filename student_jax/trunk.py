"""The transformer: what both students share, and the feature student's block.

In the shape descriptions: `B` batch, `T` tokens, `D` width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from student_jax.config import ModelConfig
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


class PreNorm(nn.Module):
    """A block: attention, then an MLP, each normed before and added after; kinds fill in the two.

    `where` is whatever a kind needs to know beside the states: the same for every block of a trunk.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, where: Any, train: bool) -> jax.Array:
        """Maps states [*B, D] to [*B, D]."""
        x = x + self._drop(self.attention(self._norm("norm1", x), where), train)
        return x + self._drop(self.mlp(self._norm("norm2", x), where), train)

    def attention(self, x: jax.Array, where: Any) -> jax.Array:
        """Lets tokens read each other."""
        raise NotImplementedError

    def mlp(self, x: jax.Array, where: Any) -> jax.Array:
        """Changes each token's state."""
        raise NotImplementedError

    def dense(
        self,
        shape: int | tuple[int, ...],
        name: str,
        x: jax.Array,
        axis: int | tuple[int, ...] = -1,
    ) -> jax.Array:
        """Makes a linear layer and applies it, in the compute dtype."""
        dtype = jnp.dtype(self.config.compute)
        layer = nn.DenseGeneral(shape, axis, dtype=dtype, promote_dtype=keep_bias, name=name)
        return layer(x).astype(dtype)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(dtype=jnp.dtype(self.config.compute), name=name)(x)

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(self.config.dropout, deterministic=not train)(x)


class Block(PreNorm):
    """The feature student's; `where` is bool[B, T], True where a token may be attended."""

    def attention(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        heads, width = self.config.heads, x.shape[-1]
        shape = (heads, width // heads)
        query, key, value = (self.dense(shape, name, x) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(query, key, value, mask=where[:, None, None, :])
        return self.dense(width, "out", attended, axis=(-2, -1))

    def mlp(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        del where
        hidden = nn.gelu(self.dense(self.config.mlp_width, "up", x), approximate=False)
        return self.dense(x.shape[-1], "down", hidden)


class Trunk(nn.Module):
    """`depth` blocks, run `loops` times with the same weights, then a norm.

    A learned embedding tells each round which one it is. Plain Python loops: `nn.scan` does not
    convert to ONNX.
    """

    config: ModelConfig
    block: type[PreNorm]
    depth: int
    loops: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, where: Any, *, train: bool) -> jax.Array:
        """Maps states [*B, D] to [*B, D]; arguments as for the blocks."""
        dtype = jnp.dtype(self.config.compute)
        kind = nn.remat(self.block, static_argnums=(3,)) if self.config.remat else self.block
        blocks = [kind(self.config, name=f"block_{i}") for i in range(self.depth)]
        rounds = self.param("rounds", nn.initializers.zeros, (self.loops, x.shape[-1]))
        for loop in range(self.loops):
            x = (x + rounds[loop].reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)
            for block in blocks:
                x = block(x, where, train)
        return nn.LayerNorm(dtype=dtype, name="norm")(x)
