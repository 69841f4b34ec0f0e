"""Linear layers and the depthwise convolution are the libraries', forwards and backwards."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from student_jax import linear
from student_jax.depthwise import depthwise_3x3
from student_jax.linear import Weights, linear_each


@pytest.mark.parametrize(("entering", "leaving"), [((32,), (4, 8)), ((4, 8), (32,))])
def test_weights_are_flaxs(entering, leaving):
    theirs = nn.DenseGeneral(leaving, tuple(range(-len(entering), 0)))
    variables = theirs.init(jax.random.key(0), jnp.zeros((2, *entering)))
    chex.assert_trees_all_equal(
        variables, Weights(entering, leaving).init(jax.random.key(0)), strict=True
    )


@pytest.mark.parametrize("largest", [0, linear.SMALL], ids=["apart", "as one"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_layers_are_flaxs(monkeypatch, largest, dtype, tolerance, backend):
    monkeypatch.setattr(linear, "SMALL", largest)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    x, *weights = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((40, 16), (16, 8), (8,), (16, 8), (8,))
    )
    turn = jnp.asarray(rng.normal(size=(40, 8)), jnp.float32)

    def ours(x, first, first_bias, second, second_bias):
        one, two = linear_each(x, [(first, first_bias), (second, second_bias)], dtype)
        assert one.dtype == two.dtype == (jnp.float32 if backend == "cpu" else dtype)
        return (one * turn + jnp.sin(two)).astype(jnp.float32).sum()

    def theirs(x, first, first_bias, second, second_bias):
        one, two = (
            nn.Dense(8, dtype=dtype).apply({"params": {"kernel": kernel, "bias": bias}}, x)
            for kernel, bias in ((first, first_bias), (second, second_bias))
        )
        return (one * turn + jnp.sin(two)).astype(jnp.float32).sum()

    got, expected = (
        jax.grad(f, tuple(range(5)))(x.astype(dtype), *weights) for f in (ours, theirs)
    )
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        scale = float(jnp.abs(other.astype(jnp.float32)).max())
        chex.assert_trees_all_close(one, other, atol=tolerance * scale)


def test_a_bias_gets_all_of_its_gradient_in_bfloat16():
    x, weights = jnp.ones((1000, 4)), (jnp.ones((4, 8)), jnp.zeros(8))

    def total(bias):
        (y,) = linear_each(x, [(weights[0], bias)], jnp.bfloat16)
        return y.astype(jnp.float32).sum()

    np.testing.assert_array_equal(jax.grad(total)(weights[1]), 1000.0)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_depthwise_is_xlas_convolution(batch):
    rng = np.random.default_rng(batch)
    x, kernel, turn = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((batch, 6, 6, 2, 8), (3, 3, 8), (batch, 6, 6, 2, 8))
    )

    def theirs(x, kernel):
        y = jax.lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2, 4).reshape(-1, 6, 6, 8),
            kernel[:, :, None],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=8,
        )
        return y.reshape(batch, 2, 6, 6, 8).transpose(0, 2, 3, 1, 4)

    np.testing.assert_allclose(depthwise_3x3(x, kernel), theirs(x, kernel), atol=1e-5)
    got, expected = (
        jax.jit(jax.grad(lambda *args, f=f: (f(*args) * turn).sum(), (0, 1)))(x, kernel)
        for f in (depthwise_3x3, theirs)
    )
    chex.assert_trees_all_close(got, expected, atol=1e-4)
