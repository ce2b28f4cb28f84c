"""The look at a calibrated model: what it warns of, and that it is silent else."""

import gc

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn, enliven, host, mlp, quantizers, weights

import intact
from intact import AccuracyWarning
from intact.calibration.accuracy import Loss, Pair, losses, message_of, warn_of_losses
from intact.calibration.calibration import find_ranges
from intact.calibration.holdout import Holdout
from intact.calibration.sources import Source

# What Keras does with arrays of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def dense(x, units=3):
    """A model of normalized data, and of data that lies elsewhere."""
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:], name="sensor"),
            layers.Normalization(mean=x.mean(0), variance=x.var(0)),
            layers.Dense(8, "relu"),
            layers.Dense(units, name="head"),
        ]
    )
    return model, x


def far_from_zero(rng):
    return dense(rng.uniform(1000, 1001, (64, 3)).astype("float32"))


def boxes_beside_scores(rng):
    """A detection head that puts boxes in pixels and scores into one tensor."""
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(16, "relu")(inputs)
    boxes = ops.sigmoid(layers.Dense(4)(hidden)) * 640.0
    scores = layers.Dense(3, "sigmoid", name="scores")(hidden)
    model = keras.Model(inputs, layers.Concatenate(name="head")([boxes, scores]))
    return enliven(model, rng), rng.normal(size=(64, 6)).astype("float32")


def unlike_channels(rng):
    """The same as channels of one layer."""
    model = enliven(mlp(), rng)
    kernel = host(model.get_layer("head").kernel)
    model.get_layer("head").kernel.assign(kernel * [500.0, 1.0, 0.5])
    model.get_layer("head").bias.assign([0.0, 0.0, 0.0])
    return model, rng.normal(size=(64, 6)).astype("float32")


def one_large_row(rng):
    """An embedding whose one row is 200 times as large as the others."""
    inputs = keras.Input((5,), dtype="int32", name="ids")
    table = layers.Embedding(50, 4, name="words")
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(table(inputs))))
    rows = rng.normal(0, 0.02, (50, 4)).astype("float32")
    rows[7] *= 200
    table.embeddings.assign(rows)
    ids = rng.integers(8, 50, (64, 5)).astype("int32")
    ids[0, 0] = 7
    return model, ids


def log_power(rng):
    inputs = keras.Input((32,), name="wave")
    power = ops.square(layers.Dense(12, use_bias=False, name="bands")(inputs))
    model = enliven(keras.Model(inputs, ops.log(power + 1e-4)), rng)
    return model, (rng.normal(size=(64, 32)) * rng.uniform(0.01, 1, (64, 1))).astype("float32")


LOST = {
    far_from_zero: ("'head'", "'sensor'", "Normalize the data"),
    boxes_beside_scores: ("part 'scores_sigmoid' of output 'head'", "as outputs of their own"),
    unlike_channels: ("2 of the 3 channels of output 'head'", "channels of unlike sizes"),
    one_large_row: (
        "for most samples",
        "'words_table'",
        "rows of a table alike",
        "a scale per row",
    ),
    log_power: ("loses output", "int16x8"),
}


@pytest.mark.parametrize("build", LOST, ids=lambda build: build.__name__)
def test_what_is_lost_is_said(build, rng):
    model, x = build(rng)
    q = intact.quantize_model(model)
    with pytest.warns(AccuracyWarning) as caught:
        intact.calibrate(q, x, verbose=0)
    (warning,) = (w for w in caught if w.category is AccuracyWarning)
    assert warning.filename == __file__
    assert all(words in str(warning.message) for words in LOST[build]), str(warning.message)


@pytest.mark.filterwarnings("error:.*too few samples")
@pytest.mark.parametrize("scheme", ["int8", "int16x8", "uint8"])
def test_ordinary_models_are_silent(scheme, rng):
    cases = [
        (enliven(cnn(), rng), rng.normal(size=(100, 8, 8, 3))),
        (enliven(mlp(), rng), rng.normal(size=(200, 6))),
    ]
    if scheme != "uint8":  # which has no kernel for a Normalization
        data = rng.uniform(-2, 3, (100, 3)), rng.normal(290, 10, (200, 3))
        cases += [dense(x.astype("float32")) for x in data]
    for model, x in cases:
        intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)


def test_shares_are_judged_by_what_they_are_made_of(rng):
    # A thousand classes: none of their shares is half a step of the output.
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(1000), layers.Softmax(), layers.Reshape((10, 100))]
    )
    x = rng.normal(size=(64, 6)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    assert np.abs(q.predict(x, verbose=0)).max() < 0.02


def test_a_wrong_range_is_seen_and_nothing_is_changed(rng):
    model, x = enliven(mlp(), rng), rng.normal(size=(64, 6)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    warn_of_losses(q, [x[:16]])
    quantizers(q)["hidden_relu"].set_range(0.0, 0.02)
    before = weights(q)
    with pytest.warns(AccuracyWarning, match="Most is lost at 'hidden'"):
        warn_of_losses(q, [x[:16]])
    for old, new in zip(before, weights(q), strict=True):
        np.testing.assert_array_equal(old, new)


def test_whole_numbers_are_counted():
    real = np.arange(10)
    assert losses("classes", Pair(real, np.maximum(real, 2))) == []
    (lost,) = losses("classes", Pair(real, np.maximum(real, 5)))
    assert str(lost) == "output 'classes' (50.0 % the same)"


def test_a_constant_output_is_judged_by_its_size():
    real = np.full((8, 3), 0.25, "float32")
    assert losses("y", Pair(real, real + 0.002)) == []
    assert losses("y", Pair(real, real * 0))
    assert losses("y", Pair(real * 0, real * 0)) == []
    assert (
        losses("y", Pair.of(np.array([[-np.inf], [1.0], [2.0]]), np.array([[-9.0], [1], [2]])))
        == []
    )


def one_large_sample(rng):
    """Samples that are alike, but for one that is held out."""
    x = rng.normal(size=(16, 6)).astype("float32")
    x[7] *= 6
    return enliven(mlp(), rng), x


BATCHES = {
    "one array": lambda x: x,
    "single samples": lambda x: [sample[None] for sample in x],
    "a generator": lambda x: (part for part in np.split(x, [3, 9])),
}


@pytest.mark.parametrize("batches", BATCHES)
def test_too_few_samples_are_said(batches, rng):
    model, x = one_large_sample(rng)
    q = intact.quantize_model(model)
    with pytest.warns(AccuracyWarning, match="12 of the 16 samples, the others lose") as caught:
        intact.calibrate(q, BATCHES[batches](x), bias_correction=False, verbose=0)
    (warning,) = (str(w.message) for w in caught if w.category is AccuracyWarning)
    assert "Calibrate on more samples" in warning and "Most is lost at 'features'" in warning
    # The ranges are those of all samples, not those that were tried.
    whole = intact.quantize_model(model)
    find_ranges(whole, x, bias_correction=False)
    for a, b in zip(quantizers(q).values(), quantizers(whole).values(), strict=True):
        np.testing.assert_array_equal(host(a.minimum), host(b.minimum))
        np.testing.assert_array_equal(host(a.maximum), host(b.maximum))


@pytest.mark.filterwarnings("error:.*too few samples")
def test_samples_like_the_others_are_enough(rng):
    model, x = one_large_sample(rng)
    intact.calibrate(intact.quantize_model(model), np.concatenate([x, x[7:8]]), verbose=0)


def test_held_samples_are_of_all_parts():
    holdout = Holdout(print, batches=8)
    for start in range(0, 800, 100):
        rest, held = holdout.split([np.arange(start, start + 100)])
        assert len(rest[0]) == 98 and len(held[0]) == 2
    assert len(holdout.samples[0]) == 16 and holdout.samples[0].max() == 799


def test_a_stream_is_never_cut(rng):
    model = keras.Sequential([keras.Input(batch_shape=(2, 6)), layers.Dense(3)])
    _, holdout = find_ranges(intact.quantize_model(model), rng.normal(size=(16, 6)))
    assert holdout is None


def test_few_samples_are_of_all_batches(rng):
    x = np.repeat(np.arange(8.0), 16)[:, None].astype("float32")
    source = Source(x, None, 16, [keras.KerasTensor((None, 1))])
    assert len(list(source)) == 8
    assert sorted(source.few[0].ravel().tolist()) == [float(i) for i in range(8) for _ in range(2)]
    list(source)
    assert len(source.few[0]) == 16


def refuse(*args, **kwargs):
    raise TypeError("None\nwhatever")


def test_what_was_not_checked_is_said(rng, monkeypatch):
    monkeypatch.setattr("intact.calibration.accuracy.Lowering", refuse)
    model, x = far_from_zero(rng)
    with pytest.warns(AccuracyWarning, match=r"'sequential' was not checked.* TypeError: None$"):
        intact.calibrate(intact.quantize_model(model), x, verbose=0)


@pytest.mark.parametrize("build", LOST, ids=lambda build: build.__name__)
def test_keras_stands_in_for_a_float_file(build, rng, monkeypatch):
    monkeypatch.setattr("intact.calibration.float_form.lower_real", refuse)
    model, x = build(rng)
    with pytest.warns(AccuracyWarning, match=LOST[build][0]):
        intact.calibrate(intact.quantize_model(model), x, verbose=0)
    model, x = enliven(cnn(), rng), rng.normal(size=(64, 8, 8, 3)).astype("float32")
    intact.calibrate(intact.quantize_model(model), x, verbose=0)


def test_a_state_is_checked_in_its_order(rng):
    inputs = keras.Input((5, 3), batch_size=2, name="x")
    lstm = layers.LSTM(4, stateful=True, return_sequences=True, name="lstm")
    model = enliven(keras.Model(inputs, layers.Dense(3, name="head")(lstm(inputs))), rng)
    # States grow along the stream, so that other batches would have other ranges.
    x = (rng.normal(size=(40, 5, 3)) + np.linspace(0, 2, 40)[:, None, None]).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    before = weights(q)
    warn_of_losses(q, [x[:16]])
    for old, new in zip(before, weights(q), strict=True):
        np.testing.assert_array_equal(old, new)
    quantizers(q)["head"].set_range(0.0, 0.02)
    with pytest.warns(AccuracyWarning, match="'head'"):
        warn_of_losses(q, [x[:16]])


def test_few_samples_of_a_stream_are_its_beginning():
    x = np.arange(60.0)[:, None].astype("float32")
    tensor = keras.KerasTensor((3, 1))
    source = Source(x, None, 3, [tensor], whole_batches=True)
    assert len(list(source)) == 20
    np.testing.assert_array_equal(source.few[0], x[:18])


@keras.saving.register_keras_serializable("tests")
class TracedWrongly(layers.Layer):
    """Computes something else on symbolic tensors than on real ones."""

    def call(self, x):
        return x * (2.0 if isinstance(x, keras.KerasTensor) else 3.0)


def test_the_float_model_counts_while_it_is_there(rng):
    model = keras.Sequential([keras.Input((6,)), TracedWrongly(), layers.Dense(3, name="head")])
    x = rng.normal(size=(64, 6)).astype("float32")
    q = intact.quantize_model(model)
    with pytest.warns(AccuracyWarning, match=r"loses output 'head' [^$]*traced wrongly"):
        intact.calibrate(q, x, verbose=0)
    # The weights may be trained by now.
    intact.calibrate(q, x, verbose=0)
    q = intact.quantize_model(model)
    del model
    gc.collect()
    intact.calibrate(q, x, verbose=0)


def test_less_than_20_db_are_warned_of():
    real = np.array([[-1.0], [1.0]] * 8, "float32")
    assert losses("y", Pair(real, real * 1.099)) == []
    (lost,) = losses("y", Pair(real, real * 1.101))
    assert str(lost) == "output 'y' (19.9 dB)"


def test_a_warning_is_short():
    lost = [Loss(f"output 'head_{i}'", 3.0, "range") for i in range(9)]
    text = message_of("It loses", 16, lost, [])
    assert "'head_2' (3.0 dB) and 6 more. These are" in text
    assert len(text.splitlines()) < 9 and max(map(len, text.splitlines())) < 250
    for words in ("observer=", "recover", "mixed", "int16x8"):
        assert words in text
    text = message_of("It loses", 16, lost, [], same_top1=0.75)
    assert "On 75 % of them, the largest output is the same one as in float." in text
