"""Where the ops of files run."""

import json
import subprocess

import numpy as np
import pytest
from test_targets import SHAPE, one_op

from intact import InvalidDataError, MissingToolError, TargetError
from intact.errors import ExportError, IntactError
from intact.litert.builder import Builder
from intact.litert.quantization import Groups
from intact.litert.reader import read
from intact.targets import micro, vela
from intact.targets.fitting import keep_to
from intact.targets.micro_trial import micro_faults
from intact.targets.placement import place


def chain(*names: str, dtype: str = "int8", shape=SHAPE) -> bytes:
    """A file of ops of one input, in a row."""
    builder = Builder("a test")
    scale = {"scale": np.float32(0.05)}
    tensors = [builder.tensor(shape, dtype, f"t{i}", **scale) for i in range(len(names) + 1)]
    for name, x, y in zip(names, tensors, tensors[1:], strict=False):
        builder.add(name, [x], [y])
    return builder.finish([("x", tensors[0])], [("y", tensors[-1])])


def test_micro_computes_as_the_reference_kernels():
    pytest.importorskip("tflite_micro")
    found = place(chain("RELU", "HARD_SWISH"), "tflite-micro", samples=5)
    assert found.runs and found.share == 1
    assert found.figures["values_compared"] == 5 * 32
    assert found.figures["values_unlike_reference_kernels"] == 0
    assert 64 < found.figures["arena_bytes"] < 10_000
    assert "arena bytes" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_micro_says_which_ops_it_lacks():
    pytest.importorskip("tflite_micro")
    found = place(chain("RELU", "GELU", "RELU6", "EXP"), "tflite-micro")
    assert [op.where for op in found.ops] == ["TFLite Micro", "nowhere"] * 2
    assert "GELU" in found.ops[1].reason and "exp.cc" in found.ops[3].reason
    assert not found.runs and found.share == 0.5
    assert "does not run" in str(found)


def test_micro_takes_data():
    pytest.importorskip("tflite_micro")
    x = np.random.default_rng(0).normal(size=(3, *SHAPE[1:])).astype("float32")
    assert place(one_op("RELU"), "tflite-micro", x).figures["values_compared"] == 3 * 32
    with pytest.raises(InvalidDataError, match="takes shape"):
        place(one_op("RELU"), "tflite-micro", x[..., :1])


def test_what_micro_gets_wrong_is_seen():
    """Of constants with many scales, it takes the first."""
    pytest.importorskip("tflite_micro")
    builder = Builder("a test")
    x, y, z = (builder.tensor((1, 3), "float32", name) for name in "xyz")
    scales = np.array([0.1, 0.2, 0.3], "float32")
    constant = builder.constant(np.full((1, 3), 10, "int8"), "c", scale=scales, groups=Groups(1))
    builder.add("DEQUANTIZE", [constant], [y])
    builder.add("ADD", [x, y], [z], {"fusedActivationFunction": "NONE"})
    content = builder.finish([("x", x)], [("z", z)])
    found = place(content, "tflite-micro", np.zeros((1, 3), "float32"))
    assert found.figures["values_unlike_reference_kernels"] == 2
    assert found.runs and not found.agrees and not found.ok
    assert [op.where for op in found.ops] == ["nowhere", "TFLite Micro"]
    assert "computes other values" in found.ops[0].reason
    assert "TFLite Micro runs this file, and computes other values than LiteRT." in str(found)
    with pytest.raises(TargetError, match=r"y \(DEQUANTIZE, int8_per_channel\)"):
        keep_to(content, "tflite-micro")


def test_a_run_that_kills_micro_is_told(monkeypatch, tmp_path):
    """What takes the interpreter down takes nothing else with it."""
    pytest.importorskip("tflite_micro")
    runner = tmp_path / "micro_runner.py"
    text = (micro.Path(micro.__file__).parent / "micro_runner.py").read_text()
    broken = "    if path.stem.endswith('1'):\n        import os\n        os.abort()\n"
    mark = "    from tflite_micro import runtime\n"
    runner.write_text(text.replace(mark, broken + mark))
    monkeypatch.setattr(micro, "__file__", str(tmp_path / "micro.py"))
    failed = micro_faults(chain("RELU", "RELU6", "GELU"))
    assert list(failed) == [1, 2]
    assert "it ends the process" in failed[1]


def test_values_that_are_not_numbers_agree_with_themselves():
    pytest.importorskip("tflite_micro")
    content = one_op("LOG", "float32")
    found = place(content, "tflite-micro", np.full((1, *SHAPE[1:]), -1.0, "float32"))
    assert found.ok


@pytest.mark.parametrize("target", ["edgetpu", "ethos-u55"])
def test_a_target_that_runs_no_op_is_not_ok(target):
    if target != "edgetpu":
        pytest.importorskip("ethosu")
    found = place(one_op("RELU", "float32"), target)
    assert found.runs and not found.ok
    assert "0 of 1 ops (0.0 %) run on" in str(found)


def test_vela_places_ops():
    pytest.importorskip("ethosu")
    found = place(chain("RELU", "HARD_SWISH"), "ethos-u55-64")
    assert found.share == 1 and found.runs
    assert found.figures["sram_bytes"] > 0
    assert "ethos-u55-64" in found.settings


def test_vela_says_what_it_leaves_and_why():
    pytest.importorskip("ethosu")
    builder = Builder("a test")
    x = builder.tensor(SHAPE, "float32", "x")
    y, z = (builder.tensor(SHAPE, "int8", n, scale=np.float32(0.1)) for n in "yz")
    builder.add("QUANTIZE", [x], [y])
    builder.add("RELU", [y], [z])
    found = place(builder.finish([("x", x)], [("z", z)]), "ethos-u85")
    assert [op.where for op in found.ops] == ["CPU", "NPU"]
    assert "Float32" in found.left[0].reason and "QUANTIZE" in str(found)


def test_vela_fails_in_words(monkeypatch):
    pytest.importorskip("ethosu")
    with pytest.raises(IntactError, match="Vela cannot compile"):
        place(one_op("RELU"), "ethos-u55-7")

    def slow(*args, **kwargs):
        raise subprocess.TimeoutExpired("vela", 600)

    monkeypatch.setattr(vela.subprocess, "run", slow)
    with pytest.raises(IntactError, match="more than 600 s"):
        vela.compile_file(one_op("RELU"), "ethos-u55-128")


def test_missing_tools_name_the_extra(monkeypatch):
    monkeypatch.setattr(micro.util, "find_spec", lambda name: None)
    monkeypatch.setattr(vela.shutil, "which", lambda name: None)
    for target in ("tflite-micro", "ethos-u65"):
        with pytest.raises(MissingToolError, match=r"pip install 'keras-intact\[targets\]'"):
            place(one_op("RELU"), target)


def test_a_vela_on_the_path_will_do(monkeypatch):
    monkeypatch.setattr(vela.util, "find_spec", lambda name: None)
    monkeypatch.setattr(vela.shutil, "which", lambda name: "/opt/bin/vela")
    assert vela.command() == ["/opt/bin/vela"]


def test_xnnpack_is_asked():
    found = place(chain("ELU", "GELU", "ELU"), "xnnpack")
    assert [op.where for op in found.ops] == ["XNNPACK", "CPU", "XNNPACK"]


@pytest.mark.parametrize("target", ["tflite-micro", "ethos-u55", "edgetpu"])
def test_sizes_are_fixed(target):
    content = keep_to(chain("RELU", "RELU6", shape=(None, 4)), target)
    assert {t.shape for t in read(content).graphs[0].tensors} == {(1, 4)}
    with pytest.raises(ExportError, match="sizes of input 't0' are open"):
        keep_to(chain("RELU", shape=(None, None, 4)), target)


def test_files_are_kept_to_their_target():
    kept = chain("ELU", "GELU")
    assert keep_to(kept, "ethos-u55") and keep_to(kept, "xnnpack")
    with pytest.raises(TargetError, match=r"TFLite Micro has no kernel.*\n  t2 \(GELU, int8\)"):
        keep_to(kept, "tflite-micro")
    with pytest.raises(TargetError, match="Edge TPU would run none of the 1 ops"):
        keep_to(chain("RELU", dtype="int16"), "edgetpu")


def test_damaged_files_are_read_or_refused(rng):
    """Of what does not run them, no file is a crash."""
    whole = chain("RELU", "MEAN", "PAD", "CONCATENATION", "STRIDED_SLICE", "SOFTMAX")
    read_ones = 0
    for _ in range(300):
        content = bytearray(whole)
        for place_ in rng.integers(0, len(content), size=rng.integers(1, 4)):
            content[place_] ^= 1 << rng.integers(8)
        content = content[: rng.integers(len(content) // 2, 2 * len(content))]
        try:
            str(place(bytes(content), "edgetpu"))
            read_ones += 1
        except IntactError:
            pass
    assert 30 < read_ones < 300
