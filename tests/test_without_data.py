"""Biases are corrected without data where batch norms tell what a layer reads."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import norm as normal
from small import host

import intact
from intact.calibration.biases import take_back_corrections
from intact.calibration.without_data import channel_samples


def normalized(rng, x, **options):
    """A batch norm whose channels have means and deviations of their own."""
    layer = layers.BatchNormalization(**options)
    y = layer(x)
    for weight in (layer.gamma, layer.beta):
        weight.assign(rng.normal(1, 1, weight.shape))
    return y, layer


def samples_of(model, scheme="weight_only_8"):
    q = intact.quantize_model(model, scheme)
    return q, channel_samples(q)


def test_means_of_a_clipped_normal_distribution_are_those_of_its_formula(rng):
    inputs = keras.Input((6, 6, 8))
    y, layer = normalized(rng, inputs)
    y = layers.ReLU(6.0)(y)
    q, samples = samples_of(keras.Model(inputs, y))
    # Of a normal distribution that is cut off at 0 and 6, both ends included.
    mean, deviation = host(layer.beta), np.abs(host(layer.gamma))
    low, high = -mean / deviation, (6 - mean) / deviation
    inner = mean * (normal.cdf(high) - normal.cdf(low))
    inner += deviation * (normal.pdf(low) - normal.pdf(high))
    expected = inner + 6 * normal.sf(high)
    np.testing.assert_allclose(samples[id(q.outputs[0])].mean(axis=0), expected, atol=5e-3)


@pytest.mark.parametrize(
    "behind",
    [
        layers.PReLU(shared_axes=[1, 2], alpha_initializer="ones"),
        layers.Activation("swish"),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.GlobalAveragePooling2D(),
        lambda y: layers.Concatenate()([y, layers.ReLU()(y)]),
        lambda y: layers.Add()([y, layers.Activation("sigmoid")(y)]),
    ],
    ids=["prelu", "swish", "pool", "flatten", "global_pool", "concatenate", "add"],
)
def test_means_follow_the_layers_behind(behind, rng):
    inputs = keras.Input((4, 4, 3))
    y, _ = normalized(rng, inputs)
    model = keras.Model(inputs, behind(y))
    q, samples = samples_of(model)
    # An input of mean 0 and deviation 1, which the batch norm only scales and shifts.
    x = rng.normal(size=(4000, 4, 4, 3)).astype("float32")
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    expected = model.predict(x, verbose=0)
    expected = expected.reshape(-1, expected.shape[-1]).mean(axis=0)
    np.testing.assert_allclose(samples[id(q.outputs[0])].mean(axis=0), expected, atol=0.06)


def small_net(rng):
    """A net whose batch norms know its statistics, and samples of its input."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, use_bias=False, name="first")(inputs)
    y, _ = normalized(rng, y, momentum=0.0)
    y = layers.Conv2D(8, 3, use_bias=False)(layers.ReLU()(y))
    y, _ = normalized(rng, y, momentum=0.0)
    y = layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(y))
    model = keras.Model(inputs, layers.Dense(5, name="last")(y))
    x = rng.normal(size=(256, 8, 8, 3)).astype("float32")
    model(x, training=True)
    return model, x


@pytest.mark.parametrize("scheme", ["weight_only_4", "dynamic_range"])
def test_the_shift_of_the_outputs_is_taken_back(scheme, rng):
    model, x = small_net(rng)
    q = intact.quantize_model(model, scheme)
    expected = model.predict(x, verbose=0)
    assert q.get_layer("first").corrected is None, "nothing tells of the model's input"
    assert q.get_layer("last").corrected is not None
    corrected = np.abs((q.predict(x, verbose=0) - expected).mean(axis=0)).mean()
    file = intact.load_litert(intact.export(q))
    np.testing.assert_allclose(file.predict(x[:8]), q.predict(x[:8], verbose=0), atol=1e-4)
    take_back_corrections(q)
    plain = np.abs((q.predict(x, verbose=0) - expected).mean(axis=0)).mean()
    assert corrected < 0.6 * plain


def test_other_models_are_left_as_they_are(rng):
    model, _ = small_net(rng)
    schedule = intact.Schedule(quant_delay=10)
    trains = intact.quantize_model(model, "weight_only_8", schedule=schedule)
    for q in (trains, intact.quantize_model(model), intact.quantize_model(model, "float16")):
        assert q.get_layer("last").corrected is None
