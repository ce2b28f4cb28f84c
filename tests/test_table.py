"""Functions of each value alone: every one of them, and what is odd about tables."""

import functools

import keras
import numpy as np
import pytest
from keras import activations, layers, ops
from small import host, lossy, op_names, quantizers, ready

import intact
from intact import UnsupportedLayerError
from intact.graph.canonicalize import canonicalize
from intact.ops.steps import EXPANSIONS, KERNELS
from intact.ops.table import DOMAINS, Elementwise

EVERYWHERE = (
    *("abs", "arctan", "arcsinh", "ceil", "celu", "cos", "cosh", "elu", "erf", "exp", "exp2"),
    *("expm1", "floor", "gelu", "hard_shrink", "log_sigmoid", "round", "selu", "sign", "sin"),
    *("sinh", "soft_shrink", "softplus", "softsign", "sparse_plus", "squareplus"),
    *("tanh_shrink", "trunc"),
)
POSITIVE = ("log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sqrt")
WITHIN_ONE = ("arccos", "arcsin", "arctanh", "tan")
GROUPS = {
    "everywhere": ([getattr(ops, name) for name in EVERYWHERE], -3.0, 2.5),
    "positive": ([getattr(ops, name) for name in POSITIVE], 0.05, 3.0),
    "within one": ([getattr(ops, name) for name in WITHIN_ONE], -0.9, 0.9),
    "above one": ([ops.arccosh, ops.log1p], 1.0, 4.0),
    "arguments": (
        [
            lambda x: ops.elu(x, 0.5),
            lambda x: ops.celu(x, 2.0),
            lambda x: ops.gelu(x, approximate=False),
            lambda x: ops.threshold(x, 0.25, -0.5),
            lambda x: ops.squareplus(x, 2),
            lambda x: ops.round(x, 1),
            lambda x: ops.clip(x, 0.25, 0.5),
            lambda x: ops.power(x, 3),
            lambda x: ops.power(2.0, x),
            lambda x: activations.relu(x, 0.1, 0.5, 0.1),
            lambda x: activations.relu(x, threshold=-0.5, max_value=1.0),
        ],
        -2.0,
        2.0,
    ),
    "functions": (
        [
            layers.Activation(function)
            for function in (
                lambda x: x * ops.sigmoid(1.702 * x),
                lambda x: ops.where(x > 0, ops.log1p(ops.abs(x)), 0.1 * x),
                lambda x: ops.where(ops.logical_and(x > -0.5, x <= 0.5), ops.abs(x), 1.0),
                lambda x: ops.cast(x >= 0.5, "float32") * x - ops.cast(x < -0.5, "float32"),
                lambda x: 1 - ops.exp(-(x**2) / np.float32(2)),
                lambda x: ops.minimum(ops.leaky_relu(x), 1.0) ** 2 - ops.silu(x),
                functools.partial(activations.elu, alpha=0.3),
                activations.mish,
            )
        ],
        -2.0,
        2.0,
    ),
}


def made(group):
    functions, low, high = GROUPS[group]
    inputs = keras.Input((50,))
    model = keras.Model(inputs, [function(inputs) for function in functions])
    data = np.random.default_rng(3).uniform(low, high, (64, 50)).astype("float32")
    return model, data


@pytest.mark.parametrize("group", GROUPS)
def test_every_function(group):
    model, data = made(group)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    tables = [layer for layer in canonicalize(model).layers if isinstance(layer, Elementwise)]
    assert len(tables) == len(model.outputs)
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    assert max(tensor.max_lsb for tensor in comparison.outputs) < 1e-3, str(comparison)
    for found, expected in zip(
        q.predict(data, verbose=0), model.predict(data, verbose=0), strict=True
    ):
        error = np.abs(found - expected)
        assert np.quantile(error, 0.98) <= 0.05 * (expected.max() - expected.min())


@pytest.mark.parametrize("group", GROUPS)
def test_float_file(group):
    model, data = made(group)
    found = intact.load_litert(intact.export(model)).predict(data)
    for a, b in zip(found.values(), model.predict(data, verbose=0), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(
    "name", ["softplus", "mish", "log_sigmoid", "elu", "selu", "tanh_shrink", "softsign", "celu"]
)
def test_float_files_do_not_overflow(name):
    model = keras.Sequential([keras.Input((4,)), layers.Activation(name)])
    x = np.array([[-100.0, -1e-3, 1e-3, 100.0]], "float32")
    found = intact.load_litert(intact.export(model)).predict(x)
    np.testing.assert_allclose(found, host(model(x)), atol=1e-6, rtol=1e-5)


@lossy
@pytest.mark.parametrize(
    ("function", "low", "expected"),
    [
        (ops.log, -4.0, [-4.0, -4.0, 0.0]),
        (ops.rsqrt, 0.0, [4.0, 4.0, 1.0]),
        (ops.sqrt, 0.0, [0.0, 0.0, 1.0]),
        (lambda x: 1.0 / x, 0.0, [-1.0, 4.0, 1.0]),
        (lambda x: -1.0 / x, -4.0, [1.0, -4.0, -1.0]),
        (lambda x: x**0.5, 0.0, [0.0, 0.0, 1.0]),
        (lambda x: ops.exp(100.0 * x), 0.0, [0.0, 1.0, 4.0]),
    ],
)
def test_what_is_not_finite(function, low, expected):
    """At -1, 0 and 1: saturated in the file as in Keras, and without a part in ranges."""
    inputs = keras.Input((3,))
    q = intact.quantize_model(keras.Model(inputs, layers.Activation(function)(inputs)))
    x = np.array([[-1.0, 0.0, 1.0]], "float32")
    first, last = quantizers(q).values()
    intact.calibrate(q, x, verbose=0)
    assert np.isfinite(host(last.minimum)).all() and np.isfinite(host(last.maximum)).all()
    assert np.isfinite(q.predict(x, verbose=0)).all()
    first.set_range(-1.0, 1.55)
    last.set_range(min(low, -1.0), 4.0)
    found = q.predict(x, verbose=0)
    np.testing.assert_allclose(found, [expected], atol=0.1)
    np.testing.assert_array_equal(intact.load_litert(intact.export(q)).predict(x), found)


def test_gradients_are_finite_where_the_function_is_not():
    inputs = keras.Input((3,))
    x = layers.Dense(3, "relu", bias_initializer=keras.initializers.Constant(-0.1))(inputs)
    q = intact.quantize_model(keras.Model(inputs, ops.log(ops.sqrt(x))))
    q.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    data = np.random.default_rng(0).normal(size=(32, 3))
    q.fit(data, data, verbose=0)
    assert all(np.isfinite(host(v)).all() for v in q.variables)
    assert np.isfinite(q.predict(data, verbose=0)).all()


@pytest.mark.parametrize(
    ("function", "kernel"), [(activations.elu, "ELU"), (activations.gelu, "GELU"), (ops.exp, "EXP")]
)
def test_kernels_with_the_same_table_are_used(function, kernel):
    inputs = keras.Input((3,))
    q = intact.quantize_model(keras.Model(inputs, function(inputs)))
    ready(q)
    assert op_names(intact.export(q)) == ["QUANTIZE", kernel, "DEQUANTIZE"]


def test_kernels_with_another_table_are_not_used(monkeypatch):
    inputs = keras.Input((3,))
    q = intact.quantize_model(keras.Model(inputs, ops.exp(inputs)))
    monkeypatch.setitem(KERNELS, "Exp", "LOG")
    ready(q)
    assert op_names(intact.export(q)) == ["QUANTIZE", "CAST", "ADD", "GATHER", "DEQUANTIZE"]


def test_a_function_of_one_known_operation_is_that_operation():
    inputs = keras.Input((3,))
    x = layers.Dense(3, activation=lambda x: ops.relu(x), name="d")(inputs)
    plan = intact.explain(keras.Model(inputs, layers.Activation(lambda x: x)(x))).plan
    assert [(step.op, step.fused) for step in plan.steps] == [("Dense", False), ("ReLU", True)]


def test_code_as_the_activation_of_a_layer_stays_there():
    function = functools.partial(activations.elu, alpha=0.3)
    layer = layers.Dense(3, activation=function, name="d")
    model = keras.Sequential([keras.Input((3,)), layer])
    assert [step.op for step in intact.explain(model).plan.steps] == ["Dense", "Table"]
    assert layer.activation is function


def test_a_function_of_several_values_is_traced_by_its_parts():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Activation(lambda x: ops.softmax(x * 2.0))(inputs))
    assert [step.op for step in intact.explain(model).plan.steps] == ["Rescaling", "Softmax"]


@pytest.mark.filterwarnings("ignore::intact.AccuracyWarning")
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_zeros_of_both_signs_are_one_integer(scheme):
    inputs = keras.Input((5,))
    q = intact.quantize_model(keras.Model(inputs, 1.0 / inputs), scheme)
    x = np.array([[-1.0, -1e-6, 0.0, 1e-6, 1.0]], "float32")
    intact.calibrate(q, x, verbose=0)
    assert not intact.compare(q, intact.export(q), x).different


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (ops.corrcoef, "Corrcoef 'odd/odd_corrcoef"),
        (lambda x: float(x), "Activation 'odd'.*traced"),
        (activations.sparsemax, "Activation 'odd'.*sparsemax"),
    ],
)
def test_functions_that_are_refused(function, message):
    model = keras.Sequential([keras.Input((4,))])
    model.add(layers.Activation(function, name="odd"))
    with pytest.raises(UnsupportedLayerError, match=message):
        intact.quantize_model(model)


def test_tables_need_no_code_of_the_user(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Activation(lambda x: x * ops.tanh(x))(inputs))
    q = intact.quantize_model(model)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras", safe_mode=True)
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(host(loaded(x)), host(q(x)))


def test_the_tables_of_data_fit_together():
    assert set(DOMAINS) <= {*KERNELS, *EXPANSIONS}
    for name in (*KERNELS, *EXPANSIONS):
        assert callable(Elementwise.function(name))


def test_tables_of_unsigned_integers(rng):
    x = keras.Input((50,))
    large = layers.Dense(20, kernel_initializer=keras.initializers.Constant(1e5))(x)
    outputs = [layers.Activation("mish")(x), ops.exp(x), layers.Activation("hard_silu")(large)]
    data = rng.normal(size=(64, 50)).astype("float32")
    q = intact.calibrate(intact.quantize_model(keras.Model(x, outputs), "uint8"), data, verbose=0)
    content = intact.export(q, integer_only=True, input_dtype="uint8", output_dtype="uint8")
    assert intact.compare(q, content, data).different == 0
    assert "ADD" not in op_names(content)


@pytest.mark.parametrize("model", [ops.square, lambda x: layers.ReLU()(x * x)])
def test_a_square_is_rounded_as_a_table_of_the_kernel(model, rng):
    # A product of two tensors would round the halves that these scales make otherwise.
    x = keras.Input((256,))
    q = intact.quantize_model(keras.Model(x, model(x)))
    inputs, outputs = quantizers(q).values()
    for _ in range(20):
        scale, zero_point = rng.uniform(0.01, 0.05), rng.integers(-40, 40)
        values = scale * (np.arange(-128, 128) - zero_point)
        half = rng.integers(3, 200) + 0.5
        inputs.set_range(values[0], values[-1])
        outputs.set_range(0.0, 255 * (rng.integers(20, 100) * scale) ** 2 / half)
        values = values[None].astype("float32")
        expected = intact.load_litert(intact.export(q)).predict(values)
        np.testing.assert_array_equal(q.predict(values, verbose=0), expected)
