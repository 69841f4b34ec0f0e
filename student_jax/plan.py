"""Which examples stand where in a run's batches, and which of them are not augmented."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Plan:
    """What decides a run's batches."""

    seed: int
    batch_size: int  # over all devices
    rows: slice = field(default_factory=lambda: slice(None))  # that this process draws
    share: int = 1  # examples of one device's micro-batch: what a teacher saw lies alike in each

    def plain(self, augmented: float) -> list[int]:
        """Returns the places in a batch that are not augmented, evenly spread."""
        return [i for i in range(self.batch_size) if int((i + 1) * augmented) == int(i * augmented)]

    def stride(self, augmented: float) -> int:
        """Returns the largest step that reaches all of these in every share; 0 if there is none."""
        places = self.plain(augmented)
        return math.gcd(self.share, *places) if places else 0


def plan_epoch(
    buckets: Sequence[Any],
    original: Sequence[bool],
    plain: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[npt.NDArray[np.int64]]:
    """Returns one epoch's batches as indices: each example at least once, one bucket a batch.

    A bucket's last batch is filled up with examples of the same bucket, so every batch is whole.

    Args:
        buckets: of each example.
        original: whether a teacher can have seen it; generated ones it has not.
        plain: places in a batch that are not augmented. Where a bucket holds generated examples,
            too, its originals stand there, with a teacher or without: a few hundred pairs would be
            lost among thousands. Each at most once a batch: what is left is anyone's, as are all
            places of a batch that is not augmented at all.
        batch_size: of each batch.
        seed: of the run.
        epoch: which one.
    """
    rng = np.random.default_rng((seed, epoch))
    plan: list[npt.NDArray[np.int64]] = []
    members: dict[Any, list[int]] = defaultdict(list)
    for i, bucket in enumerate(buckets):
        members[bucket].append(i)
    for _, each in sorted(members.items()):
        order, kept = rng.permutation(each), [i for i in each if original[i]]
        mixed = len(kept) < len(each) and len(plain) < batch_size
        own = np.array(plain[: len(kept) * mixed], np.int64)
        others = np.setdiff1d(np.arange(batch_size), own)
        count = -(-len(order) // len(others))
        batches = np.empty((count, batch_size), np.int64)
        batches[:, others] = np.resize(order, (count, len(others)))
        batches[:, own] = np.resize(rng.permutation(kept) if len(own) else own, (count, len(own)))
        plan += list(batches)
    return [plan[i] for i in rng.permutation(len(plan))]
