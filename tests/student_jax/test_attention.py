"""Attention is the library's, at once and in pieces, forwards and backwards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from student_jax import attention
from student_jax.attention import attend, attend_fused, has_fused_attention

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


def first_tokens(mask):
    """As many tokens as a mask lets through, the first ones."""
    return jnp.arange(T)[None] < mask.sum(-1, keepdims=True)


def test_fused_attention_reads_what_ours_reads(question):
    """By the library's other implementation: cuDNN's needs a GPU."""
    query, key, _, mask = question
    mask = first_tokens(mask)
    (expected,) = ours(query, key, (query,), mask)
    got = attend_fused(query, key, query, mask, implementation="xla")
    chex.assert_trees_all_close(got, expected, atol=1e-5)


def test_fused_attention_is_asked_for_as_cudnn_takes_it(monkeypatch, question):
    """The library checks shapes and types before it looks for a GPU's kernels."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    query, mask = question[0].astype(jnp.bfloat16), question[3]
    told = jax.eval_shape(attend_fused, query, query, query, first_tokens(mask))
    assert (told.shape, told.dtype) == ((B, T, H, K), jnp.bfloat16)
    with pytest.raises(ValueError, match="same seq length"):  # as it was asked for before
        jax.eval_shape(
            lambda x, m: jax.nn.dot_product_attention(x, x, x, mask=m, implementation="cudnn"),
            query,
            mask[:, None, None],
        )


def test_where_fused_attention_cannot_be_had_it_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # that has no cuDNN
    has_fused_attention.cache_clear()
    assert [has_fused_attention(H, K) for _ in range(2)] == [False, False]
    has_fused_attention.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: no fused attention: ")
