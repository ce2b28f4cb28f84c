"""Functions as the kernels compute them."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import host

import intact
from intact.litert.builder import Builder
from intact.litert.runtime import load_litert
from intact.numerics import QTensor
from intact.quantizers import Arithmetic


def by_kernel(kernel, x, scale, zero_point, output):
    """What an int8 kernel makes of stored integers, as whole numbers `q - zero_point`."""
    builder = Builder("")
    source = builder.tensor(x.shape, "int8", "x", scale=scale, zero_point=zero_point)
    target = builder.tensor(x.shape, "int8", "y", scale=output[0], zero_point=output[1])
    options = {"beta": 1.0} if kernel == "SOFTMAX" else {}
    builder.add(kernel, [source], [target], options)
    model = load_litert(builder.finish([("x", source)], [("y", target)]))
    return model.predict(x, raw=True, batch_size=len(x)).astype(int) - output[1]


def by_formula(name, x, scale, zero_point, output):
    """The same by the formula of a quantized model."""
    x, scale, zero_point, unit, zero = (
        ops.convert_to_tensor(v, "float32") for v in (x, scale, zero_point, *output)
    )
    params = QTensor(None, unit, zero)
    pending = QTensor(x - zero_point, scale, zero_point)
    return host(Arithmetic.registry[name].quantize(pending, params, -128 - zero, 127 - zero))


CURVES = {
    "sigmoid": ("LOGISTIC", (1 / 256, -128)),
    "tanh": ("TANH", (1 / 128, 0)),
    "softmax": ("SOFTMAX", (1 / 256, -128)),
    "log_softmax": ("LOG_SOFTMAX", (1 / 16, 127)),
}


@pytest.mark.parametrize("name", CURVES)
def test_int8_curves_are_the_kernels(name, rng):
    kernel, output = CURVES[name]
    # At the first three, a sigmoid in float32 rounds another way, or one without the zero point.
    ties = [0.021833736449480057, 0.0069295791909098625, 0.02891670912504196]
    for scale in np.float32([*ties, *np.exp(rng.uniform(np.log(1e-3), np.log(0.3), 7))]):
        for zero_point in (-128, 5, 127):
            x = np.arange(-128, 128, dtype="int8")
            if "softmax" in name:
                x = np.clip(rng.normal(0, 40, (100, 11)), -128, 127).astype("int8")
            expected = by_kernel(kernel, x, scale, zero_point, output)
            np.testing.assert_array_equal(by_formula(name, x, scale, zero_point, output), expected)


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
