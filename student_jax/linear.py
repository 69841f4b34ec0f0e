"""Linear layers, several of the same input as one product, and their gradients.

A CPU's small products cost more for being many than for being large (docs/performance.md).

In the shape descriptions: `R` rows, `D` width entering, `E` width leaving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from student_jax.normalize import sum_rows

# Kernels that have no more weights than this, all together, are copied into one for one product.
SMALL = 2**16


class Weights(nn.Module):
    """The weights of `flax.linen.DenseGeneral`, by its names and drawn as it draws them."""

    entering: tuple[int, ...]
    leaving: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel f32[D, E] and the bias f32[E]."""
        flat = (math.prod(self.entering), math.prod(self.leaving))

        def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return nn.initializers.lecun_normal()(key, flat).reshape(shape)

        kernel = self.param("kernel", draw, (*self.entering, *self.leaving))
        bias = self.param("bias", nn.initializers.zeros, self.leaving)
        return kernel.reshape(flat), bias.reshape(-1)


def keep_bias(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts a layer's input and kernel, and leaves its bias in f32.

    Added in f32, a bias gets its gradient in f32: summed over tokens in bf16, ones stop at 256.
    """
    del inexact
    values, bias = args[:2], args[2:]
    return [*(jnp.asarray(value, dtype) for value in values), *bias]


def linear_each(
    x: jax.Array, weights: Sequence[tuple[jax.Array, jax.Array]], dtype: Any
) -> list[jax.Array]:
    """Applies several layers of equal widths to rows [R, D], cast to `dtype`: [R, E] of each."""
    x = x.astype(dtype)
    if sum(kernel.size for kernel, _ in weights) > SMALL:
        return [linear(x, *each) for each in weights]
    kernel, bias = (jnp.concatenate(each, -1) for each in zip(*weights, strict=True))
    return jnp.split(linear(x, kernel, bias), len(weights), -1)


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Multiplies rows [R, D] by a kernel f32[D, E], and adds a bias f32[E] in f32: [R, E]."""
    return (multiply(x, kernel) + bias[None]).astype(between(x.dtype))


def between(dtype: Any) -> Any:
    """Returns the type of what lies between products of a type: f32 on a CPU, else the same.

    A CPU would round bf16 after every operation, which takes longer than the operations
    (docs/performance.md). Elsewhere they are fused, and half the bytes are to be moved.
    """
    return jnp.float32 if jax.default_backend() == "cpu" else dtype


def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies [*B, R, D] by [*B, D, E], cast to its type, and adds up in f32: f32[*B, R, E].

    Told to return bf16, XLA on a CPU turns factors in bf16 to f32 first, for half of the speed.
    """
    return jnp.matmul(x, y.astype(x.dtype), preferred_element_type=jnp.float32)


Saved = tuple[jax.Array, jax.Array]


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, Saved]:
    return linear(x, kernel, bias), (x, kernel)


def _linear_back(saved: Saved, g: jax.Array) -> tuple[jax.Array, ...]:
    """What is summed over rows is summed in f32: in bf16, ones stop at 256."""
    x, kernel = saved
    factor = g.astype(x.dtype)
    back = multiply(factor, kernel.T).astype(x.dtype)
    # Turned around is the narrower: left to it, XLA turns the larger (docs/performance.md).
    narrow = x.shape[1] <= factor.shape[1]
    of_kernel = multiply(x.T, factor) if narrow else multiply(factor.T, x).T
    return back, of_kernel.astype(kernel.dtype), sum_rows(g)


linear.defvjp(_linear, _linear_back)
