"""Parts of a model: filters choose what is quantized, and the rest is float to the end."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn, enliven, host, op_names, parse

import intact
from intact.graph.view import view
from intact.layers.quantized import Quantized
from intact.layers.quantized_weights import QuantizedWeights
from intact.litert.reader import read


def nested():
    """A model in a model, an operator, a custom layer, and a head with an activation inside."""
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="inner_conv"),
            layers.SeparableConv2D(6, 3, name="separable"),
        ],
        name="inner",
    )
    inputs = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(4, 1, name="stem")(inputs)
    x = inner(x) * 0.5
    x = Gate(name="gate")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x))


class Gate(layers.Layer):
    """A custom layer with a layer and an operation inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(6, name="part")

    def call(self, x):
        return x * ops.sigmoid(self.dense(x))


def quantized_layers(model, filters=None, scheme="int8"):
    plan = intact.explain(model, scheme, filters=filters).plan
    return {step.name for step in plan.steps if step.type.split()[0] != "float"}


# A factor of all values folds into the layer before it, unless it is chosen by name.
EVERYTHING = {
    "stem",
    "inner_conv",
    "inner_conv_relu",
    "separable_depthwise",
    "separable_pointwise",
    "pool",
    "gate_part",
    "gate_sigmoid",
    "gate_multiply",
    "head",
    "head_softmax",
}
CASES = {
    "one name": ("^head$", {"head", "head_softmax"}),
    "part of names": ("conv", {"inner_conv", "inner_conv_relu"}),
    "several": (["stem", "^pool$"], {"stem", "pool"}),
    "tuple": (("stem",), {"stem"}),
    "all but one": ("^(?!head$)", EVERYTHING - {"head", "head_softmax"}),
    "by type": (
        lambda layer: isinstance(layer, layers.Dense),
        {"gate_part", "head", "head_softmax"},
    ),
    "a composite": (
        lambda layer: isinstance(layer, layers.SeparableConv2D),
        {"separable_depthwise", "separable_pointwise"},
    ),
    # The operations are its own, the dense layer inside is a layer like any.
    "a custom layer": (lambda layer: isinstance(layer, Gate), {"gate_sigmoid", "gate_multiply"}),
    "inside a custom layer": ("^part$", {"gate_part"}),
    "an operator": ("^multiply", {"multiply"}),
    "none": (None, EVERYTHING),
}


@pytest.mark.parametrize("name", CASES)
def test_filters_choose_layers_of_the_users(name):
    filters, expected = CASES[name]
    model = nested()
    # Operations are numbered in a session.
    found = {name.rstrip("_0123456789") for name in quantized_layers(model, filters)}
    assert found == expected


def test_a_function_gets_the_users_own_layers():
    model = nested()
    inner = model.get_layer("inner")
    found = quantized_layers(model, lambda layer: layer in inner.layers)
    assert found == {"inner_conv", "inner_conv_relu", "separable_depthwise", "separable_pointwise"}
    seen = []
    intact.explain(model, filters=lambda layer: seen.append(layer) or True)
    assert [layer for layer in seen if layer is model.get_layer("stem")]


def test_as_keras_chooses():
    """The names that Keras' own rule takes, for the layers that both know."""
    from keras.src.quantizers.utils import should_quantize_layer

    model = cnn()
    for filters in ("conv", "^bn", ["act$", "head"], lambda layer: layer.name > "c"):
        wanted = {layer.name for layer in model.layers if should_quantize_layer(layer, filters)}
        assert quantized_layers(model, filters) == wanted


# How far the file may be from Keras, as a share of the span: float kernels add up in another
# order; 16-bit and float16 ones see `test_schemes.py`.
EQUAL = {"float16": 1e-3, "int16x8": 1e-4}
MIDDLE = {
    "cnn": (cnn, (8, 8, 3), ["^depthwise$", "^bn_2$", "^act_2$"]),
    "nested": (nested, (6, 6, 4), ["^inner_conv$", "^separable$"]),
    "ends": (cnn, (8, 8, 3), "^(conv|bn|act|head)$"),
}


@pytest.mark.parametrize("scheme", sorted(set(intact.schemes.SCHEMES) - {"float32"}))
@pytest.mark.parametrize("kind", MIDDLE)
def test_the_rest_is_float_in_training_and_in_the_file(kind, scheme, rng):
    make, shape, filters = MIDDLE[kind]
    model = enliven(make(), rng)
    q = intact.quantize_model(model, scheme, filters=filters)
    chosen = quantized_layers(model, filters, scheme)
    rest = quantized_layers(model) - chosen
    assert chosen and rest
    for layer in q.layers:
        if isinstance(layer, Quantized | QuantizedWeights):
            assert layer.name in chosen
    data = rng.normal(size=(32, *shape)).astype("float32")
    intact.calibrate(q, data, bias_correction=False, verbose=0)
    content = intact.export(q)
    (graph,) = read(content).graphs
    weights = {t.name: t for t in graph.tensors if t.data is not None}
    for name, tensor in weights.items():
        layer, _, part = name.rpartition("/")
        if part == "kernel":
            assert tensor.dtype.startswith("float32") == (layer not in chosen), name
    # A tensor that is quantized on the way into the next layer has the name of the last one.
    writers = [op for op in graph.ops if op.name != "QUANTIZE"]
    outputs = {t.name.removesuffix("_float"): op for op in writers for t in op.outputs}
    for name in rest & set(outputs):
        assert outputs[name].outputs[0].dtype == "float32", name
    found = intact.load_litert(content).predict(data)
    seen = q.predict(data, verbose=0)
    span = seen.max() - seen.min()
    assert np.abs(found - seen).max() <= EQUAL.get(scheme, 1e-6) * span


def test_what_is_left_out_trains_as_in_float(rng):
    """With nothing but the last layer chosen, all before it computes what it did."""
    model = enliven(cnn(), rng)
    q = intact.quantize_model(model, filters="^head$")
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    cut = keras.Model(model.inputs, model.get_layer("pool").output)
    pool = next(node for node in view(q).nodes if node.layer.name == "pool")
    found = keras.Model(q.inputs, pool.outputs[0])
    np.testing.assert_array_equal(found.predict(x, verbose=0), cut.predict(x, verbose=0))
    q.compile("sgd", "mse")
    before = host(q.get_layer("conv").kernel)
    q.fit(x, rng.normal(size=(16, 4)), verbose=0)
    assert (host(q.get_layer("conv").kernel) != before).any()
    assert (host(q.get_layer("bn").moving_mean) != host(model.get_layer("bn").moving_mean)).any()


def test_float_islands_are_reported(rng):
    model = enliven(cnn(), rng)
    filters = lambda layer: layer.name not in ("depthwise", "head")  # noqa: E731
    seen = intact.explain(model, filters=filters)
    assert "6 of 8 layers run on integers" in str(seen)
    assert "head stays float: left out" in str(seen)
    q = intact.quantize_model(model, filters=filters)
    intact.calibrate(q, rng.normal(size=(8, 8, 8, 3)), verbose=0)
    assert "In float: 1 DEPTHWISE_CONV_2D, 1 FULLY_CONNECTED" in str(
        intact.inspect(intact.export(q))
    )
    with pytest.raises(intact.NotIntegerError, match=r"(?s)depthwise \(Depth.*head \(Dense"):
        intact.export(q, integer_only=True)


def test_a_filtered_model_saves_and_loads(rng, tmp_path):
    q = intact.quantize_model(enliven(nested(), rng), filters="conv")
    x = rng.normal(size=(8, 6, 6, 4)).astype("float32")
    intact.calibrate(q, x, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))
    assert intact.export(loaded) == intact.export(q)


def test_a_batch_norm_alone_may_be_chosen(rng):
    model = enliven(cnn(), rng)
    q = intact.quantize_model(model, filters="^bn$")
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    intact.calibrate(q, x, verbose=0)
    content = intact.export(q)
    kinds = {t.type for t in parse(content).subgraphs[0].tensors}
    assert 9 in kinds  # int8
    assert op_names(content).count("QUANTIZE") == 1
    np.testing.assert_allclose(
        intact.load_litert(content).predict(x), q.predict(x, verbose=0), atol=1e-4
    )


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (3, "Expected `filters`"),
        ([], "Expected `filters`"),
        ([3], "Expected `filters`"),
        ("(", "no regular expression"),
        ("nowhere", r"choose no layer.*conv, bn, act"),
        (lambda layer: False, "choose no layer"),
    ],
    ids=["number", "empty", "numbers", "pattern", "unmatched", "never"],
)
def test_filters_that_cannot_be(filters, message):
    with pytest.raises(intact.IntactError, match=message):
        intact.quantize_model(cnn(), filters=filters)


def test_a_pattern_that_is_found_nowhere_is_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error", intact.UnusedRuleWarning)
        with pytest.raises(intact.UnusedRuleWarning, match="'haed'"):
            intact.quantize_model(cnn(), filters=["conv", "haed"])
