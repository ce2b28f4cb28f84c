"""Functions of each value alone become one table, and common factors a part of other layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, op_names

import intact
from intact.ops.table import Elementwise

ENDS = ["QUANTIZE", "DEQUANTIZE"]
TABLE = ["CAST", "ADD", "GATHER"]


def between(function, shape=(5, 8)):
    """A function between two dense layers."""
    x = keras.Input(shape)
    return keras.Model(x, layers.Dense(3, name="head")(function(layers.Dense(8)(x))))


def quantized(model, rng, scheme="int8"):
    enliven(model, rng)
    data = rng.normal(size=(64, *model.inputs[0].shape[1:])).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
    content = intact.export(q, integer_only=True)
    result = intact.compare(q, content, data, float_model=model)
    assert not any(t.different for t in result.outputs)
    assert result.outputs[0].snr > 20
    return q, [name for name in op_names(content) if name not in ENDS], result


def wave(x):
    """Two functions of one multiple."""
    angle = 3.0 * x
    return ops.sin(angle) * ops.cos(angle)


CHAINS = {
    # Of a sigmoid and a line behind it, the line goes into the next layer.
    "line": (lambda x: ops.sigmoid(x) * 2 - 1, ["LOGISTIC"]),
    "lines on both sides": (lambda x: ops.tanh(x / 30.0) * 30.0, ["TANH"]),
    "square": (ops.square, ["MUL"]),
    "power": (lambda x: x**2, ["MUL"]),
    "row": (lambda x: ops.log1p(ops.exp(x * 0.5) + 1.0), TABLE),
    "gate": (lambda x: x * ops.sigmoid(1.702 * x), TABLE),
    "two of one tensor": (wave, TABLE),
    # One kernel each, which are quicker than a table.
    "silu": (ops.silu, ["LOGISTIC", "MUL"]),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_chains(kind, rng):
    function, names = CHAINS[kind]
    _, found, _ = quantized(between(function), rng)
    assert found == ["FULLY_CONNECTED", *names, "FULLY_CONNECTED"]


@pytest.mark.parametrize("scheme", ["int16x8", "uint8"])
def test_other_types(scheme, rng):
    quantized(between(CHAINS["row"][0]), rng, scheme)


def test_tables_of_one_tensor_share_their_index(rng):
    model = between(lambda x: ops.concatenate([ops.sin(3.0 * x), ops.cos(3.0 * x)], -1))
    _, found, _ = quantized(model, rng)
    assert found[1:-1] == [*TABLE, "GATHER", "CONCATENATION"]


def test_a_layer_with_a_name_keeps_its_output(rng):
    def named(x):
        gate = layers.Activation("sigmoid", name="gate")(x)
        return ops.exp(layers.Rescaling(2.0, -1.0, name="line")(gate))

    q, found, result = quantized(between(named), rng)
    assert found.count("LOGISTIC") == found.count("DEPTHWISE_CONV_2D") == 1
    assert {"gate", "line"} <= {layer.name for layer in q.layers}
    assert all(layer.snr > 20 for layer in result.layers)


def test_a_table_has_the_name_of_its_last_layer(rng):
    def unnamed(x):
        return layers.Rescaling(0.5)(layers.ELU()(layers.LeakyReLU()(ops.exp(-x))))

    model = between(unnamed)
    model = keras.Model(model.inputs, [model.outputs[0], model.layers[-2].output])
    q = intact.quantize_model(model)
    tables = [layer for layer in q.layers if isinstance(getattr(layer, "layer", 0), Elementwise)]
    assert [layer.name for layer in tables] == [model.layers[-2].name]


def test_what_others_read_stays(rng):
    def read_twice(x):
        y = ops.sigmoid(x)
        return ops.concatenate([y, y * 2 - 1], -1)

    _, found, _ = quantized(between(read_twice), rng)
    assert found.count("LOGISTIC") == 1


def test_a_factor_folds_into_a_convolution(rng):
    def function(x):
        y = layers.Conv2D(4, 3, use_bias=False)(x) * 2 + 1
        return layers.Flatten()(layers.Conv2D(4, 3, padding="same")(ops.tanh(y) * 0.5))

    x = keras.Input((6, 6, 3))
    _, found, _ = quantized(keras.Model(x, layers.Dense(2)(function(x))), rng)
    assert found == ["CONV_2D", "TANH", "CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_an_offset_before_padding_stays(rng):
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3, padding="same")(ops.tanh(layers.Conv2D(4, 3)(x)) + 0.5)
    _, found, _ = quantized(keras.Model(x, layers.Dense(2)(layers.Flatten()(y))), rng)
    assert "DEPTHWISE_CONV_2D" in found


def test_weights_that_are_regularized_keep_their_values():
    x = keras.Input((8,))
    dense = layers.Dense(8, kernel_regularizer="l2", name="dense")
    q = intact.quantize_model(keras.Model(x, ops.tanh(dense(x) * 2.0)))
    kept = q.get_layer("dense").layer.kernel
    np.testing.assert_array_equal(ops.convert_to_numpy(kept), dense.get_weights()[0])


def test_compare_pairs_each_table_with_its_function(rng):
    def function(x):
        return ops.log1p(ops.exp(layers.Dense(8)(ops.tanh(x / 4.0) * 8.0) * 0.25))

    _, _, result = quantized(between(function), rng)
    assert all(layer.snr > 15 for layer in result.layers), [(t.name, t.snr) for t in result.layers]


def test_saved_and_loaded(rng, tmp_path):
    q, _, _ = quantized(between(CHAINS["gate"][0]), rng)
    q.save(tmp_path / "q.keras")
    x = np.ones((2, 5, 8), "float32")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))


class Affine(layers.Layer):
    """A trained factor, and a trained offset."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(1,), initializer="ones")
        self.offset = self.add_weight(shape=shape[-1:])

    def call(self, x):
        return self.factor * x + self.offset


def test_a_factor_and_an_offset_are_one_kernel(rng):
    x = rng.normal(size=(32, 6, 6, 3)).astype("float32")
    inputs = keras.Input((6, 6, 3))
    y = Affine(name="affine")(layers.ReLU()(layers.Conv2D(4, 3, name="conv")(inputs)))
    model = enliven(keras.Model(inputs, layers.Conv2D(2, 1)(y)), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    content = intact.export(q)
    assert op_names(content).count("DEPTHWISE_CONV_2D") == 1
    comparison = intact.compare(q, content, x, float_model=model)
    assert not any(t.different for t in (*comparison.outputs, *comparison.layers))
    assert comparison.outputs[0].snr > 25
    assert len(q.trainable_variables) == len(model.trainable_variables)


def test_a_factor_that_others_read_stays(rng):
    x = rng.normal(size=(32, 6, 6, 3)).astype("float32")

    class Both(Affine):
        def call(self, x):
            y = self.factor * x
            return ops.concatenate([y, y + self.offset], axis=-1)

    inputs = keras.Input((6, 6, 3))
    model = enliven(keras.Model(inputs, Both()(inputs)), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    content = intact.export(q)
    assert op_names(content).count("DEPTHWISE_CONV_2D") == 2
    assert intact.compare(q, content, x, float_model=model).different == 0
