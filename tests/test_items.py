"""Changes of tensors in a `call`: PyTorch's assignments, and JAX's `x.at[...]`."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from intact.errors import UnsupportedLayerError
from intact.graph.canonicalize import canonicalize

BACKEND = keras.backend.backend()


class Changing(layers.Layer):
    """A layer that computes a function of a dense layer and its input."""

    def __init__(self, function):
        super().__init__()
        self.function, self.dense = function, layers.Dense(8)
        self.dense.build((None, 8))
        self.built = True

    def call(self, x):
        return self.function(self.dense(x), x)


def check(function, rng):
    """Compare a traced `call` with what Keras computes."""
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, Changing(function)(inputs))
    x = rng.normal(size=(4, 6, 8)).astype("float32")
    actual = canonicalize(model).predict(x.copy(), verbose=0)
    expected = model.predict(x.copy(), verbose=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def assigned(key, value):
    def function(h, x):
        h[key] = value(h, x)
        return h * 2.0

    return function


def read_before(h, x):
    before = h + 1
    h[:, 0] = 0.0
    return h + before


def zeros(h, x):
    y = ops.zeros(ops.shape(x))
    y[:, 1:3] = x[:, 1:3]
    y[:, 0] = x[:, 2]
    return y + h


def another_name(h, x):
    name = h
    h += 1.0
    return name * h


def residual(h, x):
    before = h
    h = ops.relu(h)
    h += before
    return h


def part(h, x):
    row = h[:, 0]
    row += 1.0
    return h


def reshaped(h, x):
    flat = ops.reshape(h, (-1, 48))
    flat *= 2.0
    return h


def transposed(h, x):
    turned = ops.transpose(h, (0, 2, 1))
    turned[:, 0] = 0.0
    return h + 1


TORCH = {
    "an index": assigned(np.s_[:, 0], lambda h, x: 0.0),
    "the last index": assigned(np.s_[:, -1], lambda h, x: 1.0),
    "a slice": assigned(np.s_[:, 1:3], lambda h, x: x[:, 2:4]),
    "steps": assigned(np.s_[:, ::2], lambda h, x: 1.5),
    "a list": assigned(np.s_[:, [0, 3]], lambda h, x: x[:, :2]),
    "behind an ellipsis": assigned(np.s_[..., 0], lambda h, x: x[..., 1]),
    "truth values": assigned(np.s_[:, np.array([True, False] * 3)], lambda h, x: 0.0),
    "one value": assigned(np.s_[:, 1, 2], lambda h, x: 3.0),
    "methods": lambda h, x: h.add_(x).mul_(2.0).clamp_(-1, 1),
    **{f.__name__: f for f in (read_before, zeros, another_name, residual)},
    **{f.__name__: f for f in (part, reshaped, transposed)},
}


@pytest.mark.skipif(BACKEND != "torch", reason="Others' tensors do not change.")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TORCH)
def test_what_torch_changes(name, rng):
    check(TORCH[name], rng)


@pytest.mark.skipif(BACKEND == "torch", reason="There, the other name has the new values, too.")
def test_another_name_keeps_its_values(rng):
    check(another_name, rng)


JAX = {
    "set": lambda h, x: h.at[:, 0].set(0.0),
    "add": lambda h, x: h.at[:, 1:3].add(x[:, 2:4]),
    "multiply": lambda h, x: h.at[:, ::2].multiply(2.0),
    "max": lambda h, x: h.at[..., 0].max(0.3),
    "min": lambda h, x: h.at[:, 1, 2].min(0.0),
    "an array": lambda h, x: h.at[:, np.array([0, 3])].set(x[:, :2]),
    "zeros": lambda h, x: ops.zeros(ops.shape(x)).at[:, 1:3].set(h[:, :2]),
    "get": lambda h, x: h.at[:, 1].get(),
}


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's arrays alone have `at`.")
@pytest.mark.parametrize("name", JAX)
def test_what_jax_returns_changed(name, rng):
    check(JAX[name], rng)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's arrays alone have `at`.")
def test_an_item_that_changes_twice_is_refused(rng):
    with pytest.raises(UnsupportedLayerError, match="An item is changed twice"):
        check(lambda h, x: h.at[:, np.array([0, 0])].add(1.0), rng)
