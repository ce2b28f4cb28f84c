"""Files of large models: constants are appended to the tables; here, of files that are small."""

import mmap
import platform
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest
from small import host, lossy

import intact
from intact import memory
from intact.calibration import biases
from intact.litert import writing
from intact.litert.reader import read


@pytest.fixture
def model():
    return keras.Sequential(
        [keras.Input((64,)), *(keras.layers.Dense(64, activation="relu") for _ in range(3))]
    )


@lossy
@pytest.mark.parametrize("limit", ["LARGE", "MANY"])
@pytest.mark.parametrize("most", [10**9, 1000], ids=["inside", "outside"])
@pytest.mark.parametrize("scheme", ["float32", "int8", "weight_only_8", "dynamic_range_4_blocks"])
def test_appended_constants_are_the_same(model, monkeypatch, scheme, most, limit, rng, tmp_path):
    x = rng.normal(size=(40, 64)).astype("float32")
    q = model if scheme == "float32" else intact.quantize_model(model, scheme)
    if scheme == "int8":
        intact.calibrate(q, x, verbose=0)
    at_once = intact.export(q)
    # One large constant is appended, and so are those of which there are many.
    monkeypatch.setattr(writing, limit, 100)
    monkeypatch.setattr(writing, "SMALL", 100)
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
    monkeypatch.setattr(memory, "LARGE", 2**20)
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as is")
def test_large_models_give_memory_back(model, monkeypatch):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    monkeypatch.setattr(memory, "LARGE", 0)
    with memory.separate_pages(model):
        pass
    arrays = [np.ones(2**18) for _ in range(64)]
    before = resident()
    del arrays[::2]
    assert resident() > before - 2**24, "the heap has no holes to give back"
    with memory.separate_pages(model):
        assert resident() < before - 2**25
        held = [np.ones(2**18) for _ in range(64)]
        # The first half is in the holes of the heap, the other has pages of its own.
        del held[32:]
        assert resident() < before + 2**24
        del held
        with memory.separate_pages(model):
            assert resident() < before - 2**25
