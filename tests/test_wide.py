"""Functions as the 16-bit kernels compute them."""

import keras
import numpy as np
import pytest
from keras import layers

import intact


@pytest.mark.parametrize("scale", [0.3, 4.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_softmax_is_the_kernels(classes, scale, rng):
    model = keras.Sequential([keras.Input((classes,)), layers.Softmax()])
    x = (scale * rng.normal(size=(400, classes))).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, "int16x8"), x, verbose=0)
    found = intact.load_litert(intact.export(q)).predict(x)
    off = np.abs(np.rint((q.predict(x, verbose=0) - found) * 2**15))
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.01


@pytest.mark.parametrize("size", [1, 2, 6, 7, 13])
def test_mean_is_the_kernels(size, rng):
    model = keras.Sequential([keras.Input((size, size, 5)), layers.GlobalAveragePooling2D()])
    x = np.maximum(rng.normal(size=(300, size, size, 5)), 0).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, "int16x8"), x, verbose=0)
    assert intact.compare(q, intact.export(q), x, per_layer=False).max_lsb == 0
