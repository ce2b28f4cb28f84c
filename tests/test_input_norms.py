"""Normalizations of the inputs become part of the layers that read them."""

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, op_names

import intact


def sensor(first, shape=(24, 3), norm=None):
    """A small network that normalizes its inputs."""
    x = keras.Input(shape, name="signal")
    y = (norm or layers.BatchNormalization(name="norm"))(x)
    y = layers.ReLU()(first(y))
    return keras.Model(x, layers.Dense(4, name="head")(layers.Flatten()(y)))


def statistics(model, spread=2.0):
    norm = model.get_layer("norm")
    channels = norm.gamma.shape[0]
    norm.gamma.assign(np.ones(channels))
    norm.moving_mean.assign(np.linspace(-1, 2, channels))
    norm.moving_variance.assign(np.linspace(1, spread**2, channels))
    return model


FIRST = {
    "dense": (lambda: layers.Dense(5), (6,)),
    "dense on rows": (lambda: layers.Dense(5, use_bias=False), (7, 6)),
    "conv1d": (lambda: layers.Conv1D(5, 3), (24, 3)),
    "conv2d": (lambda: layers.Conv2D(5, 3, use_bias=False), (8, 8, 3)),
    "strided": (lambda: layers.Conv2D(5, 3, strides=2, dilation_rate=1), (9, 9, 3)),
    "pointwise": (lambda: layers.Conv2D(5, 1, padding="same"), (8, 8, 3)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 3)),
}


@pytest.mark.parametrize("kind", FIRST)
def test_a_batch_norm_of_the_input_folds(kind, rng):
    first, shape = FIRST[kind]
    model = statistics(enliven(sensor(first(), shape), rng))
    data = rng.normal(0.5, 1.5, size=(64, *shape)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    names = op_names(content)
    assert names.count("DEPTHWISE_CONV_2D") == (kind == "depthwise"), names
    assert not any(t.different for t in intact.compare(q, content, data).outputs)
    expected = model.predict(data, verbose=0)
    np.testing.assert_allclose(
        intact.load_litert(intact.export(model)).predict(data), expected, rtol=1e-4, atol=1e-4
    )
    error = q.predict(data, verbose=0) - expected
    assert 10 * np.log10(expected.var() / (error**2).mean()) > 25


def twin_network(*norms):
    """Two branches with the same layers, whose inputs are normalized."""
    inputs = [keras.Input((8, 8, 3), name=name) for name in ("left", "right")]
    norms = norms * (2 // len(norms))
    conv, head = layers.Conv2D(4, 3, name="conv"), layers.Dense(4, name="head")
    parts = [layers.ReLU()(conv(norm(x))) for norm, x in zip(norms, inputs, strict=True)]
    return keras.Model(inputs, head(layers.Flatten()(layers.Add()(parts))))


def test_a_norm_of_both_branches_folds(rng):
    model = statistics(enliven(twin_network(layers.BatchNormalization(name="norm")), rng))
    data = [rng.normal(0.5, 1.5, size=(64, 8, 8, 3)).astype("float32") for _ in range(2)]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert op_names(content).count("DEPTHWISE_CONV_2D") == 0
    comparison = intact.compare(q, content, data, float_model=model)
    assert not any(t.different for t in (*comparison.outputs, *comparison.layers))
    assert comparison.outputs[0].snr > 25


def test_norms_of_one_branch_each_stay(rng):
    norms = [layers.BatchNormalization(name=name) for name in ("norm", "other")]
    model = statistics(enliven(twin_network(*norms), rng))
    norms[1].moving_mean.assign([0.1, 0.2, 0.3])
    data = [rng.normal(0.5, 1.5, size=(64, 8, 8, 3)).astype("float32") for _ in range(2)]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert op_names(content).count("DEPTHWISE_CONV_2D") == 2
    assert intact.compare(q, content, data).different == 0


def test_names_of_the_outputs_stay(rng):
    x = keras.Input((6,))
    y = layers.Dense(2, "softmax", name="scores")(layers.Rescaling(0.5)(x))
    assert intact.quantize_model(enliven(keras.Model(x, y), rng)).output_names == ["scores"]


def test_constants_of_the_input_fold(rng):
    norm = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 2.0])
    model = enliven(sensor(layers.Conv2D(4, 3), (8, 8, 3), norm), rng)
    assert op_names(intact.export(model)) == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


STAYS = {
    "zeros are padded": (lambda: layers.Conv2D(5, 3, padding="same"), (8, 8, 3), 2.0),
    "grouped": (lambda: layers.Conv2D(4, 3, groups=2), (8, 8, 4), 2.0),
    "weights would lose bits": (lambda: layers.Conv2D(4, 3), (8, 8, 3), 20.0),
    "transposed": (lambda: layers.Conv2DTranspose(4, 3), (8, 8, 3), 2.0),
}


@pytest.mark.parametrize("kind", STAYS)
def test_a_norm_that_cannot_fold_stays(kind, rng):
    first, shape, spread = STAYS[kind]
    model = statistics(enliven(sensor(first(), shape), rng), spread)
    assert "norm" in [step.name for step in intact.explain(model).plan.steps]


def test_a_norm_without_statistics_stays_and_trains(rng):
    """A model that is trained from scratch still needs it."""
    q = intact.quantize_model(sensor(layers.Dense(4), (6,)))
    q.compile("sgd", "mse")
    q.fit(rng.normal(3, 1, size=(32, 6)), rng.normal(size=(32, 4)), verbose=0)
    assert np.abs(keras.ops.convert_to_numpy(q.get_layer("norm").layer.moving_mean)).min() > 0


def test_a_norm_that_others_read_stays(rng):
    x = keras.Input((6,))
    y = layers.BatchNormalization(name="norm")(x)
    model = keras.Model(x, [layers.Dense(3)(y), layers.Dense(2)(y)])
    names = [step.name for step in intact.explain(statistics(enliven(model, rng))).plan.steps]
    assert "norm" in names


def test_a_norm_under_another_rule_stays(rng):
    model = statistics(enliven(sensor(layers.Dense(4), (6,)), rng))
    steps = intact.explain(model, filters="^dense$|^head$").plan.steps
    assert "norm" in [step.name for step in steps]
