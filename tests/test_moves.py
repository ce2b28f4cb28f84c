"""Slices, picks, reshapes and reductions: by which kernels, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import intact
from intact.graph.canonicalize import canonicalize


def layer_types(model):
    return [type(layer).__name__ for layer in canonicalize(model).layers[1:]]


def model_of(function, *shape):
    x = keras.Input(shape)
    return keras.Model(x, function(x))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x[:, 1:-1, 2:], ["Slice"]),
        (lambda x: x[:, ...], []),
        (lambda x: x[:, 0:8], []),
        (lambda x: x[:, 2], ["Slice", "Reshape"]),
        (lambda x: x[:, None], ["Reshape"]),
        (lambda x: x[:, ::2], ["Take"]),
        (lambda x: x[:, :, ::2], ["Take"]),
        (lambda x: x[:, ::9], ["Slice"]),
        (lambda x: ops.roll(x, 3, axis=1), ["Slice", "Slice", "Concatenate"]),
        (lambda x: ops.roll(x, 8, axis=1), []),
        (lambda x: ops.flip(x, axis=1), ["Take"]),
        (lambda x: ops.tile(x, (1, 2, 1)), ["Concatenate"]),
        (lambda x: ops.take(x, [3, 4, 5], axis=2), ["Slice"]),
        (lambda x: ops.pad(x, 0), []),
        (lambda x: ops.pad(x, 0, constant_values=-1.0), []),
        (lambda x: layers.ZeroPadding1D(0)(x), []),
        (lambda x: layers.ZeroPadding2D(0)(x[:, None]), ["Reshape"]),
    ],
)
def test_the_quickest_kernel_is_taken(function, expected):
    assert layer_types(model_of(function, 8, 10)) == expected


def test_negative_steps(rng):
    # Not in the model itself, for torch has none.
    flat = canonicalize(model_of(lambda x: x[:, ::-1, 6:1:-2], 8, 10))
    x = rng.normal(size=(3, 8, 10)).astype("float32")
    np.testing.assert_array_equal(flat.predict(x, verbose=0), x[:, ::-1, 6:1:-2])


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: layers.Dense(3)(x[:, -1]), (None, 4)),
        (lambda x: layers.Dense(3)(ops.mean(x, axis=1)), (None, 4)),
        (lambda x: layers.Dense(3)(ops.max(x, axis=1)), (None, 4)),
        (lambda x: layers.Conv2D(2, 1)(x[:, 1:, :-2]), (None, None, 3)),
    ],
)
def test_sizes_may_be_unknown(function, shape, rng):
    q = intact.quantize_model(model_of(function, *shape))
    data = rng.uniform(-1, 1, size=(16, *(n or 6 for n in shape))).astype("float32")
    intact.calibrate(q, data, verbose=0)
    assert intact.compare(q, intact.export(q, integer_only=True), data).different == 0


@keras.saving.register_keras_serializable("tests")
class Window(layers.Layer):
    """What needs the size of the batch, as a layer's `call` knows it."""

    def call(self, x):
        part = ops.slice(x, (0, 1, 0), (ops.shape(x)[0], 1, 3))
        return ops.broadcast_to(part, (ops.shape(x)[0], 4, 3)) + x[:, :, 1:]


def test_slice_and_broadcast_to(rng):
    model = model_of(Window(), 4, 4)
    x = rng.uniform(-1, 1, size=(16, 4, 4)).astype("float32")
    expected = np.broadcast_to(x[:, 1:2, :3], (16, 4, 3)) + x[:, :, 1:]
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-6)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    np.testing.assert_allclose(q.predict(x, verbose=0), expected, atol=0.02)
    assert intact.compare(q, intact.export(q, integer_only=True), x).different == 0


REFUSED = {
    "batch index": (lambda x: x[0], (4, 3), "batch axis cannot be indexed"),
    "part of the batch": (lambda x: x[1:, :], (4, 3), "batch axis cannot be indexed"),
    "axis before the batch": (lambda x: x[None, :], (4, 3), "batch axis cannot be indexed"),
    "nothing": (lambda x: x[:, 3:3], (4, 3), "selects nothing"),
    "step": (lambda x: x[:, ::2], (None, 3), "size is unknown"),
    "flip": (lambda x: ops.flip(x), (4, 3), "batch axis"),
    "flip of unknown": (lambda x: ops.flip(x, axis=1), (None, 3), "is unknown"),
    "roll": (lambda x: ops.roll(x, 1), (4, 3), "batch axis"),
    "repeat": (lambda x: ops.repeat(x, 2), (4, 3), "batch axis"),
    "tile": (lambda x: ops.tile(x, (2, 1, 1)), (4, 3), "batch axis"),
    "tile to more axes": (lambda x: ops.tile(x, (2, 1, 1, 1)), (4, 3), "before the batch"),
    "take": (lambda x: ops.take(x, [0, 1]), (4, 3), "batch axis"),
    "take by a tensor": (
        lambda x: ops.take(x, ops.cast(x[:, 0], "int32"), axis=1),
        (4, 3),
        "not supported",
    ),
    "pad": (lambda x: ops.pad(x, 1), (4, 3), "batch axis cannot be padded"),
    "pad by infinity": (
        lambda x: ops.pad(x, ((0, 0), (1, 1)), constant_values=np.inf),
        (4,),
        "no place in a range",
    ),
    "split": (lambda x: ops.split(x, 2, axis=1), (None, 3), "unknown"),
    "stack": (lambda x: ops.stack([x, x]), (4, 3), "must stay the first"),
    "transpose": (lambda x: ops.transpose(x), (4, 3), "must stay the first"),
    "reshape": (lambda x: ops.reshape(x, (-1, 5)), (4, 3), "a sample has 12 values"),
    "expand_dims": (lambda x: ops.expand_dims(x, 0), (4, 3), "must stay the first"),
    "mean": (lambda x: ops.mean(x), (4, 3), "batch axis cannot be reduced"),
    "max with a start": (lambda x: ops.max(x, axis=1, initial=0.5), (4, 3), "initial value"),
    "average with weights": (
        lambda x: ops.average(x, axis=1, weights=np.ones(4, "float32")),
        (4, 3),
        "weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused(name):
    function, shape, message = REFUSED[name]
    with pytest.raises(intact.UnsupportedLayerError, match=message):
        intact.quantize_model(model_of(function, *shape))
