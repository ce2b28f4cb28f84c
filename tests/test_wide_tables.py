"""What has no 16-bit kernel: tables, clamps, blocks of pixels, and what is written out."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, gradient, host, op_names, parse, ready

import intact
from intact.numerics.backend_kernels import wide_types
from intact.ops.blocks import DepthToSpace, SpaceToDepth
from intact.ops.relu import Clamp
from intact.ops.table import Elementwise

FUNCTIONS = {
    "Arccos": np.arccos,
    "Arcsinh": np.arcsinh,
    "Arctan": np.arctan,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Exp": np.exp,
    "Expm1": np.expm1,
    "Floor": np.floor,
    "Log": np.log,
    "Log1p": np.log1p,
    "Reciprocal": np.reciprocal,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Sin": np.sin,
    "Softplus": lambda x: np.logaddexp(x, 0.0),
    "Tan": np.tan,
    "Tanh": np.tanh,
}
WITH_NUMBERS = {
    ("Divide", 0.7): lambda x: x / 0.7,
    ("Maximum", 0.3): lambda x: np.maximum(x, 0.3),
    ("Minimum", 0.3): lambda x: np.minimum(x, 0.3),
    ("Power", 0.7): lambda x: x**0.7,
}
WITH_SETTINGS = [
    ("Clip", {"x_min": 0.1, "x_max": 0.3}, lambda x: np.clip(x, 0.1, 0.3)),
    ("LeakyRelu", {"negative_slope": 0.3}, lambda x: np.where(x < 0, 0.3 * x, x)),
    (
        "Gelu",
        {"approximate": True},
        lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
]
STEPS = [
    *(((name, [0], {}), function) for name, function in FUNCTIONS.items()),
    *(((name, [0, number], {}), function) for (name, number), function in WITH_NUMBERS.items()),
    *(((name, [0], settings), function) for name, settings, function in WITH_SETTINGS),
]


@pytest.mark.parametrize(("step", "function"), STEPS, ids=[step[0] for step, _ in STEPS])
def test_functions_in_float64(step, function):
    x = np.linspace(0.013, 0.98, 301)
    with wide_types():
        y = Elementwise([step]).precise(ops.convert_to_tensor(x, "float64"))
        assert keras.backend.standardize_dtype(y.dtype) == "float64"
        np.testing.assert_allclose(host(y), function(x), rtol=1e-13)


def exported(formula, *arrays, scheme="int16x8"):
    """A model of a formula in a scheme, and its file, which are equal."""
    inputs = [keras.Input(a.shape[1:]) for a in arrays]
    model = enliven(keras.Model(inputs, formula(*inputs)), np.random.default_rng(3))
    x = list(arrays) if len(arrays) > 1 else arrays[0]
    q = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    content = intact.export(q, integer_only=True)
    comparison = intact.compare(q, content, x)
    assert not any(t.different for t in (*comparison.layers, *comparison.outputs)), str(comparison)
    return model, content


def table_sizes(content):
    """The sizes of the tables of a file, each counted once."""
    file = parse(content)
    tables = {t.buffer: t for t in file.subgraphs[0].tensors if t.name.endswith(b"/table")}
    return sorted(len(file.buffers[index].data) // 2 for index in tables)


def test_a_table_ends_where_its_function_is_constant(rng):
    x = rng.uniform(0.0, 3.0, size=(64, 30)).astype("float32")
    _, content = exported(lambda x: ops.sqrt(x), x)
    assert op_names(content) == ["QUANTIZE", "CAST", "MAXIMUM", "GATHER", "DEQUANTIZE"]
    (size,) = table_sizes(content)
    assert 32768 <= size <= 32769
    _, content = exported(lambda x: ops.clip(x, 1.0, 2.0), x)
    assert table_sizes(content)[0] < 11000


@pytest.mark.parametrize(
    "function", [ops.exp, ops.log, ops.gelu, ops.sin, lambda x: 1.0 / x, lambda x: x**0.5]
)
def test_functions_of_all_integers(function, rng):
    """Also of those where the function is infinite, or not a number."""
    # In any order, so that each sample has large values and small ones.
    x = rng.permutation(np.arange(-32768, 32768)).reshape(-1, 64).astype("float32") / 4096
    inputs = keras.Input((64,))
    q = intact.quantize_model(keras.Model(inputs, function(inputs)), "int16x8")
    intact.calibrate(q, x, verbose=0)
    y = intact.load_litert(intact.export(q, integer_only=True)).predict(x)
    np.testing.assert_array_equal(q.predict(x, verbose=0), y)


def test_equal_tables_are_one(rng):
    x = rng.normal(size=(32, 8)).astype("float32")
    _, content = exported(lambda t: layers.Concatenate()([ops.exp(t), ops.exp(t[:, :])]), x)
    assert len(table_sizes(content)) == 1


def test_a_kernel_takes_the_place_of_a_table_that_it_has(rng):
    x = rng.normal(size=(64, 30)).astype("float32")
    _, content = exported(lambda x: ops.abs(x), x)
    assert "ABS" in op_names(content) and "GATHER" not in op_names(content)
    # The kernel of 16 bits interpolates.
    _, content = exported(lambda x: ops.gelu(x), x)
    assert "GELU" not in op_names(content)


def test_gradient_of_a_table():
    model = keras.Sequential([keras.Input((3,)), layers.Activation("gelu")])
    q = ready(intact.quantize_model(model, "int16x8"))
    x = [[-1.0, 0.3, 2.0]]
    plain = gradient(lambda x: ops.sum(ops.gelu(x)), x)
    for training in (True, False):
        through = gradient(lambda x, training=training: ops.sum(q(x, training=training)), x)
        np.testing.assert_allclose(through, plain, atol=1e-3)


@pytest.mark.parametrize("limits", [(-0.25, 0.5), (None, 0.0), (-0.5, None), (-1.0, 6.0)])
@pytest.mark.parametrize("behind", [False, True])
def test_clamps(limits, behind, rng):
    x = rng.normal(size=(64, 9)).astype("float32") * 4
    formula = Clamp(*limits)
    _, content = exported(lambda t: formula(layers.Dense(7)(t) if behind else t), x)
    y = intact.load_litert(content).predict(x)
    low, high = (
        far if limit is None else limit for limit, far in zip(limits, (-99, 99), strict=True)
    )
    assert y.min() >= low - 1e-3 and y.max() <= high + 1e-3


@pytest.mark.parametrize("bits", [8, 12])
def test_clamps_of_symmetric_ranges(bits, rng):
    """Their ranges reach beyond the lower limit, which is nearer to 0."""
    symmetric = intact.Scheme(
        "symmetric", (intact.Rule(activations=intact.TensorSpec(bits, symmetric=True)),)
    )
    x = rng.normal(size=(64, 9)).astype("float32")
    model, content = exported(lambda t: Clamp(-0.25, 1.0)(t), x, scheme=symmetric)
    error = np.abs(intact.load_litert(content).predict(x) - model.predict(x, verbose=0)).max()
    assert error < 8 / 2**bits


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("kind", [DepthToSpace, SpaceToDepth])
def test_blocks_of_pixels(kind, block, rng):
    x = rng.normal(size=(5, 6, 12, 18 * 2)).astype("float32")
    model, content = exported(kind(block), x)
    y = intact.load_litert(content).predict(x)
    np.testing.assert_allclose(y, model.predict(x, verbose=0), atol=2e-4)


def test_log_softmax_is_written_out(rng):
    x = rng.normal(size=(64, 10)).astype("float32") * 5
    model, content = exported(lambda t: ops.log_softmax(layers.Activation("log_softmax")(t)), x)
    expected = model.predict(x, verbose=0)
    assert np.abs(intact.load_litert(content).predict(x) - expected).max() < 5e-3


def test_a_kernel_of_8_bits_alone(rng):
    x = rng.normal(size=(64, 5, 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input((5, 3), batch_size=8), layers.LSTM(4, stateful=True, name="lstm")]
    )
    q = intact.quantize_model(enliven(model, rng), "int16x8")
    intact.calibrate(q, x, batch_size=8, verbose=0)
    content = intact.export(q, output_dtype="int16", integer_only=True)
    assert intact.load_litert(content).interpreter.get_output_details()[0]["dtype"] == np.int16
    (layer, *_) = intact.explain(model, "int16x8").layers
    assert "8 bits inside" in layer.wide


def test_explain_says_what_a_table_costs():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, "gelu", name="dense")(inputs))
    assert "128 kB" in str(intact.explain(model, "int16x8"))
    assert "128 kB" not in str(intact.explain(model))


def block(x):
    """A block of a transformer."""
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.RMSNormalization()(x)
    return x + layers.Dense(8)(layers.Dense(16, "gelu")(y))


def test_a_trained_transformer_of_padded_frames(rng):
    keras.utils.set_random_seed(1)
    x = rng.normal(size=(256, 9, 4)).astype("float32")
    x[:, 7:] = 0.0
    y = np.abs(x).sum(1).argmax(1)
    inputs = keras.Input((9, 4))
    features = layers.GlobalAveragePooling1D()(block(layers.Dense(8)(inputs)))
    model = keras.Model(inputs, layers.Dense(4, "softmax")(features))
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=4, verbose=0)
    expected, errors = model.predict(x, verbose=0), {}
    for scheme in ("int8", "int16x8"):
        q = intact.quantize_model(model, scheme)
        with warnings.catch_warnings():
            if scheme == "int8":
                # What 16 bits are compared with may lose much.
                warnings.simplefilter("ignore", intact.AccuracyWarning)
            intact.calibrate(q, x, verbose=0)
        content = intact.export(q, integer_only=True)
        errors[scheme] = np.mean((intact.load_litert(content).predict(x) - expected) ** 2)
    # The last one: that of 16 bits.
    comparison = intact.compare(q, content, x)
    assert not any(t.different for t in (*comparison.layers, *comparison.outputs))
    assert errors["int16x8"] < errors["int8"] / 100
