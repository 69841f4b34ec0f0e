"""The loss: task cross entropy plus feature distillation. Pure functions, f32, unreduced terms.

In the shape descriptions: `B` batch, `N` canvas side, `V` cell classes, `T` tokens, `F` feature
width, `*B` any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import optax

from student_jax.batch import Batch
from student_jax.config import LossConfig
from student_jax.students import StudentOutput


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossTerms:
    """Means over the examples, f32[] each."""

    total: jax.Array
    task: jax.Array  # nats per cell
    mse: jax.Array  # per channel of standardised features: 1 for a student that says 0
    cosine: jax.Array  # 1 - cosine, in [0, 2]


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the cross entropy of every cell, f32[*B]. Source: optax."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), classes.astype(jnp.int32)
    )


def squared_error(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the squared error per token, averaged over channels, f32[*B].

    The original summed over the 2048 channels, which made this term 2048 times the task's.
    """
    return jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)).mean(-1)


def cosine_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns 1 - cos per token, f32[*B] in [0, 2]; 1 where either vector is 0."""
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    return optax.cosine_distance(student, teacher, epsilon=1e-6)


def mean_per_example(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Averages each example over its own valid places.

    Every example weighs the same, however long: what shares its batch never matters.

    Args:
        values: f32[B, ...].
        mask: bool, same shape, True where valid.

    Returns:
        The means f32[B], 0 for an example without a valid place, and whether it has one, bool[B].
    """
    axes = tuple(range(1, values.ndim))
    count = mask.sum(axes)
    means = jnp.where(mask, values, 0.0).sum(axes) / jnp.maximum(count, 1)
    return means, count > 0


def distillation_loss(
    output: StudentOutput, batch: Batch, weights: LossConfig, axis: str | None = None
) -> LossTerms:
    """Returns the loss terms of a batch.

    `task + feature * (mse + cosine * (1 - cos))`, weighted as configured.

    Args:
        output: the student's.
        batch: with scaled teacher features.
        weights: of the terms.
        axis: the mapped axis whose devices share the batch; averaging the returned terms over it
            gives the mean over the whole batch, also where examples have no teacher.
    """
    chex.assert_equal_shape([output.features, batch.teacher])
    cells = cross_entropy(output.logits, jnp.asarray(batch.answer))
    task = _batch_mean(*mean_per_example(cells, jnp.ones(cells.shape, bool)), axis)
    mask = jnp.asarray(batch.teacher_mask)
    teacher = jax.lax.stop_gradient(jnp.asarray(batch.teacher))
    mse = _batch_mean(*mean_per_example(squared_error(output.features, teacher), mask), axis)
    cosine = _batch_mean(*mean_per_example(cosine_distance(output.features, teacher), mask), axis)
    total = weights.task * task + weights.feature * (mse + weights.cosine * cosine)
    return LossTerms(total=total, task=task, mse=mse, cosine=cosine)


def _batch_mean(means: jax.Array, valid: jax.Array, axis: str | None) -> jax.Array:
    """The mean over valid examples; its `pmean` over the axis is that of the whole batch."""
    count = valid.sum().astype(jnp.float32)
    if axis is not None:
        count = jax.lax.pmean(count, axis)
    return jnp.where(valid, means, 0.0).sum() / jnp.maximum(count, 1e-6)
