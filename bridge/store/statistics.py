"""Mean and standard deviation per channel, of one view or of many; exact to merge in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.store.records import Features

TOP = 8  # channels; of a language model's hidden state few carry most energy (arXiv 2601.22966)


@dataclass(frozen=True)
class Statistics:
    """Of each feature channel over `num_tokens` tokens."""

    num_tokens: int
    mean: npt.NDArray[np.floating]  # [F]
    std: npt.NDArray[np.floating]  # [F], not the variance

    @property
    def energy(self) -> npt.NDArray[np.float64]:
        """Each channel's share of the summed squares, f64[F]."""
        energy = np.square(self.std, dtype=np.float64) + np.square(self.mean, dtype=np.float64)
        return energy / max(float(energy.sum()), np.finfo(np.float64).tiny)

    @property
    def top_channels(self) -> list[int]:
        """The 8 channels with most energy, most first."""
        return np.argsort(-self.energy, kind="stable")[:TOP].tolist()

    @property
    def top_energy_share(self) -> float:
        """The energy share of `top_channels`: near 1 means that they decide every raw distance."""
        return float(self.energy[self.top_channels].sum())

    def to_bytes(self) -> bytes:
        """Returns what is stored beside a view: sha256, then mean and std, f32[2, F]."""
        payload = np.stack([self.mean, self.std]).astype("<f4").tobytes()
        return hashlib.sha256(payload).digest() + payload

    def to_json(self) -> dict[str, Any]:
        """Returns what statistics.json holds."""
        return {
            "num_tokens": self.num_tokens,
            "top_channels": self.top_channels,
            "top_energy_share": self.top_energy_share,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }


def statistics_of(features: Features) -> Statistics:
    """Returns the statistics of one view's features, bf16[S, F]."""
    values = features.astype(np.float32)
    share = np.full(len(values), 1 / len(values), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # the store refuses what is not finite
        # Products with a vector: three times as fast as numpy's sums, and summed in blocks.
        mean = share @ values
        values -= mean
        rest = share @ values  # what rounding left of the mean
        variance = share @ np.square(values, out=values) - np.square(rest)
        std = np.sqrt(np.maximum(variance, 0))
    return Statistics(len(features), mean + rest, std)


def read_moments(data: bytes | None, num_tokens: int, width: int) -> Statistics:
    """Reads what `Statistics.to_bytes` wrote.

    Raises:
        ValueError: if it is missing, cut, or damaged.
    """
    if data is None:
        raise ValueError("moments: missing")
    digest, payload = data[:32], data[32:]
    if len(payload) != 8 * width or hashlib.sha256(payload).digest() != digest:
        raise ValueError("moments: damaged, or of another width")
    mean, std = np.frombuffer(payload, "<f4").reshape(2, width)
    return Statistics(num_tokens, mean, std)


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Returns the statistics of all parts' tokens together, in f64.

    Source: Chan, Golub and LeVeque 1979, eq. 2.1, for any number of parts.
    """
    counts = np.array([part.num_tokens for part in parts], np.float64)[:, None]
    means = np.stack([part.mean for part in parts]).astype(np.float64)
    stds = np.stack([part.std for part in parts]).astype(np.float64)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (np.square(stds) + np.square(means - mean))).sum(0) / total
    return Statistics(int(total), mean, np.sqrt(variance))
