"""The original's student, numerics and all: the baseline that its numbers are held against.

Its input is the teacher's features, so it is no replacement for the teacher. Differences from
`FeatureStudent`: ReLU blocks, no norm after the last, a deeper decoder, 30 x 30 cells of 10 colors
with padding drawn as color 0. Facts and defects: docs/original.md.

In the shape descriptions: `B` batch, `S` teacher tokens, `F` teacher feature width, `D` width,
`H` heads.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bridge.arc import MAX_SIDE, NUM_COLORS
from student_jax.batch import Array, Batch, StudentOutput, check_features
from student_jax.config import ModelConfig
from student_jax.linear import keep_bias
from student_jax.trunk import DType

normal = nn.initializers.normal(0.02)
EPSILON = 1e-5  # torch.nn.LayerNorm's default


def dense(width: int, name: str, dtype: DType = jnp.float32) -> Callable[[Array], jax.Array]:
    """Returns a linear layer with the original's weights: N(0, 0.02), bias 0."""
    layer = nn.Dense(width, dtype=dtype, kernel_init=normal, promote_dtype=keep_bias, name=name)
    return lambda x: layer(x).astype(dtype)


def norm(name: str, dtype: DType) -> nn.LayerNorm:
    """Returns a layer norm with torch's epsilon."""
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)


class OriginalBlock(nn.Module):
    """What `torch.nn.TransformerEncoderLayer(norm_first=True)` computes, ReLU inside."""

    heads: int
    mlp_width: int
    dropout: float
    dtype: DType

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: Array,
        first_key: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D].

        Args:
            x: [B, S, D].
            mask: bool[B, S], True where valid.
            first_key: consumed by the attention's first weights while initialising: the original
                starts all blocks with the same ones, since torch copies the layer.
            train: whether dropout is on.
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)
        width = x.shape[-1]
        xavier = nn.initializers.xavier_uniform()
        in_proj = nn.Dense(
            3 * width,
            dtype=self.dtype,
            promote_dtype=keep_bias,
            kernel_init=lambda own, *rest: xavier(own if first_key is None else first_key, *rest),
            name="in_proj",
        )
        shape = (*x.shape[:2], self.heads, width // self.heads)
        parts = jnp.split(in_proj(norm("norm1", self.dtype)(x)).astype(self.dtype), 3, axis=-1)
        query, key, value = (part.reshape(shape) for part in parts)
        attended = self._attend(query, key, value, jnp.asarray(mask), train=train)
        x = x + drop(dense(width, "out_proj", self.dtype)(attended.reshape(x.shape)))
        hidden = norm("norm2", self.dtype)(x)
        hidden = drop(nn.relu(dense(self.mlp_width, "linear1", self.dtype)(hidden)))
        return x + drop(dense(width, "linear2", self.dtype)(hidden))

    def _attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, *, train: bool
    ) -> jax.Array:
        """Softmax attention, [B, S, H, D / H]; torch drops single weights while training."""
        if not (train and self.dropout):
            return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
        scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(
            jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        )
        weights = nn.Dropout(self.dropout, deterministic=False)(weights.astype(value.dtype))
        return jnp.einsum("bhqs,bshk->bqhk", weights, value)


class OriginalStudent(nn.Module):
    """Features to a 30 x 30 grid of 10 colors."""

    config: ModelConfig
    feature_width: int

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> StudentOutput:
        """Maps raw features to logits f32[B, 30, 30, 10].

        Raises:
            InputError: for features of another width, too many tokens, or (with a numpy mask) an
                example without a valid token.
        """
        config, features = self.config, jnp.asarray(batch.teacher)
        check_features(batch.teacher, batch.teacher_mask, self.feature_width, config.max_tokens)
        dtype = jnp.dtype(config.compute)
        x = norm("projection_norm", dtype)(dense(config.width, "projection", dtype)(features))
        x = nn.gelu(x, approximate=False)
        positions = self.param("positions", normal, (config.max_tokens, config.width))
        x = (x + positions[None, : x.shape[1]]).astype(dtype)  # by place, padding included
        first_key = self.make_rng("params") if self.is_initializing() else None
        block_type = nn.remat(OriginalBlock, static_argnums=(4,)) if config.remat else OriginalBlock
        sizes = (config.heads, config.mlp_width, config.dropout, dtype)
        for i in range(config.depth):
            x = block_type(*sizes, name=f"block_{i}")(x, batch.teacher_mask, first_key, train)
        valid = jnp.asarray(batch.teacher_mask)[..., None]
        pooled = (x * valid).sum(1, dtype=jnp.float32) / jnp.maximum(valid.sum(1), 1)  # [B, D]
        drop = nn.Dropout(config.dropout, deterministic=not train)
        for i, width in enumerate((2 * config.width, 4 * config.width)):
            pooled = drop(nn.gelu(dense(width, f"decoder_{i}")(pooled), approximate=False))
        logits = dense(MAX_SIDE * MAX_SIDE * NUM_COLORS, "decoder_2")(pooled)
        logits = logits.reshape(-1, MAX_SIDE, MAX_SIDE, NUM_COLORS)
        # torch.nn.Linear's default: uniform, +- 1 / sqrt(D). The original never trained it.
        bound = config.width**-0.5
        uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)  # noqa: E731
        projector = nn.Dense(
            self.feature_width,
            dtype=dtype,
            promote_dtype=keep_bias,
            kernel_init=uniform,
            bias_init=uniform,
            name="projector",
        )
        return StudentOutput(logits=logits, features=projector(x))
