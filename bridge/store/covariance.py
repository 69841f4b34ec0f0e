"""The channels' covariance over a store: what PHI-S scaling needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorstore as ts
from tqdm import tqdm

from bridge.errors import InputError
from bridge.store import storage
from bridge.store.encoding import array_metadata
from bridge.store.feature_store import FeatureStore
from bridge.store.storage import Specs


def compute_covariance(store: FeatureStore) -> npt.NDArray[np.float64]:
    """Returns f64[F, F] over all tokens, in one pass over the views."""
    records = list(store.views.values())
    mean = store.statistics([record.example_id for record in records]).mean.astype(np.float32)
    total = np.zeros((store.feature_width, store.feature_width))
    for record in tqdm(records, desc="covariance", unit="view", leave=False):
        centred = store.read(record.example_id).astype(np.float32) - mean
        total += centred.T @ centred
    return total / sum(record.num_tokens for record in records)


def write_covariance(store: FeatureStore) -> None:
    """Computes the covariance and saves it beside the features."""
    arrays = {"values": compute_covariance(store).astype(np.float32)}
    storage.start_write(store.kv, "covariance", arrays, _specs(store))()


def read_covariance(store: FeatureStore) -> npt.NDArray[np.float32]:
    """Returns the saved covariance, f32[F, F].

    Raises:
        InputError: if it was not computed, or is damaged.
    """
    try:
        pending: dict[str, ts.Future] = storage.read_arrays(store.kv, "covariance", _specs(store))
        return pending["values"].result()
    except ValueError as error:
        raise InputError(
            f"store {store.path}: covariance: {storage.short(error)}; compute it with "
            f"python -m bridge.store stats {store.path} --covariance True"
        ) from None


def _specs(store: FeatureStore) -> Specs:
    return {"values": array_metadata("float32", (store.feature_width,) * 2)}
