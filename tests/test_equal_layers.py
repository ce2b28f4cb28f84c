"""What several layers compute alike is computed once."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, op_names

import intact
from intact.graph.canonicalize import canonicalize
from intact.graph.equal_layers import share_equal


def compared(function, x, rng):
    """The ops of a model's file, which is equal to the model at every tensor."""
    inputs = keras.Input(x.shape[1:], dtype=str(x.dtype))
    model = enliven(keras.Model(inputs, function(inputs)), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    content = intact.export(q)
    comparison = intact.compare(q, content, x, float_model=model)
    assert not any(t.different for t in (*comparison.outputs, *comparison.layers))
    assert comparison.outputs[0].snr > 20
    return op_names(content)


class Rotary(layers.Layer):
    """Turns pairs of values by an angle for each place, computed from the places at each call."""

    def call(self, x, places):
        angles = ops.cast(places, "float32")[..., None] * ops.convert_to_tensor([0.02, 0.005])
        sine, cosine = ops.sin(angles), ops.cos(angles)
        a, b = ops.split(x, 2, axis=-1)
        return ops.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=-1)


def test_angles_of_queries_and_keys(rng):
    places = np.tile(np.arange(6, dtype="int32"), (20, 1))
    data = rng.normal(size=(20, 6, 4)).astype("float32")
    inputs = [keras.Input((6, 4)), keras.Input((6,), dtype="int32")]
    query, key = layers.Dense(4)(inputs[0]), layers.Dense(4)(inputs[0])
    outputs = layers.Multiply()([Rotary()(query, inputs[1]), Rotary()(key, inputs[1])])
    model = enliven(keras.Model(inputs, outputs), rng)
    q = intact.calibrate(intact.quantize_model(model), [data, places], verbose=0)
    content = intact.export(q)
    comparison = intact.compare(q, content, [data, places])
    assert not any(t.different for t in (*comparison.outputs, *comparison.layers))
    # Two tables, of sine and cosine, that share their index.
    assert op_names(content).count("GATHER") == 2


def test_masks_of_several_blocks(rng):
    tokens = rng.integers(0, 9, size=(20, 6)).astype("int32")

    def function(x):
        y = layers.Embedding(9, 8)(x)
        for _ in range(2):
            attention = layers.MultiHeadAttention(2, 4)
            y = layers.Add()([y, attention(y, y, attention_mask=ops.not_equal(x, 0)[:, None])])
        return y

    names = compared(function, tokens, rng)
    assert names.count("NOT_EQUAL") == names.count("SELECT_V2") == 1


def test_a_layer_twice_on_one_tensor(rng):
    x = rng.normal(size=(20, 6)).astype("float32")

    def function(x):
        dense = layers.Dense(6)
        return layers.Concatenate()([dense(x), layers.Activation("tanh")(dense(x))])

    assert compared(function, x, rng).count("FULLY_CONNECTED") == 1


def twins(first, second):
    """A model of two layers that read one tensor and are multiplied."""
    x = keras.Input((4, 6))
    return keras.Model(x, layers.Multiply()([first(x), second(x)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Dropout(0.5),
        lambda: layers.GaussianNoise(0.5),
        lambda: layers.Dense(3),
        lambda: layers.BatchNormalization(center=False, scale=False),
    ],
)
def test_what_differs_in_training_stays(make):
    model = canonicalize(twins(make(), make()))
    assert share_equal(model, set()) is model


def test_what_only_looks_alike_stays():
    model = canonicalize(twins(layers.Permute((2, 1)), layers.Reshape((6, 4))))
    assert share_equal(model, set()) is model
    model = canonicalize(twins(layers.ReLU(1.0), layers.ReLU(2.0)))
    assert share_equal(model, set()) is model


def test_named_layers_stay():
    model = canonicalize(twins(layers.ReLU(name="a"), layers.ReLU(name="b")))
    assert share_equal(model, model.named) is model
    assert len(share_equal(model, {"a"}).layers) == len(model.layers) - 1


def test_layers_of_other_rules_stay():
    model = canonicalize(twins(layers.Reshape((24,)), layers.Reshape((24,))))
    names = [layer.name for layer in model.layers]
    assert share_equal(model, set(), lambda layer: names.index(layer.name)) is model


def test_ranges_are_not_tied(rng):
    x = rng.normal(size=(50, 4, 6)).astype("float32")

    def function(x):
        wide = layers.Concatenate(axis=1)([layers.Activation("tanh")(x), x * 40.0])
        narrow = layers.Concatenate(axis=1)([layers.Activation("tanh")(x), x * 0.1])
        return [layers.Dense(3)(wide), layers.Dense(3)(narrow)]

    inputs = keras.Input((4, 6))
    model = enliven(keras.Model(inputs, function(inputs)), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    comparison = intact.compare(q, intact.export(q), x, float_model=model)
    assert comparison.different == 0
    assert comparison.outputs[1].snr > 35


def test_the_output_twice(rng):
    x = rng.normal(size=(20, 4, 6)).astype("float32")
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, [layers.ReLU()(inputs), layers.ReLU()(inputs)])
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    assert intact.compare(q, intact.export(q), x).different == 0


def test_a_quantized_model_is_saved(tmp_path, rng):
    x = rng.normal(size=(20, 4, 6)).astype("float32")
    model = enliven(twins(layers.ReLU(), layers.ReLU()), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert intact.export(loaded) == intact.export(q)
