"""Small models and looks into them, shared by the tests."""

import importlib.util

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers, ops

from intact.layers.fake_quantize import FakeQuantize

BACKENDS = [
    name
    for name, module in (("jax", "jax"), ("torch", "torch"), ("tensorflow", "tensorflow"))
    if importlib.util.find_spec(module)
]

lossy = pytest.mark.filterwarnings("ignore::intact.AccuracyWarning")
"""Of a test whose model cannot have 20 dB: few bits, random weights, or a fault on purpose."""


def enliven(model, rng):
    """Random weights and statistics, so that nothing is zero or one by chance."""
    for variable in model.weights:
        name = variable.path.rsplit("/", 1)[-1]
        if name in ("mean", "variance", "count", "seed_generator_state"):
            continue
        value = rng.normal(size=variable.shape) * 0.5
        if name in ("gamma", "moving_variance"):
            value = np.abs(value) + 0.2
        variable.assign(value)
    return model


def cnn(activation="relu"):
    """Two convolutions with batch norm, and a head."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.Activation(activation, name="act"),
            layers.DepthwiseConv2D(3, strides=2, name="depthwise"),
            layers.BatchNormalization(name="bn_2"),
            layers.ReLU(6.0, name="act_2"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(4, name="head"),
        ],
        name="cnn",
    )


def mlp(name="mlp"):
    """The smallest model that has everything: an input, an activation, two layers."""
    return keras.Sequential(
        [
            keras.Input((6,), name="features"),
            layers.Dense(5, activation="relu", name="hidden"),
            layers.Dense(3, name="head"),
        ],
        name=name,
    )


def quantizers(q):
    """The ranges of a quantized model, by name."""
    return {
        layer.name.removesuffix("_quantizer"): layer
        for layer in q.layers
        if isinstance(layer, FakeQuantize)
    }


def ranges(q):
    """Every variable of every range, as one dict of arrays."""
    return {v.path: host(v) for layer in quantizers(q).values() for v in layer.variables}


def host(variable):
    """A copy of a variable's or tensor's value."""
    return np.array(keras.ops.convert_to_numpy(variable))


def weights(model):
    """A copy of all weights of a model."""
    return [host(v) for v in model.variables]


def ready(q, low=-3.0, high=3.0):
    """Give all ranges a value without any data."""
    for layer in quantizers(q).values():
        if layer.fixed is None:
            layer.set_range(low, high)
    return q


def parse(content):
    """The object form of a LiteRT file."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


_NAMES = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}


def op_names(content):
    """The names of a file's ops, in order."""
    model = parse(content)
    codes = [_NAMES[code.builtinCode] for code in model.operatorCodes]
    return [codes[op.opcodeIndex] for op in model.subgraphs[0].operators]


def op_versions(content):
    """The version of each op code of a file."""
    return {_NAMES[code.builtinCode]: code.version for code in parse(content).operatorCodes}


def compiled(function):
    """The function as a graph, of a backend that has graphs."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return lambda *arrays: function(*map(ops.convert_to_tensor, arrays))


def gradients(function, *arrays):
    """The gradients of a scalar function of arrays, on any backend."""
    arrays = [np.asarray(a, "float32") for a in arrays]
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        found = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    elif backend == "torch":
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        found = torch.autograd.grad(function(*tensors), tensors, allow_unused=True)
    else:
        import tensorflow as tf

        tensors = [tf.Variable(a) for a in arrays]
        with tf.GradientTape() as tape:
            y = function(*(t.value() for t in tensors))
        found = tape.gradient(y, tensors)
    return [np.zeros_like(a) if g is None else host(g) for a, g in zip(arrays, found, strict=True)]


class Through(layers.Layer):
    """A function of its own weight, to take gradients by a step of SGD."""

    def __init__(self, function, start):
        super().__init__()
        self.function = function
        start = np.asarray(start, "float32")
        self.kernel = self.add_weight(
            name="kernel", shape=start.shape, initializer=lambda shape, dtype=None: start
        )

    def call(self, x):
        return ops.sum(
            self.function(ops.convert_to_tensor(self.kernel)) * x, axis=-1, keepdims=True
        )


def gradient(function, start):
    """The gradient of `sum(function(w) * (1, 2, 3, ...))` by `w`, on any backend."""
    layer = Through(function, start)
    model = keras.Sequential([keras.Input((len(start),)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: p)
    x = np.arange(1, len(start) + 1, dtype="float32")[None]
    model.fit(x, np.zeros((1, 1), "float32"), verbose=0)
    return np.asarray(start, "float32") - host(layer.kernel)
