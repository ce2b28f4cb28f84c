"""Curves of 8 bits, and all kernels of 16 bits, to the last bit."""

import warnings

import keras
import numpy as np
import pytest
from battery import UPSTREAM, all_cases
from keras import layers, ops
from small import enliven, gradient, host, lossy

import intact
from intact.layers.fake_quantize import FakeQuantize
from intact.litert.builder import Builder
from intact.litert.runtime import LiteRTModel
from intact.numerics.accumulator import digits
from intact.numerics.affine import Affine, QTensor
from intact.rounding.curves import SigmoidRounding, SoftmaxRounding, TanhRounding
from intact.rounding.kernel_rounding import KernelRounding
from intact.testing import build_model, make_data

CASES = [
    pytest.param(name, case, id=name, marks=pytest.mark.xdist_group(name))
    for name, _, case in all_cases()
]
ALL = np.arange(-32768, 32768).astype("int16")
WIDE_CURVES = {"LOGISTIC": SigmoidRounding, "TANH": TanhRounding, "SOFTMAX": SoftmaxRounding}


def by_kernel(kernel, x, scale, zero_point, output):
    """What an int8 kernel makes of stored integers, as whole numbers `q - zero_point`."""
    builder = Builder("")
    source = builder.tensor(x.shape, "int8", "x", scale=scale, zero_point=zero_point)
    target = builder.tensor(x.shape, "int8", "y", scale=output[0], zero_point=output[1])
    options = {"beta": 1.0} if kernel == "SOFTMAX" else {}
    builder.add(kernel, [source], [target], options)
    model = LiteRTModel(builder.finish([("x", source)], [("y", target)]))
    return model.predict(x, raw=True, batch_size=len(x)).astype(int) - output[1]


def by_formula(name, x, scale, zero_point, output):
    """The same by the formula of a quantized model."""
    x, scale, zero_point, unit, zero = (
        ops.convert_to_tensor(v, "float32") for v in (x, scale, zero_point, *output)
    )
    params = Affine(unit, zero)
    pending = QTensor(x - zero_point, scale, zero_point, True)
    return host(KernelRounding.registry[name].quantize(pending, params, -128 - zero, 127 - zero))


CURVES = {
    "sigmoid": ("LOGISTIC", (1 / 256, -128)),
    "tanh": ("TANH", (1 / 128, 0)),
    "softmax": ("SOFTMAX", (1 / 256, -128)),
    "log_softmax": ("LOG_SOFTMAX", (1 / 16, 127)),
}


@pytest.mark.parametrize("name", CURVES)
def test_int8_curves_are_the_kernels(name, rng):
    kernel, output = CURVES[name]
    # At the first three, a sigmoid in float32 rounds another way, or one without the zero point.
    ties = [0.021833736449480057, 0.0069295791909098625, 0.02891670912504196]
    for scale in np.float32([*ties, *np.exp(rng.uniform(np.log(1e-3), np.log(0.3), 7))]):
        for zero_point in (-128, 5, 127):
            x = np.arange(-128, 128, dtype="int8")
            if "softmax" in name:
                x = np.clip(rng.normal(0, 40, (100, 11)), -128, 127).astype("int8")
            expected = by_kernel(kernel, x, scale, zero_point, output)
            np.testing.assert_array_equal(by_formula(name, x, scale, zero_point, output), expected)


def assert_equal(q, content, x):
    comparison = intact.compare(q, content, x)
    for tensor in (*comparison.layers, *comparison.outputs):
        assert tensor.different == 0, str(comparison)


def quantized(model, x):
    """The model in 16 bits and its file."""
    q = intact.calibrate(intact.quantize_model(model, "int16x8"), x, verbose=0)
    return q, intact.export(q)


def check(layer, *arrays):
    """A layer of random weights on some inputs, against LiteRT."""
    inputs = [keras.Input(a.shape[1:]) for a in arrays]
    outputs = layer(inputs if len(inputs) > 1 else inputs[0])
    model = enliven(keras.Model(inputs, outputs), np.random.default_rng(3))
    x = list(arrays) if len(arrays) > 1 else arrays[0]
    assert_equal(*quantized(model, x), x)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_case_is_exact(name, case, rng):
    model, x = build_model(case, rng), make_data(case, rng)
    q = intact.quantize_model(model, "int16x8")
    with warnings.catch_warnings():
        if (keras.backend.backend(), name) in UPSTREAM:
            # The float model is not right, and the quantized one is.
            warnings.simplefilter("ignore", intact.AccuracyWarning)
        if any(isinstance(layer, FakeQuantize) for layer in q.layers):
            intact.calibrate(q, x, verbose=0)
    content = intact.export(q, integer_only=True)
    assert_equal(q, content, x)
    assert not intact.verify(content)


def run_kernel(name, x, scale):
    """What a kernel of one input makes of integers, in steps of 2**-15."""
    builder = Builder("test")
    given = builder.tensor(x.shape, "int16", "x", scale=np.float32(scale))
    made = builder.tensor(x.shape, "int16", "y", scale=np.float32(2.0**-15))
    builder.add(name, [given], [made], {"beta": 1.0} if name == "SOFTMAX" else {})
    file = LiteRTModel(builder.finish([("x", given)], [("y", made)]))
    return file.predict(x, raw=True)


def our_kernel(name, x, scale):
    values, scale, zero = (ops.convert_to_tensor(v, "float32") for v in (x, scale, 0.0))
    return np.clip(
        host(WIDE_CURVES[name]().kernel(QTensor(values, scale, zero, True))), -32768, 32767
    )


@pytest.mark.parametrize("name", ["LOGISTIC", "TANH"])
@pytest.mark.parametrize(
    "scale",
    [
        *(1e-9, 7e-7, 1e-4, 3.3e-4, 0.02, 1.5, 3.0),
        # The multiplier is just below 32768, or the number of doublings at its end.
        *(32767.5 / 12288 / 8, 1.33333),
        # Powers of two and what the kernel takes for one have another kernel.
        *(2.0**-13, 2.0**-12, 2.0**-11, 2.0**-10, 8 / 32767),
        *(2.0**-12 * 1.0006, 2.0**-12 * 1.0008, 2.0**-12 / 1.0006, 2.0**-11 / 1.0006),
    ],
)
def test_curves_of_all_inputs(name, scale):
    np.testing.assert_array_equal(our_kernel(name, ALL, scale), run_kernel(name, ALL, scale))


@pytest.mark.parametrize("scale", [2e-6, 5e-5, 3e-4, 1e-3])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_softmax_is_the_kernels(classes, scale, rng):
    spread = rng.choice([300, 3000, 20000], size=(600, 1))
    x = np.clip(rng.normal(size=(600, classes)) * spread, -32768, 32767).astype("int16")
    np.testing.assert_array_equal(our_kernel("SOFTMAX", x, scale), run_kernel("SOFTMAX", x, scale))


@lossy
def test_a_side_of_a_prelu_that_is_always_0(rng):
    # A step of the input is two million of that side's: in 32 bits the kernel can shift by 14 bits.
    inputs = keras.Input((2, 3))
    layer = layers.PReLU(shared_axes=[1])
    model = keras.Model(inputs, layer(inputs))
    layer.alpha.assign(rng.normal(size=layer.alpha.shape))
    x = rng.normal(size=(16, 2, 3)).astype("float32") - 5
    q = intact.calibrate(intact.quantize_model(model, "int16x8"), x, verbose=0)
    comparison = intact.compare(q, intact.export(q), x)
    assert not any(layer.different for layer in (*comparison.layers, *comparison.outputs))


@pytest.mark.parametrize("size", [1, 2, 6, 7, 13])
def test_mean_is_the_kernels(size, rng):
    x = np.maximum(rng.normal(size=(300, size, size, 5)), 0).astype("float32")
    check(layers.GlobalAveragePooling2D(), x)


@pytest.mark.parametrize("function", [ops.sum, ops.mean])
def test_sums_beyond_float32(function, rng):
    # 4000 values of 32767 are more than 2**24.
    x = rng.uniform(0.5, 1.0, size=(20, 4000, 2)).astype("float32")
    check(lambda t: function(t, axis=1), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [9, 700])
def test_products_beyond_float32(inputs, bias, rng):
    x = np.abs(rng.normal(size=(64, inputs))).astype("float32")
    layer = layers.Dense(16, use_bias=bias)
    check(lambda t: layer(t), x)
    image = x[:, :9].reshape(-1, 3, 3, 1) * np.ones((1, 1, 1, 40), "float32")
    check(layers.Conv2D(5, 3, use_bias=bias), image)


def test_products_of_two_tensors_beyond_float32(rng):
    a, b = (np.abs(rng.normal(size=(8, 30, 500))).astype("float32") for _ in range(2))
    check(lambda pair: ops.matmul(pair[0], ops.transpose(pair[1], (0, 2, 1))), a, b)


# Each share is another model, and compiling one takes seconds.
SHARES = (1.0, 0.7, 0.01, 1e-5) if keras.backend.backend() == "torch" else (0.7, 0.01)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("layer", [layers.Add, layers.Subtract, layers.Multiply])
@pytest.mark.parametrize("shape", [(48,), (1,), (1003,)])
def test_operands_of_two_sizes(layer, share, shape, rng):
    """Vectors and what is left behind them, and operands that are broadcast."""
    a = rng.normal(size=(33, 1003)).astype("float32")[:, : max(shape)]
    b = (rng.normal(size=(33, *shape)) * share).astype("float32")
    a = a if shape[0] > 1 else rng.normal(size=(33, 48)).astype("float32")
    check(layer(), a, b)


@pytest.mark.parametrize("layer", [layers.Add, layers.Subtract])
def test_sums_of_scales_that_are_powers_of_two(layer, rng):
    """There is a kernel for these, too, and it refuses most of them."""
    x = rng.normal(size=(64, 5)).astype("float32")
    inputs = keras.Input((5,))
    shares = layers.Softmax()(inputs)
    whole = layer()([shares, layers.Activation("sigmoid")(inputs)])
    model = keras.Model(inputs, whole)
    q = intact.quantize_model(model, "int16x8")
    for fake in (one for one in q.layers if isinstance(one, FakeQuantize) and not one.fixed):
        fake.set_range(-2.0, 2.0 * 32767 / 32768)
    assert_equal(q, intact.export(q), x)


@pytest.mark.parametrize("slope", [0.2, 0.003, 1.7])
def test_slopes(slope, rng):
    model = keras.Sequential([keras.Input((50,)), layers.LeakyReLU(slope)])
    x = rng.normal(size=(300, 50)).astype("float32") * 3
    assert_equal(*quantized(model, x), x)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(10, 12), (7, 9), (13, 5), (3, 31), (1, 1)])
def test_images_of_another_size(size, interpolation, rng):
    x = rng.normal(size=(16, 5, 6, 3)).astype("float32")
    check(layers.Resizing(*size, interpolation=interpolation), x)


def test_recurrent_layers_and_attention(rng):
    x = rng.normal(size=(64, 5, 8)).astype("float32")
    check(layers.GRU(6), x)
    check(lambda t: layers.MultiHeadAttention(2, 4)(t, t), x)


@lossy
@pytest.mark.parametrize("features", [1, 7, 8, 20])
@pytest.mark.parametrize("samples", [1, 3, 32])
def test_inputs_in_every_number(features, samples, rng):
    # Halves, which vectors round to the even integer and the values behind them away from 0.
    x = (rng.integers(-9, 9, size=(samples, features)) + 0.5).astype("float32")
    x[0, 0] = 32767
    check(layers.MaxPooling1D(1), x[..., None])


def test_files_that_run_one_sample_at_a_time(rng):
    x = rng.normal(size=(40, 5, 5, 3)).astype("float32")
    model = keras.Sequential([keras.Input((5, 5, 3)), layers.Conv2DTranspose(4, 3)])
    q, content = quantized(enliven(model, rng), x)
    assert not intact.load_litert(content).runs_batches()
    assert_equal(q, content, x)


@pytest.mark.parametrize("widths", [(8, 16), (16, 8)])
def test_from_one_width_to_another(widths, rng):
    first, second = (
        intact.TensorSpec(bits, symmetric=bits == 16, per_axis=False) for bits in widths
    )
    scheme = intact.Scheme(
        "mixed", (intact.Rule("first", activations=first), intact.Rule(activations=second))
    )
    x = rng.normal(size=(400, 30)).astype("float32")
    model = keras.Sequential(
        [keras.Input((30,)), layers.Dense(40, name="first"), layers.Dense(9, name="second")]
    )
    q = intact.calibrate(intact.quantize_model(enliven(model, rng), scheme), x, verbose=0)
    assert_equal(q, intact.export(q), x)


def test_training_passes_through_frozen_layers(rng):
    """A frozen layer computes the exact sums, and its gradient is that of the layer."""
    model = enliven(
        keras.Sequential(
            [keras.Input((6,)), layers.Dense(5, name="first"), layers.Dense(3, name="second")]
        ),
        rng,
    )
    x, y = rng.normal(size=(64, 6)).astype("float32"), np.ones((64, 3), "float32")
    moved = {}
    for frozen in (False, True):
        q = intact.calibrate(intact.quantize_model(model, "int16x8"), x, verbose=0)
        q.get_layer("second").trainable = not frozen
        before = host(q.get_layer("first").layer.kernel)
        q.compile(keras.optimizers.SGD(1e-2), "mse", jit_compile=False)
        q.fit(x, y, batch_size=64, verbose=0)
        moved[frozen] = host(q.get_layer("first").layer.kernel) - before
    np.testing.assert_allclose(moved[True], moved[False], rtol=1e-3, atol=1e-6)


def test_gradient_of_digits():
    def whole(w):
        high, low = digits(w * 100.0)
        return high * 256.0 + low

    np.testing.assert_allclose(gradient(whole, [3.0, -700.0]), [100.0, 200.0])
