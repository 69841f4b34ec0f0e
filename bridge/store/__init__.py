"""The feature store: what a teacher said about each view, on disk, checked and small.

In the shape descriptions of this room: `S` stored tokens of one example, `F` teacher feature width.

    store.json                     provenance: whose features, of which views, in which encoding
    views/{view_digest}/values/    zarr3 array bf16[S, F] or f8[S, F], one chunk, crc32c
    views/{view_digest}/scale/     zarr3 array f32[S], fp8 only
    moments/{view_digest}          mean and std over this view's tokens, f32[2, F] after a sha256
    manifest/{example_id}.json     written after its data: the example is complete
    expected.json, configs/        which examples were to be filled in, by which extract config
    statistics.json                mean and std over the store, written when it is complete

A view is known by the digest of what the teacher was shown, so identical views are stored once.
Every file is written atomically by TensorStore, so a killed run leaves whole examples or none.
"""

from bridge.store.encoding import Encoding
from bridge.store.feature_store import FeatureStore
from bridge.store.provenance import check_provenance
from bridge.store.records import Features, FrameTokens, Record, frame_map
from bridge.store.statistics import Statistics

__all__ = [
    "Encoding",
    "FeatureStore",
    "Features",
    "FrameTokens",
    "Record",
    "Statistics",
    "check_provenance",
    "frame_map",
]
