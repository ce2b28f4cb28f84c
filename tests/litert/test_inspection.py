"""`inspect`: what is in a file, and files that are none."""

import json
import struct

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from small import cnn, enliven, mlp, op_names, parse, ready

import intact
from intact.litert.writing import pack


@pytest.fixture(scope="module")
def q():
    return ready(intact.quantize_model(enliven(cnn(), np.random.default_rng(5))))


@pytest.fixture(scope="module")
def content(q):
    return intact.export(q)


def test_ops_and_totals(content):
    found = intact.inspect(content)
    made = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    (graph,) = made["graphs"]
    assert [op["op"] for op in graph["ops"]] == op_names(content)
    assert made["bytes"] == len(content)
    held = [b.data for b in parse(content).buffers if b.data is not None]
    assert made["constant_bytes"] == sum(map(len, held))
    conv = next(op for op in graph["ops"] if op["op"] == "CONV_2D")
    assert conv["version"] == 3
    assert conv["constant_bytes"] == 8 * 3 * 3 * 3 + 8 * 4
    x, w, b = (graph["tensors"][i] for i in conv["inputs"])
    assert (x["dtype"], w["dtype"], b["dtype"]) == ("int8", "int8", "int32")
    assert (x["shape"], w["shape"]) == ([None, 8, 8, 3], [8, 3, 3, 3])
    assert (len(x["scales"]), len(w["scales"])) == (1, 8)
    np.testing.assert_allclose(b["scales"], x["scales"][0] * np.array(w["scales"]), rtol=1e-6)
    assert found.float_ops == ()
    assert found.op_counts["CONV_2D"] == 1


def test_signatures(content):
    (signature,) = intact.inspect(content).file.signatures
    assert signature.name == "serving_default"
    assert [t.shape for t in signature.inputs.values()] == [(None, 8, 8, 3)]
    assert list(signature.inputs) == ["image"]
    assert list(signature.outputs) == ["head"]


def test_table(content):
    lines = str(intact.inspect(content)).splitlines()
    assert lines[0].startswith(f"LiteRT file, {len(content)} bytes")
    assert lines[1] == "serving_default: image: float32 (?, 8, 8, 3) -> head: float32 (?, 4)"
    row = next(line for line in lines if "DEPTHWISE_CONV_2D" in line)
    assert "int8 (?, 8, 8, 8)" in row
    assert lines[-1] == "In float: none"


def test_float_files_say_so():
    found = intact.inspect(intact.export(mlp()))
    assert found.float_ops == ("FULLY_CONNECTED", "FULLY_CONNECTED")
    assert str(found).splitlines()[-1] == "In float: 2 FULLY_CONNECTED"


def test_hybrid_ops_are_not_float(rng):
    found = intact.inspect(intact.export(intact.quantize_model(cnn(), "dynamic_range")))
    assert found.hybrid_ops == ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    assert found.float_ops == ("MEAN",)
    lines = str(found).splitlines()
    row = next(line for line in lines if "  CONV_2D" in line)
    assert "float32 (?, 8, 8, 3)  int8  " in row
    assert lines[-2].startswith("Hybrid, float data and integer weights: 1 CONV_2D")
    assert found.to_dict()["graphs"][0]["ops"][0]["hybrid"] is True


def test_path_and_bytes_are_one(content, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    expected = str(intact.inspect(content))
    assert str(intact.inspect(path)) == str(intact.inspect(str(path))) == expected
    assert str(intact.inspect(bytearray(content))) == expected


def test_missing_files(tmp_path):
    for name in ("none.tflite", "."):
        with pytest.raises(intact.IntactError, match="no file"):
            intact.inspect(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\0" * 100, b"PK\3\4" * 30, b"\0\0\0\0XXXX" + b"\0" * 50]
)
def test_files_that_are_none(content):
    with pytest.raises(intact.IntactError, match="not a LiteRT file"):
        intact.inspect(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\0TFL3" + b"\0" * 100,
        b"\xff\xff\xff\xffTFL3" * 20,
        b"\x08\0\0\0TFL3" + b"\x7f" * 100,
        b"\x08\0\0\0TFL3" + struct.pack("<i", -(2**31)) + b"\0" * 40,
        b"\x08\0\0\0TFL3",
    ],
)
def test_offsets_that_point_nowhere(content):
    with pytest.raises(intact.IntactError, match="damaged"):
        intact.inspect(content)


def test_every_truncation_is_refused_or_read(content):
    # Constants stand before the tables here or there: a shorter file may still be whole.
    for size in range(0, len(content), 37):
        try:
            str(intact.inspect(content[:size]))
        except intact.IntactError as error:
            assert "LiteRT file" in str(error)


def edited(content, edit):
    model = parse(content)
    edit(model, model.subgraphs[0])
    return pack(model)


EDITS = {
    "tensor of an op": (lambda m, g: setattr(g.operators[0], "inputs", [999]), "tensor 999"),
    "negative tensor": (lambda m, g: setattr(g.operators[0], "outputs", [-1]), "tensor -1"),
    "op code": (lambda m, g: setattr(g.operators[0], "opcodeIndex", 99), "op code 99"),
    "buffer": (lambda m, g: setattr(g.tensors[0], "buffer", 9999), "buffer 9999"),
    "output": (lambda m, g: setattr(g, "outputs", [12345]), "tensor 12345"),
    "graph": (lambda m, g: setattr(m.signatureDefs[0], "subgraphIndex", 7), "graph 7"),
    "type": (lambda m, g: setattr(g.tensors[0], "type", 99), "type 99"),
    "shape": (lambda m, g: setattr(g.tensors[0], "shape", [-5, 8, 8, 3]), "shape"),
    "no graph": (lambda m, g: setattr(m, "subgraphs", []), "no graph"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_references_that_point_nowhere(content, kind):
    edit, message = EDITS[kind]
    with pytest.raises(intact.IntactError, match=f"damaged: it refers to .*{message}"):
        intact.inspect(edited(content, edit))


def vector(builder, entry, size):
    """A list that has one entry again and again."""
    builder.StartVector(4, size, 4)
    for _ in range(size):
        builder.PrependUOffsetTRelative(entry)
    return builder.EndVector()


def test_the_same_bytes_are_not_read_again_and_again():
    # A list of 5000 ops, all of them the very same one, of 5000 inputs.
    builder = flatbuffers.Builder()
    inputs = builder.CreateNumpyVector(np.full(5000, -1, "int32"))
    schema.OperatorStart(builder)
    schema.OperatorAddInputs(builder, inputs)
    op = schema.OperatorEnd(builder)
    ops = vector(builder, op, 5000)
    schema.SubGraphStart(builder)
    schema.SubGraphAddOperators(builder, ops)
    graphs = vector(builder, schema.SubGraphEnd(builder), 1)
    schema.OperatorCodeStart(builder)
    codes = vector(builder, schema.OperatorCodeEnd(builder), 1)
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    schema.ModelAddOperatorCodes(builder, codes)
    builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
    content = bytes(builder.Output())
    assert len(content) < 50_000
    with pytest.raises(intact.IntactError, match="again and again"):
        intact.inspect(content)


def test_names_do_not_reach_the_terminal_as_they_are(content):
    def rename(model, graph):
        graph.tensors[0].name = "x\x1b[31m\nline"

    text = str(intact.inspect(edited(content, rename)))
    assert "\x1b" not in text
    assert text.count("\n") == str(intact.inspect(content)).count("\n")


def test_custom_and_unknown_ops(content):
    def custom(model, graph):
        code = model.operatorCodes[graph.operators[0].opcodeIndex]
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, "MyOp"

    assert "MyOp" in intact.inspect(edited(content, custom)).op_counts

    def unknown(model, graph):
        model.operatorCodes[graph.operators[0].opcodeIndex].builtinCode = 5000

    assert "op 5000" in intact.inspect(edited(content, unknown)).op_counts


def test_scales_that_json_has_no_word_for(content):
    graph = intact.inspect(edited(content, lambda m, g: None)).file.graphs[0]
    index = next(t.index for t in graph.tensors if t.quantized)

    def edit(model, graph):
        graph.tensors[index].quantization.scale = np.float32([np.nan])

    made = intact.inspect(edited(content, edit)).to_dict()
    assert made["graphs"][0]["tensors"][index]["scales"] == ["nan"]
    json.dumps(made, allow_nan=False)
