"""Distances between a student and its teacher, and between an answer and the truth.

Pure functions, f32 whatever comes in, one value per token or cell: means are taken in one place,
`student_jax/losses.py`. None of them differentiates the teacher.

In the shape descriptions: `*B` any leading axes, `F` width, `V` classes, `S` tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the cross entropy of every cell, f32[*B]. Source: optax."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), classes.astype(jnp.int32)
    )


def focal(logits: jax.Array, classes: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Returns the cross entropy times (1 - p)^gamma: sure cells count less, f32[*B].

    Source: Lin et al. 2017 (arXiv 1708.02002), eq. 4; gamma 2 is theirs.
    """
    nats = cross_entropy(logits, classes)
    return jnp.power(-jnp.expm1(-nats), gamma) * nats


def class_weights(counts: jax.Array) -> jax.Array:
    """Returns a weight per class, the inverse of its frequency; their mean over cells is 1.

    Source: "balanced" class weights, King and Zeng 2001 (doi 10.1093/oxfordjournals.pan.a004868).

    Args:
        counts: f32[V], how many cells are of each class.

    Returns:
        f32[V]; every class that occurs has the same sum of weights.
    """
    present = (counts > 0).sum()
    return counts.sum() / (present * jnp.where(counts > 0, counts, 1.0))


def squared_error(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the squared error per token, averaged over channels, f32[*B].

    The original summed over the 2048 channels, which made this term 2048 times the task's.
    """
    return jnp.square(_f32(student) - _teacher(teacher)).mean(-1)


def smooth_l1(student: jax.Array, teacher: jax.Array, beta: float = 1.0) -> jax.Array:
    """Returns the smooth L1 distance per token, averaged over channels, f32[*B].

    Source: Girshick 2015 (arXiv 1504.08083), eq. 3, with torch's beta; Theia weighs it 0.1 beside
    0.9 of cosine (arXiv 2407.20179), UNIC 0.5 and 0.5 (arXiv 2408.05088).
    """
    gap = jnp.abs(_f32(student) - _teacher(teacher))
    return jnp.where(gap < beta, 0.5 * jnp.square(gap) / beta, gap - 0.5 * beta).mean(-1)


def cosine_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns 1 - cos per token, f32[*B] in [0, 2]; 1 where either vector is 0. Source: optax."""
    return optax.cosine_distance(_f32(student), _teacher(teacher), epsilon=1e-6)


def attention_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns KL(teacher || student) of attention rows, f32[*B].

    For teachers that give their attention maps; GR00T's backbone and DINOv2 as used here do not.
    Source: MiniLM, Wang et al. 2020 (arXiv 2002.10957), eq. 6.

    Args:
        student: attention weights, each row over `S` tokens summing to 1, f[*B, S].
        teacher: the same shape.
    """
    p, q = _teacher(teacher), _f32(student)
    tiny = jnp.finfo(jnp.float32).tiny
    return (p * (jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny)))).sum(-1)


def logit_distance(student: jax.Array, teacher: jax.Array, temperature: float = 2.0) -> jax.Array:
    """Returns T^2 KL(teacher || student) of tempered logits, f32[*B].

    For teachers that answer in the same classes; GR00T emits robot actions, so a `FeatureStudent`
    may be the teacher here. Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.

    Args:
        student: f[*B, V].
        teacher: the same shape.
        temperature: above 1, the less likely classes count more.
    """
    log_p = jax.nn.log_softmax(_teacher(teacher) / temperature)
    log_q = jax.nn.log_softmax(_f32(student) / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def orthogonal(kernel: jax.Array) -> jax.Array:
    """Returns an orthonormal basis of a kernel's rows or columns, whichever are fewer, f32[D, F].

    A projector that cannot reshape features lets the student learn them instead. Source: VkD,
    Miles et al. 2024 (arXiv 2403.06213), section 3.1; they take a matrix exponential.
    """
    wide = kernel.shape[0] < kernel.shape[1]
    q, r = jnp.linalg.qr(_f32(kernel.T if wide else kernel))
    q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None]  # QR leaves the signs open
    return q.T if wide else q


def _f32(values: jax.Array) -> jax.Array:
    return values.astype(jnp.float32)


def _teacher(values: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(_f32(values))
