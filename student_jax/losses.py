"""The loss: task cross entropy plus feature distillation; single terms are in `terms.py`.

Corrected, the default: every term is a mean over cells, or over valid tokens and channels, of one
example, then over examples; features are scaled first, and the projector is trained. The original
form differs term by term:

    task      the same, but over 30 x 30 cells with padding as color 0
    mse       summed over channels, averaged over the batch's tokens: 2048 times as large
    cosine    averaged over the batch's tokens
    scaling   none: a few loud channels decide; projector frozen at random values

In the shape descriptions: `B` batch, `N` canvas side, `V` cell classes, `T` tokens, `F` feature
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from student_jax import terms
from student_jax.batch import Batch, StudentOutput
from student_jax.config import LossConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossTerms:
    """Means over the examples, f32[] each."""

    total: jax.Array
    task: jax.Array  # nats per cell
    mse: jax.Array  # per channel of scaled features: 1 for a student that says 0
    cosine: jax.Array  # 1 - cosine, in [0, 2]
    smooth_l1: jax.Array  # per channel


def distillation_loss(
    output: StudentOutput, batch: Batch, weights: LossConfig, axis: str | None = None
) -> LossTerms:
    """Returns the loss terms of a batch.

    `task + feature * (mse + cosine + smooth_l1)`, weighted as configured.

    Args:
        output: the student's.
        batch: with scaled teacher features.
        weights: of the terms, and their form.
        axis: the mapped axis whose devices share the batch; averaging the returned terms over it
            gives the mean over the whole batch, also where examples have no teacher.
    """
    chex.assert_equal_shape([output.features, batch.teacher])
    mask, teacher, said = (
        jnp.asarray(batch.teacher_mask),
        jnp.asarray(batch.teacher),
        output.features,
    )
    average = mean_per_token if weights.form == "original" else mean_per_example
    mse, cosine, smooth_l1 = (
        # What has no weight is still told, but nothing is differentiated for it.
        average(distance(said if weight else jax.lax.stop_gradient(said), teacher), mask, axis)
        for distance, weight in (
            (terms.squared_error, weights.mse),
            (terms.cosine_distance, weights.cosine),
            (terms.smooth_l1, weights.smooth_l1),
        )
    )
    if weights.form == "original":
        mse = mse * teacher.shape[-1]
    task = task_loss(output.logits, jnp.asarray(batch.answer), weights, axis)
    features = weights.mse * mse + weights.cosine * cosine + weights.smooth_l1 * smooth_l1
    return LossTerms(
        total=weights.task * task + weights.feature * features,
        task=task,
        mse=mse,
        cosine=cosine,
        smooth_l1=smooth_l1,
    )


def task_loss(
    logits: jax.Array, classes: jax.Array, weights: LossConfig, axis: str | None
) -> jax.Array:
    """Returns the mean over cells and examples of the configured task term, f32[]."""
    if weights.task_loss == "focal":
        cells = terms.focal(logits, classes)
    else:
        cells = terms.cross_entropy(logits, classes)
    if weights.task_loss == "class_weighted":
        cells = cells * terms.class_weights(classes, logits.shape[-1], axis)
    return mean_per_example(cells, jnp.ones(cells.shape, bool), axis)


def mean_per_example(values: jax.Array, mask: jax.Array, axis: str | None = None) -> jax.Array:
    """Averages each example over its own valid places, then the examples that have any.

    Every example weighs the same, however long: what shares its batch never matters.

    Args:
        values: f32[B, ...].
        mask: bool, same shape, True where valid.
        axis: a mapped axis; the `pmean` over it is the mean of the whole batch.
    """
    axes = tuple(range(1, values.ndim))
    count = mask.sum(axes)
    means = jnp.where(mask, values, 0.0).sum(axes) / jnp.maximum(count, 1)
    return _mean(jnp.where(count > 0, means, 0.0), count > 0, axis)


def mean_per_token(values: jax.Array, mask: jax.Array, axis: str | None = None) -> jax.Array:
    """Averages over all valid places of the batch at once, as the original did; else as above."""
    return _mean(jnp.where(mask, values, 0.0), mask, axis)


def _mean(values: jax.Array, valid: jax.Array, axis: str | None) -> jax.Array:
    count = valid.sum().astype(jnp.float32)
    if axis is not None:
        count = jax.lax.pmean(count, axis)
    return values.sum() / jnp.maximum(count, 1e-6)
