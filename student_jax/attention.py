"""Attention: who reads whom, and what is read.

In the shape descriptions: `B` batch, `H` heads, `T` tokens, `K` key width of a head, `V` what a
head reads.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp

from student_jax.linear import multiply
from student_jax.normalize import softmax

# Scores, f32. A CPU that passes over more of them than its caches hold waits for memory; pieces
# that are smaller than need be cost more for being many (docs/performance.md).
LARGE = 2**22
PIECE = 5 * 2**18

Values = tuple[jax.Array, ...]  # [B, H, T, V] each


@functools.cache
def has_fused_attention(heads: int, head_width: int) -> bool:
    """Whether cuDNN computes this attention, which then never writes its scores to memory.

    It is tried out, forwards and backwards: what it takes differs from GPU to GPU.
    """
    if jax.default_backend() != "gpu":
        return False

    def total(x: jax.Array, mask: jax.Array) -> jax.Array:
        return attend_fused(x, x, x, mask).astype(jnp.float32).sum()

    x = jax.ShapeDtypeStruct((2, 128, heads, head_width), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, 128), bool)
    try:
        jax.jit(jax.grad(total)).lower(x, mask).compile()
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        sys.stderr.write(f"note: no fused attention: {' '.join(str(error).split())[:160]}\n")
        return False
    return True


def attend_fused(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """The same where the tokens that may be attended are a sequence's first ones.

    cuDNN is told how many there are: a mask would be a bias of all scores, in memory.

    Args:
        query: bf16[B, T, H, K]; so are key and value.
        key: see query.
        value: see query.
        mask: bool[B, T], True for the first tokens of each sequence, at least one.
        implementation: of `jax.nn.dot_product_attention`.

    Returns:
        bf16[B, T, H, K].
    """
    count = mask.sum(-1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=count, implementation=implementation
    )


def attend(query: jax.Array, key: jax.Array, values: Values, mask: jax.Array | None) -> Values:
    """Lets tokens read each other's values: scaled dot products (arXiv 1706.03762), f32 softmax.

    Args:
        query: [B, H, T, K].
        key: [B, H, K, T].
        values: [B, H, T, V] each; all are read with the same weights.
        mask: bool[B, T], True where a token may be attended; None for everywhere.

    Returns:
        f32[B, H, T, V] of each.
    """
    batch, heads, tokens, _ = sizes = query.shape
    known = all(isinstance(size, int) for size in sizes)  # an export leaves some open
    large = known and batch * heads * tokens**2 > LARGE
    return (_attend_large if large else _at_once)(query, key, values, mask)


@jax.custom_vjp
def _attend_large(
    query: jax.Array, key: jax.Array, values: Values, mask: jax.Array | None
) -> Values:
    """Where gradients are taken, all is done at once: they need all weights anyway."""
    args = query, key, values, mask
    return jax.lax.platform_dependent(*args, cpu=_in_pieces, default=_at_once)


def _at_once(query: jax.Array, key: jax.Array, values: Values, mask: jax.Array | None) -> Values:
    return _read(query, key, values, mask if mask is None else mask[:, None, None])


def _read(query: jax.Array, key: jax.Array, values: Values, mask: jax.Array | None) -> Values:
    """Rows [*B, R, K] read columns, `mask` being bool[*B, 1, T]: f32[*B, R, V] of each."""
    scores = multiply(query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = softmax(scores).astype(query.dtype)
    return tuple(multiply(weights, value) for value in values)


def _in_pieces(query: jax.Array, key: jax.Array, values: Values, mask: jax.Array | None) -> Values:
    """Does one head of one question after the other, and of a long one some rows at a time."""
    batch, heads, tokens, width = query.shape
    parts = math.ceil(tokens**2 / PIECE)
    rows = math.ceil(tokens / parts)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, parts * rows - tokens), (0, 0)))
    columns = [x.astype(query.dtype).reshape(-1, *x.shape[2:]) for x in (key, *values)]

    def read_rows(piece: tuple[jax.Array, jax.Array]) -> Values:
        own, head = piece
        key, *values = (x[head] for x in columns)
        return _read(own, key, tuple(values), None if mask is None else mask[head // heads][None])

    which = jnp.repeat(jnp.arange(batch * heads), parts)
    whole = jax.lax.map(read_rows, (query.reshape(-1, rows, width), which))
    return tuple(y.reshape(batch, heads, parts * rows, -1)[:, :, :tokens] for y in whole)


def _attend_forward(
    query: jax.Array, key: jax.Array, values: Values, mask: jax.Array | None
) -> tuple[Values, Any]:
    return jax.vjp(lambda q, k, v: _at_once(q, k, v, mask), query, key, values)


def _attend_back(gradients_of: Any, g: Values) -> tuple[Any, ...]:
    return *gradients_of(g), None


_attend_large.defvjp(_attend_forward, _attend_back)
