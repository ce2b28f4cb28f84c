"""Constants of files beyond 2 GiB lie behind the flatbuffer; here, of files that are small."""

import keras
import numpy as np
import pytest
from small import lossy

import intact
from intact.litert import writing
from intact.litert.reader import read


@pytest.fixture
def model():
    return keras.Sequential(
        [keras.Input((64,)), *(keras.layers.Dense(64, activation="relu") for _ in range(3))]
    )


@lossy
@pytest.mark.parametrize("scheme", ["float32", "int8", "weight_only_8", "dynamic_range_4_blocks"])
def test_constants_behind_the_flatbuffer_are_the_same(model, monkeypatch, scheme, rng, tmp_path):
    x = rng.normal(size=(40, 64)).astype("float32")
    q = model if scheme == "float32" else intact.quantize_model(model, scheme)
    if scheme == "int8":
        intact.calibrate(q, x, verbose=0)
    inside = intact.export(q)
    monkeypatch.setattr(writing, "OUTSIDE", 1000)
    outside = intact.export(q, tmp_path / "large.tflite")
    assert outside != inside
    files = [intact.load_litert(content) for content in (inside, tmp_path / "large.tflite")]
    np.testing.assert_array_equal(*(file.predict(x) for file in files))
    for ours, theirs in zip(read(outside).graphs, read(inside).graphs, strict=True):
        for a, b in zip(ours.tensors, theirs.tensors, strict=True):
            assert (a.data is None) == (b.data is None)
            assert a.data is None or bytes(a.data) == bytes(b.data)
    assert not [f for f in intact.verify(outside) if f.severity == "error"]
    # These change files, and pack them again.
    assert intact.compare(q, outside, x).different == intact.compare(q, inside, x).different
