"""`verify`: files broken on purpose, one for each rule, and files that are not."""

import json
import random
import re

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from small import cnn, enliven, mlp, ready

import intact
from intact.litert.builder import Builder
from intact.litert.kernels import KERNELS
from intact.litert.quantization import Groups
from intact.litert.rules import FAMILIES, RULES
from intact.litert.rules.rule import ERROR, WARNING
from intact.litert.verification import verify
from intact.litert.writing import pack
from intact.ops import REGISTRY

NONE = {"fusedActivationFunction": "NONE"}
FULLY = {**NONE, "weightsFormat": 0, "keepNumDims": False}
CONV = {**NONE, "padding": "SAME", "strideW": 1, "strideH": 1}
CONV |= {"dilationWFactor": 1, "dilationHFactor": 1}


class Net:
    """A file in the making; what is not said is without fault."""

    def __init__(self):
        self.builder = Builder("broken on purpose")
        self.inputs = []

    def x(self, shape=(1, 4), dtype="int8", scale=0.5, zero_point=3):
        if scale is not None:
            scale = np.float32(scale)
        fields = {"scale": scale, "zero_point": zero_point}
        made = self.builder.tensor(shape, dtype, f"x{len(self.inputs)}", **fields)
        self.inputs.append((made.name, made))
        return made

    def y(self, shape=(1, 4), dtype="int8", scale=0.5, zero_point=3):
        if scale is not None:
            scale = np.float32(scale)
        return self.builder.tensor(shape, dtype, "y", scale=scale, zero_point=zero_point)

    def finish(self, name, inputs, output, options=None, version=None):
        self.builder.add(name, inputs, [output], options)
        if version is not None:
            self.builder.operators[-1].version = version
        return self.builder.finish(self.inputs, [("y", output)])


def dense(
    values=None,
    weight_dtype="int8",
    weight_scale=(0.1, 0.2),
    weight_zero_point=0,
    weight_axis=0,
    bias=True,
    bias_scale=(0.05, 0.1),
    bias_zero_point=0,
    bias_dtype="int32",
    bias_values=(7, 9),
    x=None,
    version=None,
):
    net = Net()
    b = net.builder
    x = net.x(**(x or {}))
    values = np.arange(8).reshape(2, 4) if values is None else values
    fields = {"scale": np.float32(weight_scale), "zero_point": weight_zero_point}
    w = b.constant(values.astype("int8"), "w", groups=Groups(weight_axis), **fields)
    if weight_dtype != "int8":
        w.dtype, w.shape = weight_dtype, (2, 4)
    fields = {} if bias_scale is None else {"scale": np.float32(bias_scale)}
    bias_values = np.array(bias_values, bias_dtype)
    c = b.constant(bias_values, "b", zero_point=bias_zero_point, **fields) if bias else None
    return net.finish("FULLY_CONNECTED", [x, w, c], net.y((1, 2)), FULLY, version)


def unary(name, x=None, y=None, options=None, version=None):
    net = Net()
    return net.finish(name, [net.x(**(x or {}))], net.y(**(y or {})), options, version)


def binary(name, a=None, b=None, y=None, options=None, version=None):
    net = Net()
    inputs = [net.x(**(a or {})), net.x(**(b or {}))]
    return net.finish(name, inputs, net.y(**(y or {})), options, version)


def conv(kind, shape, scales, axis, x=(1, 5, 5, 2), int4=False):
    net = Net()
    b = net.builder
    channels = shape[axis]
    w = b.constant(np.ones(shape, "int8"), "w", scale=np.float32(scales), groups=Groups(axis))
    if int4:
        w = b.constant(np.ones((w.shape[-1] + 1) // 2, "int8"), "w", scale=np.float32(scales))
        w.dtype, w.shape = "int4", shape
    want = np.float32(0.5) * np.float32(scales)
    bias = b.constant(np.ones(channels, "int32"), "b", scale=want)
    options = dict(CONV)
    if kind == "TRANSPOSE_CONV":
        sizes = b.constant(np.array([1, 5, 5, shape[0]], "int32"))
        options = {key: CONV[key] for key in ("padding", "strideW", "strideH", *NONE)}
        inputs = [sizes, w, net.x(x), bias]
    else:
        inputs = [net.x(x), w, bias]
        if kind == "DEPTHWISE_CONV_2D":
            options["depthMultiplier"] = channels // x[-1]
    return net.finish(kind, inputs, net.y((1, 5, 5, channels)), options)


def matmul(scale):
    net = Net()
    w = net.builder.constant(
        np.ones((4, 2), "int8"), "w", scale=np.float32(scale), groups=Groups(1)
    )
    return net.finish("BATCH_MATMUL", [net.x(), w], net.y((1, 2)), {}, 2)


def packed(size, shape=(3, 5)):
    net = Net()
    w = net.builder.constant(np.ones(size, "int8"), "w", scale=np.float32(0.1))
    w.dtype, w.shape = "int4", shape
    b = net.builder.constant(np.ones(shape[0], "int32"), "b", scale=np.float32(0.05))
    return net.finish("FULLY_CONNECTED", [net.x((1, 5)), w, b], net.y((1, 3)), FULLY, 10)


def lstm(hidden_scale=0.5, weight_scale=0.1):
    net = Net()
    x, y = net.x((1, 2, 3)), net.y((1, 2, 2))

    def constant(shape, dtype, scale):
        return net.builder.constant(np.ones(shape, dtype), scale=np.float32(scale))

    first, *more = (
        constant(shape, "int8", scale)
        for shape, scale in [((2, 3), 0.1)] * 4 + [((2, 2), 0.1)] * 3 + [((2, 2), weight_scale)]
    )
    more[-1].name = "w"
    biases = [constant(2, "int32", 0.1 * x.scale) for _ in range(4)]
    fields = {"zero_point": y.zero_point, "variable": True}
    hidden = net.builder.tensor((1, 2), "int8", "hidden", scale=np.float32(hidden_scale), **fields)
    cell = net.builder.tensor((1, 2), "int16", "cell", scale=np.float32(2.0**-12), variable=True)
    none = [None]
    inputs = [x, first, *more, *3 * none, *biases, *2 * none, hidden, cell, *4 * none]
    return net.finish("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, y, {}, 1)


def many_zero_points():
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(unary("RELU", version=2), 0))
    model.subgraphs[0].tensors[1].quantization.zeroPoint = np.zeros(3, "int64")
    return pack(model)


SOFT = {"scale": 1 / 256, "zero_point": -128}
HALF, OTHER = {"scale": 0.5}, {"scale": 0.25}
INT16 = {"dtype": "int16", "zero_point": 0}
UINT8 = {"dtype": "uint8"}

FINE = {
    "dense": dense(),
    "dense, one scale": dense(weight_scale=0.1, bias_scale=0.05),
    "dense without bias": dense(bias=False),
    "dense without bias, as TensorFlow has it": dense(bias=False, version=4),
    "a bias of zeros by any scale": dense(bias_scale=(1, 1), bias_values=(0, 0)),
    "dense, 4 bits": dense(np.ones(4), "int4", version=10),
    "dense, 2 bits": dense(np.ones(2), "int2", version=14),
    "4 bits, an odd number": packed(8),
    "conv": conv("CONV_2D", (3, 1, 1, 2), (0.1, 0.2, 0.3), 0),
    "grouped conv": conv("CONV_2D", (4, 1, 1, 1), (0.1, 0.2, 0.3, 0.4), 0),
    "depthwise": conv("DEPTHWISE_CONV_2D", (1, 3, 3, 2), (0.1, 0.2), 3),
    "transposed": conv("TRANSPOSE_CONV", (3, 1, 1, 2), (0.1, 0.2, 0.3), 0),
    "softmax": unary("SOFTMAX", y=SOFT, options={"beta": 1.0}),
    "add": binary("ADD", OTHER, HALF, options=NONE),
    "max pool": unary(
        "MAX_POOL_2D",
        {"shape": (1, 4, 4, 1)},
        {"shape": (1, 2, 2, 1)},
        {**NONE, "padding": "VALID", "strideW": 2, "strideH": 2}
        | {"filterWidth": 2, "filterHeight": 2},
    ),
    "one scale": matmul(0.1),
    "negation with nothing to ignore": unary("NEG", {"zero_point": 0}, {"zero_point": 0}),
    "int16": unary("RELU", INT16, INT16, version=3),
    "comparison without scales": binary(
        "EQUAL", {"scale": None}, {"scale": None}, {"dtype": "bool", "scale": None}
    ),
    "bytes that are moved": unary("RESHAPE", {"scale": None}, {"scale": None}),
    "a state": lstm(),
    "a conversion without scales": unary("CAST", {"scale": None}, {"scale": None}),
    "int8 is compared": binary("LESS", y={"dtype": "bool", "scale": None}, version=2),
    "an index": unary("ARG_MAX", y={"dtype": "int32", "scale": None}, version=2),
}

# What is broken; severity, tensor, words.
BROKEN = {
    "version too low": (dense(version=1), WARNING, None, "version is 1, .* int8 needs 4"),
    "version too high": (dense(version=9), WARNING, None, "version is 9"),
    "version by its use": (
        binary("MUL", {"scale": 2}, {"scale": 2}, options=NONE, version=2),
        WARNING,
        None,
        "large product of scales",
    ),
    "version of a float op": (
        unary("SOFTMAX", *[{"dtype": "float32", "scale": None}] * 2, {"beta": 1.0}, 2),
        WARNING,
        None,
        "float32 needs 1",
    ),
    "bias scale": (dense(bias_scale=(0.05, 0.2)), ERROR, "b", "0.2 in channel 1, .* 0.1"),
    "bias scale, per tensor": (
        dense(weight_scale=0.1, bias_scale=0.1),
        ERROR,
        "b",
        r"0.1 in channel 0, .* 0.05\.",
    ),
    "number of bias scales": (dense(bias_scale=(1, 2, 3)), ERROR, "b", "3 scales"),
    "bias without a scale": (dense(bias_scale=None), WARNING, "b", "no scale"),
    "bias zero point": (dense(bias_zero_point=1), ERROR, "b", "zero point 1"),
    "bias type": (dense(bias_dtype="int64"), ERROR, "b", "int64.*Write it as int32"),
    "weight zero point": (dense(weight_zero_point=2), ERROR, "w", "zero point"),
    "weight axis": (dense(weight_scale=(0.1,) * 4, weight_axis=1), ERROR, "w", "dimension 1"),
    "weights of -128": (dense(np.full((2, 4), -128)), WARNING, "w", "-128"),
    "weights without a scale": (dense(weight_scale=()), ERROR, "w", "no scale"),
    "depthwise axis": (
        conv("DEPTHWISE_CONV_2D", (2, 3, 3, 2), (0.1, 0.2), 0),
        ERROR,
        "w",
        "dimension 0, .* dimension 3",
    ),
    "4 bits where there is no kernel": (
        conv("TRANSPOSE_CONV", (1, 1, 1, 2), (0.1,), 0, int4=True),
        ERROR,
        "w",
        "no kernel for int4",
    ),
    "constant right side": (matmul((0.1, 0.2)), ERROR, "w", "returns zeros"),
    "negation": (unary("NEG"), ERROR, "y", "ignores.*SUB or MUL"),
    "floor division": (binary("FLOOR_DIV"), ERROR, "y", "ignores"),
    "no kernel": (unary("SIN"), ERROR, "y", "no int8 kernel"),
    "bytes that are joined": (
        binary("CONCATENATION", y={"scale": 0.25}, version=2),
        ERROR,
        "x0",
        "LiteRT refuses the file",
    ),
    "unsigned bytes that are joined": (
        binary("CONCATENATION", UINT8, UINT8, {**UINT8, "scale": 0.25}, version=1),
        WARNING,
        "x0",
        "LiteRT requantizes",
    ),
    "16 bits that are joined": (
        binary("CONCATENATION", INT16, INT16, {**INT16, "scale": 0.25}, version=3),
        ERROR,
        "x0",
        "without an error",
    ),
    "version of a comparison": (
        binary("LESS", y={"dtype": "bool", "scale": None}, version=1),
        WARNING,
        None,
        "int8 needs 2",
    ),
    "imprecise kernel": (unary("RSQRT", INT16, INT16, version=3), WARNING, "y", "611"),
    "int16 zero point": (
        unary("RELU", INT16, {"dtype": "int16", "zero_point": 1}, version=3),
        ERROR,
        "y",
        "int16 kernels assume 0",
    ),
    "scale of zero": (unary("RELU", y={"scale": 0}), ERROR, "y", "no positive numbers, such as 0"),
    "negative scale": (unary("RELU", y={"scale": -1}), ERROR, "y", "such as -1"),
    "scale that is no number": (unary("RELU", y={"scale": np.nan}), ERROR, "y", "such as nan"),
    "infinite scale": (unary("RELU", y={"scale": np.inf}), ERROR, "y", "such as inf"),
    "subnormal scale": (unary("RELU", y={"scale": 1e-40}), ERROR, "y", "smaller than normal"),
    "missing scale": (unary("RELU", y={"scale": None}), ERROR, "y", "int8 and has no scale"),
    "missing scale of moved bytes": (
        unary("RESHAPE", y={"scale": None}),
        ERROR,
        "y",
        "without an error",
    ),
    "zero point": (unary("RELU", y={"zero_point": 128}), ERROR, "y", "128 is not in -128 to 127"),
    "zero point of uint8": (
        unary("QUANTIZE", y={"dtype": "uint8", "zero_point": -1}),
        ERROR,
        "y",
        "-1 is not in 0 to 255",
    ),
    "number of zero points": (many_zero_points(), ERROR, "y", "1 scales and 3 zero points"),
    "number of scales": (dense(weight_scale=(0.1, 0.2, 0.3), bias=False), ERROR, "w", "3 scales"),
    "4 bits that are not packed": (packed(15), ERROR, "w", "take 8 bytes, and it has 15.*Pack 2"),
    "4 bits packed row by row": (packed(9), ERROR, "w", "has 9"),
    "a state of another scale": (lstm(0.25), ERROR, "hidden", "one scale and zero point"),
    "many scales of a gate": (lstm(0.5, (0.1, 0.2)), ERROR, "w", "2 scales, .* the first for all"),
    "inputs missing": (unary("ADD", options=NONE, version=2), ERROR, None, "missing"),
}

FIXED = [name for name, row in KERNELS.items() if row.scales == "fixed"]
MOVES = [name for name, row in KERNELS.items() if row.scales == "same" and row.data == (0,)]
MEETS = [name for name, row in KERNELS.items() if row.scales == "all same" and row.data == ()]


@pytest.mark.parametrize("kind", FINE)
def test_files_without_fault(kind):
    findings = verify(FINE[kind])
    assert not findings, str(findings)
    assert str(findings) == "The file keeps all rules."


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(kind):
    content, severity, tensor, words = BROKEN[kind]
    findings = verify(content)
    hits = [f for f in findings if f.severity == severity and f.tensor == tensor]
    assert any(re.search(words, str(f)) for f in hits), str(findings)
    if severity == WARNING:
        assert not findings.errors


def test_kernels_without_a_rule_are_not_checked():
    findings = verify(unary("UNIQUE"))
    (finding,) = findings.unchecked
    assert (finding.severity, finding.op_name) == ("info", "UNIQUE")
    assert "not checked: 1 op takes this kernel" in str(findings)
    assert str(findings).splitlines()[-1] == "The file keeps all rules, where it was checked."
    assert not findings.errors
    assert findings.to_dict()["not_checked"] == ["UNIQUE"]


def test_every_rule_has_a_file_that_breaks_it():
    files = [content for content, *_ in BROKEN.values()]
    files += [unary("UNIQUE"), unary("SOFTMAX", version=2), unary("TANH", version=2)]
    assert {f.code for content in files for f in verify(content)} == set(RULES)


def test_rules_say_what_why_and_what_to_do():
    for code, rule in RULES.items():
        assert rule.code == code and code[0] in FAMILIES
        assert rule.summary.endswith(".") and rule.cause.endswith(".")
        assert rule.example and rule.remedy and not rule.remedy.endswith(".")
        assert rule.severity in ("error", "warning", "info")


def test_every_kernel_that_is_written_has_a_rule():
    kernels = {kernel for op in REGISTRY for kernel in op.litert}
    assert kernels <= set(KERNELS)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_outputs(name):
    scale, zero_point = KERNELS[name].fixed["int8"]
    right = {"scale": scale, "zero_point": zero_point}
    assert not verify(unary(name, y=right, version=2))
    for wrong in ({**right, "scale": 0.1}, {**right, "zero_point": 5}):
        (finding,) = verify(unary(name, y=wrong, version=2))
        assert "prescribes" in finding.what
        assert finding.severity == (WARNING if name == "TANH" else ERROR)
        assert (finding.op, finding.op_name, finding.tensor) == (0, name, "y")


@pytest.mark.parametrize("name", MOVES)
def test_same_scale_in_and_out(name):
    version = KERNELS[name].versions["int8"]
    shape = {"shape": (1, 2, 2, 1)}
    assert not verify(unary(name, shape, shape, version=version))
    for wrong in ({"scale": 0.25}, {"zero_point": 4}):
        (finding,) = verify(unary(name, shape, {**shape, **wrong}, version=version))
        assert finding.severity == ERROR
        assert finding.tensor == "y"
        assert "one scale and zero point" in finding.what


@pytest.mark.parametrize("name", MEETS)
def test_all_inputs_equal_the_output(name):
    version = KERNELS[name].versions["int8"]
    assert not verify(binary(name, version=version))
    (finding,) = verify(binary(name, HALF, OTHER, version=version))
    assert (finding.severity, finding.tensor) == (ERROR, "x1")
    assert len(verify(binary(name, HALF, HALF, OTHER, version=version))) == 2


def test_data_that_is_not_the_first_input():
    for wrong, count in ((HALF, 0), (OTHER, 1)):
        net = Net()
        axis = net.builder.constant(np.array(1, "int32"))
        content = net.finish("SPLIT", [axis, net.x()], net.y((1, 4), **wrong), {"numSplits": 1}, 2)
        assert len(verify(content)) == count
    for wrong, count in ((HALF, 0), (OTHER, 1)):
        net = Net()
        condition = net.x(dtype="bool", scale=None)
        inputs = [condition, net.x(), net.x(**wrong)]
        assert len(verify(net.finish("SELECT_V2", inputs, net.y(), {}, 1))) == count


def test_findings_say_where_and_what_to_do():
    findings = verify(dense(bias_zero_point=1, version=1))
    assert str(findings).splitlines()[0] == (
        "warning O202: op 0 FULLY_CONNECTED: its version is 1, and its use on int8 needs 4. "
        "Write that version: some runtimes refuse any other."
    )
    assert str(findings).splitlines()[-1] == "1 errors, 1 warnings"
    made = json.loads(json.dumps(findings.to_dict()))
    assert made["errors"] == 1
    assert made["findings"][1] == {
        "severity": "error",
        "graph": 0,
        "op": 0,
        "op_name": "FULLY_CONNECTED",
        "tensor": "b",
        "what": "the bias has the zero point 1, and kernels assume 0",
        "fix": "Quantize biases symmetrically",
        "code": "B602",
        "where": "op 0 FULLY_CONNECTED, tensor 'b'",
    }


@pytest.mark.parametrize("make", [cnn, mlp])
def test_files_of_ours(make, rng):
    model = enliven(make(), rng)
    q = ready(intact.quantize_model(model))
    for content in (
        intact.export(model),
        intact.export(q),
        intact.export(q, input_dtype="uint8", output_dtype="int8"),
    ):
        assert not verify(content)


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_224", "resnet20_cifar10"])
def test_files_of_pretrained_models(name, data_dir):
    model = keras.saving.load_model(data_dir / "models" / f"{name}.keras", compile=False)
    q = ready(intact.quantize_model(model))
    assert not verify(intact.export(q))
    assert not verify(intact.export(model))


def mutated(content, number):
    """A file with some bytes changed, or cut short."""
    chance = random.Random(number)
    made = bytearray(content)
    if chance.random() < 0.15:
        made = made[: chance.randrange(len(made))]
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        if made:
            place, size = chance.randrange(len(made)), chance.choice([1, 2, 4, 8])
            part = made[place : place + size]
            if chance.random() < 0.5:
                part = chance.choice([b"\xff", b"\x00", b"\x7f"]) * len(part)
            else:
                part[0] = (part[0] + chance.choice([1, 4, 16, 128, 255])) % 256
            made[place : place + len(part)] = part
    return bytes(made)


def test_mutated_files_are_read_or_refused(rng):
    content = intact.export(ready(intact.quantize_model(enliven(cnn(), rng))))
    refused = 0
    for number in range(300):
        try:
            made = mutated(content, number)
            findings, found = verify(made), intact.inspect(made)
        except intact.IntactError as error:
            refused += 1
            assert "LiteRT file" in str(error)
            continue
        json.dumps([findings.to_dict(), found.to_dict()], allow_nan=False)
        assert str(findings) and str(found)
    assert 50 < refused < 300
