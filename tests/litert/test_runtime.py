"""The runtime's wrapper: what goes in, and files that are none."""

import os
import subprocess
import sys

import numpy as np
import pytest
from keras import layers
from small import enliven, mlp, ready

import intact
from intact import IntactError, InvalidDataError, load_litert
from intact.litert.runtime import expose

KINDS = ("float32", "int8", "uint8")


@pytest.fixture(scope="module")
def q():
    return ready(intact.quantize_model(enliven(mlp(), np.random.default_rng(5))))


@pytest.fixture(scope="module")
def content(q):
    return intact.export(q)


@pytest.fixture
def x(rng):
    return rng.normal(size=(10, 6)).astype("float32")


def test_path_string_and_bytes_are_one(content, x, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    expected = load_litert(content).predict(x)
    np.testing.assert_array_equal(load_litert(path).predict(x), expected)
    np.testing.assert_array_equal(load_litert(str(path)).predict(x), expected)


@pytest.mark.parametrize("output_dtype", KINDS)
@pytest.mark.parametrize("input_dtype", KINDS)
def test_real_values_go_in_and_out_whatever_the_types(q, content, x, input_dtype, output_dtype):
    model = load_litert(intact.export(q, input_dtype=input_dtype, output_dtype=output_dtype))
    details = model.interpreter.get_input_details() + model.interpreter.get_output_details()
    assert [np.dtype(d["dtype"]).name for d in details] == [input_dtype, output_dtype]
    found = model.predict(100 * x)
    assert found.dtype == np.float32
    # Values beyond the range are clipped, not wrapped around.
    np.testing.assert_array_equal(found, load_litert(content).predict(100 * x))
    raw = model.predict(x, raw=True)
    assert raw.dtype == output_dtype


def test_stored_integers_are_taken_as_they_are(q, x):
    model = load_litert(intact.export(q, input_dtype="int8"))
    scale, zero_point = model.input_details["features"]["quantization"]
    stored = np.clip(np.rint(x / np.float32(scale)) + zero_point, -128, 127).astype("int8")
    np.testing.assert_array_equal(model.predict(stored), model.predict(x))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_batches_of_any_size(content, x, batch_size):
    model = load_litert(content)
    expected = np.concatenate([model.predict(row[None]) for row in x])
    np.testing.assert_array_equal(model.predict(x, batch_size=batch_size), expected)


@pytest.mark.parametrize("kernels", ["default", "builtin", "reference"])
def test_kernels_are_near_each_other(content, x, kernels):
    found = load_litert(content, kernels=kernels).predict(x)
    assert np.abs(found - load_litert(content).predict(x)).max() <= 2 * 6 / 255


def test_names(content):
    model = load_litert(content)
    assert model.input_names == ["features"]
    assert model.output_names == ["head"]


BAD = {
    "wrong size": (lambda x: x[:, :5], r"'features' takes shape \(None, 6\).*\(10, 5\)"),
    "wrong rank": (lambda x: x[..., None], r"\(10, 6, 1\)"),
    "one sample without a batch": (lambda x: x[0], r"\(6,\)"),
    "no samples": (lambda x: x[:0], "at least one"),
    "wrong name": (lambda x: {"image": x}, r"\['features'\].*\['image'\]"),
    "a name too much": (lambda x: {"features": x, "image": x}, "image"),
    "two arrays": (lambda x: [x, x], "Expected 1 inputs. Received: 2"),
    "none": (lambda x: [], "Expected 1 inputs. Received: 0"),
    "text": (lambda x: np.full((10, 6), "a"), "'features' takes"),
    "nothing": (lambda x: None, "'features' takes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_to_predict(kind, content, x):
    make, message = BAD[kind]
    with pytest.raises(InvalidDataError, match=message):
        load_litert(content).predict(make(x))


def test_inputs_of_different_lengths(rng):
    import keras

    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = load_litert(intact.export(keras.Model([a, b], layers.Add()([a, b]))))
    with pytest.raises(InvalidDataError, match="same number of samples"):
        model.predict([np.ones((2, 3)), np.ones((3, 3))])


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(IntactError, match="no file"):
        load_litert(tmp_path / "none.tflite")
    with pytest.raises(IntactError, match="no file"):
        load_litert(tmp_path)


def test_unknown_kernels_name_the_known_ones(content):
    with pytest.raises(IntactError, match=r"'fast'.*default, builtin, reference"):
        load_litert(content, kernels="fast")


# In a process of its own: bad bytes must not take the interpreter down with them.
HOSTILE = """
import sys
import numpy as np
from intact.errors import IntactError
from intact.litert.runtime import load_litert

content = open(sys.argv[1], "rb").read()
rng = np.random.default_rng(0)
files = [content[:n] for n in (*range(0, 64, 3), *range(64, len(content), 41), len(content) - 1)]
files += [content[:8] + rng.bytes(n) for n in (0, 1, 8, 100, 5000)]
files += [b"\\0" * 100, b"\\0\\0\\0\\0TFL3" + b"\\0" * 100, b"\\xff\\xff\\xff\\xffTFL3" * 20]
files += [b"not a model, but a text that is long enough to be one " * 20]
for name in (b"features", b"head"):
    files.append(content.replace(name, b"\\xff" * len(name)))
refused = 0
for file in files:
    try:
        load_litert(file)
    except IntactError:
        refused += 1
print(refused, len(files))
"""


def test_truncated_files_and_garbage_are_errors_and_no_crash(content, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(path)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, files = map(int, done.stdout.split())
    assert refused == files


def test_expose_adds_outputs_and_changes_nothing_else(content, x):
    exposed = load_litert(expose(content, ["hidden_relu"]))
    found = exposed.predict(x, raw=True)
    assert list(found)[1] == "hidden_relu"
    assert found["hidden_relu"].dtype == np.int8
    assert found["hidden_relu"].shape == (10, 5)
    np.testing.assert_array_equal(next(iter(found.values())), load_litert(content).predict(x))
