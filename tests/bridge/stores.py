"""Small stores for the tests of `bridge/store`."""

import hashlib

import ml_dtypes
import numpy as np

from bridge.store import FeatureStore, FrameTokens

WIDTH = 12
PROVENANCE = {
    "feature_width": WIDTH,
    "teacher": "t",
    "view": "task",
    "code": ["0" * 16],
    "weights_digest": "d",
}


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


def noise(seed, tokens, width=WIDTH):
    """Features with a scale per channel, as networks have them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(tokens, width)) * np.exp(rng.normal(size=width))
    return values.astype(ml_dtypes.bfloat16)


def frames_of(*sides):
    """Frames of one tile each, 256 tokens after 3 of text."""
    return tuple(
        FrameTokens("query" if i == 0 else "input", i - 1, rows, cols, 3 + 256 * i)
        for i, (rows, cols) in enumerate(sides)
    )


def append(store, name, seed=0, tokens=300, shown=None):
    features = noise(seed, tokens)
    store.append(name, features, frames_of((3, 2)), digest_of(shown or name))
    return features


def make_store(path, count=3, **options):
    store = FeatureStore.create(path, PROVENANCE, **options)
    for i in range(count):
        append(store, f"a{i}_train_0", seed=i, tokens=300 + i)
    return store
