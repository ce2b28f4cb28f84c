"""The kernel table: whole, and consistent with the schema."""

import ast
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import intact
from intact.litert.builder import Builder
from intact.litert.kernels import KERNELS, get_kernel
from intact.litert.kernels.conditions import CONDITIONS
from intact.litert.reader import OP_NAMES, read
from intact.targets.edge_tpu import LIMITS

PACKAGE = Path(intact.__file__).parent
ROWS = list(KERNELS.values())


def test_every_kernel_that_the_source_names_has_a_row():
    """The names of kernels stand in the source as texts; `conftest` looks at those written."""
    names = {
        node.value
        for path in PACKAGE.rglob("*.py")
        if "litert" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    kernels = names & set(OP_NAMES.values()) - {"CUSTOM", "DELEGATE"}
    assert len(kernels) > 60
    assert sorted(kernels - set(KERNELS)) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_fit_the_schema(row):
    assert row.name in OP_NAMES.values()
    if row.table or row.options:
        fields = vars(getattr(schema, f"{row.options_table}T")())
        assert set(row.options) <= set(fields)
    assert {*row.later, *row.accepted} <= set(CONDITIONS)
    assert set(row.optional) <= set(row.later)
    assert set(row.edge_tpu or ()) <= set(LIMITS)
    assert (row.scales == "fixed") == bool(row.fixed)


@pytest.mark.parametrize("row", [row for row in ROWS if row.options], ids=lambda row: row.name)
def test_options_are_read_where_they_are_written(row):
    """Each field with a value of its own, written by the schema's classes and read back."""
    samples = {"b": 3, "i": 5, "?": True}
    options = {name: samples[field.stored] for name, field in row.options.items()}
    if "fusedActivationFunction" in options:
        options["fusedActivationFunction"] = "RELU6"
    builder = Builder("a test")
    x, y = (builder.tensor((1, 4), "float32", name) for name in "xy")
    inputs = [x] * (1 + max((*row.data, row.weights.bias if row.weights else 0)))
    builder.add(row.name, inputs, [y], options)
    (op,) = read(builder.finish([("x", x)], [("y", y)])).graphs[0].ops
    assert op.options == options
    builder.operators[0].options = {}
    (op,) = read(builder.finish([("x", x)], [("y", y)])).graphs[0].ops
    assert op.options == {
        name: "NONE" if name == "fusedActivationFunction" else field.default
        for name, field in row.options.items()
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_written_version_is_accepted(row):
    """What the writer writes for each type is what `verify` accepts."""
    for dtype in set(row.versions) - {"hybrid"}:
        for rank in (2, 4, 5, 6):
            builder = Builder("a test")
            scale = np.float32(0.5) if dtype.startswith(("int", "uint")) else None
            shapes = [(1,) * rank, (2,) * rank]
            tensors = [builder.tensor(s, dtype, f"x{i}", scale=scale) for i, s in enumerate(shapes)]
            y = builder.tensor((2,) * rank, dtype, "y", scale=scale)
            builder.add(row.name, [tensors[i % 2] for i in range(13)], [y])
            op = builder.operators[0]
            accepted = row.accepted_versions(op)
            if accepted is not None:
                assert accepted[0] <= op.version <= accepted[1], (dtype, rank)


def test_versions_follow_types_and_options():
    builder = Builder("a test")

    def version(name, inputs, output, options=None):
        builder.add(name, inputs, [output], options)
        return builder.operators[-1].version

    def tensor(shape, dtype, **fields):
        return builder.tensor(shape, dtype, "t", **fields)

    one, two = np.float32(0.1), np.float32([0.1, 0.2])
    x, y = tensor((1, 4), "float32"), tensor((1, 2), "float32")
    whole, total = tensor((1, 4), "int8", scale=one), tensor((1, 2), "int8", scale=one)
    w8, w8_channels, w4, w2 = (
        tensor((2, 4), dtype, scale=scale)
        for dtype, scale in (("int8", one), ("int8", two), ("int4", two), ("int2", two))
    )
    bias = tensor((2,), "int32", scale=one)
    assert version("FULLY_CONNECTED", [x, tensor((2, 4), "float32"), y], y) == 1
    assert version("FULLY_CONNECTED", [x, w8, bias], y) == 9
    assert version("FULLY_CONNECTED", [x, w8_channels, bias], y) == 12
    assert version("FULLY_CONNECTED", [x, w4, bias], y) == 10
    assert version("FULLY_CONNECTED", [whole, w8, bias], total) == 4
    assert version("FULLY_CONNECTED", [whole, w8, None], total) == 6
    assert version("FULLY_CONNECTED", [whole, w8, None], total, {"keepNumDims": True}) == 5
    assert version("FULLY_CONNECTED", [whole, w2, bias], total) == 14
    assert version("DEQUANTIZE", [w8_channels], y) == 5
    assert version("DEQUANTIZE", [w4], y) == 6
    assert version("QUANTIZE", [whole], tensor((1, 4), "int16", scale=one)) == 2
    assert version("MUL", [whole, whole], total) == 2
    assert version("MUL", [whole, whole], tensor((1, 4), "int8", scale=np.float32(0.01))) == 3
    assert version("UNIQUE", [x], y) == 1


def test_a_kernel_without_a_row_has_an_empty_one():
    assert get_kernel("UNIQUE").options_table == "UniqueOptions"
    assert not get_kernel("UNIQUE").runs_on
