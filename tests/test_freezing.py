"""The inference model of a quantized one."""

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, lossy, mlp

import intact
from intact import Rule, Scheme, TensorSpec


def shared():
    """A layer that is called on inputs of two ranges, and one that stands alone."""
    image = keras.Input((6, 6, 3), name="image")
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    x = layers.Add()([conv(image), conv(layers.ReLU()(conv(image)))])
    x = layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization(name="alone")(x))
    x = layers.Concatenate()([x, 0.5 * image])
    return keras.Model(image, layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(x)))


LSQ = Scheme(
    "lsq",
    (
        Rule(
            weights=TensorSpec(2, quantizer="lsq"),
            activations=TensorSpec(4, True, quantizer="lsq"),
        ),
    ),
)


def made(build, scheme, rng):
    model = enliven(build(), rng)
    x = rng.normal(size=(32, *model.input_shape[1:])).astype("float32")
    return intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0), x


@lossy
@pytest.mark.parametrize("build", [cnn, mlp, shared])
@pytest.mark.parametrize("scheme", ["int8", "int4", "uint8", LSQ], ids=str)
def test_same_outputs_and_the_same_bytes(build, scheme, rng, tmp_path):
    if build is shared and scheme == "uint8":
        pytest.skip("PReLU and constants have no unsigned kernels")
    q, x = made(build, scheme, rng)
    before = intact.export(q)
    frozen = intact.freeze(q)
    np.testing.assert_array_equal(frozen.predict(x, verbose=0), q.predict(x, verbose=0))
    assert intact.export(frozen) == before == intact.export(q)
    assert not frozen.trainable_variables
    assert not any("bn" in layer.name for layer in frozen.layers)
    frozen.save(tmp_path / "frozen.keras")
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")
    assert intact.export(loaded) == before
    assert intact.compare(loaded, before, x).different == 0


@pytest.mark.parametrize("scheme", ["float16", "weight_only_4", "int16x8"])
def test_other_schemes_freeze_too(scheme, rng):
    q, x = made(cnn, scheme, rng)
    frozen = intact.freeze(q)
    np.testing.assert_array_equal(frozen.predict(x, verbose=0), q.predict(x, verbose=0))
    assert intact.export(frozen) == intact.export(q)


def test_nothing_moves_any_more(rng):
    q, x = made(cnn, "int8", rng)
    frozen = intact.freeze(q)
    expected = frozen.predict(x, verbose=0)
    frozen(10 * x, training=True)
    np.testing.assert_array_equal(frozen.predict(x, verbose=0), expected)


def test_what_cannot_be_frozen(rng):
    with pytest.raises(intact.NotCalibratedError):
        intact.freeze(intact.quantize_model(cnn()))
    with pytest.raises(intact.IntactError, match="not quantized"):
        intact.freeze(cnn())
