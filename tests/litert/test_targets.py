"""The table of kernels is that of the real tools."""

import numpy as np
import pytest

from intact import IntactError, TargetError
from intact.litert.builder import Builder
from intact.litert.kernels import KERNELS
from intact.litert.kernels.targets import TARGETS, get_target, runs
from intact.litert.reader import read
from intact.targets import edge_tpu, vela
from intact.targets.fitting import keep_to, working_type
from intact.targets.micro import run_files
from intact.targets.micro_trial import micro_faults
from intact.targets.placement import place

# Ops of one input and plain options, of which the tools and runtimes are asked one by one.
UNARY = ("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LOG", "RELU", "RELU6")
SHAPE = (1, 4, 4, 2)


def one_op(name: str, dtype: str = "int8", inputs: int = 1, **options) -> bytes:
    """A file of one op."""
    builder = Builder("a test")
    fields = {} if dtype == "float32" else {"scale": np.float32(0.05), "zero_point": 0}
    made = [builder.tensor(SHAPE, dtype, f"x{i}", **fields) for i in range(inputs)]
    y = builder.tensor(SHAPE, dtype, "y", **fields)
    builder.add(name, made, [y], options)
    return builder.finish([(t.name, t) for t in made], [("y", y)])


@pytest.mark.parametrize("name", UNARY)
def test_xnnpack_takes_what_the_table_says(name):
    taken = place(one_op(name), "xnnpack").share == 1
    assert taken == runs(name, "int8", "xnnpack", host=False)


def test_micro_runs_what_the_table_says():
    pytest.importorskip("tflite_micro")
    cases = [
        (n, d) for n in UNARY for d in KERNELS[n].runs_on or () if d in ("int8", "int16", "float32")
    ]
    found = {case: micro_faults(one_op(*case)) == {} for case in cases}
    assert found == {(n, d): runs(n, d, "tflite-micro") for n, d in cases}


def whole_file(name: str, dtype: str) -> bytes:
    """A file of one op on whole numbers, of two inputs of one shape."""
    compares = name in COMPARISONS
    builder = Builder("a test")
    x, other = (builder.tensor(SHAPE, dtype, label) for label in ("x", "other"))
    y = builder.tensor(SHAPE, "bool" if compares else dtype, "y")
    options = {"fusedActivationFunction": "NONE"} if name in ("ADD", "SUB", "MUL", "DIV") else {}
    inputs = [("x", x), ("other", other)]
    if name in ("ABS", "NEG", "SIGN"):
        builder.add(name, [x], [y], options)
        del inputs[1]
    else:
        if name in ("DIV", "FLOOR_DIV", "FLOOR_MOD", "POW"):
            other = builder.constant(np.full(SHAPE, 2, dtype))
            del inputs[1]
        builder.add(name, [x, other], [y], options)
    return builder.finish(inputs, [("y", y)])


COMPARISONS = ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
ARITHMETIC = ("ABS", "NEG", "SIGN", "ADD", "SUB", "MUL", "FLOOR_DIV", "FLOOR_MOD", "POW")


def test_micro_runs_whole_numbers_as_the_table_says():
    pytest.importorskip("tflite_micro")
    cases = [(name, "int32") for name in (*ARITHMETIC, *COMPARISONS, "MAXIMUM", "MINIMUM")]
    cases += [(name, "int64") for name in (*COMPARISONS, "MAXIMUM", "MINIMUM")]
    files = [whole_file(*case) for case in cases]
    inputs = [
        [np.ones((1, *SHAPE), dtype)] * len(read(f).graphs[0].inputs)
        for f, (_, dtype) in zip(files, cases, strict=True)
    ]
    runs_there = [run.outputs is not None for run in run_files(files, inputs)]
    says = [runs(*case, "tflite-micro") for case in cases]
    assert dict(zip(cases, runs_there, strict=True)) == dict(zip(cases, says, strict=True))


@pytest.mark.parametrize("target", ["ethos-u55", "ethos-u85"])
@pytest.mark.parametrize("name", ["GELU", "LOG_SOFTMAX"])
def test_vela_takes_what_the_table_says(name, target):
    pytest.importorskip("ethosu")
    content = one_op(name)
    if name == "LOG_SOFTMAX":
        builder = Builder("a test")
        x = builder.tensor(SHAPE, "int8", "x", scale=np.float32(0.05))
        y = builder.tensor(SHAPE, "int8", "y", scale=np.float32(16 / 256), zero_point=127)
        builder.add(name, [x], [y])
        content = builder.finish([("x", x)], [("y", y)])
    taken = not vela.compile_file(content, vela.ACCELERATORS[target]).left
    assert taken == runs(name, "int8", target, host=False)


def test_names_of_targets():
    assert get_target("ethos-u65-512") == "ethos-u65"
    with pytest.raises(IntactError, match=r"no target 'cortex'.*tflite-micro"):
        get_target("cortex")
    with pytest.raises(IntactError, match="no target None"):
        get_target(None)


def test_hosts():
    assert not runs("GELU", "int8", "tflite-micro")
    assert runs("LOG_SOFTMAX", "int8", "ethos-u55")
    assert not runs("LOG_SOFTMAX", "int8", "ethos-u55", host=False)
    assert not runs("CONV_2D", "int4", "ethos-u55")
    assert runs("NO_SUCH_OP", "int8", "edgetpu")
    assert not runs("NO_SUCH_OP", "int8", "tflite-micro")
    assert not runs("CONV_2D", "int16", "edgetpu", host=False)


def test_all_letters_are_targets():
    rows = [row.runs_on or {} for row in KERNELS.values()]
    assert {target for row in rows for on in row.values() for target in on} < set(TARGETS)


def test_what_an_op_works_on():
    builder = Builder("a test")
    x = builder.tensor((1, 4), "float32", "x")
    y = builder.tensor((1, 2), "float32", "y")
    weights = np.ones((2, 4), "int8")
    scales = np.array([0.1, 0.2], "float32")
    kernel = builder.constant(weights, "kernel", scale=scales)
    options = {"keepNumDims": False, "fusedActivationFunction": "NONE"}
    builder.add("FULLY_CONNECTED", [x, kernel, None], [y], options)
    z = builder.tensor((2, 4), "float32", "z")
    builder.add("DEQUANTIZE", [kernel], [z])
    ops = read(builder.finish([("x", x)], [("y", y), ("z", z)])).graphs[0].ops
    assert [working_type(op) for op in ops] == ["hybrid", "int8_per_channel"]


def test_a_table_works_on_its_values_and_not_on_indices():
    builder = Builder("a test")
    index, condition = builder.tensor((4,), "int32", "i"), builder.tensor((4,), "bool", "c")
    table = builder.constant(np.arange(8, dtype="int16"), "t", scale=np.float32(0.1))
    y, z = (builder.tensor((4,), "int16", name, scale=np.float32(0.1)) for name in "yz")
    builder.add("GATHER", [table, index], [y], {"axis": 0})
    builder.add("SELECT_V2", [condition, y, y], [z])
    content = builder.finish([("i", index), ("c", condition)], [("z", z)])
    assert [working_type(op) for op in read(content).graphs[0].ops] == ["int16", "int16"]
    # TFLite Micro has no GATHER of int16, whatever its indices are.
    with pytest.raises(TargetError, match=r"y \(GATHER, int16\)"):
        keep_to(content, "tflite-micro")


# The Edge TPU, by its rules -------------------------------------------------------------


def refused(content: bytes) -> dict[int, str]:
    return edge_tpu.refused(read(content).graphs[0].ops)


def test_edge_tpu_takes_bytes_of_fixed_sizes():
    assert refused(one_op("RELU")) == {}
    assert "is int16" in refused(one_op("RELU", "int16"))[0]
    assert "not among the ops" in refused(one_op("GELU"))[0]
    builder = Builder("a test")
    x, y = (builder.tensor((None, 4), "int8", n, scale=np.float32(0.1)) for n in "xy")
    builder.add("RELU", [x], [y])
    assert "sizes of 'x' are open" in refused(builder.finish([("x", x)], [("y", y)]))[0]


def test_edge_tpu_limits_axes():
    for axes, taken in (((1, 2), True), ((2,), True), ((3,), False), ((-1,), False), ((0,), False)):
        builder = Builder("a test")
        x = builder.tensor(SHAPE, "int8", "x", scale=np.float32(0.1))
        kept = tuple(1 if i in [a % 4 for a in axes] else n for i, n in enumerate(SHAPE))
        y = builder.tensor(kept, "int8", "y", scale=np.float32(0.1))
        builder.add("MEAN", [x, builder.constant(np.array(axes, "int32"))], [y], {"keepDims": True})
        assert (not refused(builder.finish([("x", x)], [("y", y)]))) == taken, axes


def test_edge_tpu_makes_one_part():
    builder = Builder("a test")
    tensors = [builder.tensor(SHAPE, "int8", f"t{i}", scale=np.float32(0.1)) for i in range(5)]
    for i, op in enumerate(("HARD_SWISH", "RELU", "GELU", "RELU")):
        builder.add(op, [tensors[i]], [tensors[i + 1]])
    reasons = refused(builder.finish([("x", tensors[0])], [("y", tensors[-1])]))
    assert list(reasons) == [0, 2, 3]
    assert "behind an op" in reasons[3]
