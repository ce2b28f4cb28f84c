"""What is said about a model before anything is done."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn

import intact


def test_an_integer_model_is_said_to_be_one():
    seen = intact.explain(cnn())
    assert seen.integer
    assert seen.supported
    by_name = {entry.name: entry for entry in seen.layers}
    assert by_name["conv"].kernels == ("CONV_2D",)
    assert by_name["bn"].kernels == ("folded",)
    assert by_name["act"].kernels == ("fused",)
    rows = [line.partition(" ")[0] for line in str(seen).splitlines()]
    assert {"conv", "bn", "act"} <= set(rows)
    assert "layers run on integers" in str(seen)


@pytest.mark.parametrize(("steps", "least"), [(7, 20), (12, 15)], ids=["written out", "loop"])
def test_a_users_layer_is_one_row(steps, least):
    memory = layers.LSTM(3, name="memory")
    model = keras.Sequential([keras.Input((steps, 4)), memory, layers.Dense(2)])
    seen = intact.explain(model)
    assert len(seen.layers) > least
    assert list(seen.by_owner) == ["memory", model.layers[-1].name]
    assert {entry.owner_kind for entry in seen.by_owner["memory"]} == {"LSTM"}
    lines = str(seen).splitlines()
    assert lines[1].startswith("memory  LSTM ") and "2 of 2 layers" in lines[4]
    assert len(seen.details.splitlines()) == len(seen.layers) + 1


def test_a_nested_custom_layer_is_one_row():
    inputs = keras.Input((6, 8))
    seen = intact.explain(keras.Model(inputs, layers.Dense(2, name="head")(Twice()(inputs))))
    assert [(name, parts[0].owner_kind) for name, parts in seen.by_owner.items()] == [
        ("twice", "Twice"),
        ("head", "Dense"),
    ]


def test_the_table_is_never_empty():
    seen = str(intact.explain(cnn(), "float32"))
    assert "conv" in seen.splitlines()[1] and "float" in seen.splitlines()[1]
    assert "head stays float: by rule" in seen and "weights float, activations float" in seen


def test_all_refused_layers_are_listed():
    x = inputs = keras.Input((2, 3, 4, 3))
    for name in ("up", "top"):
        x = layers.Conv3DTranspose(4, 2, name=name)(x)
    with pytest.raises(intact.IntactError, match="2 of the 2 layers cannot be quantized") as error:
        intact.quantize_model(keras.Model(inputs, x))
    lines = str(error.value).splitlines()
    assert ["'up'" in lines[1], "'top'" in lines[2], len(lines)] == [True, True, 4]


class Twice(keras.layers.Layer):
    """Two dense layers and an attention inside one layer of the user's."""

    def __init__(self):
        super().__init__(name="twice")
        self.first, self.second = layers.Dense(8), layers.Dense(8, "gelu")
        self.attention = layers.MultiHeadAttention(2, 4)

    def call(self, x):
        x = self.second(self.first(x)) * 2.0
        return self.attention(x, x)


def mixed():
    inputs = keras.Input((2, 3, 4, 3))
    x = layers.Dense(4, name="first")(inputs)
    x = layers.Conv3DTranspose(4, 2, name="up")(x)
    x = layers.Dense(4, name="second")(x)
    return keras.Model(inputs, x, name="mixed")


def test_what_stays_float_is_named_before_training(rng):
    model = mixed()
    seen = intact.explain(model)
    assert seen.supported
    assert not seen.integer
    assert "CONV_3D_TRANSPOSE has no integer kernel" in str(seen)
    with pytest.raises(
        intact.IntactError, match=r"CONV_3D_TRANSPOSE has no integer kernel.*allow_float=True"
    ):
        intact.quantize_model(model)


def test_float_that_is_allowed_stays_float_in_the_file(rng):
    model = mixed()
    x = rng.normal(size=(32, 2, 3, 4, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, allow_float=True), x, verbose=0)
    with pytest.raises(intact.NotIntegerError, match="up"):
        intact.export(q, integer_only=True)
    found = intact.load_litert(intact.export(q)).predict(x)
    np.testing.assert_allclose(found, q.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=0.3)


def test_unknown_layers_are_all_named_at_once():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="known")(inputs)
    x = ops.corrcoef(x)
    x = layers.Lambda(lambda t: ops.median(t), name="odd", output_shape=())(x)
    seen = intact.explain(keras.Model(inputs, x))
    assert not seen.supported
    unknown = [entry.reason for entry in seen.layers if not entry.known]
    assert len(unknown) == 2
    assert "Corrcoef" in unknown[0]
    assert "Median" in unknown[1]
    assert "cannot be exported" in str(seen)


class Probe(keras.layers.Layer):
    """A layer of the user's own, of which one part is refused."""

    def __init__(self):
        super().__init__(name="probe")
        self.inside = keras.layers.Dense(4)

    def call(self, x):
        return keras.ops.inv(self.inside(x)[:, :4])

    def compute_output_shape(self, shape):
        return (shape[0], 4, 4)


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda x: keras.ops.median(x), "median"),
        (lambda x: Probe()(x), "probe_inv"),
    ],
)
def test_what_is_refused_is_listed(build, name):
    x = keras.Input((6, 8))
    explained = intact.explain(keras.Model(x, build(x)))
    assert not explained.supported and not explained.integer
    unknown = [entry for entry in explained.layers if not entry.known]
    assert any(name in f"{entry.name} {entry.reason}" for entry in unknown)


def test_what_reads_an_unknown_tensor_is_listed():
    x = keras.Input((6, 4))
    report = str(intact.explain(keras.Model(x, ops.cast(x > ops.median(x), "float32"))))
    assert "Median" in report
