"""Choosing: which layers suffer, which scheme for which of them, which file to take."""

import keras
import numpy as np
import pytest
from keras import layers
from small import enliven, lossy, op_names, parse

import intact
from intact import Candidate, IntactError
from intact.schemes import SCHEMES
from intact.search.advice import _notes, recommend
from intact.search.measures import agreement, top1


@pytest.fixture
def model(rng):
    """A network with a layer that 8 bits ruin: a narrow path beside a wide one."""
    x = inputs = keras.Input((8,), name="features")
    x = layers.Dense(12, activation="relu", name="fine")(x)
    wide = layers.Dense(6, name="delicate")(x)
    x = layers.Dense(6, activation="relu", name="rest")(wide)
    model = enliven(keras.Model(inputs, layers.Dense(4, name="head")(x), name="net"), rng)
    delicate = model.get_layer("delicate")
    spread = np.array([1e3] + [1.0] * 5, "float32")
    delicate.kernel.assign(keras.ops.convert_to_numpy(delicate.kernel) * spread)
    rest = model.get_layer("rest")
    rest.kernel.assign(keras.ops.convert_to_numpy(rest.kernel) / spread[:, None])
    return model


@pytest.fixture
def x(rng):
    return rng.normal(size=(120, 8)).astype("float32")


def branches():
    """Sums, products, shared layers, pools and moves: all that a walk may meet."""
    image = keras.Input((6, 6, 4), name="image")
    shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    x = shared(shared(image))
    y = layers.MaxPooling2D(2, name="pool")(layers.Concatenate(name="both")([x, image]))
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 1, name="conv")(y))
    gate = layers.Dense(8, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D()(y))
    y = layers.Multiply(name="product")([y, layers.Reshape((1, 1, 8))(gate)])
    y = layers.Dense(3, activation="softmax", name="head")(layers.Flatten()(y))
    return keras.Model(image, y, name="branches")


def test_the_delicate_layer_comes_first(model, x):
    found = intact.sensitivity(model, x, verbose=0)
    assert found.layers[0].name in ("delicate", "rest")
    assert {entry.name for entry in found.layers} == {"fine", "delicate", "rest", "head"}
    assert found.layers[0].snr < found.layers[-1].snr - 10
    assert found.samples == 120 and found.scheme == "int8"
    assert "delicate" in str(found)


@lossy
def test_all_layers_alone_against_a_scheme_of_one(model, x):
    """What the walk finds is what a model has in which that layer alone is quantized."""
    found = {e.name: e for e in intact.sensitivity(model, x, verbose=0, batch_size=50).layers}
    one = intact.Scheme("one", (intact.Rule("rest*"), intact.Rule(None, None, None)))
    q = intact.quantize_model(model, one)
    intact.calibrate(q, x, bias_correction=False, verbose=0)
    expected = model.predict(x, verbose=0)
    gap = np.mean((q.predict(x, verbose=0) - expected) ** 2)
    snr = 10 * np.log10(np.mean((expected - expected.mean(0)) ** 2) / gap)
    assert found["rest"].snr == pytest.approx(snr, abs=0.5)


@pytest.mark.parametrize("scheme", ["int8", "weight_only_4", "int16x8"])
def test_sensitivity_of_branches(rng, scheme):
    data = rng.normal(size=(20, 6, 6, 4)).astype("float32")
    found = intact.sensitivity(enliven(branches(), rng), data, scheme, verbose=0)
    names = [entry.name for entry in found.layers]
    assert len(set(names)) == len(names)
    assert {"shared", "conv", "gate", "head"} <= set(names)
    assert all(np.isfinite(entry.snr) and 0 <= entry.top1 <= 1 for entry in found.layers)


def test_wider_is_less_damage(model, x):
    def worst(scheme):
        return intact.sensitivity(model, x, scheme, verbose=0).layers[0].snr

    assert worst("int16x8") > worst("int8") + 10


# Mixing -------------------------------------------------------------------------------------


def types(scheme, model, x):
    """The file of a scheme, and the types of its weights' readers."""
    q = intact.quantize_model(model, scheme)
    intact.calibrate(q, x, verbose=0)
    content = intact.export(q)
    assert not intact.verify(content)
    return q, content


@lossy
def test_accuracy_makes_few_layers_finer(model, x):
    choices = ("int8", "int16x8", "float32")
    scheme = intact.mixed(model, x, {"accuracy": 0.99}, choices=choices, verbose=0)
    q, content = types(scheme, model, x)
    found = intact.load_litert(content).predict(x)
    expected = model.predict(x, verbose=0)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    kinds = {layer.type for layer in intact.explain(model, scheme).layers}
    assert {"int16", "w8 a16"} & kinds
    assert len(kinds) > 1
    np.testing.assert_allclose(found, q.predict(x, verbose=0), rtol=1e-2, atol=0.02 * found.std())


def broad(rng):
    """Layers with enough weights for them to be most of the file."""
    inputs = keras.Input((8,), name="features")
    y = layers.Dense(120, activation="relu", name="first")(inputs)
    y = layers.Dense(80, activation="relu", name="second")(y)
    return enliven(keras.Model(inputs, layers.Dense(4, name="head")(y)), rng)


def test_size_lets_as_much_be_fine_as_fits(rng, x):
    model = broad(rng)
    real = len(intact.export(model))
    choices = ("int8", "float32")
    small = len(types(SCHEMES["int8"], model, x)[1])
    budget = (small + real) / 2
    scheme = intact.mixed(model, x, {"size": budget}, choices=choices, verbose=0)
    content = types(scheme, model, x)[1]
    assert small < len(content) <= budget
    assert "FULLY_CONNECTED" in op_names(content)
    kinds = {tensor.type for tensor in parse(content).subgraphs[0].tensors}
    assert len(kinds) > 2


def test_everything_fits_a_wide_budget(rng, x):
    model = broad(rng)
    scheme = intact.mixed(model, x, {"size": 1.0}, choices=("int8", "float32"), verbose=0)
    assert str(scheme) == "mixed\n  all layers: weights float, activations float"


def test_a_budget_of_time(model, x):
    scheme = intact.mixed(model, x, {"latency": 1e4}, choices=("int8", "float32"), verbose=0)
    assert "float" in str(scheme)
    with pytest.raises(IntactError, match="nearest has latency"):
        intact.mixed(model, x, {"latency": 1e-9}, choices=("int8",), verbose=0)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (("int8", "int16x8"), "conv"),
        (("int8", "float32"), "conv"),
        (("int16x8", "float32"), "shared"),
        (("int4", "int8"), "conv"),
    ],
)
def test_neighbours_of_other_types_run(rng, names, pattern):
    data = rng.normal(size=(16, 6, 6, 4)).astype("float32")
    model = enliven(branches(), rng)
    one, other = (SCHEMES[name].rules[-1] for name in names)
    rule = intact.Rule(f"{pattern}*", one.weights, one.activations)
    scheme = intact.Scheme("both", (rule, intact.Rule("bn", one.weights, one.activations), other))
    q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
    found = intact.load_litert(intact.export(q)).predict(data)
    np.testing.assert_allclose(found, q.predict(data, verbose=0), atol=0.02)


def test_bad_budgets(model, x):
    for budget in ({}, {"speed": 1}):
        with pytest.raises(IntactError, match="A budget is a dict"):
            intact.mixed(model, x, budget)
    with pytest.raises(IntactError, match="Expected names of presets"):
        intact.mixed(model, x, {"size": 1}, choices=("int7",))
    with pytest.raises(IntactError, match="keeps the budget"):
        intact.mixed(model, x, {"size": 10}, choices=("int8",), verbose=0)


# Advice -------------------------------------------------------------------------------------


def test_advice(model, x):
    labels = model.predict(x, verbose=0).argmax(1)
    options = ("float16", "int8", "int8+recover", "weight_only_8")
    found = intact.advise(model, x, labels, options=options, verbose=0)
    assert [option.name for option in found.options] == ["float32", *options]
    assert found.measure == "accuracy" and found.options[0].score == 1.0
    assert found.recommended in {option.name for option in found.options}
    assert f"Take {found.recommended}: " in str(found)
    assert all(option.latency > 0 and option.spread >= 0 for option in found.options)
    assert [o.integer for o in found.options] == [False, False, True, True, False]
    svg = found.picture()
    assert svg.count("<circle") == 5 and "weight_only_8" in svg and svg in found._repr_html_()
    assert repr(found) == f"<Advice: take {found.recommended}>"


def test_advice_without_labels_and_with_a_metric(model, x):
    found = intact.advise(model, x, options=("int8",), verbose=0)
    assert found.measure == "agreement" and found.options[0].score == 1.0
    found = intact.advise(model, x, metric=lambda y: float(len(y)), options=(), verbose=0)
    assert found.measure == "score" and found.recommended == "float32"
    with pytest.raises(IntactError, match="There is no option 'int7'"):
        intact.advise(model, x, options=("int7",), verbose=0)


def test_recommendations():
    real = Candidate("float32", 4000, 4.0, 0.90)
    half = Candidate("float16", 2000, 4.0, 0.90)
    poor, good = Candidate("int8", 1000, 1.0, 0.85), Candidate("int8+recover", 1000, 1.0, 0.895)
    name, reason = recommend((real, half, poor, good), 0.01)
    assert name == "int8+recover" and "would lose 5.00 points" in reason
    assert recommend((real, half, poor), 0.01)[0] == "float16"
    assert recommend((real, poor), 0.01)[0] == "float32"


def test_latencies_that_are_equal_within_their_spread_are_a_tie():
    real = Candidate("float32", 4000, 4.0, 0.90, spread=0.1)
    fast = Candidate("int8", 2000, 1.0, 0.90, spread=0.05, integer=True)
    small = Candidate("weight_only_4", 1000, 1.08, 0.90, spread=0.05)
    name, reason = recommend((real, fast, small), 0.01)
    assert name == "weight_only_4" and "as fast as int8 as far as can be measured" in reason
    clear = Candidate("weight_only_4", 1000, 1.2, 0.90, spread=0.05)
    assert recommend((real, fast, clear), 0.01)[0] == "int8"


def test_recovery_that_gains_nothing_is_not_recommended():
    # Copies of one file differ by up to 4 %, whatever the spread of one says.
    real = Candidate("float32", 4000, 0.004, 0.90)
    plain = Candidate("int8", 1000, 0.00270, 0.90)
    recovered = Candidate("int8+recover", 1000, 0.00261, 0.90)
    name, reason = recommend((real, plain, recovered), 0.01)
    assert name == "int8" and "the fastest" in reason
    better = Candidate("int8+recover", 1000, 0.00261, 0.905)
    assert recommend((real, plain, better), 0.01)[0] == "int8+recover"


def test_a_spread_has_the_digits_of_its_latency():
    options = (Candidate("float32", 4000, 0.0032, 0.9), Candidate("int8", 1000, 1.5, 0.9, 0.02))
    rows = str(intact.Advice(options, "accuracy", *recommend(options, 0.01))).splitlines()
    assert rows[1].split()[-4:] == ["0.0032", "ms", "0.0000", "ms"]
    assert rows[2].split()[-4:] == ["1.50", "ms", "0.02", "ms"]


def test_what_is_slower_than_float_is_said():
    real = Candidate("float32", 4000, 1.0, 0.90, spread=0.01)
    whole = Candidate("int16x8", 2000, 3.0, 0.90, spread=0.1, integer=True)
    half = Candidate("float16", 2000, 1.0, 0.90)
    (slower, integers) = _notes((real, whole, half), "float16", 0.01, samples=1000)
    assert slower == "Slower than float32 (1.00 ms) here: int16x8 (3.00 ms)."
    assert "take int16x8: 90.00 % against 90.00 %, 2000 bytes" in integers
    # Nothing is said of integers by rule: here there are none to measure.
    assert _notes((real, half), "float16", 0.01, samples=1000) == []


def test_advice_for_a_target(model, x):
    found = intact.advise(model, x, options=("int8", "float16"), target="edgetpu", verbose=0)
    assert [option.name for option in found.options] == ["float32", "int8"]
    assert found.recommended == "int8" and found.options[1].latency is None
    assert any(note.startswith("float16 is not possible: ") for note in found.notes)
    assert found.options[1].integer


def test_labels_that_do_not_match_are_refused(model, x):
    for labels, words in (
        (np.zeros(len(x) - 1, int), "a label for each of the 120 samples"),
        (np.full(len(x), 4), "whole numbers from 0 to 3"),
        (np.zeros((len(x), 3)), "one-hot ones of shape"),
    ):
        with pytest.raises(intact.InvalidDataError, match=words):
            intact.advise(model, x, labels, options=("int8",), verbose=0)


def test_metrics():
    assert top1([1, 0, 1])(np.array([[0.9], [0.2], [0.4]])) == pytest.approx(2 / 3)
    assert top1([1, 0])(np.array([[3.0], [-2.0]])) == 1.0
    assert top1(np.eye(3)[[0, 1]])(np.array([[1, 0, 0], [0, 0, 1]])) == 0.5
    expected = {"a": np.array([[0.0, 1.0]]), "b": np.array([[1.0], [3.0]])}
    assert agreement(expected)(expected) == 1.0
    assert agreement(expected)({**expected, "b": np.array([[2.0], [2.0]])}) == 0.0
