"""Operations without Keras' machinery compute what those of Keras do."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops
from small import gradients, host

from intact.numerics import light_ops
from intact.numerics.backend_kernels import TORCH

pytestmark = pytest.mark.skipif(not TORCH, reason="other backends compute with `keras.ops` itself")

REALS = np.array([[-2.5, -0.0, 0.5], [1.5, np.inf, 3.0]], "float32")
OTHERS = np.array([[-2.5, 1.0, 0.0], [2.0, 7.0, -3.0]], "float32")
IMAGES = np.arange(96, dtype="float32").reshape(2, 4, 4, 3) % 7 - 3
KERNEL = np.arange(54, dtype="float32").reshape(3, 3, 3, 2) % 5 - 2
LAST = "channels_last"
WHOLE = np.array([[1, -2, 3]], "int32")
CALLS = {
    "abs": [(REALS,), (WHOLE,)],
    "sign": [(REALS,)],
    "floor": [(REALS,), (WHOLE,)],
    "round": [(REALS,), (REALS, 1), (WHOLE,)],
    "maximum": [(REALS, OTHERS), (REALS, 0.5), (np.float32(0.5), REALS), (WHOLE, 0), (WHOLE, 0.5)],
    "minimum": [(REALS, OTHERS), (REALS, 0.5), (np.float32(0.5), REALS), (WHOLE, REALS)],
    "where": [(REALS > 0, REALS, OTHERS), (REALS > 0, REALS, 0.0), (REALS > 0, WHOLE, 0)],
    "clip": [(REALS, -1.0, 1.0), (REALS, OTHERS - 1, OTHERS), (WHOLE, 0, 1)],
    "matmul": [(OTHERS, OTHERS.T), (WHOLE, WHOLE.T)],
    "conv": [
        (IMAGES, KERNEL, 1, "same", LAST),
        (IMAGES, KERNEL, (2, 2), "same", LAST),
        (IMAGES, KERNEL, [1, 1], "valid", LAST),
        (IMAGES[:, 0], KERNEL[0], 1, "same", LAST),
        (IMAGES.transpose(0, 3, 1, 2), KERNEL, 1, "same", "channels_first"),
    ],
    "depthwise_conv": [
        (IMAGES, KERNEL, 1, "same", LAST),
        (IMAGES, KERNEL, (2, 2), "same", LAST),
        (IMAGES, KERNEL[:2, :2], 1, "same", LAST, 2),
    ],
    "sum": [(OTHERS,), (OTHERS, 0), (OTHERS, (0, 1), True), (REALS > 0, 1)],
    "reshape": [(REALS, (-1,)), (REALS, 6), (WHOLE, [3, 1])],
    "shape": [(REALS,)],
    "ones_like": [(REALS,), (WHOLE,), (REALS, "int32")],
    "zeros_like": [(REALS,), (WHOLE,), (REALS, "bool")],
    "cast": [(OTHERS, "int32"), (WHOLE, "float32"), (REALS > 0, "float32"), (WHOLE, "int8")],
    "convert_to_tensor": [(REALS,), (WHOLE, "float32"), (0.5,), (REALS, "float16")],
}
CASES = [(name, args) for name, calls in CALLS.items() for args in calls]


@pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "tensors"])
@pytest.mark.parametrize(("name", "args"), CASES, ids=[name for name, _ in CASES])
def test_values_and_types_are_those_of_keras(name, args, arrays):
    if not arrays:
        args = [ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a for a in args]
    y, expected = (getattr(home, name)(*args) for home in (light_ops.ops, ops))
    np.testing.assert_array_equal(host(y), host(expected))
    assert getattr(y, "dtype", None) == getattr(expected, "dtype", None)


@pytest.mark.parametrize("name", [*CALLS, "stop_gradient"])
def test_arguments_may_be_passed_by_keras_names(name):
    ours, theirs = (inspect.signature(getattr(home, name)) for home in (light_ops.ops, ops))
    both = zip(ours.parameters.items(), theirs.parameters.items(), strict=False)
    for (own, parameter), (other, expected) in both:
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert (own, parameter.default) == (other, expected.default)


@pytest.mark.parametrize("name", ["abs", "clip", "maximum", "minimum", "where", "sum"])
def test_gradients_are_those_of_keras(name):
    args = {"clip": (-2.5, 3.0), "where": (OTHERS,), "sum": (0,)}.get(name, (np.float32(0.5),))
    args = () if name == "abs" else args

    def loss(home, w):
        function = getattr(home, name)
        return ops.sum(function(w > 0, w, *args) if name == "where" else function(w, *args))

    ours = gradients(lambda w: loss(light_ops.ops, w), OTHERS / 2)
    expected = gradients(lambda w: loss(ops, w), OTHERS / 2)
    np.testing.assert_array_equal(host(ours[0]), host(expected[0]))


@pytest.mark.parametrize("name", ["conv", "depthwise_conv"])
def test_gradients_of_convolutions_are_those_of_keras(name):
    def loss(home, x, w):
        return ops.sum(ops.square(getattr(home, name)(x, w, 1, "same", LAST)))

    ours, expected = (
        gradients(lambda x, w, home=home: loss(home, x, w), IMAGES, KERNEL)
        for home in (light_ops.ops, ops)
    )
    for gradient, of_keras in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(host(gradient), host(of_keras))


def test_symbolic_tensors_and_variables_are_taken():
    x = keras.Input((3,))
    assert light_ops.ops.maximum(x, 0.0).shape == (None, 3)
    variable = keras.Variable(OTHERS)
    for name in ("convert_to_tensor", "abs", "stop_gradient"):
        y = getattr(light_ops.ops, name)(variable)
        assert host(y).shape == OTHERS.shape
