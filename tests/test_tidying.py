"""Files without needless reshapes, with one kernel for what one kernel does."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, lossy, op_names

import intact
from intact.litert.builder import Builder


def checked(function, x, rng, target=None, scheme="int8", shape=None):
    """The ops of a model's file, which is equal to the model at every tensor."""
    inputs = keras.Input(shape or x.shape[1:], name="x")
    model = enliven(keras.Model(inputs, function(inputs)), rng)
    q = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    content = intact.export(q, target=target)
    comparison = intact.compare(q, content, x)
    assert not any(t.different for t in (*comparison.outputs, *comparison.layers))
    if shape is None:
        found = intact.load_litert(intact.export(model)).predict(x[:4])
        np.testing.assert_allclose(found, model.predict(x[:4], verbose=0), rtol=1e-4, atol=1e-4)
    return op_names(content)[1:-1]


@pytest.mark.parametrize(("shape", "reshapes"), [((4, 6), ["RESHAPE"]), ((12,), [])])
def test_one_of_several_reshapes(shape, reshapes, rng):
    x = rng.normal(size=(16, *shape)).astype("float32")

    def function(x):
        x = layers.BatchNormalization(name="norm")(x)
        return layers.Dense(3)(layers.Flatten()(x))

    # The batch norm's own reshape is the one that flattens; a matrix product takes any shape.
    expected = ["RESHAPE", "DEPTHWISE_CONV_2D", *reshapes, "FULLY_CONNECTED"]
    assert checked(function, x, rng) == expected


def test_a_reshape_that_others_read_stays(rng):
    x = rng.normal(size=(16, 12)).astype("float32")

    def function(x):
        x = layers.BatchNormalization(name="norm")(x)
        return [layers.Dense(3)(x), layers.Multiply()([x, x])]

    inputs = keras.Input((12,), name="x")
    model = enliven(keras.Model(inputs, function(inputs)), rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    content = intact.export(q)
    assert intact.compare(q, content, x).different == 0
    assert op_names(content).count("RESHAPE") == 2


@pytest.mark.parametrize(
    ("target", "kernels"),
    [
        (None, ["PACK"]),
        ("tflite-micro", ["PACK"]),
        ("ethos-u55", ["RESHAPE", "RESHAPE", "CONCATENATION"]),
    ],
)
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_stacked_in_one_kernel(target, kernels, axis, rng):
    x = rng.normal(size=(16, 5, 6)).astype("float32")

    def function(x):
        return ops.stack([layers.Dense(6, name="a")(x), layers.Dense(6, name="b")(x)], axis=axis)

    found = checked(function, x, rng, target)
    assert [name for name in found if name != "FULLY_CONNECTED"] == kernels


def test_what_only_looks_like_a_stack(rng):
    x = rng.normal(size=(16, 1, 6)).astype("float32")

    def function(x):
        a, b = layers.Dense(6, name="a")(x), layers.Dense(6, name="b")(x)
        # The axes of size 1 are others than the one that they are joined along.
        first = ops.concatenate([ops.expand_dims(a, -1), ops.expand_dims(b, -1)], axis=1)
        return layers.Multiply()([first, ops.concatenate([first, first], axis=3)])

    assert "PACK" not in checked(function, x, rng)


@pytest.mark.parametrize(
    ("target", "kernels"),
    [
        (None, ["GATHER"]),
        ("tflite-micro", ["GATHER"]),
        ("xnnpack", ["STRIDED_SLICE"] * 4 + ["CONCATENATION"]),
        ("ethos-u55", ["STRIDED_SLICE"] * 4 + ["CONCATENATION"]),
        ("edgetpu", ["STRIDED_SLICE"] * 4 + ["CONCATENATION"]),
    ],
)
def test_every_other_value(target, kernels, rng):
    x = rng.normal(size=(16, 5, 8)).astype("float32")
    found = checked(lambda x: layers.Dense(8)(x)[..., 1::2], x, rng, target)
    assert found == ["FULLY_CONNECTED", *kernels]


def pixels(x, size):
    """Pixels from channels, as user code has it."""
    height, width, channels = x.shape[1:]
    channels //= size**2
    x = ops.reshape(x, (-1, height, width, size, size, channels))
    return ops.reshape(
        ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height * size, width * size, channels)
    )


def blocks(x, size):
    """Blocks of pixels as rows, as user code has it."""
    height, width, channels = x.shape[1:]
    x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
    return ops.reshape(
        ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height * width // size**2, size**2 * channels)
    )


@pytest.mark.parametrize("size", [2, 3])
def test_pixels_from_channels(size, rng):
    x = rng.normal(size=(16, 4, size, 5)).astype("float32")
    found = checked(lambda x: pixels(layers.Conv2D(2 * size**2, 1)(x), size), x, rng)
    assert found == ["CONV_2D", "DEPTH_TO_SPACE"]


@pytest.mark.parametrize("size", [2, 3])
def test_rows_from_pixels(size, rng):
    x = rng.normal(size=(16, 2 * size, size * size, 5)).astype("float32")
    found = checked(lambda x: blocks(layers.Conv2D(2, 1)(x), size), x, rng)
    assert found == ["CONV_2D", "SPACE_TO_DEPTH", "RESHAPE"]


def test_windows_and_back(rng):
    x = rng.normal(size=(16, 4, 6, 5)).astype("float32")

    def function(x):
        x = layers.Dense(4)(ops.reshape(blocks(x, 2), (-1, 4, 5)))
        x = ops.reshape(x, (-1, 2, 3, 2, 2, 4))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 4, 6, 4))

    found = checked(function, x, rng)
    assert [name for name in found if name != "RESHAPE"] == [
        "SPACE_TO_DEPTH",
        "FULLY_CONNECTED",
        "DEPTH_TO_SPACE",
    ]


def swapped(x, shape, order, result):
    """Axes split and swapped in a way that is no block of pixels."""
    return ops.reshape(ops.transpose(ops.reshape(x, (-1, *shape)), order), (-1, *result))


@pytest.mark.parametrize(
    ("shape", "order", "result"),
    [
        ((4, 3, 2, 3, 5), (0, 1, 3, 2, 4, 5), (8, 9, 5)),
        ((4, 3, 2, 3, 5), (0, 2, 1, 3, 4, 5), (12, 6, 5)),
        ((4, 3, 1, 1, 30), (0, 1, 3, 2, 4, 5), (4, 3, 30)),
        ((2, 2, 3, 2, 15), (0, 1, 3, 2, 4, 5), (36, 10)),
    ],
)
def test_other_swaps(shape, order, result, rng):
    x = rng.normal(size=(16, 4, 3, 30)).astype("float32")
    checked(lambda x: swapped(layers.Conv2D(30, 1)(x), shape, order, result), x, rng)


class Pixels(layers.Layer):
    """Pixels from channels for images of any size, and back."""

    def call(self, x):
        n, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (n, height, width, 3, 3, channels // 9))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (n, height * 3, width * 3, channels // 9))
        x = ops.reshape(x, (n, height * 3 // 2, 2, width * 3 // 2, 2, channels // 9))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (n, height * 3 // 2, width * 3 // 2, channels * 4 // 9))

    def compute_output_shape(self, shape):
        return (shape[0], None, None, shape[3] * 4 // 9)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_pixels_of_unknown_sizes(scheme, rng):
    x = rng.normal(size=(16, 4, 6, 9)).astype("float32")
    found = checked(Pixels(), x, rng, scheme=scheme, shape=(None, None, 9))
    if scheme == "int8":
        assert found == ["DEPTH_TO_SPACE", "SPACE_TO_DEPTH"]


def test_the_builder_merges_reshapes():
    builder = Builder("test")
    x = builder.tensor((None, 6), "float32", "x")
    y = builder.reshape(builder.reshape(x, (None, 2, 3)), (None, 3, 2))
    content = builder.finish([("x", x)], [("y", y)])
    assert op_names(content) == ["RESHAPE"]
    data = np.arange(12, dtype="float32").reshape(2, 6)
    np.testing.assert_array_equal(intact.load_litert(content).predict(data), data.reshape(2, 3, 2))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    ("target", "kernels"),
    [
        (None, ["CAST", "ADD", "GATHER"]),
        ("tflite-micro", ["CAST", *["GREATER_EQUAL", "CAST"] * 3, "ADD", "ADD", "GATHER"]),
    ],
)
def test_bins_in_one_table(rank, target, kernels, rng):
    x = rng.uniform(0, 99, size=(64, *(1,) * rank)).astype("float32")

    def function(x):
        bins = layers.Discretization([18.0, 30.5, 65.0], output_mode="one_hot")(x)
        return layers.Dense(3)(bins)

    found = checked(function, x, rng, target)
    assert sorted(name for name in found if name != "RESHAPE") == sorted(
        [*kernels, "FULLY_CONNECTED"]
    )


@lossy
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("limits", [[0.5], [-1e9, 0.0, 0.25, 1e9]])
def test_bins(scheme, limits, rng):
    x = rng.normal(size=(64, 5)).astype("float32")

    def function(x):
        return layers.Embedding(5, 3)(layers.Discretization(limits)(layers.Dense(5)(x)))

    inputs = keras.Input((5,))
    model = enliven(keras.Model(inputs, function(inputs)), rng)
    q = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    assert intact.compare(q, intact.export(q), x).different == 0
    found = intact.load_litert(intact.export(model)).predict(x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-6)


@pytest.mark.parametrize(("units", "gathers"), [(3, 1), (900, 2)])
def test_tables_of_tables(units, gathers, rng):
    tokens = rng.integers(0, 9, size=(64, 4)).astype("int32")
    inputs = keras.Input((4,), dtype="int32")
    x = layers.IntegerLookup(vocabulary=[7, 3, 5])(inputs)
    x = layers.Embedding(4, units)(ops.reshape(x, (-1, 2, 2)))
    model = enliven(keras.Model(inputs, x), rng)
    q = intact.calibrate(intact.quantize_model(model), tokens, verbose=0)
    content = intact.export(q)
    assert intact.compare(q, content, tokens).different == 0
    assert op_names(content).count("GATHER") == gathers


def test_an_index_that_others_read(rng):
    tokens = rng.integers(0, 9, size=(64, 4)).astype("int32")
    inputs = keras.Input((4,), dtype="int32")
    x = ops.reshape(layers.IntegerLookup(vocabulary=[7, 3, 5])(inputs), (-1, 2, 2))
    outputs = [layers.Embedding(4, 3)(x), ops.cast(ops.equal(x, 2), "float32") * 0.5]
    model = enliven(keras.Model(inputs, outputs), rng)
    q = intact.calibrate(intact.quantize_model(model), tokens, verbose=0)
    assert intact.compare(q, intact.export(q), tokens).different == 0
