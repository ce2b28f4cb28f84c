"""Ops that LiteRT computes in float only."""

import keras
import numpy as np
import pytest
from small import op_names

import intact
from intact.ops import REGISTRY
from intact.testing import build_model, make_data

CASES = [
    pytest.param(case, id=f"{op.name}-{i}")
    for op in REGISTRY
    for i, case in enumerate(op.float_cases)
]


@pytest.mark.parametrize("case", CASES)
def test_float_only(case, rng):
    model, data = build_model(case, rng), make_data(case, rng, 16)
    with pytest.raises(intact.IntactError, match="no integer kernel"):
        intact.quantize_model(model)
    expected = model.predict(data, verbose=0)
    found = intact.load_litert(intact.export(model)).predict(data)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
    q = intact.quantize_model(model, allow_float=True)
    plan = intact.explain(model).plan
    assert plan.float_steps
    if any(step.integer for step in plan.steps):
        intact.calibrate(q, data, verbose=0)
    file = intact.load_litert(intact.export(q))
    np.testing.assert_allclose(file.predict(data), q.predict(data, verbose=0), atol=1e-5)


@pytest.mark.parametrize("scheme", ["float16", "weight_only_8", "weight_only_4", "dynamic_range"])
def test_weights_alone_of_a_transposed_convolution_of_volumes(scheme, rng):
    x = keras.Input((3, 4, 5, 2))
    layer = keras.layers.Conv3DTranspose(3, 2, strides=2, padding="same", activation="relu")
    model = keras.Model(x, layer(x))
    layer.bias.assign([0.1, -0.2, 0.3])
    data = rng.normal(size=(8, 3, 4, 5, 2)).astype("float32")
    q = intact.quantize_model(model, scheme)
    content = intact.export(q)
    assert "DEQUANTIZE" in op_names(content)
    found = q.predict(data, verbose=0)
    np.testing.assert_allclose(intact.load_litert(content).predict(data), found, atol=1e-5)
    assert (found != model.predict(data, verbose=0)).any()


def test_a_dilated_transposed_convolution_of_volumes_is_refused():
    x = keras.Input((3, 4, 5, 2))
    layer = keras.layers.Conv3DTranspose(3, 2, dilation_rate=2, name="up")
    model = keras.Model(x, layer(x))
    with pytest.raises(intact.UnsupportedLayerError, match=r"'up'.*no dilation_rate"):
        intact.export(model)
