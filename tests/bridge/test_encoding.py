import itertools

import ml_dtypes
import numpy as np
import pytest

from bridge.store import Encoding, FeatureStore, FrameTokens, frame_map
from tests.bridge.stores import PROVENANCE, digest_of, frames_of, noise

EVERY = [
    Encoding(tokens=t, values=v)  # pyright: ignore[reportArgumentType]
    for t, v in itertools.product(("all", "shown", "pooled"), ("bf16", "fp8"))
]
FRAMES = frames_of((3, 2), (30, 30), (5, 1))
SIDES = [(frame.rows, frame.cols) for frame in FRAMES]


def expected_map(features, frame, encoding):
    """The map that a reader should get, in f64, from the definition of each encoding."""
    own = features[frame.first_token :][:256].astype(np.float64).reshape(16, 16, -1)
    if encoding.tokens == "shown":
        own[(frame.rows + 1) // 2 :] = 0
        own[:, (frame.cols + 1) // 2 :] = 0
    if encoding.tokens == "pooled":
        for i, j in itertools.product(range(0, 16, 2), repeat=2):
            own[i : i + 2, j : j + 2] = own[i : i + 2, j : j + 2].mean((0, 1))
    return own


@pytest.mark.parametrize("encoding", EVERY, ids=lambda e: f"{e.tokens}-{e.values}")
def test_maps_survive_each_encoding_within_its_error(tmp_path, encoding):
    features = noise(0, 3 + 3 * 256)
    store = FeatureStore.create(tmp_path / "s", PROVENANCE, encoding=encoding)
    store.append("a_train_0", features, FRAMES, digest_of("a"))
    again = FeatureStore(store.path)
    record = again.record("a_train_0")
    assert again.encoding == encoding
    assert record.num_tokens == encoding.num_tokens(len(features), SIDES) == len(again[0])
    assert again[0].dtype == ml_dtypes.bfloat16
    # bf16 keeps 8 bits of mantissa, e4m3 keeps 4 down to 2^-6 of 448 steps below the token's top.
    relative = (2**-4 if encoding.values == "fp8" else 0) + (
        2**-8 if encoding != Encoding() and encoding.tokens != "shown" else 0
    )
    top = np.abs(features.astype(np.float64)).max()
    smallest = top / 448 * 2**-9 if encoding.values == "fp8" else 0
    for before, after in zip(FRAMES, record.frames, strict=True):
        got = frame_map(again[0], after).astype(np.float64)
        expected = expected_map(features, before, encoding)
        assert (np.abs(got - expected) <= relative * np.abs(expected) + smallest).all()


def test_fp8_scale_is_the_tokens_own():
    features = noise(0, 300)
    features[5] *= 1000
    features[6] = 0
    arrays, _ = Encoding(values="fp8").encode(features, ())
    top = np.abs(features.astype(np.float32)).max(1)
    np.testing.assert_allclose(arrays["scale"][top > 0], top[top > 0] / 448, rtol=1e-6)
    decoded = Encoding(values="fp8").decode(arrays)
    assert (decoded[6] == 0).all()


def test_fp8_values_are_those_of_an_independent_table():
    """Every e4m3 code: sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinity."""
    table = []
    for code in range(256):
        sign, exponent, mantissa = -1 if code & 128 else 1, code >> 3 & 15, code & 7
        value = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
        table.append(np.nan if code & 127 == 127 else sign * value)
    codes = np.arange(256, dtype=np.uint8)[None].view(ml_dtypes.float8_e4m3fn)
    decoded = Encoding(values="fp8").decode({"values": codes, "scale": np.ones(1, np.float32)})
    np.testing.assert_array_equal(decoded[0].astype(np.float64), table)


def test_frames_of_several_tiles_are_only_stored_whole():
    frame = FrameTokens("input", 0, 30, 30, 0, tile_rows=1, tile_cols=2)
    for tokens in ("shown", "pooled"):
        with pytest.raises(ValueError, match="expected frames of one tile"):
            Encoding(tokens=tokens).encode(noise(0, 800), [frame])
    with pytest.raises(ValueError, match="expected 1 tile"):
        frame_map(noise(0, 800), frame)


def test_sizes_before_compression():
    assert Encoding().num_bytes(100, 2048) == 100 * 4096 + 2 * 4 * 2048
    assert Encoding(values="fp8").num_bytes(100, 2048) == 100 * (2048 + 4) + 2 * 4 * 2048
