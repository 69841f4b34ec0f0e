"""How a teacher's features are scaled before a student is held against them.

In the shape descriptions: `F` teacher feature width, `*B` any leading axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bridge.errors import InputError
from bridge.store.records import Features
from bridge.store.statistics import Statistics

MIN_STD = 1e-6  # a channel that never changes stays 0
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Scaling:
    """`((x - mean) @ rotation) / std`; without a rotation, channel by channel.

    With `per_token`, each token is then taken to mean 0 and std 1 over its channels.
    """

    mean: npt.NDArray[np.float32]  # f32[F]
    std: npt.NDArray[np.float32]  # f32[F], after the rotation
    rotation: npt.NDArray[np.float32] | None = None  # f32[F, F], orthogonal
    per_token: bool = False


def no_scaling(width: int) -> Scaling:
    """Returns the scaling that changes nothing."""
    return Scaling(np.zeros(width, np.float32), np.ones(width, np.float32))


def layer_norm(width: int) -> Scaling:
    """Returns a layer norm without weights, token by token.

    Source: feature distillation, Wei et al. 2022 (arXiv 2205.14141), section 3.2.
    """
    return replace(no_scaling(width), per_token=True)


def standardise(statistics: Statistics) -> Scaling:
    """Returns the scaling to mean 0 and std 1 in every channel.

    Without it a few channels of a language model's residual stream decide every distance
    (arXiv 2601.22966).
    """
    return Scaling(_f32(statistics.mean), _f32(np.maximum(statistics.std, MIN_STD)))


def covariance_of(views: Iterable[Features], statistics: Statistics) -> npt.NDArray[np.float64]:
    """Returns the channels' covariance over the tokens of views, f64[F, F], in one pass.

    Args:
        views: bf16[S, F] each.
        statistics: of the same tokens; its mean is taken off first, so that f32 products do.
    """
    total = np.zeros((len(statistics.mean),) * 2)
    for features in views:
        centred = features.astype(np.float32) - _f32(statistics.mean)
        total += centred.T @ centred
    return total / statistics.num_tokens


def phi_s(statistics: Statistics, covariance: npt.NDArray[np.floating]) -> Scaling:
    """Returns PHI-S: a rotation after which every channel has the same variance, and one scale.

    Unlike `standardise` it keeps the proportions between directions, so a noisy direction is not
    blown up. Source: Ranzinger et al. 2024 (arXiv 2410.01680), section 3: rotation `U H^T` with `U`
    the covariance's eigenvectors and `H` a normalised Hadamard matrix, scale the root of the mean
    eigenvalue.

    Args:
        statistics: for the mean.
        covariance: f[F, F].

    Raises:
        InputError: if no Hadamard matrix of order `F` is known to `hadamard`.
    """
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    width = len(values)
    rotation = vectors @ (hadamard(width).T / np.sqrt(width))
    scale = max(float(np.sqrt(np.maximum(values, 0).mean())), MIN_STD)
    return Scaling(_f32(statistics.mean), np.full(width, scale, np.float32), _f32(rotation))


def apply(scaling: Scaling, features: npt.NDArray) -> npt.NDArray[np.float32]:
    """Returns scaled features, f32[*B, F]. The student does the same on its device."""
    values = features.astype(np.float32) - scaling.mean
    if scaling.rotation is not None:
        values = values @ scaling.rotation
    values = values / scaling.std
    if scaling.per_token:
        values -= values.mean(-1, keepdims=True)
        values /= np.sqrt(np.square(values).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return values


def unscale(scaling: Scaling, values: npt.NDArray) -> npt.NDArray[np.float64]:
    """Undoes `apply`, f64[*B, F], but for what `per_token` took from each token: that is gone."""
    mean, std = (np.asarray(x, np.float64) for x in (scaling.mean, scaling.std))
    values = values.astype(np.float64) * std
    if scaling.rotation is not None:
        values = values @ np.asarray(scaling.rotation, np.float64).T
    return values + mean


def hadamard(order: int) -> npt.NDArray[np.float64]:
    """Returns a matrix of +-1 with orthogonal rows, f64[order, order].

    Sylvester's doubling of Paley's first construction: orders `2^k` and `2^k (q + 1)` for a prime
    `q` that is 3 modulo 4 (Paley 1933). That covers 2048, 1536, 1152, 1024, 768 and 384.

    Raises:
        InputError: for any other order.
    """
    doublings, core = 0, order
    while core > 1 and not _is_paley(core):
        if core % 2:
            raise InputError(
                f"loss.scaling: phi_s: expected a feature width with a known Hadamard matrix "
                f"(2^k, or 2^k (q + 1)), got {order}; use standardise"
            )
        doublings, core = doublings + 1, core // 2
    matrix = _paley(core) if core > 1 else np.ones((1, 1))
    for _ in range(doublings):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _is_paley(order: int) -> bool:
    q = order - 1
    return q % 4 == 3 and all(q % d for d in range(2, int(q**0.5) + 1))


def _paley(order: int) -> npt.NDArray[np.float64]:
    """`I + S`, `S` skew with the quadratic residues' signs modulo `order - 1`."""
    q = order - 1
    residue = np.full(q, -1.0)
    residue[np.unique(np.arange(1, q, dtype=np.int64) ** 2 % q)] = 1.0
    residue[0] = 0.0
    place = np.arange(q)
    skew = np.zeros((order, order))
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = residue[(place[None, :] - place[:, None]) % q]
    return np.eye(order) + skew


def _f32(values: npt.NDArray) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)
