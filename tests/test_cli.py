"""The command line; as a process where that matters, else called in this one."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import intact
from intact.cli import main
from intact.litert.builder import Builder


@pytest.fixture
def run(tmp_path):
    """Runs `intact` as a process, in an empty folder."""

    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "intact.cli", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"},
        )

    return run


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls `intact` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, args, prog_name="intact")


def test_help_teaches(run):
    process = run("--help")
    assert process.returncode == 0, process.stderr
    assert all(word in process.stdout for word in ("demo", "KERAS_BACKEND", "intact.export"))


def test_help_of_demo(call):
    options = ("--dataset", "--data", "--output", "--epochs", "--seed", "--json")
    assert all(option in call("demo", "--help").output for option in options)


def test_version(call):
    assert call("--version").output == f"intact {intact.__version__}\n"


def test_demo_writes_three_files(run, tmp_path):
    pytest.importorskip("sklearn")
    process = run("demo", "--json", "--epochs", "4", "--output", "out")
    assert process.returncode == 0, process.stderr
    rows = {row["model"]: row for row in json.loads(process.stdout)["results"]}
    assert list(rows) == ["float", "post-training", "trained"]
    for row in rows.values():
        assert row["keras_accuracy"] > 0.8
        assert row["litert_accuracy"] > 0.8
        assert row["outputs"] == 3600
        assert (tmp_path / row["file"]).stat().st_size == row["bytes"]
    for name in ("post-training", "trained"):
        assert rows[name]["different"] == 0
        assert rows[name]["bytes"] < rows["float"]["bytes"] / 2
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["float.tflite", "post_training.tflite", "trained.tflite"]


def test_demo_prints_a_table_of_local_data(call, tmp_path):
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (160, 8, 8), "uint8")
    classes = np.arange(160) % 10
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images, y_train=classes, x_test=images[:50], y_test=classes[:50])
    result = call("demo", "--dataset", "fashion_mnist", "--data", "images.npz", "--epochs", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("model ")) :]
    assert [row.split()[0] for row in rows[1:4]] == ["float", "post-training", "trained"]
    assert all(" 0 of 500 " in row for row in rows[2:4])
    assert (tmp_path / "intact-demo" / "trained.tflite").is_file()


def test_missing_data_is_one_line(run, tmp_path):
    process = run("demo", "--dataset", "fashion_mnist", "--data", "nowhere.npz")
    assert process.returncode == 2
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    # Backends may log lines of their own, before it.
    errors = [line for line in process.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == process.stderr.splitlines()[-1:]
    assert "nowhere.npz" in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--dataset", "fashion_mnist", "--data", "junk.npz"], "not a `.npz`"),
        (["--dataset", "fashion_mnist", "--data", "part.npz"], "y_train, x_test, y_test"),
        (["--dataset", "fashion_mnist", "--data", "flat.npz"], "(2, 784)"),
        (["--data", "part.npz"], "--dataset fashion_mnist"),
        (["--output", "junk.npz/out"], "junk.npz/out"),
    ],
)
def test_bad_use_is_one_line(call, tmp_path, args, word):
    pytest.importorskip("sklearn")
    flat = {f"x_{part}": np.zeros((2, 784)) for part in ("train", "test")}
    (tmp_path / "junk.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "part.npz", x_train=np.zeros((2, 28, 28)))
    np.savez(tmp_path / "flat.npz", **flat, y_train=np.zeros(2), y_test=np.zeros(2))
    result = call("demo", *args)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert word in line


def test_without_scikit_learn(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = call("demo")
    assert result.exit_code == 2
    assert "pip install intact[demo]" in result.output


@pytest.fixture
def files(tmp_path):
    """A file without fault, one with an error, one with a warning, and one that is none."""
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    intact.export(model, tmp_path / "fine.tflite")
    for name, scale, version in (("broken", 0.5, 2), ("old", 1 / 256, 1)):
        builder = Builder("test")
        x = builder.tensor((1, 4), "int8", "x", scale=np.float32(0.5))
        y = builder.tensor((1, 4), "int8", "y", scale=np.float32(scale), zero_point=-128)
        builder.add("SOFTMAX", [x], [y], {"beta": 1.0})
        builder.operators[0].version = version
        (tmp_path / f"{name}.tflite").write_bytes(builder.finish([("x", x)], [("y", y)]))
    (tmp_path / "junk.tflite").write_text("hello, this is no model")
    return tmp_path


def test_inspect(run, files):
    process = run("inspect", "fine.tflite")
    assert process.returncode == 0, process.stderr
    assert "FULLY_CONNECTED" in process.stdout
    assert "float32 (?, 4) -> y: float32 (?, 2)" in process.stdout
    process = run("inspect", "fine.tflite", "--json")
    (graph,) = json.loads(process.stdout)["graphs"]
    assert [op["op"] for op in graph["ops"]] == ["FULLY_CONNECTED"]


def test_check(run, files):
    process = run("check", "fine.tflite", "--target", "xnnpack", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["share"] == 1 and found["runs"]
    assert [op["op"] for op in found["ops"]] == ["FULLY_CONNECTED"]
    process = run("check", "fine.tflite", "--target", "toaster")
    assert process.returncode == 2 and "no target 'toaster'" in process.stderr


def test_verify(run, files):
    process = run("verify", "broken.tflite")
    assert process.returncode == 1, process.stderr
    assert process.stdout.startswith("error: op 0 SOFTMAX, tensor 'y'")
    assert process.stdout.endswith("1 errors, 0 warnings\n")


@pytest.mark.parametrize(("name", "code"), [("fine", 0), ("old", 0), ("broken", 1)])
def test_exit_code_of_verify(call, files, name, code):
    result = call("verify", f"{name}.tflite", "--json")
    assert result.exit_code == code
    made = json.loads(result.stdout)
    assert made["errors"] == code
    assert len(made["findings"]) == (0 if name == "fine" else 1)


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("name", "word"), [("none.tflite", "no file"), ("junk.tflite", "not a LiteRT file")]
)
def test_files_that_are_none_are_one_line(call, files, command, name, word):
    result = call(command, name)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert word in line
