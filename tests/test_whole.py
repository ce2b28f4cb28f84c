"""Whole numbers are never quantized: what Keras computes is what every file computes."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import op_names, quantizers

import intact
from intact import InvalidModelError, UnsupportedLayerError

FUNCTIONS = {
    "add": lambda i: i + 2,
    "add an array": lambda i: i + np.array([0, 100, 200, 300]),
    "add a tensor": lambda i: i + ops.flip(i, 1),
    "subtract": lambda i: 1000 - i,
    "multiply": lambda i: i * 3,
    "floor_divide": lambda i: i // 7,
    "mod": lambda i: i % 7,
    "mod of negative ones": lambda i: (3 - i) % 7 + (3 - i) // 4,
    "maximum": lambda i: ops.maximum(i, 300),
    "minimum": lambda i: ops.minimum(ops.flip(i, 1), i),
    "clip": lambda i: ops.clip(i, 10, 500),
    "where": lambda i: ops.where(ops.equal(i, 0), 7, i),
    "where of numbers": lambda i: ops.where(i > 400, 1, 0),
    "abs": lambda i: ops.abs(i - 400),
    "negative": lambda i: -i,
    "sign": lambda i: ops.sign(i - 400),
    "square": lambda i: ops.square(i),
    "power": lambda i: i**2,
    "relu": lambda i: ops.relu(i - 400),
    "sum": lambda i: ops.sum(i, axis=1, keepdims=True),
    "sum of truth values": lambda i: ops.sum(i > 400, axis=1),
    "max": lambda i: ops.max(i, axis=1),
    "min": lambda i: ops.min(i, axis=-1, keepdims=True),
    "argmax": lambda i: ops.argmax(i, axis=1),
    "argmin": lambda i: ops.argmin(i, axis=1),
    "cumsum": lambda i: ops.cumsum(ops.cast(ops.not_equal(i, 0), "int32"), axis=1),
    "diff": lambda i: ops.diff(i, axis=1),
    "steps": lambda i: i[:, ::2],
    "slice": lambda i: i[:, 1:3] + 1,
    "concatenate": lambda i: ops.concatenate([i, i % 5], axis=1),
    "stack": lambda i: ops.stack([i, i + 1], axis=-1),
    "tile": lambda i: ops.tile(i, (1, 3)),
    "repeat": lambda i: ops.repeat(i, 2, axis=1),
    "roll": lambda i: ops.roll(i, 1, axis=1),
    "pad": lambda i: ops.pad(i, ((0, 0), (1, 2))),
    "pad by reflection": lambda i: ops.pad(i, ((0, 0), (1, 2)), mode="reflect"),
    "take": lambda i: ops.take(i, [3, 0, 0], axis=1),
    "take by computed indices": lambda i: ops.take(np.arange(50) * 7919, i % 50, axis=0),
    "reshape and transpose": lambda i: ops.transpose(ops.reshape(i, (-1, 2, 2)), (0, 2, 1)) + 1,
    "zeros_like": lambda i: ops.zeros_like(i) + i,
    "tril": lambda i: ops.tril(ops.reshape(i, (-1, 2, 2))),
    "cast": lambda i: ops.cast(ops.cast(i % 100, "uint8") + 200, "int32"),
    "all": lambda i: ops.all(i > 3, axis=1),
    "logic": lambda i: ops.logical_xor(i > 3, ops.logical_or(i < 500, i % 2)),
    "compare": lambda i: ops.logical_and(i > 0.5, ops.logical_and(i <= 100, i != 3)),
    "compare with a tensor": lambda i: i >= ops.flip(i, 1),
    "layers": lambda i: layers.Add()([layers.Maximum()([i, i + 1]), i, layers.Multiply()([i, i])]),
    "a layer of code": lambda i: layers.Lambda(lambda x: ops.maximum(x - 1, 0))(i),
}


FEW = ("add", "floor_divide", "where", "concatenate", "sum", "compare", "slice")
"""Those that other types of whole numbers are tried on."""


def many(dtype, names=tuple(FUNCTIONS)):
    """A model with an output of whole numbers for each function, and an embedding of one."""
    ids = keras.Input((4,), dtype=dtype, name="ids")
    outputs = {name: FUNCTIONS[name](ids) for name in names}
    outputs["embedding"] = layers.Embedding(1000, 3)(ops.minimum(ops.cast(ids, "int32") + 2, 999))
    return keras.Model(ids, outputs)


def assert_same(found, expected):
    for name, want in expected.items():
        if name != "embedding":
            assert found[name].dtype.kind in "biu", name
            np.testing.assert_array_equal(found[name], want, err_msg=name)


def assert_whole(model, scheme, ids):
    """Keras, the quantized model and its file agree; rows of the embedding are rounded alone."""
    expected = model.predict(ids, verbose=0)
    if scheme == "float":
        file = intact.load_litert(intact.export(model)).predict(ids)
        assert_same(file, expected)
        np.testing.assert_array_equal(file["embedding"], expected["embedding"])
        return
    q = intact.quantize_model(model, scheme)
    if quantizers(q):
        intact.calibrate(q, ids, verbose=0)
    file = intact.load_litert(intact.export(q, integer_only=bool(quantizers(q)))).predict(ids)
    found = q.predict(ids, verbose=0)
    assert_same(found, expected)
    assert_same(file, found)
    np.testing.assert_allclose(file["embedding"], found["embedding"], atol=1e-6)
    np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=1e-3)


@pytest.mark.parametrize("scheme", ["float", "int8", "weight_only_8"])
def test_whole_numbers_are_what_keras_computes(scheme, rng):
    assert_whole(many("int32"), scheme, rng.integers(0, 900, (40, 4)).astype("int32"))


@pytest.mark.parametrize("scheme", ["float16", "uint8", "int16x8", "dynamic_range"])
def test_whole_numbers_in_other_schemes(scheme, rng):
    assert_whole(many("int32", FEW), scheme, rng.integers(0, 900, (40, 4)).astype("int32"))


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int16", "int8"])
def test_other_types_of_whole_numbers(dtype, rng):
    if (keras.backend.backend(), dtype) == ("jax", "int64"):
        pytest.skip("JAX has int32 instead, and warns")
    # Where a type is too narrow for a result, Keras wraps around.
    names = {"int64": [n for n in FEW if n != "floor_divide"], "int8": ["sum"]}
    names = names.get(dtype, FEW)
    high = min(900, np.iinfo(dtype).max)
    assert_whole(many(dtype, names), "int8", rng.integers(0, high, (40, 4)).astype(dtype))


def test_truth_values_as_input(rng):
    seen = keras.Input((4,), dtype="bool")
    x = keras.Input((4,))
    model = keras.Model([seen, x], [ops.where(seen, x, 0.0), x * seen, ops.sum(seen, axis=1)])
    data = [rng.integers(0, 2, (40, 4)).astype(bool), rng.normal(size=(40, 4)).astype("float32")]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data).different == 0
    found, expected = q.predict(data, verbose=0), model.predict(data, verbose=0)
    np.testing.assert_array_equal(found[2], expected[2])
    for a, b in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=0.03)


def test_types_that_files_lack_are_refused():
    x = keras.Input((4,), dtype="uint16", name="counts")
    with pytest.raises(InvalidModelError, match="'counts' is of type uint16"):
        intact.quantize_model(keras.Model(x, layers.Rescaling(0.5)(x)))
    x = keras.Input((4,), dtype="uint8")
    with pytest.raises(UnsupportedLayerError, match="its constant 700 has no place in uint8"):
        intact.quantize_model(keras.Model(x, x < 700))
    x = keras.Input((4,), dtype="int64")
    if (x // 3).dtype == "int64":
        with pytest.raises(UnsupportedLayerError, match="int64, and its kernel takes int32"):
            intact.quantize_model(keras.Model(x, x // 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: layers.Embedding(9, 2)(x * 2.0), "computed in real numbers"),
        (lambda x: ops.one_hot(ops.relu(x), 9), "computed in real numbers"),
    ],
)
def test_real_numbers_are_no_indices(function, message):
    x = keras.Input((4,))
    with pytest.raises(UnsupportedLayerError, match=message):
        intact.quantize_model(keras.Model(x, function(x)))


def test_sums_of_whole_values_are_whole_numbers(rng):
    x = keras.Input((8,))
    model = keras.Model(x, ops.cast(ops.floor(x[:, :4]) + ops.floor(x[:, 4:]), "int32"))
    data = rng.uniform(-3, 5, size=(64, 8)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, "int16x8"), data, verbose=0)
    wrong = q.predict(data, verbose=0) != model.predict(data, verbose=0)
    # An input near a whole number may be rounded beyond it.
    assert wrong.mean() < 0.01
    assert not intact.compare(q, intact.export(q), data).different


def test_whole_numbers_without_a_kernel_are_refused():
    x = keras.Input((4, 4), dtype="int32")
    with pytest.raises(UnsupportedLayerError, match="it computes whole numbers"):
        intact.quantize_model(keras.Model(x, ops.matmul(x, x)))


CAMERAS = {
    "rescaling": layers.Rescaling(1 / 127.5, -1.0),
    "normalization": layers.Normalization(mean=[3.0, 50.0, 200.0], variance=[100.0, 9.0, 400.0]),
    "cast": lambda x: ops.cast(x, "float32") / 255.0,
    "division": lambda x: x / 255.0,
    "resizing": lambda x: layers.Resizing(4, 4)(x) / 255.0,
    "cropping": lambda x: layers.Rescaling(1 / 255.0)(layers.Cropping2D(1)(x)),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_images_of_bytes(name, rng):
    """A byte is an integer of step 1: exact, whatever calibration has seen."""
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = layers.Conv2D(4, 3, activation="relu")(CAMERAS[name](image))
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    data = rng.integers(0, 256, (48, 8, 8, 3)).astype("uint8")
    q = intact.calibrate(intact.quantize_model(model), data // 2, verbose=0)
    first = next(iter(quantizers(q).values()))
    assert first.stored_pair() == (1.0, -128.0)
    content = intact.export(q, None, "uint8", "int8", integer_only=True)
    assert not intact.verify(content)
    file = intact.load_litert(content)
    assert file.input_details["image"]["quantization"] == (1.0, 0)
    np.testing.assert_allclose(file.predict(data), q.predict(data, verbose=0), atol=1e-6)
    expected = model.predict(data // 2, verbose=0)
    error = np.abs(q.predict(data // 2, verbose=0) - expected).max()
    assert error < 0.03 * np.ptp(expected)
    found = intact.load_litert(intact.export(model)).predict(data)
    # Keras rounds resized bytes.
    atol = 2e-3 if name == "resizing" else 1e-4
    np.testing.assert_allclose(found, model.predict(data, verbose=0), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("scheme", ["int8", "int16x8", "uint8"])
def test_counts_become_real_by_their_range(scheme, rng):
    counts = keras.Input((5,), dtype="int32")
    model = keras.Model(counts, ops.cast(counts, "float32"))
    for low, high, exact in ((-20, 200, True), (0, 5, True), (-300_000, 1_000_000, False)):
        data = rng.integers(low, high, (64, 5)).astype("int32")
        q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
        content = intact.export(q, integer_only=True)
        assert "DEQUANTIZE" in op_names(content)
        found = q.predict(data, verbose=0)
        file = intact.load_litert(content).predict(data)
        np.testing.assert_allclose(file, found, rtol=1e-6)
        step = 0.0 if exact else (high / 32767 if scheme == "int16x8" else (high - low) / 255)
        # The kernel rounds twice.
        assert np.abs(found - data).max() <= 0.55 * step


def test_ties_are_rounded_as_quantize_does():
    counts = keras.Input((), dtype="int32")
    q = intact.quantize_model(keras.Model(counts, ops.cast(counts, "float32")))
    (quantizer,) = quantizers(q).values()
    quantizer.set_range(-510.0, 510.0)
    data = np.arange(-600, 601).astype("int32")
    found = intact.load_litert(intact.export(q)).predict(data)
    np.testing.assert_array_equal(found, q.predict(data, verbose=0))


def test_masks_of_indices(rng):
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(50, 8, mask_zero=True)(ids + 1 - 1)
    x = layers.MultiHeadAttention(2, 4)(x, x) * ops.expand_dims(ops.cast(ids != 0, "float32"), -1)
    model = keras.Model(ids, layers.GlobalAveragePooling1D()(x, mask=None))
    data = rng.integers(0, 50, (64, 6)).astype("int32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data).different == 0


def test_the_plan_names_whole_numbers():
    ids = keras.Input((6,), dtype="int32")
    explanation = intact.explain(keras.Model(ids, layers.Embedding(9, 2)(ids % 9)))
    plan = explanation.plan
    assert {step.name: step.type for step in plan.steps}["mod"] == "int32"
    assert not plan.float_steps
    assert "int32" in str(explanation)


def test_trains_saves_and_loads(tmp_path, rng):
    ids = keras.Input((6,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(40, 4)(ids % 40))
    model = keras.Model(ids, layers.Dense(1)(x) + ops.cast(ops.sum(ids, 1, True), "float32") * 0.1)
    q = intact.quantize_model(model)
    q.compile("adam", "mse")
    data = rng.integers(0, 500, (64, 6)).astype("int32")
    q.fit(data, rng.normal(size=(64, 1)), verbose=0)
    q.save(tmp_path / "q.keras")
    content = intact.export(q, integer_only=True)
    assert intact.export(keras.saving.load_model(tmp_path / "q.keras")) == content
    found = intact.load_litert(content).predict(data)
    np.testing.assert_allclose(found, q.predict(data, verbose=0), atol=1e-5)


POLICIES = ("mixed_float16", "mixed_bfloat16", "float16")


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", POLICIES, indirect=True)
def test_models_of_half_precision(policy, rng):
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(4, 3)(image))
    x = layers.LayerNormalization()(layers.Conv2D(4, 3, activation="swish")(x))
    x = ops.mean(ops.square(x), (1, 2))
    model = keras.Model(image, layers.Dense(3, activation="softmax", dtype="float32")(x))
    data = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    expected = model.predict(data, verbose=0)
    for scheme in ("float", "float16", "weight_only_8", "dynamic_range"):
        q = model if scheme == "float" else intact.quantize_model(model, scheme)
        found = intact.load_litert(intact.export(q)).predict(data)
        np.testing.assert_allclose(found, expected, atol=0.03)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert {variable.dtype for variable in q.weights} <= {"float32", "uint32", "int64"}
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    assert comparison.different == 0
    assert keras.config.dtype_policy().name == policy


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_inputs_of_other_real_types(dtype, rng):
    x = keras.Input((12,), dtype=dtype)
    model = keras.Model(x, layers.Dense(5, dtype="float32")(x))
    data = rng.normal(size=(64, 12)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert q.inputs[0].dtype == "float32"
    content = intact.export(q, None, "int8", "int8", integer_only=True)
    assert intact.compare(q, content, data).different == 0
