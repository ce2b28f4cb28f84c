"""Export: names, types, bytes, and files written whole or not at all."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn, enliven, mlp, op_names, op_versions, parse, ready

import intact
from intact import ExportError, NotCalibratedError, load_litert


@pytest.fixture
def x(rng):
    return rng.normal(size=(10, 6)).astype("float32")


@pytest.fixture
def q(rng):
    return ready(intact.quantize_model(enliven(mlp(), rng)))


def signature(content):
    (made,) = parse(content).signatureDefs
    return [[m.name.decode() for m in side] for side in (made.inputs, made.outputs)]


@pytest.mark.parametrize("scheme", ["int8", "float32"])
def test_signature_has_the_names_of_the_keras_model(scheme):
    a, b = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    total = layers.Add(name="total")([layers.Dense(2, name="da")(a), layers.Dense(2)(b)])
    model = keras.Model([a, b], [layers.ReLU(name="positive")(total), total])
    exported = model if scheme == "float32" else ready(intact.quantize_model(model))
    content = intact.export(exported)
    assert signature(content) == [["left", "right"], ["positive", "total"]]
    assert signature(content)[0] == [t.name for t in model.inputs]


@pytest.mark.parametrize("scheme", ["int8", "float32"])
def test_outputs_of_a_dict_have_its_keys(scheme, x):
    inputs = keras.Input((6,), name="features")
    hidden = layers.Dense(4, name="hidden")(inputs)
    outputs = {"z": layers.Dense(2, name="a")(hidden), "b": hidden}
    model = keras.Model(inputs, outputs)
    exported = model if scheme == "float32" else ready(intact.quantize_model(model))
    found = load_litert(intact.export(exported)).predict(x)
    expected = exported.predict(x, verbose=0)
    assert set(found) == set(expected) == {"z", "b"}
    for key in found:
        assert found[key].shape == expected[key].shape
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5)


def test_inputs_of_a_dict(rng):
    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((3,), name="a")}
    model = keras.Model(inputs, layers.Subtract(name="gap")([inputs["b"], inputs["a"]]))
    q = ready(intact.quantize_model(model))
    data = {name: rng.normal(size=(5, 3)).astype("float32") for name in "ab"}
    found = load_litert(intact.export(q)).predict(data)
    np.testing.assert_array_equal(found, q.predict(data, verbose=0))
    np.testing.assert_allclose(found, data["b"] - data["a"], atol=0.06)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_same_output_twice(dtype, x):
    inputs = keras.Input((6,), name="features")
    y = layers.Dense(2, name="head")(inputs)
    q = ready(intact.quantize_model(keras.Model(inputs, [y, y])))
    content = intact.export(q, output_dtype=dtype)
    assert signature(content)[1] == ["head", "head_1"]
    found = load_litert(content).predict(x)
    np.testing.assert_array_equal(found["head"], found["head_1"])


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_output_that_is_read_further_on(dtype, x):
    inputs = keras.Input((6,), name="features")
    hidden = layers.Dense(5, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, [hidden, layers.Dense(2, name="head")(hidden)])
    q = ready(intact.quantize_model(model))
    found = load_litert(intact.export(q, output_dtype=dtype)).predict(x)
    for a, b in zip(found.values(), q.predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_input_that_is_an_output(dtype, x):
    inputs = keras.Input((6,), name="features")
    model = keras.Model(inputs, [inputs, layers.Dense(2, name="head")(inputs)])
    q = ready(intact.quantize_model(model))
    found = load_litert(intact.export(q, input_dtype=dtype, output_dtype=dtype)).predict(x)
    assert len(found) == 2
    (same,) = [value for value in found.values() if value.shape == x.shape]
    np.testing.assert_allclose(same, x.clip(-3, 3), atol=0.02)


def test_layers_that_do_nothing_leave_no_op(rng):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dropout(0.5),
            layers.Dense(3, activation="linear"),
            layers.Identity(),
            layers.Activation("linear"),
            layers.GaussianNoise(1.0),
        ]
    )
    content = intact.export(ready(intact.quantize_model(model)), integer_only=True)
    assert op_names(content) == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_integers_at_the_boundary_need_no_conversion(q):
    content = intact.export(q, input_dtype="int8", output_dtype="int8")
    assert op_names(content) == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    content = intact.export(q, input_dtype="uint8", output_dtype="uint8")
    assert op_names(content) == ["QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "QUANTIZE"]


def test_batch_is_dynamic_where_the_models_is(rng):
    dynamic = parse(intact.export(ready(intact.quantize_model(mlp()))))
    assert list(dynamic.subgraphs[0].tensors[0].shapeSignature) == [-1, 6]
    inputs = keras.Input(batch_shape=(4, 6), name="features")
    fixed = keras.Model(inputs, layers.Dense(2)(inputs))
    content = intact.export(ready(intact.quantize_model(fixed)))
    assert list(parse(content).subgraphs[0].tensors[0].shape) == [4, 6]
    assert parse(content).subgraphs[0].tensors[0].shapeSignature is None
    assert load_litert(content).predict(np.ones((10, 6), "float32")).shape == (10, 2)


def test_export_is_deterministic(rng):
    model = enliven(cnn(), rng)
    files = {intact.export(ready(intact.quantize_model(model))) for _ in range(2)}
    assert len(files) == 1
    assert intact.export(model) == intact.export(model)


def test_export_leaves_the_model_as_it_was(q):
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in q.variables]
    intact.export(q)
    for old, variable in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)


def test_equal_weights_are_stored_once(rng):
    inputs = keras.Input((64,))
    twins = [layers.Dense(64, name=name) for name in ("one", "two")]
    model = keras.Model(inputs, layers.Add()([twin(inputs) for twin in twins]))
    sizes = []
    for same in (False, True):
        kernels = rng.normal(size=(2, 64, 64))
        for twin, kernel in zip(twins, kernels, strict=True):
            twin.kernel.assign(kernels[0] if same else kernel)
        sizes.append(len(intact.export(ready(intact.quantize_model(model)))))
    assert sizes[0] - sizes[1] >= 64 * 64


def test_shared_layer_is_stored_once():
    shared = layers.Dense(100, name="shared")
    a, b = keras.Input((100,)), keras.Input((100,))
    q = ready(intact.quantize_model(keras.Model([a, b], [shared(a), shared(b)])))
    assert len(intact.export(q)) < 20_000


def test_op_versions(rng):
    versions = op_versions(intact.export(ready(intact.quantize_model(cnn()))))
    assert versions == {
        "QUANTIZE": 1,
        "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3,
        "MEAN": 2,
        "FULLY_CONNECTED": 4,
        "DEQUANTIZE": 2,
    }
    versions = op_versions(intact.export(cnn()))
    assert versions == {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1}


def test_float_file_equals_keras(rng):
    model = enliven(cnn(), rng)
    data = rng.normal(size=(5, 8, 8, 3)).astype("float32")
    found = load_litert(intact.export(model)).predict(data)
    np.testing.assert_allclose(found, model.predict(data, verbose=0), rtol=1e-4, atol=1e-5)


def test_int8_file_is_about_a_quarter():
    model = keras.Sequential([keras.Input((256,)), layers.Dense(256), layers.Dense(256)])
    ratio = len(intact.export(ready(intact.quantize_model(model)))) / len(intact.export(model))
    assert ratio < 0.3


def test_uncalibrated_export_names_the_ranges(tmp_path):
    q = intact.quantize_model(mlp())
    message = (
        r"3 ranges of model 'mlp' have seen no data:\n"
        r"  features_quantizer: behind InputLayer 'features'\n"
        r"  hidden_relu_quantizer: behind Dense 'hidden'\n"
        r"  head_quantizer: behind Dense 'head'\n"
        r"Run `intact\.calibrate.*before exporting; .*default_ranges"
    )
    with pytest.raises(NotCalibratedError, match=message):
        intact.export(q, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_a_range_that_alone_is_missing_is_named(q):
    q.get_layer("hidden_relu_quantizer").reset()
    with pytest.raises(NotCalibratedError, match=r"1 ranges.*\n.*hidden_relu_quantizer"):
        intact.export(q)


def test_path_is_written_whole(q, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old" * 10_000)
    content = intact.export(q, path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_path_may_be_a_string(q, tmp_path):
    intact.export(q, str(tmp_path / "m.tflite"))
    assert (tmp_path / "m.tflite").is_file()


def test_folder_and_missing_folder_are_errors(q, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="folder"):
        intact.export(q, tmp_path / "folder")
    with pytest.raises(ExportError, match=r"'.*none' is missing"):
        intact.export(q, tmp_path / "none" / "m.tflite")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]


def test_a_parent_that_is_a_file_is_an_error(q, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file"):
        intact.export(q, tmp_path / "file" / "m.tflite")


def test_a_disk_that_refuses_keeps_the_old_file(q, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "replace", refuse)
    with pytest.raises(ExportError, match="Permission denied"):
        intact.export(q, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_a_name_too_long_is_an_error(q, tmp_path):
    with pytest.raises(ExportError, match="long"):
        intact.export(q, tmp_path / ("m" * 300 + ".tflite"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", ["input_dtype", "output_dtype"])
def test_unknown_dtype(side, q):
    with pytest.raises(intact.IntactError, match=rf"{side}.*float32.*int8.*uint8.*'int32'"):
        intact.export(q, **{side: "int32"})


def test_what_is_no_model_is_refused():
    with pytest.raises(intact.IntactError, match=r"keras\.Model"):
        intact.export("model.keras")


def test_integer_types_of_a_float_model():
    # There is nothing to quantize with, and it would stay in float without a word.
    for side in ("input", "output"):
        with pytest.raises(intact.ExportError, match=f"The {side} .* stays in float"):
            intact.export(mlp(), **{f"{side}_dtype": "int8"})


@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
def test_an_input_that_is_an_output_is_what_the_file_returns(read, rng):
    x, other = keras.Input((4,), name="x"), keras.Input((4,), name="other")
    model = keras.Model([x, other], [layers.Dense(3)(x if read else other), x, x])
    data = [rng.normal(size=(64, 4)).astype("float32") for _ in range(2)]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    for dtype in ("float32", "int8"):
        content = intact.export(q, input_dtype=dtype, output_dtype=dtype, integer_only=True)
        assert intact.compare(q, content, data).different == 0
    details = intact.load_litert(content).interpreter.get_output_details()
    assert {np.dtype(d["dtype"]).name for d in details} == {"int8"}


class WithConstant(layers.Layer):
    """Returns the sine of a weight beside its input."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(1, 2), initializer="random_normal")

    def call(self, x):
        return x * 2.0, ops.sin(self.weight)

    def compute_output_shape(self, shape):
        return shape, (1, 2)


@pytest.mark.filterwarnings("ignore::intact.NotKeptWarning")
def test_an_output_that_no_input_reaches(rng):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, WithConstant()(inputs))
    x = rng.normal(size=(8, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    file = intact.load_litert(intact.export(q))
    for samples in (1, 8):
        _, constant = file.predict(x[:samples]).values()
        np.testing.assert_array_equal(constant, q.predict(x[:samples], verbose=0)[1])
