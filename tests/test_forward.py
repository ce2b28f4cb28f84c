"""Computations that run forward alone, which prepare no gradients."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import host

import intact
from intact.numerics.affine import Affine, QTensor
from intact.numerics.forward import forward_only, needs_gradients
from intact.numerics.integer_kernels import (
    look_up,
    requantized,
    saturate,
    shifted_sum,
    sum_in_order,
)
from intact.rounding.kernel_rounding import KernelRounding


def images():
    x = keras.Input((8, 8, 3))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    z = layers.Add()([y, layers.DepthwiseConv2D(3, padding="same")(y)])
    z = layers.Concatenate()([layers.AveragePooling2D(2)(z), layers.MaxPooling2D(2)(y)])
    return keras.Model(x, layers.Dense(5, "softmax")(layers.GlobalAveragePooling2D()(z)))


def sequences():
    x = keras.Input((6, 8))
    y = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)]))
    y = layers.Dense(8, "tanh")(layers.Dense(16, "gelu")(y))
    return keras.Model(x, layers.Dense(3, "sigmoid")(layers.Subtract()([y, x])))


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("build", [images, sequences])
def test_predict_computes_what_a_call_computes(build, calibrated, rng):
    q = intact.quantize_model(build())
    x = rng.normal(size=(5, *q.input_shape[1:])).astype("float32")
    if calibrated:
        intact.calibrate(q, x, verbose=0)
    called = host(q(x, training=False))
    if calibrated:
        np.testing.assert_array_equal(q.predict(x, verbose=0), called)
    else:
        np.testing.assert_allclose(q.predict(x, verbose=0), called, atol=1e-5)


def test_no_gradients_are_needed_inside():
    assert needs_gradients()
    with forward_only():
        assert not needs_gradients()
    assert needs_gradients()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softmax", "log_softmax"])
def test_roundings_are_those_with_gradients(name, rng):
    rounding = KernelRounding.registry.find(name)
    values = rng.integers(-255, 256, (4, 7)).astype("float32")
    scalars = [ops.convert_to_tensor(v, "float32") for v in (0.03, -5.0, 1 / 256, -128.0)]
    x = QTensor(ops.convert_to_tensor(values), *scalars[:2], ops.ones((), "bool"))
    call = x, Affine(*scalars[2:]), -128.0, 255.0
    expected = host(rounding.quantize(*call))
    with forward_only():
        np.testing.assert_array_equal(host(rounding.quantize(*call)), expected)


def test_sums_are_requantized_alike(rng):
    sums = rng.integers(-5000, 5000, (40, 6)).astype("float32")
    bias, factor = rng.integers(-50, 50, 6).astype("float32"), rng.uniform(0.01, 0.1, 6)
    arguments = [ops.convert_to_tensor(v, "float32") for v in (sums, bias, factor, -128.0, 127.0)]
    expected = np.clip(np.rint((sums + bias) * factor.astype("float32")), -128, 127)
    np.testing.assert_array_equal(host(requantized(*arguments)), expected)
    with forward_only():
        np.testing.assert_array_equal(host(requantized(*arguments)), expected)
    np.testing.assert_array_equal(host(arguments[0]), sums)


def test_shifted_sums_are_those_of_integers(rng):
    a, b = (rng.integers(-255, 256, shape).astype("float32") for shape in ((5, 4, 6), (5, 1, 6)))
    factors = [ops.convert_to_tensor(v, "int32") for v in (2**20 - 3, -(2**18), 2**19, 20)]
    x, y = map(ops.convert_to_tensor, (a, b))
    seen = shifted_sum(x, factors[0], y, *factors[1:])
    whole = a.astype("int64") * (2**20 - 3) - b.astype("int64") * 2**18 + 2**19
    np.testing.assert_array_equal(host(seen), whole >> 20)


def test_values_beyond_a_table_get_its_ends():
    table = ops.convert_to_tensor(np.arange(4, dtype="float32"))
    values = ops.convert_to_tensor(np.float32([[-9, -2, -1], [0, 1, 9]]))
    assert host(look_up(table, -2, values)).tolist() == [[0, 0, 1], [2, 3, 3]]


def test_a_look_up_takes_transposed_values_and_changes_none():
    table = ops.convert_to_tensor([0.0, 1.0, 2.0, 3.0])
    values = ops.convert_to_tensor([[-2.0, -1.0, 0.0], [0.0, 1.0, 1.0]])
    expected = [[0, 2], [1, 3], [2, 3]]
    assert host(look_up(table, -2, ops.transpose(values))).tolist() == expected
    assert host(values).tolist() == [[-2, -1, 0], [0, 1, 1]]


def test_a_sum_changes_none_of_its_terms():
    terms = [ops.convert_to_tensor(values) for values in ([1.0, 2.0], [3.0, 4.0])]
    factors = [ops.convert_to_tensor(factor, "int32") for factor in (2, 4, 0, 1)]
    total = shifted_sum(terms[0], factors[0], terms[1], *factors[1:])
    assert host(total).tolist() == [7, 10]
    assert [host(term).tolist() for term in terms] == [[1, 2], [3, 4]]


def test_a_sum_in_order_adds_one_term_after_the_other(rng):
    x = rng.uniform(size=(3, 5, 40)).astype("float32")
    expected = np.zeros((3, 5), "float32")
    for term in np.moveaxis(x, -1, 0):
        expected += term
    np.testing.assert_array_equal(host(sum_in_order(ops.convert_to_tensor(x))), expected)


def test_whole_numbers_saturate_with_and_without_gradients():
    exact = ops.convert_to_tensor([-300, -2, 7, 300], "int32")
    smooth = ops.convert_to_tensor([-300.4, -2.4, 7.4, 300.4])
    seen = [host(saturate(exact, smooth, -128.0, 127.0))]
    with forward_only():
        seen.append(host(saturate(exact, smooth, -128.0, 127.0)))
    assert [values.tolist() for values in seen] == 2 * [[-128, -2, 7, 127]]
