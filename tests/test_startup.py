"""What `import intact` and the command line load, and which names users see."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
from small import cnn, enliven

import intact
from intact import names, registration
from intact.litert.kernels.targets import TARGETS, get_target
from intact.litert.runtime import LiteRTModel
from intact.paths import check_output_path
from intact.quantizers.observers import OBSERVERS
from intact.schemes import SCHEMES

HEAVY = ("keras", "torch", "jax", "tensorflow")
RUN = f"""
import json, sys
from intact.cli import main
ends = []
for args in json.loads(sys.argv[1]):
    try:
        main(args.split())
    except SystemExit as end:
        ends.append((args, end.code, [name for name in {HEAVY} if name in sys.modules]))
print(json.dumps(ends))
"""


def python(folder, code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A float model, a quantized one, its file, and data."""
    folder = tmp_path_factory.mktemp("startup")
    rng = np.random.default_rng(0)
    model = enliven(cnn(), rng)
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    model.save(folder / "model.keras")
    q.save(folder / "q.keras")
    np.save(folder / "x.npy", x)
    intact.export(q, folder / "q.tflite")
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").touch()
    return folder


COMMANDS = {
    "--version": 0,
    "--help": 0,
    "quantize --help": 0,
    "demo --help": 0,
    "inspect q.tflite": 0,
    "verify q.tflite": 0,
    "check q.tflite --target xnnpack": 0,
    "run q.tflite --data x.npy -o y.npy": 0,
    "benchmark q.tflite --seconds 0.01": 0,
    "quantise": 2,
    "quantize model.keras -o q2.tflite --recover": 2,
    "quantize none.keras -o q2.tflite": 1,
    "quantize saved -o q2.tflite": 1,
    "quantize model.keras -o none/q2.tflite --data x.npy": 1,
    "quantize model.keras -o q2.tflite --data none.npy": 1,
    "quantize model.keras -o q2.tflite --data x.npy --html none/page.html": 1,
    "quantize model.keras -o q2.tflite --data x.npy --save q2.h5": 1,
    "recover q.keras -o none/q2.keras --data x.npy": 1,
    "advise saved --data x.npy": 1,
    "advise model.keras --data x.npy --labels none.npy": 1,
    "evaluate none.keras --data x.npy --labels x.npy": 1,
    "export model.keras -o saved": 1,
    "explain none.keras": 1,
    "compare q.keras none.tflite --data x.npy": 1,
    "compare q.keras q.tflite --data x.npy --float none.keras": 1,
    "bisect q.keras none.keras --data x.npy": 1,
    "check none.h5 --target edgetpu": 1,
    "run none.tflite --data x.npy": 1,
    "demo --dataset fashion_mnist --data none.npz": 1,
}


def ends(folder, *commands):
    """Per command its exit code and what it imported."""
    process = python(folder, RUN, json.dumps(commands))
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


def test_commands_without_keras(folder):
    results, stderr = ends(folder, *COMMANDS)
    assert results == [[command, code, []] for command, code in COMMANDS.items()]
    lines = stderr.splitlines()
    assert sum(line.startswith("Error: ") for line in lines) == sum(map(bool, COMMANDS.values()))


def test_a_folder_without_permission(tmp_path, monkeypatch):
    # The user who runs the tests may be one who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(intact.ExportError, match="no permission"):
        check_output_path(tmp_path / "model.tflite")


def test_import_loads_nothing(folder):
    process = python(folder, f"import sys, intact; print([n for n in {HEAVY} if n in sys.modules])")
    assert process.stdout == "[]\n", process.stderr


@pytest.mark.parametrize("order", ["import intact, keras", "import keras, intact"])
def test_keras_opens_quantized_models_once_intact_is_imported(folder, order):
    code = f"""
{order}
import numpy as np
loaded = "intact.api" in __import__("sys").modules
q = keras.saving.load_model("q.keras", compile=False)
x = np.load("x.npy")
same = (q.predict(x, verbose=0) == intact.load_litert("q.tflite").predict(x)).all()
print(loaded, same)
"""
    process = python(folder, code)
    assert process.stdout == "False True\n", process.stderr


@pytest.mark.parametrize("part", [False, True])
def test_keras_opens_parts_and_h5_files(folder, part):
    q = intact.load_keras(folder / "q.keras")
    if part:
        q = keras.Model(q.inputs, q.layers[-2].output)
    q.save(folder / "part.h5")
    process = python(
        folder,
        "import intact, keras; keras.saving.load_model('part.h5', compile=False).summary()",
    )
    assert process.returncode == 0, process.stderr


def test_all_saved_classes_have_a_stand_in():
    for module in registration.MODULES:
        importlib.import_module(module)
    saved = keras.saving.get_custom_objects().items()
    classes = {
        name: value
        for name, value in saved
        if inspect.isclass(value) and value.__module__.startswith("intact.")
    }
    expected = {
        f"{room}>{name}" for room, all_ in registration.SAVED_CLASSES.items() for name in all_
    }
    assert set(classes) == expected | {"QuantizedModel"}


def test_public_names():
    assert [name for name in dir(intact) if not name.startswith("__")] == intact.__all__
    assert all(name.startswith("__") or name in intact.__all__ for name in dir(intact))
    for name in intact.__all__:
        assert getattr(intact, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = intact.quantise


def test_no_function_has_the_name_of_a_module():
    modules = {module.name for module in pkgutil.iter_modules(intact.__path__)}
    functions = {name for name in intact.__all__ if not inspect.ismodule(getattr(intact, name))}
    assert not functions & modules


def test_the_stub_is_installed():
    assert Path(intact.__file__).with_suffix(".pyi").is_file()
    assert '"*.pyi"' in (Path(__file__).parent.parent / "pyproject.toml").read_text()


def test_names_in_signatures_are_those_that_are_known():
    assert set(get_args(names.SchemeName)) == set(SCHEMES)
    assert set(get_args(names.ObserverName)) == set(OBSERVERS)
    assert set(get_args(names.Kernels)) == set(LiteRTModel.resolvers)
    assert set(get_args(names.TargetName)) == set(TARGETS)
    assert {get_target(name) for name in get_args(names.Target)} == set(TARGETS)
