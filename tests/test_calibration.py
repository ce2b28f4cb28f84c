"""Calibration: every kind of data, and what is done about bad data."""

import sys

import keras
import numpy as np
import pytest
from keras import layers
from small import BACKENDS, cnn, enliven, host, lossy, mlp, quantizers, ranges, weights

import intact
from intact import InvalidDataError
from intact.calibration import calibration
from intact.calibration import capture as watching
from intact.calibration.capture import Capture
from intact.layers.fake_quantize import FakeQuantize
from intact.quantizers.observers import Percentile


@pytest.fixture
def x(rng):
    return rng.normal(size=(70, 6)).astype("float32")


@pytest.fixture
def model(rng):
    return enliven(mlp(), rng)


@pytest.fixture
def q(model):
    return intact.quantize_model(model)


@pytest.fixture
def expected(model, x):
    """The ranges that the whole array gives."""
    return ranges_by_name(intact.calibrate(intact.quantize_model(model), x, verbose=0))


def ranges_by_name(q):
    return {
        name: (float(host(fake.scale)), float(host(fake.zero_point)))
        for name, fake in quantizers(q).items()
    }


def two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    mixed = layers.Concatenate()([layers.Dense(4)(a), layers.Dense(4)(b)])
    return keras.Model([a, b], layers.Dense(2)(mixed))


class Sequence(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 7

    def __getitem__(self, index):
        part = self.x[10 * index : 10 * index + 10]
        return part, part[:, :3]


def tensorflow_dataset(x):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((x, x[:, :3])).batch(16)


def torch_loader(x):
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(x[:, :3]))
    return torch.utils.data.DataLoader(dataset, batch_size=16)


class OfUnknownLength:
    """As a `tf.data.Dataset` made of a generator: it has `len`, which fails."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        raise TypeError("The dataset length is unknown.")

    def __iter__(self):
        return iter(np.split(self.x, 7))


def generated_dataset(x):
    tf = pytest.importorskip("tensorflow")
    spec = tf.TensorSpec((None, x.shape[1]), "float32")
    return tf.data.Dataset.from_generator(lambda: np.split(x, 7), output_signature=spec)


KINDS = {
    "array": lambda x: x,
    "float64": lambda x: x.astype("float64"),
    "list of one": lambda x: [x],
    "tuple of one": lambda x: (x,),
    "dict": lambda x: {"features": x},
    "list of samples": lambda x: list(x),
    "Python's lists": lambda x: x.tolist(),
    "list of Python's lists": lambda x: [x.tolist()],
    "list of batches": lambda x: np.split(x, 7),
    "list of batches, the last shorter": lambda x: [x[:32], x[32:64], x[64:]],
    "list of Python's batches": lambda x: [part.tolist() for part in np.split(x, 7)],
    "list of batches of one": lambda x: [row[None] for row in x],
    "list of batches with targets": lambda x: [(part, part[:, :3]) for part in np.split(x, 7)],
    "list of dicts": lambda x: [{"features": part} for part in np.split(x, 7)],
    "inputs and targets": lambda x: (x, x[:, :3]),
    "inputs and targets alike": lambda x: (x, 100 * x),
    "inputs, targets and weights": lambda x: (x, x[:, :3], x[:, 0]),
    "list of inputs and targets": lambda x: [x, x[:, :3]],
    "list of inputs, and targets": lambda x: ([x], x[:, :3]),
    "dict and targets": lambda x: ({"features": x}, x[:, :3]),
    "dict of Python's lists": lambda x: {"features": x.tolist()},
    "function": lambda x: lambda: ([row[None]] for row in x),
    "function that returns an array": lambda x: lambda: x,
    "backend tensor": lambda x: keras.ops.convert_to_tensor(x),
    "generator": lambda x: (part for part in np.split(x, 7)),
    "generator of dicts": lambda x: ({"features": part} for part in np.split(x, 7)),
    "generator of lists with targets": lambda x: ([p, p[:, :3]] for p in np.split(x, 7)),
    "generator with targets": lambda x: ((part, part[:, :3]) for part in np.split(x, 7)),
    "PyDataset": Sequence,
    "of unknown length": OfUnknownLength,
    "tf.data of a generator": generated_dataset,
    "tf.data": tensorflow_dataset,
    "torch DataLoader": torch_loader,
}
NEEDS = {
    "tf.data": "tensorflow",
    "tf.data of a generator": "tensorflow",
    "torch DataLoader": "torch",
}


@pytest.mark.parametrize("kind", [k for k in KINDS if NEEDS.get(k, "jax") in [*BACKENDS, "jax"]])
def test_every_kind_of_data_gives_the_same_ranges(kind, q, x, expected):
    assert intact.calibrate(q, KINDS[kind](x), verbose=0) is q
    found = ranges_by_name(q)
    for name, pair in expected.items():
        np.testing.assert_allclose(found[name], pair, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {"b": b, "a": a},
        lambda a, b: [a.tolist(), b.tolist()],
        lambda a, b: [[a[:20], b[:20]], [a[20:], b[20:]]],
        lambda a, b: [{"b": b[:32], "a": a[:32]}, {"b": b[32:], "a": a[32:]}],
        lambda a, b: ((a, b), np.zeros(40)),
        lambda a, b: ({"b": b, "a": a}, np.zeros(40)),
        lambda a, b: lambda: ([a[i : i + 1], b[i : i + 1]] for i in range(40)),
        lambda a, b: iter([(a, b)]),
        lambda a, b: iter([[a, b]]),
        lambda a, b: iter([((a, b), np.zeros(40))]),
        lambda a, b: iter([{"b": b, "a": a}]),
        lambda a, b: iter([({"b": b, "a": a}, np.zeros(40))]),
        lambda a, b: {"rest": {"b": b}, "a": a},
        lambda a, b: iter([{"a": a, "rest": [b]}]),
    ],
    ids=[
        "list",
        "tuple",
        "dict",
        "Python's lists",
        "list of lists",
        "list of dicts",
        "inputs and targets",
        "dict and targets",
        "function",
        "tuples",
        "lists",
        "with targets",
        "dicts",
        "dicts with targets",
        "nested dict",
        "nested dicts",
    ],
)
def test_several_inputs(pack, rng):
    a = rng.uniform(-1, 1, size=(40, 3)).astype("float32")
    b = rng.uniform(0, 100, size=(40, 5)).astype("float32")
    q = intact.calibrate(intact.quantize_model(two_inputs()), pack(a, b), verbose=0)
    found = quantizers(q)
    np.testing.assert_allclose(float(host(found["a"].scale)), (a.max() - a.min()) / 255, rtol=1e-5)
    np.testing.assert_allclose(float(host(found["b"].scale)), b.max() / 255, rtol=1e-5)


def test_steps_limit_the_batches(q, x):
    def endless():
        while True:
            taken.append(1)
            yield x[:10] * len(taken)

    taken = []
    intact.calibrate(q, endless(), steps=3, verbose=0)
    assert len(taken) == 3
    np.testing.assert_allclose(
        float(host(quantizers(q)["features"].maximum)[0]), 3 * x[:10].max(), rtol=1e-6
    )


def test_steps_limit_arrays_too(q, x):
    x[10:] *= 100
    intact.calibrate(q, x, steps=2, batch_size=5, verbose=0)
    assert float(host(quantizers(q)["features"].maximum)[0]) == x[:10].max()


@lossy
def test_min_max_and_moving_average(q, x):
    intact.calibrate(q, x[:64], batch_size=16, verbose=0)
    features = quantizers(q)["features"]
    assert float(host(features.maximum)[0]) == x[:64].max()
    assert float(host(features.minimum)[0]) == x[:64].min()
    intact.calibrate(q, x[:64], batch_size=16, observer="moving_average", verbose=0)
    weight = 0.99 ** np.arange(3, -1, -1)
    average = (weight * [part.max() for part in np.split(x[:64], 4)]).sum() / weight.sum()
    np.testing.assert_allclose(float(host(features.maximum)[0]), average, rtol=1e-5)


def test_calibrating_again_replaces_the_ranges(q, x, expected):
    intact.calibrate(q, 10 * x, bias_correction=False, verbose=0)
    intact.calibrate(q, x, bias_correction=False, verbose=0)
    found = ranges_by_name(q)
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-6)


def test_ranges_are_of_float_activations(model, x):
    q = intact.quantize_model(model)
    intact.calibrate(q, x, bias_correction=False, verbose=0)
    hidden = keras.Model(model.inputs, model.get_layer("hidden").output).predict(x, verbose=0)
    assert abs(float(host(quantizers(q)["hidden_relu"].maximum)[0]) / hidden.max() - 1) < 0.02


def coarse(rng):
    """A layer in which one large weight per channel leaves few steps to the rest."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(4, name="head")])
    kernel = rng.uniform(0.0, 0.04, size=(64, 4))
    kernel[0] = 10.0
    model.get_layer("head").kernel.assign(kernel)
    x = rng.uniform(0.5, 1.0, size=(200, 64)).astype("float32")
    x[:, 0] *= 0.01
    return model, x


@lossy
def test_bias_correction_reduces_the_mean_error(rng):
    model, x = coarse(rng)
    exact = model.predict(x, verbose=0).mean(0)
    errors = {}
    for correction in (False, True):
        q = intact.quantize_model(model)
        intact.calibrate(q, x, bias_correction=correction, verbose=0)
        errors[correction] = np.abs(q.predict(x, verbose=0).mean(0) - exact).max()
    assert errors[True] < 0.1 * errors[False], errors


@lossy
def test_bias_correction_through_a_batch_norm(rng):
    model, x = coarse(rng)
    normed = keras.Sequential([keras.Input((64,)), *model.layers, layers.BatchNormalization()])
    normed.layers[-1].moving_mean.assign([1.0, 2.0, 0.0, -1.0])
    normed.layers[-1].gamma.assign([1.0, -2.0, 0.5, -1.0])
    exact = normed.predict(x, verbose=0).mean(0)
    errors = {}
    for correction in (False, True):
        q = intact.quantize_model(normed)
        intact.calibrate(q, x, bias_correction=correction, verbose=0)
        errors[correction] = np.abs(q.predict(x, verbose=0).mean(0) - exact).max()
    assert errors[True] < 0.2 * errors[False], errors


@lossy
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("scheme", ["weight_only_8", "weight_only_4", "dynamic_range", "float16"])
def test_bias_correction_of_weights_alone(scheme, norm, rng):
    model, x = coarse(rng)
    if norm:
        model = keras.Sequential([keras.Input((64,)), *model.layers, layers.BatchNormalization()])
        model.layers[-1].gamma.assign([1.0, -2.0, 0.5, -1.0])
    # Values that float16 rounds, too.
    model.layers[0].kernel.assign(np.abs(host(model.layers[0].kernel)) + 0.123456)
    exact = model.predict(x, verbose=0).mean(0)
    errors = {}
    for correction in (False, True):
        q = intact.quantize_model(model, scheme)
        intact.calibrate(q, x, bias_correction=correction, verbose=0)
        errors[correction] = np.abs(q.predict(x, verbose=0).mean(0) - exact).max()
        found = intact.load_litert(intact.export(q)).predict(x)
        # float16 rounds weights that the batch norm was folded into.
        atol = 1e-4 if scheme != "float16" else 1e-3
        np.testing.assert_allclose(found, q.predict(x, verbose=0), atol=atol * np.ptp(exact))
    assert errors[True] < 0.3 * errors[False], errors


def test_biases_are_corrected_once(rng):
    for scheme in ("int8", "weight_only_8"):
        q = intact.quantize_model(enliven(mlp(), rng), scheme)
        x = rng.normal(1, 1, size=(70, 6)).astype("float32")
        biases = []
        for _ in range(2):
            intact.calibrate(q, x, bias_correction=True, verbose=0)
            biases.append(host(q.get_layer("hidden").layer.bias))
        np.testing.assert_allclose(*biases, atol=1e-6)


@lossy
def test_a_second_calibration_leaves_the_biases(rng):
    model, x = coarse(rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    bias = host(q.get_layer("head").layer.bias)
    assert (bias != 0).all()
    intact.calibrate(q, x, verbose=0)
    np.testing.assert_array_equal(host(q.get_layer("head").layer.bias), bias)


@lossy
def test_calibration_after_training_leaves_the_biases(rng):
    model, x = coarse(rng)
    q = intact.quantize_model(model)
    q.compile(keras.optimizers.SGD(0.0), "mse")
    q.fit(x, x[:, :4], verbose=0)
    intact.calibrate(q, x, verbose=0)
    assert (host(q.get_layer("head").layer.bias) == 0).all()


def test_training_goes_on_from_the_calibrated_range(q, x):
    intact.calibrate(q, x, verbose=0)
    features = quantizers(q)["features"]
    before = float(host(features.maximum)[0])
    q(np.full((4, 6), 100.0, "float32"), training=True)
    assert before < float(host(features.maximum)[0]) < before + 0.02 * 100


NAN = np.array([[np.nan] * 6] * 4, "float32")
BAD = {
    "empty array": (np.zeros((0, 6), "float32"), "empty"),
    "empty list": ([], "empty"),
    "empty generator": (lambda x: iter([]), "empty"),
    "no steps": (lambda x: iter([x[:0]]), "empty"),
    "NaN": (lambda x: np.concatenate([x, NAN]), "24 values that are NaN"),
    "infinite": (lambda x: np.concatenate([x, NAN + np.inf, [[np.inf] * 6]]), "NaN or infinite"),
    "NaN in a late batch": (lambda x: iter([x, x, NAN]), "'features'.*NaN"),
    "wrong shape": (np.zeros((8, 5), "float32"), r"'features' takes shape \(None, 6\).*\(8, 5\)"),
    "wrong rank": (np.zeros((8, 6, 1), "float32"), r"\(8, 6, 1\)"),
    "a scalar": (np.float32(3.0), "shape|empty"),
    "wrong shape in a late batch": (lambda x: iter([x, x[:, :5]]), r"\(70, 5\)"),
    "wrong name": (lambda x: {"image": x}, r"no input named \['features'\].*image"),
    "four arrays": (lambda x: iter([[x, x, x, x]]), "1 inputs.*4 arrays"),
    "a number": (3, "Received: 3"),
    "a path": ("data.npy", r"the path 'data.npy'.*np.load"),
    "one sample": (lambda x: iter(x), r"takes shape \(None, 6\).*\(6,\).*x\[None\]"),
    "lists of unlike lengths": ([[1.0, 2.0], [3.0]], "takes shape"),
    "a function of something": (lambda x: lambda step: x, "without arguments"),
    "text": (np.array([["a"] * 6]), "'features' takes numbers"),
    "nothing": (None, "None"),
}


@pytest.mark.parametrize(
    ("kind", "before"), [*((kind, "fresh") for kind in BAD), ("NaN in a late batch", "calibrated")]
)
def test_bad_data_is_an_error_and_changes_nothing(kind, before, q, x):
    if before == "calibrated":
        intact.calibrate(q, x, verbose=0)
    kept = ranges(q), weights(q)
    data, message = BAD[kind]
    with pytest.raises(InvalidDataError, match=message):
        intact.calibrate(q, data(x) if callable(data) else data, verbose=0)
    for path, value in ranges(q).items():
        np.testing.assert_array_equal(value, kept[0][path])
    for old, new in zip(kept[1], weights(q), strict=True):
        np.testing.assert_array_equal(new, old)
    assert not any(f.observing for f in q.layers if isinstance(f, FakeQuantize))


def test_a_generator_that_fails_leaves_the_model_as_it_was(q, x):
    def broken():
        yield x
        raise KeyError("lost")

    kept = weights(q)
    with pytest.raises(KeyError, match="lost"):
        intact.calibrate(q, broken(), verbose=0)
    for old, new in zip(kept, weights(q), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_model_built_by_its_first_call_takes_any_number_of_samples(rng):
    model = keras.Sequential([layers.Dense(3, name="head")])
    x = rng.normal(size=(70, 6)).astype("float32")
    model.predict(x, verbose=0)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    found = intact.load_litert(intact.export(q)).predict(x)
    np.testing.assert_array_equal(found, q.predict(x, verbose=0))


def test_inputs_of_different_lengths(rng):
    q = intact.quantize_model(two_inputs())
    with pytest.raises(InvalidDataError, match=r"same number of samples.*\[7, 8\]"):
        intact.calibrate(q, [np.zeros((8, 3)), np.zeros((7, 5))], verbose=0)


def test_a_float_model_has_nothing_to_calibrate(model, x):
    with pytest.raises(intact.IntactError, match="quantize_model"):
        intact.calibrate(model, x, verbose=0)


@pytest.mark.parametrize("scheme", ["float16", "weight_only_8", "dynamic_range"])
def test_a_quantized_model_without_weights_has_nothing_to_calibrate(scheme, rng):
    model = keras.Sequential([keras.Input((6,)), layers.Reshape((2, 3))])
    q = intact.quantize_model(model, scheme)
    assert intact.calibrate(q, rng.normal(size=(8, 6)), verbose=0) is q


def test_unknown_observer_names_the_known_ones(q, x):
    with pytest.raises(intact.IntactError, match=r"'mean'.*min_max, moving_average"):
        intact.calibrate(q, x, observer="mean", verbose=0)


def test_progress_is_shown_or_not(q, x, capsys, monkeypatch):
    intact.calibrate(q, x, verbose=0)
    assert capsys.readouterr().out == ""
    # Without a terminal, there is one line.
    intact.calibrate(q, x, verbose=1)
    assert capsys.readouterr().out == "Calibrating\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    intact.calibrate(q, x, verbose=1)
    shown = capsys.readouterr().out
    assert shown.startswith("Calibrating\n") and "3/3" in shown.replace("\x1b[1m", "")


@pytest.mark.parametrize("kind", ["generator", "of unknown length"])
def test_progress_of_data_of_unknown_length(kind, q, x, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    intact.calibrate(q, KINDS[kind](x), bias_correction=True)
    shown = capsys.readouterr().out
    assert "14/Unknown" in shown.replace("\x1b[1m", "")
    assert shown.endswith("\n")


def test_data_of_unknown_length_elsewhere(q, model, x):
    data = OfUnknownLength(x)
    intact.recover(q, data, verbose=0)
    assert len(intact.distill(q, model, data, verbose=0).history["loss"]) == 1
    assert intact.sensitivity(model, data, verbose=0)


@pytest.mark.skipif("tensorflow" not in BACKENDS, reason="no tf.data here")
def test_a_dataset_without_end_needs_steps(q, x):
    endless = KINDS["tf.data"](x).repeat()
    with pytest.raises(intact.InvalidDataError, match="never ends"):
        intact.calibrate(q, endless, verbose=0)
    intact.calibrate(q, endless, steps=3, verbose=0)


def test_constant_and_zero_data_are_safe(q):
    for value in (0.0, 5.0, -5.0):
        intact.calibrate(q, np.full((10, 6), value, "float32"), verbose=0)
        found = q.predict(np.full((4, 6), value, "float32"), verbose=0)
        assert np.isfinite(found).all()
        assert intact.export(q)


# Ranges without data ------------------------------------------------------------------


def test_default_ranges_are_for_tensors_without_one(rng, x):
    q = intact.quantize_model(enliven(mlp(), rng))
    quantizers(q)["features"].set_range(-1.0, 1.55)
    assert intact.calibrate(q, default_ranges=(-6.0, 6.3)) is q
    found = {n: (host(f.minimum), host(f.maximum)) for n, f in quantizers(q).items()}
    np.testing.assert_allclose(found["features"], [[-1], [1.55]])
    # A fused ReLU leaves nothing below 0.
    np.testing.assert_allclose(found["hidden_relu"], [[0], [6.3]])
    np.testing.assert_allclose(found["head"], [[-6], [6.3]])
    assert intact.compare(q, intact.export(q), x, per_layer=False).max_lsb == 0


def test_default_ranges_fill_single_slots():
    q = intact.quantize_model(two_inputs())
    shared = next(f for f in quantizers(q).values() if f.slots == 2)
    shared(np.full((3, 4), 9.0, "float32"), slot=1, training=True)
    intact.calibrate(q, default_ranges=(-2, 2))
    np.testing.assert_allclose(host(shared.minimum), [-2, 9])
    np.testing.assert_allclose(host(shared.maximum), [2, 9], rtol=1e-6)


@pytest.mark.parametrize("pair", [(1.0, 1.0), (2.0, -2.0), (0.0, np.inf)])
def test_default_ranges_that_are_none(pair, q):
    with pytest.raises(intact.IntactError, match=r"min < max. Received: \("):
        intact.calibrate(q, default_ranges=pair)
    assert not any(f.calibrated for f in quantizers(q).values())


# LiteRT looks on instead of Keras -----------------------------------------------------


def both_ways(make, data, monkeypatch, **kwargs):
    """What calibration makes of a model with LiteRT's kernels, and with Keras'."""
    found = []
    for fast in (True, False):
        used = []

        class Spy(Capture):
            def __init__(self, model, watches, fast=fast):
                super().__init__(model, watches, fast)

            def __call__(self, batch, used=used):
                seen = super().__call__(batch)
                used.append(self.file is not None)
                return seen

        monkeypatch.setattr(calibration, "Capture", Spy)
        q = intact.calibrate(make(), data, verbose=0, **kwargs)
        assert set(used) == {fast}
        found.append({v.path: host(v) for v in q.variables})
    return found


@pytest.mark.parametrize("observer", ["min_max", "moving_average", Percentile(99.0)], ids=str)
@pytest.mark.parametrize("scheme", ["int8", "int16x8", "uint8", "int4"])
def test_litert_and_keras_see_the_same(scheme, observer, rng, monkeypatch):
    model = enliven(cnn(), rng)
    data = rng.normal(size=(70, 8, 8, 3)).astype("float32")

    def make():
        return intact.quantize_model(model, scheme)

    pair = both_ways(make, data, monkeypatch, observer=observer, batch_size=30)
    for (path, fast), slow in zip(pair[0].items(), pair[1].values(), strict=True):
        bin_ = 2e-3 if isinstance(observer, Percentile) else 1e-5
        if path.endswith("zero_point"):
            np.testing.assert_allclose(fast, slow, atol=1, err_msg=path)
        else:
            atol = bin_ * max(1.0, np.abs(slow).max(initial=0))
            np.testing.assert_allclose(fast, slow, rtol=bin_, atol=atol, err_msg=path)


def test_large_batches_are_run_in_parts(rng, monkeypatch):
    monkeypatch.setattr(watching, "MEMORY", 5000)
    model = enliven(cnn(), rng)
    data = rng.normal(size=(70, 8, 8, 3)).astype("float32")
    pair = both_ways(
        lambda: intact.quantize_model(model), data, monkeypatch, observer="moving_average"
    )
    for (path, fast), slow in zip(pair[0].items(), pair[1].values(), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5, err_msg=path)


def odd(inputs):
    """Clamps that no kernel has, a shared layer, a fixed range in the middle, two inputs."""
    a, b = inputs
    shared = layers.Dense(4, name="shared")
    x = layers.ReLU(0.75)(shared(a)), layers.Activation("sigmoid")(shared(b))
    return layers.Dense(2)(layers.PReLU()(layers.Concatenate()(x)))


def test_odd_models_are_seen_alike(rng, monkeypatch):
    inputs = [keras.Input((5,), name=name, dtype=d) for name, d in (("a", "uint8"), ("b", None))]
    model = enliven(keras.Model(inputs, odd(inputs)), rng)
    data = [rng.integers(0, 9, size=(50, 5)).astype("uint8"), rng.normal(size=(50, 5))]
    pair = both_ways(lambda: intact.quantize_model(model), data, monkeypatch)
    for (path, fast), slow in zip(pair[0].items(), pair[1].values(), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("error", [intact.IntactError("no kernel"), TypeError("None")])
def test_without_a_float_form_keras_looks_on(error, q, x, expected, monkeypatch):
    def refuse(*args):
        raise error

    monkeypatch.setattr(watching, "lower_real", refuse)
    monkeypatch.setattr(watching, "lower_products", refuse)
    intact.calibrate(q, x, verbose=0)
    for name, pair in ranges_by_name(q).items():
        np.testing.assert_allclose(pair, expected[name], rtol=1e-4, err_msg=name)


def test_what_is_not_finite_is_left_to_keras(rng, monkeypatch):
    inputs = keras.Input((6,), name="features")
    model = keras.Model(inputs, keras.ops.log(layers.Dense(6, name="d")(inputs)))
    model.get_layer("d").kernel.assign(np.eye(6))
    x = rng.uniform(0.1, 2.0, size=(20, 6)).astype("float32")
    x[3] = 0.0
    used = []
    old = Capture.__call__

    def spy(self, batch):
        seen = old(self, batch)
        used.append(self.file is not None)
        return seen

    monkeypatch.setattr(Capture, "__call__", spy)
    q = intact.calibrate(intact.quantize_model(model), x, batch_size=10, verbose=0)
    assert used[-1] is False
    assert all(np.isfinite(host(f.scale)) for f in quantizers(q).values())


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_inputs_have_the_names_of_a_dict(rng):
    inputs = {"image": keras.Input((4,)), "age": keras.Input((1,))}
    outputs = layers.Dense(3)(layers.Concatenate()([inputs["image"], inputs["age"]]))
    model = keras.Model(inputs, outputs)
    x = {name: rng.normal(size=(40, n)).astype("float32") for name, n in (("age", 1), ("image", 4))}
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    file = intact.export(q)
    assert intact.compare(q, file, x).different == 0
    assert set(intact.load_litert(file).input_names) == {"image", "age"}
    advice = intact.advise(model, x, options=("int8",), verbose=0)
    assert [option.name for option in advice.options] == ["float32", "int8"]
