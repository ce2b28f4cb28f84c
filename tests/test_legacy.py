"""Model files of Keras 2 and 3: the very models, or an error, and never code from a file."""

import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, mlp

import intact

DATA = Path(__file__).parent / "data"
FILES = sorted(
    f"{path.stem.removeprefix('legacy_')}{Path(name).suffix}"
    for path in DATA.glob("legacy_*.zip")
    for name in zipfile.ZipFile(path).namelist()
    if not name.endswith(".npz")
)


@pytest.fixture
def fetch(tmp_path):
    """Unpacks a file that Keras 2 wrote; returns its path, and what went in and came out."""

    def fetch(name):
        stem, _, suffix = name.partition(".")
        with zipfile.ZipFile(DATA / f"legacy_{stem}.zip") as archive:
            archive.extractall(tmp_path)
        arrays = np.load(tmp_path / "data.npz")
        x = [arrays[k] for k in sorted(arrays) if k.startswith("x")]
        y = [arrays[k] for k in sorted(arrays) if k.startswith("y")]
        return tmp_path / f"model.{suffix}", x, y, float(arrays["total"])

    return fetch


def listed(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", FILES)
def test_files_of_keras_2_are_the_same_models(fetch, name):
    path, x, expected, total = fetch(name)
    model = intact.load_keras(path)
    found = listed(model.predict(x if len(x) > 1 else x[0], verbose=0))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=2e-5)
    weights = sum(np.abs(keras.ops.convert_to_numpy(w)).sum() for w in model.weights)
    np.testing.assert_allclose(weights, total, rtol=1e-6)
    # An ordinary model: it saves and loads like any other.
    model.save(path.with_name("again.keras"))
    again = keras.saving.load_model(path.with_name("again.keras"))
    for one, other in zip(
        listed(again.predict(x if len(x) > 1 else x[0], verbose=0)), found, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def refuse(path):
    raise ValueError("Keras 3 does not like it")


@pytest.mark.parametrize("name", FILES)
def test_files_that_keras_3_takes_are_rebuilt_the_same(fetch, name, monkeypatch):
    monkeypatch.setattr("intact.keras_files.loading._load_as_it_is", refuse)
    test_files_of_keras_2_are_the_same_models(fetch, name)


def net():
    """A model with what files of Keras 3 hold: operations, nested models, wrappers."""
    inner = keras.Sequential([keras.Input((8, 4)), layers.Dense(4, "relu")], name="inner")
    x = keras.Input((8, 4), name="x")
    y = inner(x) + keras.ops.maximum(x, 0.5)
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(inner(y)[:, 1:])
    y = layers.MultiHeadAttention(2, 3)(y, y)
    y = layers.Dropout(0.3)(keras.ops.concatenate([y, y], axis=-1))
    return keras.Model({"x": x}, {"mean": keras.ops.mean(y, 1), "max": layers.Dense(2)(y)})


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("rebuilt", [False, True])
def test_files_of_keras_3(tmp_path, rng, monkeypatch, suffix, rebuilt):
    model = enliven(net(), rng)
    path = tmp_path / f"m.{suffix}"
    model.save(path)
    if rebuilt:
        monkeypatch.setattr("intact.keras_files.loading._load_as_it_is", refuse)
    loaded = intact.load_keras(str(path))
    x = {"x": rng.normal(size=(3, 8, 4))}
    expected, found = model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    assert list(found) == list(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6)


# Repairs of configs, written into a file of Keras 2 ----------------------------------------


@pytest.fixture
def edited(fetch):
    """Opens the plain file after an edit of its config."""

    def edited(edit):
        path, x, y, _ = fetch("plain.h5")
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            entries = {e["config"]["name"]: e for e in config["config"]}
            file.attrs["model_config"] = json.dumps(edit(config, entries) or config)
        return intact.load_keras(path), x[0], y[0]

    return edited


def functional(config, kind="Model", between=()):
    """A functional config of a chain, and of one call of the op in between."""
    entries, last = [], "image"
    first = config["config"][0]["config"].pop("batch_input_shape")
    image = {"batch_input_shape": first, "dtype": "float32", "sparse": False, "name": "image"}
    chain = [{"class_name": "InputLayer", "config": image}, *config["config"], *between]
    for entry in chain:
        name = entry["config"]["name"]
        nodes = entry.pop("nodes", [[[last, 0, 0, {}]]]) if entries else []
        entries.append({**entry, "name": name, "inbound_nodes": nodes})
        last = name
    ends = {"input_layers": [["image", 0, 0]], "output_layers": [[last, 0, 0]]}
    return {"class_name": kind, "config": {"name": "net", "layers": entries, **ends}}


def tf_op(function, **kwargs):
    config = {"name": f"tf.{function}", "trainable": True, "dtype": "float32"}
    nodes = [["head", 0, 0, {**kwargs, "name": None}]]
    return {"class_name": "TFOpLambda", "config": {**config, "function": function}, "nodes": nodes}


POLICY = {"class_name": "Policy", "config": {"name": "float32"}, "module": "tf.keras"}
SAME = {
    "as it is": lambda config, e: None,
    "groups": lambda config, e: e["conv"]["config"].update(groups=1, implementation=2),
    "policy": lambda config, e: e["conv"]["config"].update(dtype=POLICY),
    "policy inferred": lambda config, e: e["conv"]["config"].update(dtype="infer"),
    "leftovers of batch norm": lambda config, e: e["bn"]["config"].update(
        renorm=False, fused=True, virtual_batch_size=None, axis=[3], adjustment=None
    ),
    "unknown and unused": lambda config, e: e["head"]["config"].update(shiny=None),
    "module": lambda config, e: e["head"].update(module="tensorflow.python.keras.layers"),
    "class of functional models": lambda config, e: functional(config),
    "functional model": lambda config, e: functional(config, "Functional"),
    "constraint": lambda config, e: e["head"]["config"].update(
        kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2, "axis": 0}},
        kernel_regularizer={"class_name": "L1L2", "config": {"l1": 0.0, "l2": 0.01}},
    ),
    "initializer": lambda config, e: e["head"]["config"].update(
        kernel_initializer={"class_name": "Mine", "config": {}}
    ),
    "slashes": lambda config, e: functional(config, between=[tf_op("math.add", y=0.0)]),
}


@pytest.mark.parametrize("kind", SAME)
def test_repairs(edited, kind):
    model, x, y = edited(SAME[kind])
    np.testing.assert_allclose(model.predict(x, verbose=0), y, atol=1e-6)


DONE = {
    "math.add": ({"y": 2.0}, lambda y: y + 2),
    "__operators__.add": ({"y": ["head", 0, 0]}, lambda y: 2 * y),
    "math.multiply": ({"y": [2.0, -1.0]}, lambda y: y * [2, -1]),
    "math.truediv": ({"y": 4.0}, lambda y: y / 4),
    "nn.relu": ({}, lambda y: np.maximum(y, 0)),
    "math.square": ({}, np.square),
    "math.reduce_max": ({"axis": 1, "keepdims": True}, lambda y: y.max(1, keepdims=True)),
    "compat.v1.transpose": ({"perm": [0, 1], "conjugate": False}, lambda y: y),
    "expand_dims": ({"axis": 1}, lambda y: y[:, None]),
    "math.l2_normalize": ({"axis": 1}, lambda y: y / np.linalg.norm(y, axis=1, keepdims=True)),
}


@pytest.mark.parametrize("function", DONE)
def test_functions_of_tensorflow(edited, function):
    kwargs, expected = DONE[function]
    model, x, y = edited(lambda config, e: functional(config, between=[tf_op(function, **kwargs)]))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected(y), atol=1e-6)


def test_graph_ops_of_the_first_tensorflow_2(edited):
    config = {"name": "half", "trainable": True, "dtype": "float32", "constants": {"1": 0.5}}
    node = {"name": "Mul", "op": "Mul", "input": ["head/Softmax", "Mul/y"], "attr": {}}
    entry = {"class_name": "TensorFlowOpLayer", "config": {**config, "node_def": node}}
    model, x, y = edited(lambda config, e: functional(config, between=[entry]))
    np.testing.assert_allclose(model.predict(x, verbose=0), y / 2, atol=1e-6)


LAMBDA = {"class_name": "Lambda", "config": {"name": "my_lambda", "trainable": True}}
CODE = ["4wEAAAAAAAAAAAAAAAEAAAADAAAA", None, None]
V3 = {"class_name": "__lambda__", "config": {"value": "4wEA"}}
REFUSED = {
    "ghost batches": (
        lambda config, e: e["bn"]["config"].update(virtual_batch_size=4),
        r"BatchNormalization 'bn' has the setting virtual_batch_size=4",
    ),
    "axes": (lambda config, e: e["bn"]["config"].update(axis=[1, 3]), r"axes \[1, 3\]"),
    "unknown and used": (
        lambda config, e: e["head"]["config"].update(shiny=3),
        r"Dense 'head' has the setting shiny=3",
    ),
    "own layer": (
        lambda config, e: e["head"].update(class_name="MyDense"),
        r"MyDense 'head' is unknown to Keras 3.*register_keras_serializable",
    ),
    "unknown op": (
        lambda config, e: functional(config, between=[tf_op("signal.fft", y=1)]),
        r"TFOpLambda 'tf.signal.fft' calls the TensorFlow op 'signal.fft'",
    ),
    "unknown argument": (
        lambda config, e: functional(config, between=[tf_op("math.add", z=3)]),
        r"'math.add' with \['z'\]",
    ),
    "bytecode": (
        lambda config, e: config["config"].append(
            {**LAMBDA, "config": {**LAMBDA["config"], "function": CODE, "function_type": "lambda"}}
        ),
        r"Lambda 'my_lambda' is Python bytecode",
    ),
    "bytecode within": (
        lambda config, e: config["config"].append(
            {
                "class_name": "TimeDistributed",
                "config": {
                    "name": "wrapper",
                    "layer": {**LAMBDA, "config": {**LAMBDA["config"], "function": V3}},
                },
            }
        ),
        r"Lambda 'my_lambda' is Python bytecode",
    ),
    "function of another module": (
        lambda config, e: e["head"].update(class_name="system", module="os"),
        r"system 'head' is unknown",
    ),
    "layer that runs code": (
        lambda config, e: config["config"].append(
            {"class_name": "TorchModuleWrapper", "config": {"name": "t", "module": "x"}}
        ),
        r"TorchModuleWrapper 't'",
    ),
    "loop": (
        lambda config, e: functional(
            config, between=[{**tf_op("math.add"), "nodes": [["tf.math.add", 0, 0, {}]]}]
        ),
        r"'tf.math.add' wait for each other",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_rebuilt_is_named(edited, kind):
    edit, message = REFUSED[kind]
    with pytest.raises(intact.IntactError, match=f"(?s)Cannot open.*{message}"):
        edited(edit)


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


def test_registered_layers(edited, tmp_path, rng):
    model = enliven(keras.Sequential([keras.Input((4,)), Scaled(name="mine")]), rng)
    for suffix in ("keras", "h5"):
        model.save(tmp_path / f"m.{suffix}")
        x = rng.normal(size=(2, 4))
        found = intact.load_keras(tmp_path / f"m.{suffix}").predict(x, verbose=0)
        np.testing.assert_allclose(found, model.predict(x, verbose=0))


def test_lambda_in_a_keras_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2, name="double")])
    for suffix in ("keras", "h5"):
        model.save(tmp_path / f"m.{suffix}")
        with pytest.raises(intact.UnsupportedLayerError, match="Lambda 'double' is Python byte"):
            intact.load_keras(tmp_path / f"m.{suffix}")


# Files that are damaged, or made to harm ----------------------------------------------------


@pytest.fixture
def saved(tmp_path, rng):
    """A small model in both formats."""
    model = enliven(mlp(), rng)
    paths = {suffix: tmp_path / f"m.{suffix}" for suffix in ("keras", "h5")}
    for path in paths.values():
        model.save(path)
    return paths


def rezip(path, **members):
    """Replace, add or (None) take away members of a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held.update({name.replace("__", "."): data for name, data in members.items()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            if data is not None:
                archive.writestr(name, data)


def test_missing_and_wrong_files(tmp_path):
    for name, words in (("none.keras", "no file"), (".", "is a folder")):
        with pytest.raises(intact.InvalidModelError, match=words):
            intact.load_keras(tmp_path / name)
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(intact.InvalidModelError, match="neither"):
        intact.load_keras(tmp_path / "text.keras")


def test_the_name_of_the_file_does_not_matter(saved, tmp_path, rng):
    x = rng.normal(size=(2, 6))
    expected = keras.saving.load_model(saved["keras"]).predict(x, verbose=0)
    for suffix, other in (("keras", "model.h5"), ("h5", "model.bin")):
        saved[suffix].rename(tmp_path / other)
        found = intact.load_keras(tmp_path / other).predict(x, verbose=0)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_truncated_files(saved, suffix):
    content = saved[suffix].read_bytes()
    for share in (0, 0.01, 0.3, 0.6, 0.9, 0.99):
        saved[suffix].write_bytes(content[: int(share * len(content))])
        with pytest.raises(intact.InvalidModelError):
            intact.load_keras(saved[suffix])


def test_weights_alone(saved, tmp_path):
    keras.saving.load_model(saved["keras"]).save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(intact.InvalidModelError, match="weights alone"):
        intact.load_keras(tmp_path / "only.weights.h5")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../escape.txt": b"x"}, r"'../escape.txt' points out"),
        ({"/tmp/escape.txt": b"x"}, "points out"),
        ({"bomb.bin": bytes(50_000_000)}, r"'bomb.bin' claims 50000000 bytes"),
        ({"metadata__json": None}, "no metadata.json"),
        ({"config__json": b"{" * 10}, "JSON"),
        ({"config__json": b"[" * 200_000}, "Recursion"),
        ({"config__json": b"[1]"}, "no object"),
        ({"config__json": b'{"a": 1}'}, "KeyError"),
        ({"config__json": b'\xff\xfe"'}, "Unicode"),
        ({"model__weights__h5": b"junk"}, "signature"),
    ],
)
def test_hostile_zips(saved, tmp_path, members, message):
    rezip(saved["keras"], **members)
    with pytest.raises(intact.InvalidModelError, match=message):
        intact.load_keras(saved["keras"])
    assert not (tmp_path.parent / "escape.txt").exists()


def units(config, size):
    for layer in config["config"]["layers"]:
        if "units" in layer["config"]:
            layer["config"]["units"] = size
    return json.dumps(config)


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_configs_that_ask_for_too_much_memory(saved, suffix, rebuilt, monkeypatch):
    if rebuilt:
        monkeypatch.setattr("intact.keras_files.loading._load_as_it_is", refuse)
    if suffix == "keras":
        with zipfile.ZipFile(saved["keras"]) as archive:
            config = json.loads(archive.read("config.json"))
        rezip(saved["keras"], config__json=units(config, 10**10).encode())
    else:
        with h5py.File(saved["h5"], "r+") as file:
            file.attrs["model_config"] = units(json.loads(file.attrs["model_config"]), 10**10)
    with pytest.raises(intact.InvalidModelError, match=r"'hidden' asks for a weight.*10000000000"):
        intact.load_keras(saved[suffix])
    # The next model may have weights of any size again.
    layers.Dense(1100).build((None, 1000))


def test_arrays_that_claim_too_much(saved):
    with h5py.File(saved["h5"], "r+") as file:
        file.create_dataset("bomb", (10**7, 10**6), "float32", chunks=(10**3, 10**3))
    with pytest.raises(intact.InvalidModelError, match=r"'bomb' claims shape \(10000000, 10+\)"):
        intact.load_keras(saved["h5"])


def external(file):
    file["outside"] = h5py.ExternalLink("/etc/passwd", "/")


def soft(file):
    file["inside"] = h5py.SoftLink("/model_weights")


def twice(file):
    file["model_weights"]["again"] = file["model_weights"]


def elsewhere(file):
    file.create_dataset("outside", (4,), "uint8", external=[("/etc/passwd", 0, 4)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "uint8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("outside", layout)


@pytest.mark.parametrize("harm", [external, soft, twice, elsewhere, virtual])
def test_links_of_h5_files_are_not_followed(saved, harm):
    with h5py.File(saved["h5"], "r+") as file:
        harm(file)
    with pytest.raises(intact.InvalidModelError, match="its entry"):
        intact.load_keras(saved["h5"])


def test_weights_that_do_not_fit(saved, monkeypatch):
    monkeypatch.setattr("intact.keras_files.loading._load_as_it_is", refuse)
    with h5py.File(saved["h5"], "r+") as file:
        group = file["model_weights"]["head"]
        del group.attrs["weight_names"]
        group.attrs["weight_names"] = []
    with pytest.raises(intact.InvalidModelError, match=r"'head' has weights of shapes.*has \[\]"):
        intact.load_keras(saved["h5"])
