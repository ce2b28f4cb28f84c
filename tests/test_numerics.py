"""The arithmetic: ranges to scales, rounding, gradients, weights and biases."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import gradient, host

from intact.numerics.accumulator import MAX_BIAS, accumulator, add_bias, scale_channels
from intact.numerics.affine import affine_params, dequantize, integer_range, quantize
from intact.numerics.backend_kernels import inverse
from intact.numerics.exact import MIN_SCALE
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.straight_through import straight_through
from intact.numerics.weights import quantize_weight
from intact.ops.norm import BatchNormalization


def params(low, high, **kwargs):
    scale, zero_point = affine_params(low, high, **kwargs)
    return float(host(scale)), int(host(zero_point))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (-1.0, 1.55, 0.01, -28),
        (0.0, 2.55, 0.01, -128),
        (-2.55, 0.0, 0.01, 127),
        # The range is widened to contain 0.
        (1.0, 2.55, 0.01, -128),
        (-2.55, -1.0, 0.01, 127),
        (5.1, 5.1, 0.02, -128),
        # Just {0}: nothing beside any other number, and 0 in the middle.
        (0.0, 0.0, MIN_SCALE, 0),
    ],
)
def test_asymmetric_range(low, high, scale, zero_point):
    found = params(low, high)
    np.testing.assert_allclose(found[0], scale, rtol=1e-6)
    assert found[1] == zero_point


@pytest.mark.parametrize(("low", "high"), [(-1.27, 1.0), (-1.0, 1.27), (1.27, 1.27), (-1.27, -1)])
def test_symmetric_range(low, high):
    found = params(low, high, symmetric=True)
    np.testing.assert_allclose(found[0], 0.01, rtol=1e-6)
    assert found[1] == 0


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 7.0), (-2.0, 0.0), (1e-30, 1e-25)])
def test_any_range_is_covered_and_holds_zero(low, high, bits):
    scale, zero_point = params(low, high, bits=bits)
    smallest, largest = integer_range(bits)
    assert smallest <= zero_point <= largest
    assert (largest - zero_point) * scale >= high - 0.501 * scale
    assert (smallest - zero_point) * scale <= low + 0.501 * scale
    assert dequantize(np.array([zero_point]), scale, zero_point) == 0
    assert scale >= MIN_SCALE


def test_quantize_rounds_half_to_even_and_saturates():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9])
    assert quantize(x, 1.0, 0).tolist() == [0, 2, 2, 0, -2, 127, -128]
    assert quantize(x, 1.0, 128, "uint8").tolist() == [128, 130, 130, 128, 126, 255, 0]


def test_dequantize_inverts_quantize(rng):
    scale, zero_point = params(-3.0, 5.0)
    q = np.arange(-128, 128).astype("int8")
    np.testing.assert_array_equal(quantize(dequantize(q, scale, zero_point), scale, zero_point), q)
    x = rng.uniform(-3, 5, size=1000)
    back = dequantize(quantize(x, scale, zero_point), scale, zero_point)
    assert np.abs(back - x).max() <= 0.5001 * scale


def test_straight_through_has_one_value_and_the_others_gradient():
    found = gradient(lambda w: straight_through(ops.floor(w), 3.0 * w), [0.5, 1.5])
    np.testing.assert_allclose(found, [3, 6], rtol=1e-5)
    assert host(straight_through(np.float32(7.0), np.float32(2.0))) == 7.0


def test_weights_get_the_gradient_of_the_product():
    def real(w):
        values, scale = quantize_weight(ops.reshape(w, (4, 1)), 8, ScaleLayout((-1,)))
        return ops.reshape(values * scale, (4,))

    found = gradient(real, [0.5, -1.0, 0.01, 0.0])
    np.testing.assert_allclose(found, [1, 2, 3, 4], rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "axes", "channels"),
    [
        ((3, 3, 4, 6), (-1,), 6),
        ((3, 3, 4, 2), (-2, -1), 8),
        ((3, 3, 4, 1), (-2, -1), 4),
        ((3, 3, 5, 4), (-2,), 5),
        ((7, 5), (-1,), 5),
        ((5, 4, 6), (-1,), 6),
        ((2, 3, 4, 5, 6), (-1,), 6),
        ((7, 5), (), 1),
    ],
)
def test_weights_have_a_scale_per_channel(shape, axes, channels, rng):
    w = (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, size=shape[-1])).astype("float32")
    values, scale = (host(part) for part in quantize_weight(w, 8, ScaleLayout(axes)))
    assert scale.shape == ((channels,) if axes else ())
    assert (values == np.rint(values)).all()
    kept = tuple(a % len(shape) for a in axes)
    others = tuple(a for a in range(len(shape)) if a not in kept)
    # Each channel uses the whole narrow range.
    assert (np.abs(values).max(axis=others) == 127).all()
    whole = scale.reshape([n if a in kept else 1 for a, n in enumerate(shape)])
    assert (np.abs(values * whole - w) <= 0.501 * whole).all()


def test_zero_channels_are_safe():
    w = np.zeros((4, 3), "float32")
    w[:, 1] = 2.54
    values, scale = (host(part) for part in quantize_weight(w, 8, ScaleLayout((-1,))))
    np.testing.assert_allclose(scale, [MIN_SCALE, 0.02, MIN_SCALE], rtol=1e-6)
    assert values.tolist() == [[0, 127, 0]] * 4


def hard(rng, shape):
    """Values of all sizes, with zeros, tiny and huge ones."""
    values = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, size=shape)
    values.reshape(-1)[::7] = 0.0
    values.reshape(-1)[3::11] *= 1e-30
    return values.astype("float32")


def equal(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(host(x), y, strict=False)


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), ()])
def test_weights_are_the_same_bits_on_the_host(axes, rng):
    layout = ScaleLayout(axes)
    for _ in range(20):
        w = hard(rng, (3, 3, 5, 8))
        equal(quantize_weight(w, 8, layout), quantize_weight(w, 8, layout, numpy_ops))
        w = rng.normal(size=(3, 3, 5, 8)).astype("float32")
        equal(quantize_weight(w, 8, layout), quantize_weight(w, 8, layout, numpy_ops))


def sums(xp, input_scale, weight_scale):
    convert = ops.convert_to_tensor if xp is ops else (lambda v: v)
    return accumulator(
        convert(np.zeros_like(weight_scale)), *map(convert, (input_scale, weight_scale)), xp
    )


@pytest.mark.parametrize("make", [hard, lambda rng, shape: rng.normal(size=shape)])
def test_biases_are_the_same_bits_on_the_host(make, rng):
    for _ in range(20):
        input_scale = np.float32(np.abs(rng.normal()) + 1e-3)
        weight_scale = np.maximum(np.abs(rng.normal(size=50)), 1e-6).astype("float32")
        bias = make(rng, (50,)).astype("float32")
        found, expected = (
            add_bias(sums(xp, input_scale, weight_scale), bias, xp) for xp in (ops, numpy_ops)
        )
        equal(found, expected)


@pytest.mark.parametrize("start", [1.0, 1e-8])
def test_batch_norm_folds_to_the_same_bits_on_the_host(start, rng):
    layer = layers.BatchNormalization()
    layer.build((None, 40))
    for variable in layer.weights:
        value = rng.normal(size=40) * start
        variable.assign(np.abs(value) if "variance" in variable.path else value)
    layer.gamma.assign(np.where(np.arange(40) % 5 == 0, 0.0, host(layer.gamma)))
    input_scale = np.float32(0.013)
    weight_scale = np.abs(rng.normal(size=40) * 0.01).astype("float32") + np.float32(1e-6)
    found, expected = (
        BatchNormalization().fold(layer, sums(xp, input_scale, weight_scale), False, xp)
        for xp in (ops, numpy_ops)
    )
    equal(found, expected)
    assert np.isfinite(expected.bias).all()
    assert np.abs(expected.bias).max() < 2**31


@pytest.mark.parametrize("bias", [1e3, -1e3, 1e9, -1e9, 1e30])
@pytest.mark.parametrize("weight_scale", [1e-3, 1e-12, MIN_SCALE])
def test_a_huge_bias_fits_in_32_bits(bias, weight_scale):
    acc = sums(numpy_ops, np.float32(1e-4), np.full(3, weight_scale, "float32"))
    found = add_bias(acc, np.full(3, bias, "float32"), numpy_ops)
    assert (np.abs(found.bias) <= 1.001 * MAX_BIAS).all()
    real = found.bias.astype("float64") * found.input_scale * found.weight_scale
    np.testing.assert_allclose(real, bias, rtol=1e-3)


def test_a_bias_twice_adds_up():
    acc = sums(numpy_ops, np.float32(0.5), np.array([0.25, 0.5], "float32"))
    acc = add_bias(add_bias(acc, np.array([1.0, 1.0], "float32"), numpy_ops), 2.0, numpy_ops)
    assert acc.bias.tolist() == [24, 12]


def test_negative_factors_keep_sign_and_bias():
    acc = sums(numpy_ops, np.float32(0.5), np.array([0.25, 0.5], "float32"))
    acc = add_bias(acc, np.array([1.0, 1.0], "float32"), numpy_ops)
    acc = scale_channels(acc, np.array([-2.0, 0.0], "float32"))
    real = acc.bias * acc.input_scale * acc.weight_scale
    assert real.tolist() == [-2.0, 0.0]
    acc = add_bias(acc, np.array([3.0, 3.0], "float32"), numpy_ops)
    np.testing.assert_allclose(acc.bias * acc.input_scale * acc.weight_scale, [1.0, 3.0], rtol=1e-6)


def test_inverses_are_those_of_the_host(rng):
    x = rng.uniform(1e-6, 10.0, 100_001).astype("float32")
    layer = keras.layers.Lambda(inverse, output_shape=(1,))
    model = keras.Sequential([keras.Input((1,)), layer])
    found = model.predict(x[:, None], batch_size=len(x), verbose=0)[:, 0]
    np.testing.assert_array_equal(found, np.float32(1) / x)


@pytest.mark.parametrize("first", [0.2, -0.2, 1e6])
def test_biases_fit_together_too(first):
    acc = sums(numpy_ops, np.float32(0.02), np.full(3, 1e-14, "float32"))
    total = np.float32(0)
    for bias in (first, 0.6, -0.9):
        acc = add_bias(acc, np.full(3, bias, "float32"), numpy_ops)
        total += np.float32(bias)
    assert (np.abs(acc.bias) <= 1.001 * MAX_BIAS).all()
    real = acc.bias.astype("float64") * acc.input_scale * acc.weight_scale
    np.testing.assert_allclose(real, total, rtol=1e-5)
