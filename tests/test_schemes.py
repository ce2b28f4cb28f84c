"""Every preset, on small models, the whole way from float to the file and back."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, host, lossy, op_names, op_versions, parse

import intact
from intact import IntactError, Rule, Scheme, TensorSpec, UnusedRuleWarning, schemes
from intact.quantizers.observers import MSE
from intact.schemes import SCHEMES

WEIGHTS_ALONE = (
    *("weight_only_8", "weight_only_4", "weight_only_4_blocks", "float16"),
    *("dynamic_range", "dynamic_range_4_blocks"),
)
# How far the quantized model may be from the float one, as a share of the outputs' span.
ACCURACY = {
    "int8": 0.03,
    "int8_dense_per_tensor": 0.04,
    "int4": 0.25,
    "int16x8": 0.02,
    "uint8": 0.06,
    "dynamic_range": 0.02,
    "dynamic_range_4_blocks": 0.25,
    "weight_only_8": 0.02,
    "weight_only_4": 0.25,
    "weight_only_4_blocks": 0.25,
    "float16": 1e-3,
}
# How far the file may be from Keras: in LSB of each tensor, or as a share of the span.
EQUAL_LSB = {
    "int8": 1e-3,
    "int8_dense_per_tensor": 1e-3,
    "int4": 1e-3,
    "uint8": 1e-3,
    "int16x8": 1e-3,
}
EQUAL = {
    "weight_only_8": 1e-6,
    "weight_only_4": 1e-6,
    "weight_only_4_blocks": 1e-6,
    # Keras rounds the weights, the file those that a batch norm was folded into.
    "float16": 1e-3,
    # Float sums in another order may move an input that is halfway between two integers.
    "dynamic_range": 2e-3,
    "dynamic_range_4_blocks": 2e-3,
}


def cnn():
    """The main ops of image models; batch norms to fold, and a transposed convolution."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(11, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU(name="act")(layers.BatchNormalization(name="bn")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.ReLU(6.0, name="act_2")(layers.BatchNormalization(name="bn_2")(y))
    x = layers.Concatenate(name="both")([x, y])
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="up")(x)
    x = layers.Conv2D(9, 1, activation="relu", name="pointwise")(layers.ZeroPadding2D(1)(x))
    return keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))


def mlp():
    """Dense layers, one with an odd number of inputs."""
    features = keras.Input((12,), name="features")
    x = layers.Dense(9, activation="relu", name="hidden")(features)
    x = layers.BatchNormalization(name="bn")(layers.Dense(6, use_bias=False, name="second")(x))
    return keras.Model(features, layers.Dense(3, name="head")(layers.ReLU()(x)))


def residual():
    """Sums and products of branches."""
    image = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch")(x)
    y = layers.BatchNormalization(name="bn")(y)
    x = layers.ReLU(name="sum_act")(layers.Add(name="sum")([x, y]))
    gate = layers.Dense(8, name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply(name="product")([x, gate])
    return keras.Model(image, layers.Dense(4, name="head")(layers.Flatten()(x)))


MODELS = {"cnn": cnn, "mlp": mlp, "residual": residual}
_made = {}


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(params=[pytest.param("int4", marks=lossy), *(s for s in ACCURACY if s != "int4")])
def scheme(request):
    return request.param


def make(kind, scheme):
    """Model, quantized model and data; made once, for the tests change none."""
    if (kind, scheme) not in _made:
        rng = np.random.default_rng(5)
        model = enliven(MODELS[kind](), rng)
        data = rng.normal(size=(64, *model.input_shape[1:])).astype("float32")
        q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
        _made[kind, scheme] = model, q, data
    return _made[kind, scheme]


def assert_agreement(q, scheme, data):
    content = intact.export(q)
    if scheme in EQUAL_LSB:
        comparison = intact.compare(q, content, data)
        for tensor in (*comparison.outputs, *comparison.layers):
            assert tensor.max_lsb <= EQUAL_LSB[scheme], str(comparison)
    else:
        seen = q.predict(data, verbose=0)
        found = intact.load_litert(content).predict(data)
        assert np.abs(found - seen).max() <= EQUAL[scheme] * np.ptp(seen)


def test_every_preset_is_here():
    assert set(ACCURACY) == set(SCHEMES) - {"float32"} == {*EQUAL_LSB, *EQUAL}
    assert all(getattr(schemes, name) is scheme for name, scheme in SCHEMES.items())


def test_close_to_float(kind, scheme):
    model, q, data = make(kind, scheme)
    expected = model.predict(data, verbose=0)
    gap = np.abs(q.predict(data, verbose=0) - expected).max()
    assert gap <= ACCURACY[scheme] * np.ptp(expected)


def test_file_says_the_same(kind, scheme):
    _, q, data = make(kind, scheme)
    assert_agreement(q, scheme, data)


def test_file_keeps_the_rules(kind, scheme):
    _, q, _ = make(kind, scheme)
    findings = intact.verify(intact.export(q))
    assert not findings, str(findings)


def test_saves_and_loads(kind, scheme, tmp_path):
    _, q, data = make(kind, scheme)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), q.predict(data, verbose=0))
    assert intact.export(loaded) == intact.export(q)


def test_trains(kind, scheme):
    model, _, data = make(kind, scheme)
    q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
    before = [host(v) for v in q.trainable_variables]
    q.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    q.fit(data, np.ones((64, q.output_shape[-1])), epochs=1, batch_size=32, verbose=0)
    for old, variable in zip(before, q.trainable_variables, strict=True):
        assert np.isfinite(host(variable)).all()
        if variable.path.endswith("kernel"):
            assert (host(variable) != old).any(), variable.path
    assert_agreement(q, scheme, data)


@lossy
@pytest.mark.parametrize(
    ("scheme", "limit"),
    [
        ("float16", 0.51),
        ("int8", 0.27),
        ("uint8", 0.27),
        ("int16x8", 0.27),
        ("dynamic_range", 0.27),
        ("weight_only_8", 0.27),
        ("int4", 0.15),
        ("weight_only_4", 0.15),
        ("weight_only_4_blocks", 0.17),
        ("dynamic_range_4_blocks", 0.17),
    ],
)
def test_size_of_the_file(scheme, limit, rng):
    table = layers.Embedding(300, 64, name="table")
    x = keras.Input((8,), dtype="int32", name="words")
    heavy = layers.Dense(256, name="hidden")(layers.Flatten()(table(x)))
    words = enliven(keras.Model(x, layers.Dense(4)(heavy)), rng)
    features = keras.Input((512,))
    dense = keras.Model(features, layers.Dense(4)(layers.Dense(512, "relu")(features)))
    # Tables of integer models are as wide as activations.
    for model in (dense,) if scheme in ("int4", "int16x8") else (dense, words):
        shape = (16, *model.input_shape[1:])
        data = rng.normal(size=shape) if model is dense else rng.integers(0, 300, size=shape)
        data = data.astype(model.inputs[0].dtype)
        q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
        assert len(intact.export(q)) <= limit * len(intact.export(model))
        assert_agreement(q, scheme, data)


TYPES = {
    "int8": ["int8"] * 6,
    "int8_dense_per_tensor": ["int8"] * 6,
    "int4": ["w4 a8", "int8", "int8", "w4 a8", "int8", "w4 a8"],
    "int16x8": ["w8 a16", "int16", "int16", "w8 a16", "int16", "w8 a16"],
    "uint8": ["uint8"] * 6,
    "dynamic_range": ["w8 dynamic", "float", "float", "w8 dynamic", "float", "w8 dynamic"],
    "weight_only_8": ["w8", "float", "float", "w8", "float", "w8"],
    "weight_only_4": ["w4", "float", "float", "w4", "float", "w4"],
    "weight_only_4_blocks": ["w4", "float", "float", "w4", "float", "w4"],
    "float16": ["float16", "float", "float", "float16", "float", "float16"],
    "float32": ["float (by rule)"] * 6,
}


@pytest.mark.parametrize("norm", [False, True], ids=["", "batch_norm"])
def test_dense_layers_have_one_scale_on_request(norm, rng):
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(3, 3)(x)
    y = layers.Dense(4, name="hidden")(layers.Flatten()(y))
    y = layers.BatchNormalization()(y) if norm else y
    model = enliven(keras.Model(x, layers.Dense(2)(layers.ReLU()(y))), rng)
    data = rng.normal(size=(32, 6, 6, 2)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, "int8_dense_per_tensor"), data, verbose=0)
    assert_agreement(q, "int8_dense_per_tensor", data)
    ops = intact.inspect(intact.export(q)).file.graphs[0].ops
    scales = {op.name: len(op.inputs[1].scales) for op in ops if len(op.inputs) > 2}
    assert scales == {"CONV_2D": 3, "FULLY_CONNECTED": 1}


@pytest.mark.parametrize("scheme", TYPES)
def test_plan_shows_the_types(scheme):
    x = keras.Input((6, 6, 4))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(x)))
    y = layers.Dense(2)(layers.ReLU()(layers.Conv2D(4, 3)(y)))
    explanation = intact.explain(keras.Model(x, y), scheme)
    assert [layer.type for layer in explanation.layers] == TYPES[scheme]
    lines = str(explanation).split("\n")[1:]
    integer = [layer.type for layer in explanation.layers if layer.integer]
    assert all(kind in line for kind, line in zip(integer, lines, strict=False))


@pytest.mark.parametrize("scheme", WEIGHTS_ALONE)
def test_weights_alone_need_no_calibration(scheme, rng):
    q = intact.quantize_model(enliven(mlp(), rng), scheme)
    before = [host(v) for v in q.variables]
    assert intact.calibrate(q, rng.normal(size=(8, 12)), verbose=0) is q
    assert all((host(v) == old).all() for v, old in zip(q.variables, before, strict=True))
    assert intact.export(q)
    with pytest.raises(intact.NotIntegerError, match="hidden"):
        intact.export(q, integer_only=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("per_axis", [True, False], ids=["per_axis", "per_tensor"])
def test_weights_alone_of_any_form(bits, symmetric, per_axis, rng):
    model = enliven(cnn(), rng)
    scheme = Scheme("own", (Rule(None, TensorSpec(bits, symmetric, per_axis), None),))
    q = intact.quantize_model(model, scheme)
    data = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    assert_agreement(q, "weight_only_8", data)
    kernel = host(q.get_layer("conv").real_weights()["kernel"])
    channels = kernel.reshape(-1, kernel.shape[-1]).T if per_axis else kernel.reshape(1, -1)
    assert max(len(np.unique(channel)) for channel in channels) <= 2**bits


def test_4_bit_weights_of_a_transposed_convolution_are_stored_in_8():
    scheme = Scheme("own", (Rule(weights=TensorSpec(4, symmetric=True, per_axis=True)),))
    steps = {step.name: step for step in intact.explain(cnn(), scheme).plan.steps}
    assert (steps["up"].weights.dtype, steps["up"].weights.bits) == ("int8", 4)
    assert steps["conv"].weights.dtype == "int4"
    steps = {step.name: step for step in intact.explain(cnn(), "int4").plan.steps}
    assert (steps["up"].type, steps["conv"].type) == ("int8", "w4 a8")


@pytest.mark.parametrize(
    ("scheme", "dtype", "layer", "name"),
    [
        ("uint8", "uint8", lambda: layers.LayerNormalization(name="curve"), "curve_scale"),
    ],
    ids=["uint8"],
)
def test_layers_without_such_a_kernel(scheme, dtype, layer, name, rng):
    x = keras.Input((6,), name="x")
    y = layer()(layers.Dense(5, name="first")(x))
    model = enliven(keras.Model(x, layers.Dense(2, name="head")(y)), rng)
    with pytest.raises(IntactError, match=rf"'{name}' cannot be quantized: it has no {dtype}"):
        intact.quantize_model(model, scheme)
    q = intact.quantize_model(model, scheme, allow_float=True)
    data = rng.normal(size=(32, 6)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    seen = {layer.name: layer.integer for layer in intact.explain(model, scheme).layers}
    assert seen[name] is False
    # A float kernel may move a value to the next integer.
    assert intact.compare(q, intact.export(q), data).max_lsb <= 2.01


@pytest.mark.parametrize(("scheme", "dtype"), [("int16x8", "int16"), ("uint8", "uint8")])
def test_types_of_inputs_and_outputs(scheme, dtype):
    _, q, _ = make("mlp", scheme)
    content = intact.export(q, input_dtype=dtype, output_dtype=dtype, integer_only=True)
    runtime = intact.load_litert(content).interpreter
    (given,), (found,) = runtime.get_input_details(), runtime.get_output_details()
    assert given["dtype"] == found["dtype"] == np.dtype(dtype)
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(op_names(content))
    if dtype == "int16":
        with pytest.raises(intact.ExportError, match="stored as int16, and int8 was asked for"):
            intact.export(q, input_dtype="int8")


def test_widths_may_be_mixed(rng):
    wide = Rule("branch*", activations=TensorSpec(16, symmetric=True))
    narrow = Rule(layers.Dense, weights=TensorSpec(4, symmetric=True, per_axis=True))
    model = enliven(residual(), rng)
    q = intact.quantize_model(model, Scheme("mixed", (wide, narrow, Rule())))
    data = rng.normal(size=(64, 6, 6, 4)).astype("float32")
    intact.calibrate(q, data, verbose=0)
    comparison = intact.compare(q, intact.export(q), data)
    assert comparison.max_lsb <= 1e-3, str(comparison)
    dtypes = {t.type for t in parse(intact.export(q)).subgraphs[0].tensors}
    assert {9, 7, 17} <= dtypes  # int8, int16, int4


def test_unused_rules_are_reported():
    rules = (Rule("haed", None, None), Rule(layers.LSTM), Rule("hidden"), Rule())
    scheme = Scheme("misspelt", rules)
    explanation = intact.explain(mlp(), scheme)
    assert explanation.plan.unused == list(rules[:2])
    assert "No layer is under the rule for 'haed'." in str(explanation)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedRuleWarning)
        with pytest.raises(UnusedRuleWarning, match=r"'misspelt'.*'haed'.*LSTM"):
            intact.quantize_model(mlp(), scheme)
        # The rule of a preset for a layer that the model lacks is nothing to report.
        intact.quantize_model(mlp(), "int4")


def test_observer_of_a_rule(rng):
    slow = Rule("hidden*", activations=TensorSpec(observer="moving_average"))
    q = intact.quantize_model(enliven(mlp(), rng), Scheme("own", (slow, Rule())))
    data = rng.normal(size=(64, 12)).astype("float32") * np.linspace(1, 9, 64)[:, None]
    found = {}
    for observer in (None, "min_max", "moving_average"):
        intact.calibrate(q, data, observer=observer, bias_correction=False, verbose=0)
        layer = q.get_layer("hidden_relu_quantizer"), q.get_layer("head_quantizer")
        found[observer] = [float(host(fake.scale)) for fake in layer]
    assert found[None] == [found["moving_average"][0], found["min_max"][1]]
    assert found["min_max"][0] != found["moving_average"][0]


@pytest.mark.parametrize("inputs", [12, 33])
def test_dense_layers_have_one_dynamic_range_in_all_kernels(inputs, rng):
    model = enliven(keras.Sequential([keras.Input((inputs,)), layers.Dense(7)]), rng)
    data = rng.normal(size=(40, inputs)).astype("float32") + 1
    for bits in (4, 8):
        spec = TensorSpec(bits, symmetric=True, per_axis=True)
        rule = Rule(weights=spec, activations=TensorSpec(dynamic=True))
        q = intact.quantize_model(model, Scheme("own", (rule,)))
        expected = q.predict(data, verbose=0)
        for kernels in ("default", "builtin", "reference"):
            outputs = intact.load_litert(intact.export(q), kernels=kernels).predict(data)
            np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-6 * np.ptp(expected))


def test_versions_of_the_files():
    versions = {name: op_versions(intact.export(make("mlp", name)[1])) for name in ACCURACY}
    assert versions["float16"]["DEQUANTIZE"] == 3
    assert versions["weight_only_8"]["DEQUANTIZE"] == 5
    assert versions["dynamic_range"] == {"FULLY_CONNECTED": 12}
    assert versions["int4"]["FULLY_CONNECTED"] == 10
    assert versions["uint8"] == {"QUANTIZE": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}


@pytest.mark.parametrize(
    "fields", [{"bits": 1}, {"bits": 17}, {"kind": "uint", "bits": 4}, {"kind": "bfloat"}]
)
def test_specs_that_cannot_be(fields):
    with pytest.raises(IntactError, match="Expected kind"):
        TensorSpec(**fields)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Rule(weights=TensorSpec()), "symmetric=True"),
        (Rule(weights=TensorSpec(kind="uint")), "unsigned"),
        (Rule(weights=TensorSpec(16, kind="float")), "float16"),
        (Rule(weights=TensorSpec(9), activations=None), "2 to 8 bits"),
    ],
)
def test_rules_without_kernels_are_refused(rule, reason):
    with pytest.raises(IntactError, match=rf"cannot be quantized:\n  Dense 'hidden': .*{reason}"):
        intact.quantize_model(mlp(), Scheme("own", (rule,)))


@pytest.mark.parametrize("limit", [0.5, 3.0, 8.7, 20.0])
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_curves_of_16_bits(function, limit):
    model = keras.Sequential([keras.Input((1,)), layers.Activation(function)])
    data = np.linspace(-limit, limit, 65536, dtype="float32")[:, None]
    q = intact.quantize_model(model, "int16x8")
    intact.calibrate(q, data, batch_size=65536, verbose=0)
    comparison = intact.compare(q, intact.export(q), data, batch_size=65536)
    assert comparison.different == 0
    ours, theirs = (m.predict(data, batch_size=65536, verbose=0) for m in (q, model))
    gap = np.abs(ours - theirs)
    # Half a step of the input, and what the kernel's table leaves.
    assert gap.max() <= (4 + limit) * 2**-15


def test_a_repr_has_what_differs_from_the_default():
    four = TensorSpec(4, symmetric=True, quantizer="lsq", observer="mse")
    scheme = Scheme("mine", (Rule("head", four), Rule()))
    assert repr(TensorSpec()) == "TensorSpec()"
    names = {kind.__name__: kind for kind in (Scheme, Rule, TensorSpec, MSE)}
    assert eval(repr(scheme), names) == scheme
    assert len(repr(scheme)) < 150
    assert "weights int4" in scheme._repr_html_()
