"""Layer norm and softmax are the library's, forwards and backwards."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from student_jax.normalize import LayerNorm, softmax


@pytest.fixture
def rows():
    """Rows far from 0 and of unlike spread."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 32)) * rng.uniform(0.1, 10, (2, 5, 1)) + rng.normal(size=(2, 5, 1))
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-5), (jnp.bfloat16, 0.1)])
def test_layer_norm_is_flaxs(rows, dtype, atol):
    ours, theirs = LayerNorm(dtype), nn.LayerNorm(dtype=dtype, use_fast_variance=False)
    variables = theirs.init(jax.random.key(0), rows)
    chex.assert_trees_all_equal(variables, ours.init(jax.random.key(0), rows))
    variables = jax.tree.map(lambda x: x + jnp.arange(32) / 7, variables)
    weights = jnp.cos(jnp.arange(rows.size)).reshape(rows.shape)

    def total(layer, variables, x):
        y = layer.apply(variables, x)
        assert y.dtype == dtype
        return (y.astype(jnp.float32) * weights).sum()

    x = rows.astype(dtype)
    for got, expected in zip(
        *(jax.value_and_grad(total, (1, 2))(layer, variables, x) for layer in (ours, theirs)),
        strict=True,
    ):
        chex.assert_trees_all_close(got, expected, atol=atol, rtol=atol)


def test_softmax_is_jaxs(rows):
    masked = jnp.where(jnp.arange(32) < 9, rows, jnp.finfo(jnp.float32).min)
    for x in (rows, masked, 0 * rows + jnp.finfo(jnp.float32).min):
        for ours, theirs in (
            (softmax, jax.nn.softmax),
            (
                jax.grad(lambda x: (softmax(x) ** 2).sum()),
                jax.grad(lambda x: (jax.nn.softmax(x) ** 2).sum()),
            ),
        ):
            np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_products_with_ones_are_a_cpus_alone(rows, platform):
    lowered = jax.jit(softmax).trace(rows).lower(lowering_platforms=(platform,))
    assert ("dot_general" in lowered.as_text()) == (platform == "cpu")
