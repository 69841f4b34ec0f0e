"""Layer norm and softmax, the sums of whose rows are fast on every backend.

On a CPU, XLA takes some 100 ns to sum a row, however short it is, which is a quarter of a small
student's training step; as a product with ones it is next to nothing (docs/performance.md). Both
gradients are written out, since those that are derived sum rows in the slow way.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-6  # added to the variance; flax.linen.LayerNorm's default


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016, arXiv 1607.06450) with the weights of `flax.linen.LayerNorm`."""

    dtype: Any  # of the result; statistics are f32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [*B, D] to [*B, D]."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        across = (1,) * (x.ndim - 1) + shape
        return (standardize(x) * scale.reshape(across) + bias.reshape(across)).astype(self.dtype)


@jax.custom_vjp
def standardize(x: jax.Array) -> jax.Array:
    """Shifts and scales each row of [*B, D] to mean 0 and variance 1, f32[*B, D]."""
    return _standardize(x)[0]


def _standardize(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean = _mean(x.astype(jnp.float32))
    centered = x.astype(jnp.float32) - mean
    inverse = jax.lax.rsqrt(_mean(centered**2) + EPSILON)
    return centered * inverse, (x, mean, inverse)


def _standardize_back(saved: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array]:
    """What is left of a gradient without its parts along the mean and along the row itself."""
    x, mean, inverse = saved
    y = (x.astype(jnp.float32) - mean) * inverse
    return ((inverse * (g - _mean(g) - y * _mean(g * y))).astype(x.dtype),)


standardize.defvjp(_standardize, _standardize_back)


@jax.custom_vjp
def softmax(x: jax.Array) -> jax.Array:
    """The softmax of each row, f32[*B, D]."""
    return _softmax(x)[0]


def _softmax(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    exp = jnp.exp(x - x.max(-1, keepdims=True))
    y = exp / _sum(exp)
    return y, y


def _softmax_back(y: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (y * (g - _sum(g * y)),)


softmax.defvjp(_softmax, _softmax_back)


def _mean(x: jax.Array) -> jax.Array:
    return _sum(x) / x.shape[-1]


def _sum(x: jax.Array) -> jax.Array:
    """Sums each row, f32[*B, D] to f32[*B, 1]."""
    return jax.lax.platform_dependent(x, cpu=_product_with_ones, default=_plain_sum)


def _product_with_ones(x: jax.Array) -> jax.Array:
    return x @ jnp.ones((x.shape[-1], 1), x.dtype)


def sum_rows(x: jax.Array) -> jax.Array:
    """Sums all rows of [*B, D], f32[D]."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return jax.lax.platform_dependent(
        rows, cpu=lambda y: (jnp.ones((1, len(y)), y.dtype) @ y)[0], default=lambda y: y.sum(0)
    )


def _plain_sum(x: jax.Array) -> jax.Array:
    return x.sum(-1, keepdims=True)
