"""The flatbuffer builder, without any Keras."""

import numpy as np
import pytest
from small import op_names, op_versions, parse

from intact.litert.builder import Builder
from intact.litert.quantization import Groups
from intact.litert.runtime import load_litert


def add_graph(dtype="float32", names=("x", "y", "sum")):
    """`x + y`, for which the whole format is needed."""
    builder = Builder("test")
    fields = {} if dtype == "float32" else {"scale": np.float32(0.5), "zero_point": 3}
    x, y, total = (builder.tensor((None, 4), dtype, name, **fields) for name in names)
    builder.add("ADD", [x, y], [total], {"fusedActivationFunction": "NONE"})
    return builder.finish([("a", x), ("b", y)], [("total", total)])


def test_signature_and_tensors():
    content = add_graph("int8")
    model = parse(content)
    assert content[4:8] == b"TFL3"
    (signature,) = model.signatureDefs
    assert [m.name for m in signature.inputs] == [b"a", b"b"]
    assert [m.name for m in signature.outputs] == [b"total"]
    for tensor in model.subgraphs[0].tensors:
        assert list(tensor.shape) == [1, 4]
        assert list(tensor.shapeSignature) == [-1, 4]
        assert list(tensor.quantization.scale) == [0.5]
        assert list(tensor.quantization.zeroPoint) == [3]


def test_the_file_runs():
    model = load_litert(add_graph())
    x = np.arange(12, dtype="float32").reshape(3, 4)
    np.testing.assert_array_equal(model.predict({"a": x, "b": 10 * x}), 11 * x)


def test_same_calls_make_the_same_bytes():
    assert add_graph() == add_graph()
    assert add_graph() != add_graph(names=("x", "y", "z"))


def test_versions_are_the_lowest_that_will_do():
    assert op_versions(add_graph()) == {"ADD": 1}
    assert op_versions(add_graph("int8")) == {"ADD": 2}


def test_equal_constants_share_a_buffer():
    builder = Builder("test")
    x = builder.tensor((2, 3), "float32", "x")
    values = np.arange(6, dtype="float32").reshape(2, 3)
    a = builder.constant(values, "a")
    b = builder.constant(values.copy(), "b")
    c = builder.constant(values + 1, "c")
    assert a.buffer == b.buffer != c.buffer
    assert a is not b
    # The same bytes of another type are other data.
    assert builder.constant(values.view("int32"), "d").buffer != a.buffer
    y, z, w = (builder.tensor((2, 3), "float32", n) for n in "yzw")
    for source, constant, target in ((x, a, y), (y, b, z), (z, c, w)):
        builder.add("ADD", [source, constant], [target], {"fusedActivationFunction": "NONE"})
    content = builder.finish([("x", x)], [("w", w)])
    held = [b for b in parse(content).buffers if b.data is not None and len(b.data)]
    assert len(held) == 3
    assert op_names(content) == ["ADD"] * 3
    found = load_litert(content).predict(np.ones((2, 3), "float32"))
    np.testing.assert_array_equal(found, 1 + values + values + values + 1)


def test_equal_scales_and_zero_points_are_written_once():
    def size(scales):
        builder = Builder("test")
        x = builder.tensor((2, 64), "int8", "x", scale=1.0)
        for i, scale in enumerate(scales):
            fields = {"scale": np.full(64, scale), "groups": Groups(1)}
            constant = builder.constant(np.full((2, 64), i, "int8"), f"c{i}", **fields)
            y = builder.tensor((2, 64), "int8", f"y{i}", scale=1.0)
            builder.add("ADD", [x, constant], [y], {"fusedActivationFunction": "NONE"})
            x = y
        content = builder.finish([("x", builder.tensors[0])], [("y", x)])
        for i, scale in enumerate(scales):
            found = next(
                t for t in parse(content).subgraphs[0].tensors if t.name == f"c{i}".encode()
            )
            np.testing.assert_array_equal(found.quantization.scale, np.full(64, scale, "float32"))
            np.testing.assert_array_equal(found.quantization.zeroPoint, np.zeros(64))
        return len(content)

    # Zero points are all alike, scales in the second file alone.
    assert size([1, 2, 3]) - size([1, 1, 1]) == 2 * 64 * 4 + 2 * 4


def test_constants_without_a_name_are_one_tensor():
    builder = Builder("test")
    shape = np.array([1, 2], "int32")
    assert builder.constant(shape) is builder.constant(shape.copy())
    assert builder.constant(shape) is not builder.constant(shape.reshape(2, 1))
    assert builder.constant(shape) is not builder.constant(shape, "named")


def test_large_constants_are_aligned():
    builder = Builder("test")
    x = builder.tensor((None, 7), "float32", "x")
    tensors = [builder.constant(np.full(7, i, "float32"), f"c{i}") for i in range(20)]
    for constant in tensors:
        y = builder.tensor((None, 7), "float32", f"y{constant.name}")
        builder.add("ADD", [x, constant], [y], {"fusedActivationFunction": "NONE"})
        x = y
    content = builder.finish([("x", builder.tensors[0])], [("y", x)])
    for i in range(1, 20):
        # Equal to a multiple of four is what float kernels need.
        assert content.find(np.full(7, i, "float32").tobytes()) % 4 == 0


def test_quantized_constant_saturates():
    builder = Builder("test")
    like = builder.tensor((4,), "int8", "y", scale=np.float32(0.1), zero_point=-5)
    made = builder.quantized_constant(np.array([-1e9, 0.0, 0.26, 1e9]), like)
    stored = builder.buffers[made.buffer].view("int8")
    assert stored.tolist() == [-128, -5, -2, 127]


@pytest.mark.parametrize(
    ("shape", "new"), [((None, 2, 4), (None, 8)), ((2, 6), (2, 3, 2)), ((None, 6), (None, 1, 6))]
)
def test_reshape_keeps_the_unknown_size(shape, new):
    builder = Builder("test")
    x = builder.tensor(shape, "float32", "x")
    y = builder.reshape(x, new)
    content = builder.finish([("x", x)], [("y", y)])
    shape = tuple(3 if size is None else size for size in shape)
    data = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    found = load_litert(content).predict(data)
    np.testing.assert_array_equal(found, data.reshape((-1, *new[1:])))
