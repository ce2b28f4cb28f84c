"""Files of large models: constants are appended to the tables; here, of files that are small."""

import tracemalloc

import keras
import numpy as np
import pytest
from small import host, lossy

import intact
from intact.calibration import biases, capture
from intact.litert import writing
from intact.litert.reader import read


@pytest.fixture
def model():
    return keras.Sequential(
        [keras.Input((64,)), *(keras.layers.Dense(64, activation="relu") for _ in range(3))]
    )


@lossy
@pytest.mark.parametrize("most", [10**9, 1000], ids=["inside", "outside"])
@pytest.mark.parametrize("scheme", ["float32", "int8", "weight_only_8", "dynamic_range_4_blocks"])
def test_appended_constants_are_the_same(model, monkeypatch, scheme, most, rng, tmp_path):
    x = rng.normal(size=(40, 64)).astype("float32")
    q = model if scheme == "float32" else intact.quantize_model(model, scheme)
    if scheme == "int8":
        intact.calibrate(q, x, verbose=0)
    at_once = intact.export(q)
    monkeypatch.setattr(writing, "LARGE", 100)
    monkeypatch.setattr(writing, "OUTSIDE", most)
    appended = intact.export(q, tmp_path / "large.tflite")
    assert appended != at_once
    files = [intact.load_litert(content) for content in (at_once, tmp_path / "large.tflite")]
    np.testing.assert_array_equal(*(file.predict(x) for file in files))
    for ours, theirs in zip(read(appended).graphs, read(at_once).graphs, strict=True):
        for a, b in zip(ours.tensors, theirs.tensors, strict=True):
            assert (a.data is None) == (b.data is None)
            assert a.data is None or bytes(a.data) == bytes(b.data)
    assert not [f for f in intact.verify(appended) if f.severity == "error"]
    # These change files, and pack them again.
    assert intact.compare(q, appended, x).different == intact.compare(q, at_once, x).different


def test_a_large_model_is_calibrated_without_a_copy_of_its_weights(monkeypatch, rng):
    """NumPy's arrays are counted: the file, twice, and few of the weights at a time."""
    model = keras.Sequential(
        [keras.Input((512,)), *(keras.layers.Dense(512, activation="relu") for _ in range(8))]
    )
    x = rng.normal(size=(40, 512)).astype("float32")
    q, large = (intact.quantize_model(model) for _ in range(2))
    intact.calibrate(q, x, verbose=0)
    monkeypatch.setattr(capture, "LARGE", 2**20)
    monkeypatch.setattr(biases, "TOGETHER", 2**20)
    monkeypatch.setattr(writing, "LARGE", 2**10)
    tracemalloc.start()
    intact.calibrate(large, x, verbose=0)
    intact.export(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * model.count_params()
    for variable, other in zip(large.variables, q.variables, strict=True):
        np.testing.assert_allclose(host(variable), host(other), rtol=1e-3, atol=1e-4)
