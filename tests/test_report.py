"""Comparisons of a model with a file."""

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, mlp, ready

import intact


@pytest.fixture
def x(rng):
    return rng.normal(size=(40, 6)).astype("float32")


@pytest.fixture
def q(rng, x):
    return intact.calibrate(intact.quantize_model(enliven(mlp(), rng)), x, verbose=0)


def test_the_right_file_has_no_difference(q, x, tmp_path):
    content = intact.export(q, tmp_path / "m.tflite")
    for file in (content, tmp_path / "m.tflite", str(tmp_path / "m.tflite")):
        found = intact.compare(q, file, x)
        assert (found.different, found.max_lsb, found.top1, found.samples) == (0, 0.0, 1.0, 40)
        assert [a.name for a in found.outputs] == ["head"]
        assert [a.name for a in found.layers] == ["features", "hidden_relu", "head"]
        assert found.layers[1].values == 40 * 5
        assert all(a.share_equal == 1.0 for a in (*found.outputs, *found.layers))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_files_of_integers(q, x, dtype):
    found = intact.compare(q, intact.export(q, input_dtype=dtype, output_dtype=dtype), x)
    assert found.different == 0
    assert not any(a.different for a in found.layers)


def test_another_calibration_is_seen(q, x):
    content = intact.export(q)
    intact.calibrate(q, 3 * x, verbose=0)
    found = intact.compare(q, content, x)
    assert found.different > 0
    assert found.max_lsb > 1
    assert found.outputs[0].share_equal < 1
    by_name = {a.name: a for a in found.layers}
    assert by_name["features"].different > 0


def test_other_weights_are_seen_where_they_are(q, x):
    content = intact.export(q)
    kernel = q.get_layer("head").layer.kernel
    kernel.assign(-1.0 * kernel)
    found = intact.compare(q, content, x)
    by_name = {a.name: a for a in found.layers}
    assert by_name["hidden_relu"].different == 0
    assert by_name["head"].different > 0
    assert found.top1 < 1


def test_without_layers(q, x):
    assert intact.compare(q, intact.export(q), x, per_layer=False).layers == ()


def test_differences_are_in_units_of_the_outputs_scale(q, x):
    content = intact.export(q)
    bias = q.get_layer("head").layer.bias
    scale = float(keras.ops.convert_to_numpy(q.get_layer("head_quantizer").scale))
    bias.assign(bias + 4.0 * scale)
    for dtype in ("float32", "int8"):
        content = content if dtype == "float32" else intact.export(q, output_dtype=dtype)
        found = intact.compare(q, content, x)
        expected = 4.0 if dtype == "float32" else 0.0
        np.testing.assert_allclose(found.max_lsb, expected, atol=1.01 if expected else 0)
        np.testing.assert_allclose(found.layers[-1].max_lsb, found.max_lsb, rtol=1e-3)


def test_a_float_model_and_its_file(x):
    model = mlp()
    found = intact.compare(model, intact.export(model), x)
    assert found.max_lsb < 1e-5
    assert found.layers == ()


def test_several_inputs_and_outputs(rng):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    y = layers.Dense(2, name="y")(layers.Concatenate()([a, b]))
    q = ready(
        intact.quantize_model(keras.Model([a, b], {"gap": layers.Subtract()([a, b]), "y": y}))
    )
    data = {name: rng.normal(size=(10, 3)).astype("float32") for name in "ab"}
    content = intact.export(q)
    for x in (data, [data["a"], data["b"]]):
        found = intact.compare(q, content, x)
        assert {o.name for o in found.outputs} == {"gap", "y"}
        assert found.different == 0


def test_names_that_look_alike_are_kept_apart(rng):
    # The second tensor of the range "part" must not be taken for the layer "part_1".
    inputs = keras.Input((4,), name="x")
    part = layers.Dense(2, name="part")(inputs)
    other = layers.Dense(2, name="other")(inputs)
    last = layers.Dense(2, name="part_1")(layers.Concatenate()([part, other]))
    q = ready(intact.quantize_model(enliven(keras.Model(inputs, last), rng)))
    data = rng.normal(size=(10, 4)).astype("float32")
    found = intact.compare(q, intact.export(q), data)
    assert len({a.name for a in found.layers}) == len(found.layers) == 4
    assert not any(a.different for a in found.layers)


def test_printing(q, x):
    lines = str(intact.compare(q, intact.export(q), x)).split("\n")
    assert lines[0] == "Keras against LiteRT, 40 samples"
    assert lines[1].split() == ["values", "differ", "max", "LSB", "top-1", "same"]
    assert lines[2].split() == ["output", "head", "120", "0", "0", "100.00", "%"]
    assert [line.split()[:2] for line in lines[3:]] == [
        ["layer", name] for name in ("features", "hidden_relu", "head")
    ]


def test_bad_input(q, x, tmp_path):
    content = intact.export(q)
    with pytest.raises(intact.InvalidDataError, match="takes shape"):
        intact.compare(q, content, x[:, :4])
    with pytest.raises(intact.InvalidDataError, match="NaN"):
        intact.compare(q, content, x * np.nan)
    with pytest.raises(intact.InvalidDataError, match="empty"):
        intact.compare(q, content, x[:0])
    with pytest.raises(intact.IntactError, match="no file"):
        intact.compare(q, tmp_path / "none.tflite", x)
    with pytest.raises(intact.IntactError, match="not a LiteRT file"):
        intact.compare(q, b"nothing of the sort", x)


def test_a_file_of_another_model_is_refused(q, x):
    two = mlp()
    other = ready(
        intact.quantize_model(keras.Model(two.inputs, [two.outputs[0], two.layers[0].output]))
    )
    for stranger in (intact.export(other), intact.export(ready(intact.quantize_model(cnn())))):
        with pytest.raises(intact.IntactError, match=r"exported|shape"):
            intact.compare(q, stranger, x)
