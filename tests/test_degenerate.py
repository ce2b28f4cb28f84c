"""Weights, ranges and inputs of 0, of one value, very large or very small."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import host, lossy, quantizers

import intact
from intact import Rule, Scheme, TensorSpec
from intact.layers.fake_quantize import FakeQuantize

# What is nothing beside its inputs has no accuracy to keep.
pytestmark = lossy

CONSTANT = keras.initializers.Constant


def check(model, x, steps=2, scheme="int8", train=None):
    """A file that equals Keras, and float within some steps of the output.

    Args:
        model: The model, of one output.
        x: What calibrates and tests it.
        steps: How many of the output's steps float may be off.
        scheme: Its scheme.
        train: Trains the quantized model; it is not compared with float then.
    """
    q = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    if train:
        train(q)
    content = intact.export(q)
    got = intact.load_litert(content).predict(x)
    *_, quantizer = quantizers(q).values()
    scale, _ = quantizer.stored_pair()
    np.testing.assert_allclose(got, q.predict(x, verbose=0), atol=1e-3 * scale, rtol=1e-6)
    if not train:
        expected = model.predict(x, verbose=0)
        assert np.abs(got - expected).max() <= steps * scale + 1e-6 * np.abs(expected).max()
    return q


def few_steps(q, x, y=0.0, rate=1e-3):
    q.compile(keras.optimizers.Adam(rate), "mse")
    for _ in range(2):
        q.train_on_batch(x, np.full((len(x), *q.output_shape[1:]), y, "float32"))


WEIGHTED = {
    "conv": (lambda: layers.Conv2D(4, 3), -1),
    "grouped": (lambda: layers.Conv2D(4, 1, groups=2), -1),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), 2),
    "transpose": (lambda: layers.Conv2DTranspose(4, 3), 2),
    "dense": (lambda: layers.Dense(4), -1),
    "einsum": (lambda: layers.EinsumDense("abcd,de->abce", (6, 6, 4), bias_axes="e"), -1),
}


@pytest.mark.parametrize("factor", [0.0, 1e-41, 1e-20, 1e-9])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_dead_filter_keeps_its_bias(kind, factor, rng):
    make, axis = WEIGHTED[kind]
    layer, x = make(), keras.Input((6, 6, 4))
    model = keras.Model(x, layer(x))
    kernel = np.moveaxis(host(layer.kernel), axis, 0)
    kernel[1] *= factor
    layer.kernel.assign(np.moveaxis(kernel, 0, axis))
    layer.bias.assign([0.0, 0.3, 0.0, 0.0])
    q = check(model, rng.uniform(0, 1, (16, 6, 6, 4)).astype("float32"), steps=4)
    dead = q.predict(np.zeros((1, 6, 6, 4)), verbose=0)[..., 1]
    np.testing.assert_allclose(dead, 0.3, atol=1.01 * quantizers(q)[layer.name].stored_pair()[0])


def weights(**fields):
    return Scheme([Rule(weights=TensorSpec(symmetric=True, **fields), activations=TensorSpec(8))])


SCHEMES = {
    "int8": "int8",
    "int4": "int4",
    "uint8": "uint8",
    "per tensor": weights(bits=8, per_axis=False),
    "powers of two": weights(bits=8, power_of_two=True),
    **{
        name: weights(bits=bits, quantizer=name)
        for name, bits in (("lsq", 4), ("twn", 2), ("ttq", 2), ("xnor", 1), ("dorefa", 4))
    },
}


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_dead_unit_keeps_its_bias(scheme, normed, rng):
    # XNNPACK's biases of 4-bit weights have four bits less.
    x = keras.Input((8,))
    dense = layers.Dense(3)
    y = dense(x)
    y = layers.BatchNormalization(beta_initializer=CONSTANT(0.7))(y) if normed else y
    dense.kernel.assign(rng.normal(size=(8, 3)) * [0.0, 1.0, 1e-30])
    dense.bias.assign([0.3, 0.1, 5.0])
    check(keras.Model(x, y), rng.normal(size=(32, 8)).astype("float32"), 40, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_of_zeros_has_its_bias(scheme, rng):
    layer = layers.Dense(4, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.bias.assign([0.013, -0.5, 2e-4, 1.0])
    check(model, rng.normal(0, 3, (32, 3)).astype("float32"), scheme=SCHEMES[scheme])


@pytest.mark.parametrize("scheme", ["int8", "int16x8", "per tensor"])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_beta_alone_is_left_of_a_dead_batch_norm(gamma, scheme, rng):
    conv = layers.Conv2D(3, 3, use_bias=False)
    norm = layers.BatchNormalization(gamma_initializer=CONSTANT(gamma))
    model = keras.Sequential([keras.Input((6, 6, 4)), conv, norm, layers.ReLU()])
    if gamma:
        conv.kernel.assign(np.zeros(conv.kernel.shape))
    norm.beta.assign([0.3, 0.013, 0.0])
    x = rng.uniform(0, 9, (16, 6, 6, 4)).astype("float32")
    check(model, x, scheme=SCHEMES.get(scheme, scheme))


DEAD = {
    "a layer norm of one feature": lambda x: layers.LayerNormalization()(x[:, :1]) + x,
    "dead": lambda x: gone(x),
    "difference": lambda x: x - x,
    "log": lambda x: ops.log(gone(x) + 1e-6),
    "log of less": lambda x: ops.log(gone(x) + 1e-12),
    "quotient": lambda x: x / (gone(x) + 1e-3),
    "sum": lambda x: gone(x) + x,
    "product": lambda x: gone(x) * x + 0.5,
    "concatenation": lambda x: layers.Concatenate()([gone(x), x - x]),
    "mean": lambda x: ops.mean(gone(x), -1, keepdims=True),
    "mean of opposites": lambda x: ops.mean(layers.Concatenate()([x, -x]), -1, keepdims=True),
    "softmax": lambda x: layers.Softmax()(gone(x)),
    "zeros": lambda x: layers.Dense(3, kernel_initializer="zeros")(x),
    "ReLU6": lambda x: layers.Dense(3, "relu6", kernel_initializer="zeros")(x) + x[:, :1],
    "slopes of 0": lambda x: layers.PReLU()(layers.Dense(3)(x)),
    "constant": lambda x: x * 0.0 + 0.25,
    "negative constant": lambda x: x * 0.0 - 3.7,
}


def gone(x):
    """A ReLU that lets nothing through."""
    return layers.Dense(6, "relu", bias_initializer=CONSTANT(-100.0))(x)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("kind", DEAD)
def test_tensors_of_one_value(kind, scheme, rng):
    x = keras.Input((6,))
    model = keras.Model(x, DEAD[kind](x))
    data = rng.normal(size=(32, 6)).astype("float32")
    if scheme == "int8":
        check(model, data, steps=4)
    q = intact.quantize_model(model, scheme, allow_float=scheme != "int8")
    intact.calibrate(q, data, verbose=0)
    # A layer in float may take the logarithm of what is 0 in integers. No loss is finite then.
    if q.trainable_variables and np.isfinite(q.predict(data, verbose=0)).all():
        few_steps(q, data)
    intact.load_litert(intact.export(q)).predict(data)


@pytest.mark.parametrize("value", [0.25, -0.1, 3e-5, 7e4])
def test_a_constant_is_exact(value, rng):
    x = keras.Input((3,))
    bias = CONSTANT(value)
    y = layers.Dense(2, kernel_initializer="zeros", bias_initializer=bias)(x)
    data = rng.normal(size=(8, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(keras.Model(x, y)), data, verbose=0)
    got = intact.load_litert(intact.export(q)).predict(data)
    np.testing.assert_allclose(got, value, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6, 1.6e7, 1e12])
@pytest.mark.parametrize("norm", [False, True])
def test_ranges_of_inputs_of_any_size(norm, size, rng):
    dense = layers.Dense(8, "relu", bias_initializer=CONSTANT(0.5))
    before = [layers.BatchNormalization()] if norm else []
    model = keras.Sequential([keras.Input((6,)), *before, dense, layers.Dense(2)])
    x = (rng.normal(size=(64, 6)) * size).astype("float32")
    if norm:
        before[0].moving_mean.assign(x.mean(0))
        before[0].moving_variance.assign(x.var(0))
        before[0].epsilon = 0.0
    else:
        dense.kernel.assign(host(dense.kernel) / size)
    q = check(model, x, steps=6)
    expected = keras.Model(model.inputs, dense.output).predict(x, verbose=0).max()
    seen = next(r for name, r in quantizers(q).items() if name.startswith(dense.name))
    np.testing.assert_allclose(host(seen.maximum).max(), expected, rtol=0.02)
    few_steps(q, x)
    intact.load_litert(intact.export(q)).predict(x)


def test_what_was_accepted_is_not_refused_after_training(rng):
    x = keras.Input((16, 1))
    y = layers.MultiHeadAttention(2, 4)(x, x)
    y = layers.LayerNormalization(epsilon=1e-6)(y) + x
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))
    data = rng.normal(size=(32, 16, 1)).astype("float32")
    check(model, data, train=lambda q: few_steps(q, data, rate=1e-4))


class Scaled(layers.Layer):
    """A residual branch that begins at 0 (arXiv:2103.17239)."""

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(shape[-1],), initializer="zeros")

    def call(self, x):
        return x + ops.tanh(x) * self.factor


def normalized(trainable):
    """A layer of zeros, and a batch norm of which only the offsets are left."""
    norm = layers.BatchNormalization(beta_initializer=CONSTANT(0.3), trainable=trainable)
    return [layers.Dense(6, kernel_initializer="zeros", use_bias=False), norm]


LEARNS = {
    "zeros": lambda: [layers.Dense(6, kernel_initializer="zeros")],
    "constants": lambda: [
        layers.Dense(6, kernel_initializer="zeros", bias_initializer=CONSTANT(-5.0))
    ],
    "tiny": lambda: [
        layers.Dense(6, kernel_initializer=CONSTANT(1e-12), bias_initializer=CONSTANT(5.0))
    ],
    "zeros and a batch norm": lambda: normalized(True),
    "zeros and a frozen batch norm": lambda: normalized(False),
    "slopes": lambda: [layers.Dense(6), layers.PReLU()],
    "factors": lambda: [layers.Dense(6), Scaled()],
    "norm": lambda: [layers.LayerNormalization(gamma_initializer="zeros")],
}


@pytest.mark.parametrize("kind", LEARNS)
def test_what_begins_at_nothing_learns_as_in_float(kind, rng):
    branch = LEARNS[kind]()
    model = keras.Sequential([keras.Input((6,)), *branch, layers.Dense(3)])
    x = rng.normal(size=(256, 6)).astype("float32")
    y = rng.normal(size=(256, 3)).astype("float32") * 3
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    q = intact.calibrate(intact.quantize_model(model), x, bias_correction=False, verbose=0)
    moves = []
    for trained in (twin, q):
        trained.compile(keras.optimizers.SGD(1e-4), "mse")
        # Of all but the last layer.
        variables = trained.trainable_variables[:-2]
        before = [host(v) for v in variables]
        trained.train_on_batch(x, y)
        moves.append([host(v) - old for v, old in zip(variables, before, strict=True)])
    for expected, move in zip(*moves, strict=True):
        assert np.linalg.norm(move - expected) <= 0.3 * np.linalg.norm(expected) + 1e-9


@pytest.mark.parametrize("quantizer", ["range", "lsq"])
def test_a_range_of_zeros_begins_anew(quantizer, rng):
    layer = FakeQuantize(TensorSpec(8, quantizer=quantizer))
    layer(np.zeros((4, 3), "float32"), training=True)
    x = rng.normal(size=(64, 3)).astype("float32")
    layer(x, training=True)
    np.testing.assert_allclose(host(layer.maximum)[0], x.max(), rtol=1e-6)
    values, scale, *_ = layer(x)
    np.testing.assert_allclose(host(values) * host(scale), x, atol=np.abs(x).max() / 4)
