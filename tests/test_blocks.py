"""Blocks of pixels, as `keras.ops` has them."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, op_names

import intact
from intact.ops.blocks import DepthToSpace, SpaceToDepth

pytestmark = pytest.mark.skipif(not hasattr(ops, "depth_to_space"), reason="a newer Keras has it")


@pytest.mark.parametrize("name", ["depth_to_space", "space_to_depth"])
def test_functions_of_keras(name, rng):
    x = keras.Input((4, 6, 8))
    model = enliven(keras.Model(x, getattr(ops, name)(layers.Conv2D(8, 1)(x), 2)), rng)
    data = rng.normal(size=(32, 4, 6, 8)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, input_dtype="int8", output_dtype="int8", integer_only=True)
    assert op_names(content) == ["CONV_2D", name.upper()]
    assert not any(t.different for t in intact.compare(q, content, data).outputs)
    found = intact.load_litert(intact.export(model)).predict(data)
    np.testing.assert_allclose(found, model.predict(data, verbose=0), rtol=1e-5, atol=1e-5)


def test_channels_first_are_refused():
    x = keras.Input((8, 4, 6))
    model = keras.Model(x, ops.depth_to_space(x, 2, data_format="channels_first"))
    with pytest.raises(intact.UnsupportedLayerError, match="backends of Keras disagree"):
        intact.quantize_model(model)


@pytest.mark.parametrize("kind", [DepthToSpace, SpaceToDepth])
def test_blocks_divide_the_image(kind):
    with pytest.raises(ValueError, match=r"do(es)? not divide into blocks of 2 x 2"):
        kind(2)(keras.Input((3, 4, 6)))
