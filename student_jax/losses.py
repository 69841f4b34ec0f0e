"""The loss: task cross entropy plus feature distillation; single terms are in `terms.py`.

Corrected, the default: every term is a mean over cells, or over valid tokens and channels, of one
example, then over examples; features are scaled first, and the projector is trained. The original
form differs term by term:

    task      the same, but over 30 x 30 cells with padding as color 0
    mse       summed over channels, averaged over the batch's tokens: 2048 times as large
    cosine    averaged over the batch's tokens
    scaling   none: a few loud channels decide; projector frozen at random values

In the shape descriptions: `B` batch, `N` canvas side, `V` cell classes, `T` tokens, `F` feature
width. Features are of the `R` examples of a batch that come with a teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from bridge.canvas import NUM_CLASSES
from student_jax import terms
from student_jax.batch import Batch, StudentOutput
from student_jax.config import LossConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossTerms:
    """Means over the examples, f32[] each."""

    total: jax.Array
    task: jax.Array  # nats per cell
    left_out: jax.Array  # the same, of the demonstrations; 0 where they are not answered
    mse: jax.Array  # per channel of scaled features: 1 for a student that says 0
    cosine: jax.Array  # 1 - cosine, in [0, 2]
    smooth_l1: jax.Array  # per channel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Divisors:
    """What the means of a batch divide by.

    They hang on the batch alone, not on what the student says, so devices and micro-batches that
    share a batch take the same: their terms then add up to those of the whole.
    """

    examples: jax.Array  # f32[]
    targets: jax.Array  # f32[], examples with a teacher; in the original form, tokens
    class_weights: jax.Array  # f32[V], 1 unless the task term is class weighted


def divisors_of(batch: Batch, weights: LossConfig, axis: str | None = None) -> Divisors:
    """Returns the divisors of a batch.

    Args:
        batch: a device's whole share of it.
        weights: the form of the loss.
        axis: the mapped axis whose devices share the batch: the `pmean` of the terms over it is
            then the mean over the whole, however the teacher's examples are spread.
    """
    mask, answer = jnp.asarray(batch.teacher_mask), jnp.asarray(batch.answer)
    targets = (mask if weights.form == "original" else mask.any(-1)).sum().astype(jnp.float32)
    counts = jnp.zeros(NUM_CLASSES).at[answer.astype(jnp.int32)].add(1.0)
    if weights.left_out:  # their cells are weighted, too
        outputs = jnp.asarray(batch.demonstrations)[:, :, 1].astype(jnp.int32)
        counts = counts.at[outputs].add(_left_out(batch)[..., None, None].astype(jnp.float32))
    if axis is not None:
        targets, counts = jax.lax.pmean((targets, counts), axis)
    weighted = weights.task_loss == "class_weighted"
    return Divisors(
        examples=jnp.float32(len(answer)),
        targets=jnp.maximum(targets, 1e-6),
        class_weights=terms.class_weights(counts) if weighted else jnp.ones(NUM_CLASSES),
    )


def distillation_loss(
    output: StudentOutput,
    batch: Batch,
    weights: LossConfig,
    divisors: Divisors | None = None,
    feature: jax.Array | float | None = None,
) -> LossTerms:
    """Returns the loss terms of a batch.

    `task + feature * (mse + cosine + smooth_l1)`, weighted as configured.

    Args:
        output: the student's.
        batch: with scaled teacher features.
        weights: of the terms, and their form.
        divisors: of the batch that this one is a part of; by default it is the whole.
        feature: weight of the feature terms at this step; by default the configured one.
    """
    feature = weights.feature if feature is None else feature
    divisors = divisors or divisors_of(batch, weights)
    chex.assert_equal_shape([output.features, batch.teacher])
    mask, teacher, said = (
        jnp.asarray(batch.teacher_mask),
        jnp.asarray(batch.teacher),
        output.features,
    )
    task = task_loss(output.logits, jnp.asarray(batch.answer), weights, divisors)
    left_out = left_out_loss(output, batch, weights, divisors)
    total = sum_per_token if weights.form == "original" else sum_per_example
    mse, cosine, smooth_l1 = (
        # What has no weight is still told, but nothing is differentiated for it.
        total(distance(said if weight else jax.lax.stop_gradient(said), teacher), mask)
        / divisors.targets
        for distance, weight in (
            (terms.squared_error, weights.mse),
            (terms.cosine_distance, weights.cosine),
            (terms.smooth_l1, weights.smooth_l1),
        )
    )
    if weights.form == "original":
        mse = mse * teacher.shape[-1]
    features = weights.mse * mse + weights.cosine * cosine + weights.smooth_l1 * smooth_l1
    return LossTerms(
        total=weights.task * (task + weights.left_out * left_out) + feature * features,
        task=task,
        left_out=left_out,
        mse=mse,
        cosine=cosine,
        smooth_l1=smooth_l1,
    )


def task_loss(
    logits: jax.Array, classes: jax.Array, weights: LossConfig, divisors: Divisors
) -> jax.Array:
    """Returns the mean over cells and examples of the configured task term, f32[]."""
    cells = _cells(logits, classes, weights, divisors)
    return sum_per_example(cells, jnp.ones(cells.shape, bool)) / divisors.examples


def left_out_loss(
    output: StudentOutput, batch: Batch, weights: LossConfig, divisors: Divisors
) -> jax.Array:
    """Returns the task term of the demonstrations, f32[]; a lone one has no other to go by."""
    if output.left_out is None:
        return jnp.zeros(())
    cells = _cells(output.left_out, jnp.asarray(batch.demonstrations)[:, :, 1], weights, divisors)
    shown = _left_out(batch)
    mask = jnp.broadcast_to(shown[..., None, None], cells.shape)
    return sum_per_example(cells, mask) / divisors.examples


def _left_out(batch: Batch) -> jax.Array:
    """Which demonstrations are answered from the others, bool[B, P]; a lone one is not."""
    shown = jnp.asarray(batch.demonstration_mask)
    return shown & (shown.sum(-1, keepdims=True) > 1)


def _cells(
    logits: jax.Array, classes: jax.Array, weights: LossConfig, divisors: Divisors
) -> jax.Array:
    """The configured task term of each cell."""
    if weights.task_loss == "focal":
        cells = terms.focal(logits, classes)
    else:
        cells = terms.cross_entropy(logits, classes)
    if weights.task_loss == "class_weighted":
        cells = cells * divisors.class_weights[classes.astype(jnp.int32)]
    return cells


def sum_per_example(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages each example over its own valid places, then adds up the examples that have any.

    Every example weighs the same, however long: what shares its batch never matters.

    Args:
        values: f32[B, ...].
        mask: bool, same shape, True where valid.
    """
    axes = tuple(range(1, values.ndim))
    count = mask.sum(axes)
    means = jnp.where(mask, values, 0.0).sum(axes) / jnp.maximum(count, 1)
    return jnp.where(count > 0, means, 0.0).sum()


def sum_per_token(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Adds up all valid places of the batch, as the original did; else as above."""
    return jnp.where(mask, values, 0.0).sum()
