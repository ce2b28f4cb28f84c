"""Placement: what is quantized where, and which layers stay in float."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, mlp, op_names, parse, quantizers, ready

import intact
from intact import IntactError, NotIntegerError, Rule, Scheme, TensorSpec
from intact.layers.quantized import Quantized

INT8 = 9
GROUPS = {
    "conv": (layers.Conv2D, (4, 3), (6, 6, 3), "CONV_2D"),
    "depthwise": (layers.DepthwiseConv2D, (3,), (6, 6, 3), "DEPTHWISE_CONV_2D"),
    "dense": (layers.Dense, (4,), (6,), "FULLY_CONNECTED"),
    "transpose": (layers.Conv2DTranspose, (4, 3), (6, 6, 3), "TRANSPOSE_CONV"),
}
TAILS = {
    "none": (None, {}),
    "relu_layer": (lambda: layers.ReLU(name="tail"), {}),
    "activation": (lambda: layers.Activation("relu", name="tail"), {}),
    "relu6": (lambda: layers.ReLU(6.0, name="tail"), {}),
    "inline_relu6": (None, {"activation": "relu6"}),
}


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("group", GROUPS)
def test_one_range_at_the_tail_of_a_group(group, batch_norm, tail):
    layer, args, shape, litert = GROUPS[group]
    make_tail, inline = TAILS[tail]
    if batch_norm and inline:
        pytest.skip("the activation stands before the batch norm then: a test of its own")
    stack = [keras.Input(shape, name="x"), layer(*args, name="op", **inline)]
    stack += [layers.BatchNormalization(name="bn")] if batch_norm else []
    stack += [make_tail()] if make_tail else []
    last = "op_relu6" if inline else stack[-1].name
    q = intact.quantize_model(keras.Sequential(stack))
    assert list(quantizers(q)) == ["x", last]
    # The kernel stays quantized whatever follows.
    assert isinstance(q.get_layer("op"), Quantized)
    content = intact.export(ready(q))
    assert op_names(content) == ["QUANTIZE", litert, "DEQUANTIZE"]
    constants = {
        (t.name.decode() if isinstance(t.name, bytes) else t.name): t
        for t in parse(content).subgraphs[0].tensors
    }
    kernel = constants["op/kernel"]
    assert kernel.type == INT8
    assert len(kernel.quantization.scale) == q.output_shape[-1]


def test_batch_norm_after_an_inline_activation_stands_alone():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3), name="x"),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="bn"),
        ]
    )
    q = intact.quantize_model(model)
    assert list(quantizers(q)) == ["x", "conv_relu", "bn"]


def test_an_op_with_two_readers_keeps_its_own_range():
    x = keras.Input((6,), name="x")
    y = layers.Dense(4, name="dense")(x)
    q = intact.quantize_model(keras.Model(x, [layers.ReLU(name="relu")(y), y]))
    assert sorted(quantizers(q)) == ["dense", "relu", "x"]


def test_concatenation_of_eight_shares_one_range():
    x = keras.Input((6, 6, 3), name="x")
    parts = [layers.Conv2D(2, 1, name=f"part_{i}")(x) for i in range(8)]
    q = intact.quantize_model(keras.Model(x, layers.Concatenate(name="all")(parts)))
    (shared,) = [fake for name, fake in quantizers(q).items() if name != "x"]
    assert shared.slots == 8
    content = intact.export(ready(q))
    assert op_names(content).count("QUANTIZE") == 1
    scales = {
        float(t.quantization.scale[0])
        for t in parse(content).subgraphs[0].tensors
        if t.type == INT8 and len(t.shape) == 4 and t.quantization and not t.buffer
    }
    assert len(scales) == 1


def test_concatenation_of_concatenations_shares_one_range():
    x = keras.Input((6,), name="x")
    a, b, c = (layers.Dense(2, name=name)(x) for name in "abc")
    inner = layers.Concatenate(name="inner")([a, b])
    q = intact.quantize_model(keras.Model(x, layers.Concatenate(name="outer")([inner, c])))
    assert [f.slots for name, f in quantizers(q).items() if name != "x"] == [3]


def test_fixed_input_of_a_concatenation_is_requantized():
    x = keras.Input((6,), name="x")
    gate = layers.Activation("sigmoid", name="gate")(layers.Dense(2, name="a")(x))
    both = layers.Concatenate(name="both")([gate, layers.Dense(2, name="b")(x)])
    q = intact.quantize_model(keras.Model(x, both))
    fakes = quantizers(q)
    assert fakes["gate"].fixed == (1 / 256, -128.0)
    assert fakes["b"].slots == 2
    # On the way in, and from the sigmoid's scale to the other's.
    assert op_names(intact.export(ready(q))).count("QUANTIZE") == 2


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.MaxPooling2D(2),
        lambda: layers.AveragePooling2D(2),
        lambda: layers.Reshape((12, 9)),
        lambda: layers.Flatten(),
        lambda: layers.ZeroPadding2D(1),
        lambda: layers.Cropping2D(1),
        lambda: layers.UpSampling2D(2),
        lambda: layers.Permute((2, 3, 1)),
        lambda: layers.Dropout(0.5),
        lambda: layers.GlobalMaxPooling2D(),
    ],
    ids=lambda make: make().name,
)
def test_moving_layers_pass_the_range_on(layer):
    model = keras.Sequential([keras.Input((6, 6, 3), name="x"), layer()])
    assert list(quantizers(intact.quantize_model(model))) == ["x"]


def test_shared_layer_has_a_range_per_call(rng):
    shared = layers.Dense(4, name="shared")
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = enliven(keras.Model([a, b], [shared(a), shared(b)]), rng)
    q = intact.quantize_model(model)
    assert sum(isinstance(layer, Quantized) for layer in q.layers) == 1
    data = [rng.uniform(-s, s, size=(64, 6)).astype("float32") for s in (1.0, 10.0)]
    intact.calibrate(q, data, verbose=0)
    scales = sorted(float(f.scale) for n, f in quantizers(q).items() if n not in "ab")
    assert len(scales) == 2
    assert scales[1] > 5 * scales[0]
    assert intact.compare(q, intact.export(q), data).different == 0


FLOAT = {"weights": None, "activations": None}
ISLANDS = {
    "by name": ((Rule("act_2", **FLOAT), Rule()), {"act_2"}),
    "by pattern": ((Rule("conv*", **FLOAT), Rule("bn", **FLOAT), Rule()), {"conv", "bn"}),
    "by type": ((Rule(layers.Dense, **FLOAT), Rule()), {"head"}),
    "by callable": (
        (Rule(lambda layer: layer.name.startswith("bn"), **FLOAT), Rule()),
        {"bn", "bn_2"},
    ),
    "first match wins": ((Rule("head"), Rule(layers.Dense, **FLOAT), Rule()), set()),
    "last rule is not reached": ((Rule(), Rule("head", **FLOAT)), set()),
    "no rule is float": (
        (Rule("conv"),),
        {"bn", "act", "depthwise", "bn_2", "act_2", "pool", "head"},
    ),
    "only the middle": (
        (Rule("depthwise", **FLOAT), Rule("bn_2", **FLOAT), Rule("act_2", **FLOAT), Rule()),
        {"depthwise", "bn_2", "act_2"},
    ),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_rules_keep_layers_in_float(name):
    rules, expected = ISLANDS[name]
    model, scheme = cnn(), Scheme(name, rules)
    assert {step.name for step in intact.explain(model, scheme).plan.float_steps} == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", intact.UnusedRuleWarning)
        q = ready(intact.quantize_model(model, scheme))
    assert expected <= {layer.name for layer in q.layers if not isinstance(layer, Quantized)}
    if not expected:
        assert intact.export(q, integer_only=True)
        return
    with pytest.raises(NotIntegerError) as error:
        intact.export(q, integer_only=True)
    # What follows into the op before it is no op of its own.
    following = {"bn", "act", "bn_2", "act_2"}
    assert all(layer in str(error.value) for layer in expected - following)


@pytest.mark.parametrize("name", ["by type", "by callable", "no rule is float", "only the middle"])
def test_float_islands_run(name, rng):
    model = enliven(cnn(), rng)
    q = intact.quantize_model(model, Scheme(name, ISLANDS[name][0]))
    data = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    intact.calibrate(q, data, bias_correction=False, verbose=0)
    found = intact.load_litert(intact.export(q)).predict(data)
    seen = q.predict(data, verbose=0)
    # Float kernels sum in another order, which may move a value to the next integer.
    span = seen.max() - seen.min()
    assert np.abs(found - seen).max() <= 0.02 * span
    assert np.abs(seen - model.predict(data, verbose=0)).max() <= 0.1 * span


def test_not_integer_error_lists_every_float_layer():
    scheme = Scheme("ends", (Rule("depthwise", **FLOAT), Rule("head", **FLOAT), Rule()))
    q = ready(intact.quantize_model(cnn(), scheme))
    with pytest.raises(NotIntegerError, match=r"(?s)depthwise.*DepthwiseConv2D.*head.*Dense"):
        intact.export(q, integer_only=True)
    assert intact.export(q)


def test_specs_of_a_rule_are_followed():
    narrow = TensorSpec(symmetric=True, momentum=0.5)
    scheme = Scheme("mixed", (Rule("hidden", TensorSpec(symmetric=True), narrow), Rule()))
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Dense(5, name="hidden")(x)))
    q = intact.quantize_model(model, scheme)
    fakes = quantizers(q)
    assert fakes["hidden"].spec == narrow
    assert not fakes["head"].spec.symmetric
    assert not q.get_layer("hidden").spec.per_axis
    content = intact.export(ready(q))
    sizes = {
        t.name.decode() if isinstance(t.name, bytes) else t.name: len(t.quantization.scale)
        for t in parse(content).subgraphs[0].tensors
        if t.quantization is not None
    }
    assert sizes["hidden/kernel"] == 1
    assert sizes["head/kernel"] == 3


def test_weight_bits_without_a_kernel_are_refused_by_export():
    scheme = Scheme("ten", (Rule(weights=TensorSpec(bits=10, symmetric=True, per_axis=True)),))
    q = ready(intact.quantize_model(cnn(), scheme))
    with pytest.raises(intact.ExportError, match=r"'conv'.*10 bits.*int4 and int8"):
        intact.export(q)


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (lambda: layers.Conv3DTranspose(2, 3, name="bad"), (6, 6, 6, 3), "no integer kernel"),
        (
            lambda: layers.AveragePooling2D(2, padding="same", name="bad"),
            (None, 6, 3),
            "must be known",
        ),
    ],
)
def test_refusals_come_before_training(layer, shape, reason):
    model = keras.Sequential([keras.Input(shape), layer()])
    with pytest.raises(intact.IntactError, match=rf"'bad' cannot be quantized.*{reason}") as error:
        intact.quantize_model(model)
    assert "intact.Rule('bad'" in str(error.value)


def test_a_refused_layer_may_stay_in_float(rng):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 4, 2)),
            layers.Conv3D(3, 1, name="conv"),
            layers.Conv3DTranspose(3, 1, name="bad"),
        ]
    )
    scheme = Scheme("s", (Rule("bad", **FLOAT), Rule()))
    q = intact.quantize_model(enliven(model, rng), scheme)
    x = rng.normal(size=(4, 4, 4, 4, 2)).astype("float32")
    intact.calibrate(q, x, verbose=0)
    expected = model.predict(x, verbose=0)
    error = np.mean((intact.load_litert(intact.export(q)).predict(x) - expected) ** 2)
    assert error < 0.01 * np.mean(expected**2)


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(intact.IntactError, match=r"'int7'.*float32, int16x8"):
        intact.quantize_model(cnn(), "int7")


def test_quantized_model_is_not_quantized_again():
    q = intact.quantize_model(cnn())
    with pytest.raises(intact.IntactError, match="quantized already"):
        intact.quantize_model(q)


def test_plan_prints_one_row_per_layer():
    seen = intact.explain(cnn(), Scheme("s", (Rule("head", **FLOAT), Rule())))
    lines = str(seen).split("\n")
    assert [line.split()[0] for line in lines[1:8]] == [
        "conv",
        "bn",
        "act",
        "depthwise",
        "bn_2",
        "act_2",
        "pool",
    ]
    assert "folded" in lines[2]
    assert seen.details.split("\n")[3].split()[-2:] == ["fused", "act"]
    assert lines[3].split()[-1] == "fused"
    assert "head stays float: by rule" in lines


# Inputs whose integers are known ------------------------------------------------------


def image_model():
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.Concatenate()([x, inputs])
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


@pytest.mark.parametrize("scheme", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("mean", "std"), [(128, 128), (127.5, 127.5), (0, 255), (0, 1), (255.0, 57.375)]
)
def test_input_stats_are_those_of_the_file(scheme, mean, std, rng):
    model = enliven(image_model(), rng)
    q = intact.quantize_model(model, scheme, input_stats={"image": (mean, std)})
    bytes_ = rng.integers(0, 256, size=(40, 6, 6, 3)).astype("uint8")
    real = ((bytes_ - np.float64(mean)) / std).astype("float32")
    intact.calibrate(q, real, verbose=0)
    shift = int(np.rint(mean))
    for dtype, zero_point in (("uint8", shift), ("int8", shift - 128)):
        file = intact.load_litert(intact.export(q, input_dtype=dtype))
        (found,) = file.interpreter.get_input_details()
        assert found["quantization"] == (np.float32(1 / std), zero_point)
        # The image itself goes in, and comes to the same as its real values in Keras.
        stored = bytes_ if dtype == "uint8" else (bytes_.astype(int) - 128).astype("int8")
        exact = (bytes_ - np.float32(shift)) * np.float32(1 / std)
        np.testing.assert_array_equal(file.predict(stored), q.predict(exact, verbose=0))


def test_input_stats_survive_training_and_saving(rng, tmp_path):
    q = intact.quantize_model(enliven(mlp(), rng), input_stats={"features": (128, 64)})
    x = rng.uniform(-1, 1, size=(32, 6)).astype("float32")
    q.compile("sgd", "mse")
    q.fit(x, x[:, :3], verbose=0)
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    file = intact.load_litert(intact.export(again, input_dtype="uint8"))
    assert file.interpreter.get_input_details()[0]["quantization"] == (1 / 64, 128)


def test_input_stats_of_sixteen_bits(rng):
    q = intact.quantize_model(enliven(mlp(), rng), "int16x8", input_stats={"features": (0, 8192)})
    intact.calibrate(q, rng.uniform(-1, 1, size=(32, 6)), verbose=0)
    file = intact.load_litert(intact.export(q, input_dtype="int16"))
    assert file.interpreter.get_input_details()[0]["quantization"] == (1 / 8192, 0)


@pytest.mark.parametrize(
    ("scheme", "stats", "message"),
    [
        ("int8", {"picture": (0, 1)}, r"\['picture'\].*Quantized inputs: \['image'\]"),
        ("weight_only_8", {"image": (0, 1)}, r"\['image'\].*Quantized inputs: \[\]"),
        ("int8", {"image": (0, 0)}, r"std > 0, for input 'image'. Received: \(0, 0\)"),
        ("int8", {"image": (0, -3.0)}, r"Received: \(0, -3\.0\)"),
        ("int8", {"image": (np.nan, 1.0)}, "finite mean"),
        ("int8", {"image": (-1, 1)}, r"'image'.*between 0 and 255\. Received: mean=-1"),
        ("int8", {"image": (255.6, 1)}, "between 0 and 255"),
        ("int16x8", {"image": (128, 1)}, "int16.*between 0 and 0"),
    ],
)
def test_input_stats_that_cannot_be(scheme, stats, message):
    with pytest.raises(IntactError, match=message):
        intact.quantize_model(image_model(), scheme, input_stats=stats)


FOUR = intact.TensorSpec(4, quantizer="lsq")


def fused(rules):
    """The range of a convolution with batch norm and ReLU, of a sum with ReLU, and the plan."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv", padding="same")(x))
    first = layers.ReLU(name="relu")(x)
    second = layers.Conv2D(4, 1, name="branch")(first)
    outputs = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([first, second]))
    model = keras.Model(inputs, layers.Dense(2, name="head")(outputs))
    explanation = intact.explain(model, intact.Scheme("mine", rules))
    return {one.name: one.spec.bits for one in explanation.plan.ranges}, str(explanation)


def test_of_fused_layers_the_rule_counts_that_comes_first():
    first = {"relu": 4, "branch": 8, "sum_relu": 4}
    found, text = fused((intact.Rule(layers.ReLU, activations=FOUR), intact.Rule()))
    assert first.items() <= found.items()
    # The table says of all of them what their one tensor has.
    assert [line.split()[2:4] for line in text.splitlines() if line.startswith("conv")] == [
        ["w8", "a4"]
    ]
    found, _ = fused((intact.Rule("conv", activations=FOUR), intact.Rule()))
    assert {"relu": 4, "branch": 8, "sum_relu": 8}.items() <= found.items()
    rules = (intact.Rule("conv"), intact.Rule(layers.ReLU, activations=FOUR), intact.Rule())
    found, _ = fused(rules)
    assert {"relu": 8, "branch": 8, "sum_relu": 4}.items() <= found.items()


def test_of_fused_layers_kernels_take_one_type():
    wide = intact.TensorSpec(16, symmetric=True)
    found, _ = fused((intact.Rule(layers.ReLU, activations=wide), intact.Rule()))
    assert {"relu": 8, "branch": 8, "sum_relu": 8}.items() <= found.items()
