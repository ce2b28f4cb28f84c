"""C source, compiled and run."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from small import parse
from test_targets import SHAPE, one_op

from intact import ExportError, IntactError, write_c_array
from intact.litert.writing import pack
from intact.targets import micro
from intact.targets.c_array import c_array, c_name

MAIN = """
#include <stdint.h>
#include <stdio.h>
#include "model.h"
int main(void) {
  printf("%d %.9g %d %d ", (int)((uintptr_t)model % 16), MODEL_INPUT_0_SCALE,
         MODEL_INPUT_0_ZERO_POINT, MODEL_OUTPUT_0_SIZE);
  return fwrite(model, 1, model_len, stdout) != MODEL_BYTES;
}
"""


@pytest.mark.parametrize(
    "compiler", [["gcc", "-std=c99"], ["gcc", "-std=c11"], ["g++", "-std=c++14", "-x", "c++"]]
)
def test_it_compiles_and_holds_the_file(tmp_path, compiler, rng):
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no {compiler[0]}")
    content = one_op("RELU")
    write_c_array(content, tmp_path / "model.c")
    (tmp_path / "main.c").write_text(MAIN)
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
    out = str(tmp_path / "main")
    files = [str(tmp_path / name) for name in ("main.c", "model.c")]
    subprocess.run([*compiler, *flags, *files, "-o", out], check=True)
    told = subprocess.run([out], check=True, capture_output=True).stdout
    start = told.index(content)
    assert told[start:] == content
    aligned, scale, zero_point, size = told[:start].split()
    assert (int(aligned), int(zero_point), int(size)) == (0, 0, np.prod(SHAPE))
    assert np.float32(scale) == np.float32(0.05)


def test_the_arena_is_enough_and_no_more():
    pytest.importorskip("tflite_micro")
    header, _ = c_array(one_op("RELU"), "model")
    assert int(re.search(r"MODEL_ARENA_BYTES (\d+)", header)[1]) > np.prod(SHAPE)
    assert "ARENA" not in c_array(one_op("GELU"), "model")[0]


def test_without_micro_there_is_no_arena(monkeypatch):
    monkeypatch.setattr(micro.util, "find_spec", lambda name: None)
    assert "ARENA" not in c_array(one_op("RELU"), "model")[0]


def test_names(tmp_path):
    assert c_name("ds-cnn.v2.c") == "ds_cnn_v2"
    assert c_name("8bit.c") == "model_8bit"
    write_c_array(one_op("RELU"), tmp_path / "a b.c", "net")
    assert '#include "a b.h"' in (tmp_path / "a b.c").read_text()
    assert "unsigned char net[]" in (tmp_path / "a b.h").read_text()
    with pytest.raises(IntactError, match="identifier"):
        write_c_array(one_op("RELU"), tmp_path / "x.c", "no-name")


def test_names_of_ops_end_no_comment():
    model = parse(one_op("RELU"))
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = "*/ int main;"
    header, _ = c_array(pack(model), "m")
    assert "for the resolver: ___int_main_ */" in header


def test_bad_input(tmp_path):
    with pytest.raises(IntactError, match="no file"):
        write_c_array(tmp_path / "none.tflite", tmp_path / "x.c")
    with pytest.raises(ExportError, match="missing"):
        write_c_array(one_op("RELU"), tmp_path / "none" / "x.c")
    assert list(tmp_path.iterdir()) == []
