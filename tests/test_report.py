"""Comparisons of a model with a file, and with the float model."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, mlp, quantizers, ready, weights

import intact
from intact.analysis import report


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
    assert lines[1].split() == ["values", "differ", "max", "LSB", "top-1", "same", "SNR"]
    assert lines[2].split()[:-2] == ["output", "head", "120", "0", "0", "100.00", "%"]
    assert lines[2].endswith(" dB")
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


def test_a_requantization_that_vanishes(rng):
    # A sigmoid's range is fixed, so that it is converted before the concatenation; where the
    # other range is the same, there is nothing to convert, and no such tensor in the file.
    inputs = keras.Input((4,), name="x")
    fixed = layers.Activation("sigmoid", name="fixed")(layers.Dense(3, name="a")(inputs))
    other = layers.Dense(3, activation="relu", name="b")(inputs)
    both = layers.Concatenate(name="both")([fixed, other])
    q = ready(intact.quantize_model(enliven(keras.Model(inputs, both), rng)))
    data = rng.normal(size=(10, 4)).astype("float32")
    made = len(intact.compare(q, intact.export(q), data).layers)
    quantizers(q)["b_relu"].set_range(0.0, 255 / 256)
    found = intact.compare(q, intact.export(q), data)
    assert found.different == 0
    assert len(found.layers) == made - 1
    assert not any(a.different for a in found.layers)


def test_inputs_of_integers_that_share_a_range(rng):
    pair = [keras.Input((3,), name=name) for name in "ab"]
    y = layers.Dense(2, name="y")(layers.Concatenate()(pair))
    q = ready(intact.quantize_model(keras.Model(pair, y)))
    data = [rng.normal(size=(10, 3)).astype("float32") for _ in pair]
    for dtype in ("float32", "int8"):
        found = intact.compare(q, intact.export(q, input_dtype=dtype), data)
        assert [a.name for a in found.layers] == ["a", "a/1", "y"]
        assert not any(a.different for a in found.layers)


def noise(real, other):
    real, other = np.asarray(real, "float64"), np.asarray(other, "float64")
    return 10 * np.log10(np.sum(real**2) / np.sum((real - other) ** 2))


@pytest.fixture
def model(rng):
    return enliven(mlp(), rng)


def test_signal_to_noise_is_against_the_float_model(model, x):
    q = intact.calibrate(intact.quantize_model(model), x, bias_correction=False, verbose=0)
    found = intact.compare(q, intact.export(q), x, batch_size=16, float_model=model)
    by_name = {a.name: a for a in found.layers}
    inside = keras.Model(model.inputs, [layer.output for layer in model.layers])
    hidden, head = inside.predict(x, verbose=0)
    mine = q.predict(x, verbose=0)
    assert found.outputs[0].snr == pytest.approx(noise(head, mine), abs=0.01)
    assert by_name["head"].snr == found.outputs[0].snr
    assert found.outputs[0].float_top1 == (head.argmax(1) == mine.argmax(1)).mean()
    # The head alone: the float model's tensor, rounded, through the rounded layer.
    step = float(keras.ops.convert_to_numpy(quantizers(q)["hidden_relu"].scale))
    kernel, scale = (
        keras.ops.convert_to_numpy(part)
        for part in q.get_layer("head").quantized_weights()["kernel"]
    )
    rounded = np.clip(np.rint(hidden / step), 0, 255) * step
    layer = model.get_layer("head")
    kernel_float, bias = (keras.ops.convert_to_numpy(v) for v in (layer.kernel, layer.bias))
    out = float(keras.ops.convert_to_numpy(quantizers(q)["head"].scale))
    alone = np.rint((rounded @ (kernel * scale) + bias) / out) * out
    expected = noise(rounded @ kernel_float + bias, alone)
    assert by_name["head"].local_snr == pytest.approx(expected, abs=0.5)
    assert by_name["features"].local_snr == pytest.approx(by_name["features"].snr, abs=1e-3)


def test_the_layer_that_is_at_fault_has_the_noise(model, x):
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    quantizers(q)["hidden_relu"].set_range(0.0, 0.3)
    found = intact.compare(q, intact.export(q), x, float_model=model)
    worst = min(found.layers, key=lambda a: a.local_snr)
    assert worst.name == "hidden_relu"
    assert worst.activations.clipped > 0.1
    assert worst.activations.range == pytest.approx((0.0, 0.3), abs=0.01)
    assert found.layers[-1].local_snr > 30 > worst.local_snr
    assert found.different == 0


def test_comparing_changes_nothing(model, x, tmp_path):
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    before, config, content = weights(q), json.dumps(q.get_config()), intact.export(q)
    intact.compare(q, content, x, float_model=model)
    assert json.dumps(q.get_config()) == config
    assert all(np.array_equal(a, b) for a, b in zip(weights(q), before, strict=True))
    assert intact.export(q) == content
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert np.array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))


@pytest.mark.parametrize("scheme", ["float16", "weight_only_4", "dynamic_range"])
def test_schemes_of_float_activations(rng, scheme):
    model = enliven(cnn(), rng)
    data = rng.normal(size=(8, 8, 8, 3)).astype("float32")
    q = intact.quantize_model(model, scheme)
    found = intact.compare(q, intact.export(q), data, float_model=model)
    assert found.layers == ()
    # Fused layers have the weights of the one that they are fused into.
    assert [a.name for a in found.floats] == ["act", "act_2", "pool", "head"]
    assert [found.floats[i].layer for i in (0, 1, 3)] == ["conv", "depthwise", "head"]
    assert [found.floats[i].kind for i in (0, 3)] == ["Conv2D", "Dense"]
    assert [a.weights is None for a in found.floats] == [False, False, True, False]
    assert [a.local_snr is None for a in found.floats] == [False, False, True, False]
    limit = {"float16": 55, "weight_only_4": 12, "dynamic_range": 25}[scheme]
    assert all(limit < a.snr < limit + 50 for a in found.floats)


def test_a_float_model_with_a_quantized_file(rng):
    model = enliven(cnn(), rng)
    data = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q)
    with_q = intact.compare(q, content, data, float_model=model)
    alone = intact.compare(model, content, data)
    snr = {a.name: a.snr for a in with_q.layers}
    assert [a.name for a in alone.layers] == ["act", "act_2", "pool", "head"]
    assert all(a.snr == pytest.approx(snr[a.name], abs=0.1) for a in alone.layers)
    assert alone.outputs[0].snr == pytest.approx(with_q.outputs[0].snr, abs=0.1)


def test_float_islands_are_marked(rng):
    rules = (intact.Rule("act", None, None), intact.Rule())
    q = intact.quantize_model(enliven(cnn("tanh"), rng), intact.Scheme("island", rules))
    data = rng.normal(size=(8, 8, 8, 3)).astype("float32")
    found = intact.compare(intact.calibrate(q, data, verbose=0), intact.export(q), data)
    assert [node.kind for node in found.nodes if node.float] == ["TANH"]
    assert "act" in [a.name for a in found.floats]
    assert all(max(node.reads, default=-1) < i for i, node in enumerate(found.nodes))


def test_shared_layers_find_their_float_tensors(rng):
    inputs = keras.Input((4,), name="x")
    shared = layers.Dense(4, activation="relu", name="shared")
    model = enliven(keras.Model(inputs, layers.Dense(2)(shared(shared(inputs)))), rng)
    data = rng.normal(size=(30, 4)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    found = intact.compare(q, intact.export(q), data, float_model=model)
    assert all(a.snr > 20 for a in found.layers)


def test_another_float_model_is_refused(q, x):
    other = keras.Sequential([keras.Input((6,)), layers.Dense(3, name="other")])
    with pytest.raises(intact.IntactError, match="the float model that it was made from"):
        intact.compare(q, intact.export(q), x, float_model=other)


def test_json(q, model, x, tmp_path):
    found = intact.compare(q, intact.export(q), x, float_model=model)
    found.to_json(tmp_path / "c.json")
    made = json.loads((tmp_path / "c.json").read_text())
    assert [a["name"] for a in made["layers"]] == ["features", "hidden_relu", "head"]
    assert made["layers"][1]["activations"]["counts"]
    with pytest.raises(intact.ExportError, match="is missing"):
        found.to_json(tmp_path / "none" / "c.json")


@pytest.mark.parametrize("reference", [True, False])
def test_node_data_of_model_explorer(reference, q, model, x, tmp_path, monkeypatch):
    if not reference:
        # As of a model whose ops have no float form.
        monkeypatch.setattr(report.FloatForm, "attempt", lambda form, batch: None)
    content = intact.export(q)
    names = {t["name"] for t in intact.inspect(content).to_dict()["graphs"][0]["tensors"]}
    found = intact.compare(q, content, x, float_model=model if reference else None)
    found.to_model_explorer(tmp_path / "nodes.json")
    made = json.loads((tmp_path / "nodes.json").read_text())
    assert set(made["results"]) == {"features", "hidden_relu", "head"} <= names
    values = [entry["value"] for entry in made["results"].values()]
    assert values == [a.snr if reference else a.max_lsb for a in found.layers]
    assert [stop["stop"] for stop in made["gradient"]] == [0, 0.5, 1]


def raises(*args):
    raise intact.IntactError("no float form")


def test_without_a_float_model_it_is_the_model_where_nothing_is_rounded(rng, x):
    model = enliven(mlp(), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    content = intact.export(q)
    found = intact.compare(q, content, x)
    expected = intact.compare(q, content, x, float_model=model)
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert a.snr == pytest.approx(b.snr, abs=0.01)
    assert found.outputs[0].snr == pytest.approx(expected.outputs[0].snr, abs=0.01)
    assert found.outputs[0].float_top1 == expected.outputs[0].float_top1
    assert found.layers[0].local_snr is None


def test_a_range_that_is_wrong_is_seen_without_a_float_model(q, x):
    quantizers(q)["hidden_relu"].set_range(0.0, 0.01)
    found = intact.compare(q, intact.export(q), x)
    assert found.different == 0
    assert found.outputs[0].snr < 10


def test_swapped_arguments(q, x):
    with pytest.raises(intact.IntactError, match=r"the model first.*Received: bytes"):
        intact.compare(intact.export(q), q, x)
