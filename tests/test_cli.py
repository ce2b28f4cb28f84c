"""The command line; as a process where that matters, else called in this one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from small import cnn, enliven, lossy

import intact
from intact.cli import main
from intact.cli.output import warn
from intact.errors import ScheduleWarning
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


def the_error(process):
    """The one line on stderr that says what is wrong."""
    assert "Traceback" not in process.stderr
    # Backends may log lines of their own, before it.
    errors = [line for line in process.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == process.stderr.splitlines()[-1:]
    return errors[0]


def test_a_warning_ends_with_its_code(capsys):
    warn(ScheduleWarning("The delay is not over."))
    warn("The file has no name.")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Warning: The delay is not over. [A905]", "Warning: The file has no name."]


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
    assert process.returncode == 1
    assert process.stdout == ""
    assert "nowhere.npz" in the_error(process)
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
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    assert word in line


def test_without_scikit_learn(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = call("demo")
    assert result.exit_code == 1
    assert "pip install 'keras-intact[demo]'" in result.output


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
    assert process.returncode == 1 and "no target 'toaster'" in process.stderr


def test_verify(run, files):
    process = run("verify", "broken.tflite")
    assert process.returncode == 1, process.stderr
    assert process.stdout.startswith("error S404: op 0 SOFTMAX, tensor 'y'")
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
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ") and re.search(r" \[E8\d\d\]$", line)
    assert word in line


@pytest.fixture
def models(tmp_path, rng):
    """A float model in two kinds of files, and data for it."""
    model = enliven(cnn(), rng)
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (40, 8, 8, 3), "uint8"))
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(40, 8, 8, 3)).astype("float32"), y=[1, 2])
    return tmp_path


def warnings_of(result):
    """The lines of the warnings on stderr, which also has a line for each stage."""
    return [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]


def errors_of(result):
    """The lines of the error, which is the last on stderr."""
    before, mark, text = result.stderr.partition("Error: ")
    assert mark and "Error: " not in text and "Traceback" not in before
    return f"{mark}{text}".splitlines()


PIXELS = ("--data", "x.npy", "--mean", "127.5", "--std", "127.5")


def test_from_file_to_file(run, call, models):
    """All commands on one model, the first ones as processes."""
    process = run(
        *("quantize", "model.keras", "-o", "model.tflite", *PIXELS, "--json"),
        *("--save", "q.keras", "--html", "page.html", "--integer-only"),
        *("--input-dtype", "uint8", "--output-dtype", "int8"),
    )
    assert process.returncode == 0, process.stderr
    made = json.loads(process.stdout)
    content = (models / "model.tflite").read_bytes()
    agreement = made.pop("agreement")
    assert made == {"file": "model.tflite", "bytes": len(content), "ops": 5, "float_ops": []}
    assert agreement["samples"] == 40 and agreement["top1"] > 0.7 and agreement["snr"] > 15
    # Without a terminal, stderr has a line for each stage.
    assert {"Calibrating", "Comparing with float"} <= set(process.stderr.splitlines())
    assert "conv" in (models / "page.html").read_text(encoding="utf-8")

    process = run("export", "q.keras", "-o", "again.tflite", "--input-dtype", "uint8")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("again.tflite: ")

    process = run(
        *("compare", "q.keras", "model.tflite", *PIXELS, "--float", "model.h5", "--json"),
        *("--html", "page.html", "--model-explorer", "nodes.json", "--samples", "20"),
    )
    assert process.returncode == 0, process.stderr
    made = json.loads(process.stdout)
    assert (made["samples"], made["outputs"][0]["different"]) == (20, 0)
    assert all(a["different"] == 0 and a["snr"] > 15 for a in made["layers"])
    assert set(json.loads((models / "nodes.json").read_text())) == {"results", "gradient"}

    result = call("bisect", "q.keras", "model.keras", *PIXELS, "--drop", "0.5")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("No layer loses more")

    result = call("recover", "q.keras", "-o", "better.keras", *PIXELS)
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[:2] == ["step", "before"] and "rejected" in result.stdout
    assert result.stdout.endswith("better.keras: saved\n")
    assert intact.export(intact.load_keras(models / "better.keras"))

    np.save(models / "y.npy", np.arange(40) % 4)
    options = ("--labels", "y.npy", "--options", "int8,float16", "--json")
    result = call("advise", "model.keras", *PIXELS, *options)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["measure"] == "accuracy"
    assert [option["name"] for option in made["options"]] == ["float32", "int8", "float16"]

    result = call("run", "model.tflite", *PIXELS, "-o", "y.npy")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[:2] == ["output", "shape"]
    x = (np.load(models / "x.npy").astype("float32") - 127.5) / np.float32(127.5)
    expected = intact.load_litert(content).predict(x)
    np.testing.assert_array_equal(np.load(models / "y.npy"), expected)

    result = call("benchmark", "model.tflite", "--seconds", "0.1", "--json")
    assert result.exit_code == 0, result.output
    assert 0 < json.loads(result.stdout)["median"] < 1

    result = call("explain", "model.h5")
    assert result.exit_code == 0, result.output
    assert "layers run on integers.\nScheme int8\n" in result.stdout


def test_errors_of_processes(run, models):
    process = run("quantize", "model.keras", "-o", "model.tflite", "--data", "none.npz")
    assert process.returncode == 1
    assert "none.npz" in the_error(process)
    process = run("quantize", "model.keras", "-o", "model.tflite", "--scheme", "int7")
    assert process.returncode == 2
    assert "'int7' is not one of 'int8'" in the_error(process)
    assert process.stdout == ""
    assert not list(models.glob("*.tflite"))


def test_a_float_model_and_what_its_file_lost(call, models):
    assert call("quantize", "model.h5", "-o", "w.tflite", "--scheme", "float16").exit_code == 0
    result = call("compare", "model.keras", "w.tflite", "--data", "x.npz", "--array", "x")
    assert result.exit_code == 0, result.output
    assert "float head" in result.stdout
    result = call("export", "model.h5", "-o", "net.c", "--format", "c-array")
    assert result.exit_code == 0, result.output
    assert {"net.c", "net.h"} <= {path.name for path in models.iterdir()}
    assert call("export", "model.h5", "-o", "float.tflite").exit_code == 0
    result = call("run", "float.tflite", "--data", "x.npz", "--array", "x", "-o", "y.npz", "--json")
    assert np.shape(json.loads(result.stdout)["head"]) == (40, 4)
    assert np.load(models / "y.npz")["head"].shape == (40, 4)


def test_images_and_observers(call, models, rng):
    image = pytest.importorskip("PIL.Image")
    (models / "images").mkdir()
    for i in range(5):
        pixels = rng.integers(0, 256, (9 + i, 12, 3), "uint8")
        image.fromarray(pixels).save(models / "images" / f"{i}.png")
    scale = ("--mean", "120,127.5,130", "--std", "60,61,62")
    options = ("--observer", "moving_average", "--samples", "4", "--target", "xnnpack")
    options = (*options, "--recover")
    result = call("quantize", "model.keras", "-o", "m.tflite", "--data", "images", *scale, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("m.tflite: ")
    assert "none of them in float" in result.stdout


@pytest.mark.parametrize("dtype, first", [("uint8", 0), ("int8", -128)])
def test_mean_and_std_fix_the_bytes_of_the_file(call, models, dtype, first):
    # Pixels of half of the range alone: calibration would find another scale.
    np.save(models / "dark.npy", np.full((8, 8, 8, 3), 60, "uint8"))
    scale = ("--data", "dark.npy", "--mean", "100", "--std", "50")
    result = call("quantize", "model.keras", "-o", "m.tflite", *scale, "--input-dtype", dtype)
    assert result.exit_code == 0, result.output
    detail = intact.load_litert(models / "m.tflite").interpreter.get_input_details()[0]
    assert detail["quantization"] == pytest.approx((1 / 50, 100 + first))


def test_mean_and_std_per_channel_become_a_layer_of_the_file(call, models):
    mean, std = [110.0, 120.0, 130.0], [30.0, 60.0, 90.0]
    scale = ("--data", "x.npy", "--mean", "110,120,130", "--std", "30,60,90")
    result = call(*QUANTIZE, *scale, "--input-dtype", "uint8", "--html", "page.html")
    assert result.exit_code == 0, result.output
    file = intact.load_litert(models / "out.tflite")
    # The bytes are the pixels.
    assert file.input_details["image"]["quantization"] == (1.0, 0)
    x = np.load(models / "x.npy")
    expected = intact.load_keras(models / "model.keras").predict((x - mean) / std, verbose=0)
    found = file.predict(x)
    assert np.mean((found - expected) ** 2) < 0.01 * np.var(expected)
    result = call(*QUANTIZE, "--data", "x.npy", "--mean", "1,2", "--input-dtype", "uint8")
    assert result.exit_code == 2 and "each of the 3 channels" in result.stderr


def test_mean_and_std_are_for_floats_too(call, models):
    np.save(models / "floats.npy", np.load(models / "x.npy").astype("float32"))
    for name in ("x.npy", "floats.npy"):
        result = call(*QUANTIZE[:-1], f"{name}.tflite", "--data", name, *PIXELS[2:])
        assert (result.exit_code, warnings_of(result)) == (0, []), result.output
    assert (models / "x.npy.tflite").read_bytes() == (models / "floats.npy.tflite").read_bytes()


@lossy
def test_bytes_that_nobody_scales_are_said(call, models):
    result = call(*QUANTIZE, "--data", "x.npy")
    assert result.exit_code == 0
    (line,) = warnings_of(result)
    assert line.startswith("Warning: the bytes in 'x.npy' are used as they are, from 0 to 255.")
    scaling = keras.Sequential([keras.Input((8, 8, 3), name="image"), keras.layers.Rescaling(0.1)])
    scaling.add(intact.load_keras(models / "model.keras"))
    scaling.save(models / "scaling.keras")
    result = call("quantize", "scaling.keras", "-o", "out.tflite", "--data", "x.npy")
    assert (result.exit_code, warnings_of(result)) == (0, []), result.output


def test_integers_for_a_float_file_are_refused(call, models):
    for scheme in ("float16", "weight_only_8", "dynamic_range"):
        for side in ("input", "output"):
            result = call(*QUANTIZE, "--scheme", scheme, f"--{side}-dtype", "int8")
            assert result.exit_code == 1, result.output
            assert f"stays in float, and {side}_dtype='int8' was asked for" in result.stderr
    result = call("export", "model.keras", "-o", "out.tflite", "--input-dtype", "uint8")
    assert result.exit_code == 1
    assert not list(models.glob("*.tflite"))


def test_samples_of_another_shape_are_refused(call, models):
    np.save(models / "small.npy", np.zeros((40, 5, 5, 3), "float32"))
    np.save(models / "y.npy", np.zeros(40, "int32"))
    intact.export(intact.load_keras(models / "model.keras"), models / "float.tflite")
    commands = (
        ("evaluate", "model.keras", "--labels", "y.npy"),
        ("evaluate", "float.tflite", "--labels", "y.npy"),
        ("compare", "model.keras", "float.tflite"),
        ("advise", "model.keras"),
        ("run", "float.tflite", "-o", "out.npy"),
        QUANTIZE,
    )
    for command in commands:
        result = call(*command, "--data", "small.npy")
        assert result.exit_code == 1
        assert "small.npy: Input 'image' takes shape (None, 8, 8, 3)" in " ".join(errors_of(result))


def test_labels_of_another_length_are_refused(call, models):
    np.save(models / "y.npy", np.zeros(39, "int32"))
    for samples in ("10", "200"):
        options = ("--labels", "y.npy", "--options", "int8", "--samples", samples)
        result = call("advise", "model.keras", *PIXELS, *options)
        assert result.exit_code == 1
        assert "'y.npy' has 39 labels, and 'x.npy' 40 samples" in result.stderr


def test_labels_that_are_no_classes_are_refused(call, models):
    np.save(models / "y.npy", np.arange(40) % 5)
    for command in (("evaluate", "model.keras"), ("advise", "model.keras", "--options", "int8")):
        result = call(*command, *PIXELS, "--labels", "y.npy")
        assert result.exit_code == 1
        assert "y.npy: The model has 4 classes" in " ".join(errors_of(result))


def test_labels_that_are_no_numbers_are_refused(call, models):
    np.save(models / "y.npy", np.full(40, "cat"))
    result = call("evaluate", "model.keras", *PIXELS, "--labels", "y.npy")
    assert result.exit_code == 1
    assert errors_of(result)[0].startswith("Error: Expected numbers in 'y.npy'.")


def test_evaluate(call, models):
    model = intact.load_keras(models / "model.keras")
    intact.export(model, models / "float.tflite")
    x = (np.load(models / "x.npy").astype("float32") - 127.5) / np.float32(127.5)
    y = model.predict(x, verbose=0).argmax(1)
    y[:10] = (y[:10] + 1) % 4
    np.save(models / "y.npy", y)
    files = ("model.keras", "float.tflite")
    result = call("evaluate", *files, *PIXELS, "--labels", "y.npy", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["file"], row["accuracy"], row["samples"]) for row in rows] == [
        (file, 0.75, 40) for file in files
    ]
    result = call("evaluate", "model.keras", *PIXELS, "--labels", "y.npy")
    assert "75.00 %" in result.stdout and "6.85 %" in result.stdout


def test_a_difference_can_be_a_failure(call, bad, monkeypatch):
    monkeypatch.chdir(bad)
    options = ("--data", "x.npy", "--fail-on-difference")
    assert call("compare", "q.keras", "q.tflite", *options).exit_code == 0
    result = call("compare", "model.keras", "q.tflite", *options)
    assert result.exit_code == 1 and "output head" in result.stdout


def test_errors_name_the_file(call, bad, monkeypatch):
    monkeypatch.chdir(bad)
    Path("junk.tflite").write_text("no flatbuffer")
    commands = (("compare", "model.keras", "junk.tflite", "--data", "x.npy"),)
    commands += tuple((name, "junk.tflite") for name in ("inspect", "verify", "benchmark"))
    for command in commands:
        assert errors_of(call(*command))[0].startswith("Error: 'junk.tflite' is not a LiteRT file")
    result = call("recover", "model.keras", "-o", "r.keras", "--data", "x.npy")
    assert errors_of(result)[0].startswith("Error: model.keras: Model ")
    assert errors_of(result)[-1].endswith(" [E801]")
    result = call("compare", "q.keras", "q.tflite", "--data", "flat.npy")
    assert "flat.npy" in errors_of(result)[0]


def test_links_are_followed_and_pipes_are_left(call, models):
    (models / "real.tflite").write_bytes(b"old")
    (models / "out.tflite").symlink_to("real.tflite")
    (models / "q.keras").symlink_to("later.keras")
    result = call(*QUANTIZE, *PIXELS, "--save", "q.keras")
    assert result.exit_code == 0, result.output
    assert (models / "out.tflite").is_symlink() and (models / "q.keras").is_symlink()
    assert intact.load_litert(models / "real.tflite").input_names == ["image"]
    assert intact.load_keras(models / "later.keras")
    os.mkfifo(models / "pipe")
    (models / "pipe.keras").symlink_to("pipe")
    for args in (
        ("quantize", "model.keras", "-o", "pipe", *PIXELS),
        ("quantize", "model.keras", "-o", "x.tflite", "--save", "pipe.keras", *PIXELS),
        ("export", "model.keras", "-o", "/dev/null"),
        ("export", "model.keras", "-o", "pipe", "--format", "c-array"),
        ("run", "real.tflite", *PIXELS, "-o", "pipe"),
    ):
        result = call(*args)
        assert result.exit_code == 1, result.output
        assert "a pipe or a device" in result.stderr or "Expected a .npy" in result.stderr
    assert (models / "pipe").is_fifo()
    assert not Path("/dev/null").is_file()


def test_a_saved_model_is_no_keras_file(call, models):
    (models / "saved").mkdir()
    (models / "saved" / "saved_model.pb").write_bytes(b"")
    (models / "empty").mkdir()
    for name, words in (("saved", "is a SavedModel of TensorFlow"), ("empty", "is a folder")):
        result = call("explain", name)
        assert result.exit_code == 1 and words in result.stderr


def test_what_has_no_integer_kernel(call, models):
    inputs = keras.Input((8,), name="x")
    middle = keras.ops.median(keras.layers.Dense(4, name="d")(inputs), axis=-1, keepdims=True)
    keras.Model(inputs, keras.layers.Dense(2)(middle)).save(models / "odd.keras")
    np.save(models / "v.npy", np.ones((4, 8), "float32"))
    options = ("odd.keras", "-o", "odd.tflite", "--data", "v.npy")
    result = call("quantize", *options)
    if result.exit_code:
        (line,) = errors_of(result)
        assert line.startswith("Error: odd.keras: ") and "Median" in line
        result = call("quantize", *options, "--allow-float", "--integer-only")
        assert result.exit_code == 1
        assert not (models / "odd.tflite").exists()


QUANTIZE = ("quantize", "model.keras", "-o", "out.tflite")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("quantize", "none.keras", "-o", "out.tflite", "--data", "x.npy"), 1, "There is no file"),
        (("quantize", "x.npy", "-o", "out.tflite", "--data", "x.npy"), 1, "Cannot open 'x.npy'"),
        (("quantize", "cut.keras", "-o", "out.tflite", "--data", "x.npy"), 1, "Cannot open"),
        (("quantize", "q.keras", "-o", "out.tflite", "--data", "x.npy"), 1, "quantized already"),
        ((*QUANTIZE,), 2, "needs samples"),
        ((*QUANTIZE, "--data", "none"), 1, "no file or folder 'none'"),
        ((*QUANTIZE, "--data", "model.keras"), 1, "not a .npy or .npz file"),
        ((*QUANTIZE, "--data", "flat.npy"), 1, "takes shape (None, 8, 8, 3)"),
        ((*QUANTIZE, "--data", "nan.npy"), 1, "NaN or infinite"),
        ((*QUANTIZE, "--data", "x.npz"), 1, "--array NAME"),
        ((*QUANTIZE, "--data", "x.npy", "--mean", "a"), 2, "not a number"),
        ((*QUANTIZE, "--data", "x.npy", "--std", "0"), 2, "not above 0"),
        ((*QUANTIZE, "--data", "x.npy", "--scheme", "int7"), 2, "int7"),
        ((*QUANTIZE, "--data", "x.npy", "--observer", "no"), 2, "no"),
        ((*QUANTIZE, "--data", "x.npy", "--samples", "0"), 2, "0"),
        ((*QUANTIZE, "--data", "x.npy", "--input-dtype", "int16"), 1, "stored as int8"),
        ((*QUANTIZE, "--data", "x.npy", "--save", "q.h5"), 1, "Expected a .keras file"),
        ((*QUANTIZE, "--data", "x.npy", "--html", "none/p.html"), 1, "'none' is missing"),
        ((*QUANTIZE, "--scheme", "float16", "--html", "p.html"), 2, "needs samples"),
        (("quantize", "model.keras", "-o", ".", "--data", "x.npy"), 1, "it is a folder"),
        (("quantize", "model.keras", "-o", "x.npy/out", "--data", "x.npy"), 1, "Cannot write"),
        (("quantize", "model.keras"), 2, "Missing option '-o'"),
        ((*QUANTIZE, "--scheme", "float16", "--recover"), 2, "--recover needs samples"),
        (("recover", "model.keras", "-o", "r.keras", "--data", "x.npy"), 1, ""),
        (("recover", "q.keras", "-o", "r.tflite", "--data", "x.npy"), 1, "Expected a .keras"),
        (("recover", "q.keras", "-o", "r.keras", "--data", "flat.npy"), 1, "takes shape"),
        (("advise", "none.keras", "--data", "x.npy"), 1, "There is no file"),
        (("advise", "model.keras", "--data", "nan.npy"), 1, "NaN"),
        (("advise", "model.keras", "--data", "x.npy", "--options", "int7"), 1, "'int7'"),
        (("export", "none.keras", "-o", "out.tflite"), 1, "There is no file"),
        (("export", "model.keras", "-o", "none/out.tflite"), 1, "'none' is missing"),
        (("export", "model.keras", "-o", "out.tflite", "--integer-only"), 1, "stay in float"),
        (("export", "model.keras", "-o", "out.tflite", "--format", "onnx"), 2, "onnx"),
        (("explain", "none.keras"), 1, "There is no file"),
        (("explain", "model.keras", "--scheme", "int7"), 2, "int7"),
        (("compare", "q.keras", "none.tflite", "--data", "x.npy"), 1, "none.tflite"),
        (("compare", "q.keras", "x.npy", "--data", "x.npy"), 1, "not a LiteRT file"),
        (("compare", "q.keras", "cut.tflite", "--data", "x.npy"), 1, ""),
        (("compare", "q.keras", "q.tflite", "--data", "flat.npy"), 1, "takes shape"),
        (("compare", "q.keras", "q.tflite", "--data", "x.npy", "--html", "no/p"), 1, "missing"),
        (("compare", "q.keras", "q.tflite"), 2, "Missing option '--data'"),
        (("bisect", "model.keras", "q.keras", "--data", "x.npy"), 1, "quantized model first"),
        (("bisect", "q.keras", "none.keras", "--data", "x.npy"), 1, "There is no file"),
        (("bisect", "q.keras", "model.keras", "--data", "flat.npy"), 1, "takes shape"),
        (("run", "none.tflite", "--data", "x.npy"), 1, "There is no file"),
        (("run", "cut.tflite", "--data", "x.npy"), 1, ""),
        (("run", "q.tflite", "--data", "flat.npy"), 1, "takes shape"),
        (("run", "q.tflite", "--data", "nan.npy"), 1, "NaN"),
        (("run", "q.tflite", "--data", "x.npy", "-o", "y.txt"), 1, "Expected a .npy or .npz"),
        (("run", "q.tflite", "--data", "x.npy", "-o", "none/y.npy"), 1, "missing"),
        (("run", "q.tflite", "--data", "x.npy", "--kernels", "fast"), 2, "fast"),
        (("benchmark", "none.tflite"), 1, "There is no file"),
        (("benchmark", "cut.tflite"), 1, ""),
        (("benchmark", "q.tflite", "--seconds", "0"), 2, "0"),
        (("benchmark", "q.tflite", "--threads", "0"), 2, "0"),
        (("quantise",), 2, "quantise"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input(call, bad, monkeypatch, args, code, words):
    monkeypatch.chdir(bad)
    before = sorted(path.name for path in bad.iterdir())
    result = call(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    assert words in " ".join(errors_of(result))
    assert sorted(path.name for path in bad.iterdir()) == before


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Files that are good, and files that are not."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(3)
    model = enliven(cnn(), rng)
    x = rng.normal(size=(10, 8, 8, 3)).astype("float32")
    model.save(folder / "model.keras")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    q.save(folder / "q.keras")
    content = intact.export(q, folder / "q.tflite")
    (folder / "cut.tflite").write_bytes(content[: len(content) // 2])
    saved = (folder / "model.keras").read_bytes()
    (folder / "cut.keras").write_bytes(saved[: len(saved) // 2])
    np.save(folder / "x.npy", x)
    np.save(folder / "flat.npy", x.reshape(10, -1))
    np.save(folder / "nan.npy", x * np.nan)
    np.savez(folder / "x.npz", a=x, b=x)
    return folder
