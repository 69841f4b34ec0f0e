"""Attention is the library's, at once and in pieces, forwards and backwards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from student_jax import attention
from student_jax.attention import attend

B, H, T, K = 3, 2, 11, 8
WIDTHS = (8, 4)  # of what is read


@pytest.fixture
def question():
    """A query, a key and values [B, T, H, K], as the library has them, and who may be attended."""
    rng = np.random.default_rng(0)
    query, key, *values = (
        jnp.asarray(rng.normal(size=(B, T, H, width)), jnp.float32) for width in (K, K, *WIDTHS)
    )
    return query, key, tuple(values), jnp.asarray(rng.random((B, T)) < 0.7)


def ours(query, key, values, mask):
    heads_first = [x.transpose(0, 2, 1, 3) for x in (query, *values)]
    read = attend(heads_first[0], key.transpose(0, 2, 3, 1), tuple(heads_first[1:]), mask)
    return tuple(x.transpose(0, 2, 1, 3) for x in read)


def theirs(query, key, values, mask):
    mask = None if mask is None else mask[:, None, None]
    # It wants values as wide as the key: zeros are read, and left out again.
    padded = [jnp.pad(x, ((0, 0),) * 3 + ((0, K - x.shape[-1]),)) for x in values]
    read = [jax.nn.dot_product_attention(query, key, x, mask=mask) for x in padded]
    return tuple(x[..., :width] for x, width in zip(read, WIDTHS, strict=True))


def gradients(function, question):
    query, key, values, mask = question

    def total(query, key, values):
        return sum(
            (jnp.cos(jnp.arange(x.size)) * x.ravel()).sum()
            for x in function(query, key, values, mask)
        )

    return jax.grad(total, (0, 1, 2))(query, key, values)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("piece", [None, T * T, T * T // 2, T * T // 4, 1])
def test_attention_is_jaxs(monkeypatch, question, piece, masked):
    calls = []
    if piece:  # rows: all, 4, 3 and 1 at a time, the last of them filled up
        monkeypatch.setattr(attention, "LARGE", 0)
        monkeypatch.setattr(attention, "PIECE", piece)
        loop = jax.lax.map
        monkeypatch.setattr(jax.lax, "map", lambda f, xs: calls.append(xs[0].shape) or loop(f, xs))
    query, key, values, mask = question
    question = query, key, values, mask if masked else None
    chex.assert_trees_all_close(ours(*question), theirs(*question), atol=1e-5)
    rows = {None: 0, T * T: T, T * T // 2: 4, T * T // 4: 3, 1: 1}[piece]
    assert [shape[1] for shape in calls] == ([rows] if piece else [])
    chex.assert_trees_all_close(gradients(ours, question), gradients(theirs, question), atol=1e-4)
    assert len(calls) <= 1  # gradients are taken of all at once


def test_questions_beside_each_other_are_mapped_apart(monkeypatch, question):
    """As adaptation does, which gives each task weights of its own."""
    alone = ours(*question)
    monkeypatch.setattr(attention, "LARGE", 0)
    two = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), question)
    together = jax.vmap(ours)(*two)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], together), alone, atol=1e-5)
    turned = jax.tree.map(lambda x: x[1, ::-1], together)
    chex.assert_trees_all_close(turned, alone, atol=1e-5)
