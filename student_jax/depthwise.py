"""A depthwise convolution of canvases that is fast on every backend, and its gradient.

In the shape descriptions: `B` batch, `N` canvas side, `C` colors, `M` MLP width.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from student_jax.normalize import sum_rows


@jax.custom_vjp
def depthwise_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every channel of a canvas with its own 3 x 3 kernel, zeros outside.

    Nine shifted products: XLA's grouped convolution is slow on CPUs; this exports anywhere, too.
    The gradient is written out, since the derived one computes `x` anew for each of the nine.

    Args:
        x: [B, N, N, C, M].
        kernel: [3, 3, M].
    """
    weights = kernel.reshape(9, 1, 1, 1, 1, -1)
    return _sum_of(shifted * weight for shifted, weight in zip(_nine(x), weights, strict=True))


def _depthwise(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_3x3(x, kernel), (x, kernel)


def _depthwise_back(
    saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Convolves the gradient with the kernel turned around, and sums its products with `x`."""
    x, kernel = saved
    back = depthwise_3x3(g, kernel[::-1, ::-1]).astype(x.dtype)
    x, g = jax.lax.optimization_barrier((x, g))
    # Some examples are added up first: so many times fewer rows are left to be summed.
    some = next(count for count in (4, 3, 2, 1) if len(x) % count == 0)
    parts = zip(jnp.split(x, some), jnp.split(g, some), strict=True)
    products = [[shifted * by for shifted in _nine(part)] for part, by in parts]
    sums = [sum_rows(_sum_of(each)) for each in zip(*products, strict=True)]
    return back, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _nine(x: jax.Array) -> list[jax.Array]:
    """What each of a kernel's nine weights is multiplied with: a canvas shifted, zeros outside."""
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]


def _sum_of(each: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, each)


depthwise_3x3.defvjp(_depthwise, _depthwise_back)
