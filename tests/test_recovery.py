"""Recovery: weights that are rounded well, scales that are moved, and models that get better."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, host, lossy, mlp, quantizers, weights

import intact
from intact import IntactError, InvalidDataError
from intact.calibration.walk import as_filed, cut, in_float, run
from intact.layers.kernel_graph import kernel_graph
from intact.layers.quantized import Quantized
from intact.ops.registry import get_op
from intact.plan.scheme import TensorSpec
from intact.recovery.equalization import equalize, pairs
from intact.recovery.folds import FOLDS, chance, student_tail, surely_better
from intact.recovery.layerwise import adjustable
from intact.recovery.recover import STEPS, describe, try_steps
from intact.recovery.rounding import Covariance, descend, half_grid, integer_grid, shrunk

SPEC_4 = TensorSpec(4, symmetric=True, per_axis=True)


@pytest.fixture
def windows(rng):
    """Windows whose taps go together, as neighbours in an image do."""
    mixing = rng.normal(size=(24, 24)) * rng.random(24) ** 3
    return np.maximum(rng.normal(size=(2000, 24)) @ mixing.T, 0).astype("float32")[..., None]


@pytest.fixture
def kernel(rng):
    return rng.normal(size=(1, 24, 8)).astype("float32")


def noise(windows, kernel, rounded):
    """The variance of the error of the sums."""
    return float(np.var(windows[..., 0] @ (kernel - rounded)[0], axis=0).sum())


def images(rng, count=48):
    """Smooth images, for white noise has nothing to learn from."""
    coarse = rng.normal(size=(count, 4, 4, 3))
    return np.repeat(np.repeat(coarse, 2, 1), 2, 2).astype("float32")


def rows(rng, count=40):
    """Samples of `mlp`."""
    return rng.normal(size=(count, 6)).astype("float32")


def peculiar(rng):
    """A CNN whose channels have very different ranges, as separable networks' have."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn_2")(x))
    x = layers.Conv2D(8, 1, activation="relu", name="pointwise")(x)
    x = layers.Conv2D(6, 3, strides=2, groups=2, name="grouped")(x)
    x = layers.Dense(4, name="head")(layers.Flatten()(x))
    model = enliven(keras.Model(inputs, x), rng)
    for name in ("bn", "bn_2"):
        norm = model.get_layer(name)
        spread = (2.0 ** np.arange(-4, 4)).astype("float32")
        norm.gamma.assign(host(norm.gamma) * spread)
        norm.beta.assign(host(norm.beta) * spread)
    return model


def error(q, model, x):
    """Mean squared error of the file's outputs."""
    found = intact.load_litert(intact.export(q)).predict(x)
    return float(np.mean((found - model.predict(x, verbose=0)) ** 2))


# The pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_learned_rounding_beats_the_nearest(windows, kernel, bits):
    spec = TensorSpec(bits, symmetric=True, per_axis=True)
    covariance = Covariance.of(windows)
    grid = integer_grid(kernel, spec)
    learned = descend(covariance, kernel, grid.rounded, grid.snap, grid.fixed)
    assert noise(windows, kernel, learned) < 0.7 * noise(windows, kernel, grid.rounded)


def test_blocks_of_taps_change_nothing(windows, kernel, monkeypatch):
    covariance, grid = Covariance.of(windows), integer_grid(kernel, SPEC_4)
    settings = covariance, kernel, grid.rounded, grid.snap, grid.fixed
    whole = descend(*settings)
    monkeypatch.setattr("intact.recovery.rounding.BLOCK", 5)
    np.testing.assert_allclose(descend(*settings), whole, rtol=1e-6)


def test_smaller_ranges_help_narrow_weights(windows, kernel):
    covariance = Covariance.of(windows)
    plain, found = integer_grid(kernel, SPEC_4), shrunk(covariance, kernel, SPEC_4)
    assert noise(windows, kernel, found.rounded) < noise(windows, kernel, plain.rounded)
    assert (np.abs(found.kernel).max(axis=1) <= np.abs(kernel).max(axis=1)).all()


def test_learned_weights_are_on_the_grid(windows, kernel):
    covariance = Covariance.of(windows)
    grid = shrunk(covariance, kernel, SPEC_4)
    learned = descend(covariance, kernel, grid.rounded, grid.snap, grid.fixed)
    again = integer_grid(learned, SPEC_4)
    np.testing.assert_allclose(again.rounded, learned, rtol=1e-6)


def test_half_precision_has_a_grid_behind_the_batch_norm(kernel):
    factor = np.linspace(0.1, 3, 8, dtype="float32")[None]
    folded = half_grid(kernel, factor).rounded * factor[:, None]
    np.testing.assert_allclose(folded.astype("float16"), folded, rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Dense(5),
        lambda: layers.Conv2D(5, 3, padding="same", strides=2),
        lambda: layers.Conv2D(4, (2, 3), groups=2, dilation_rate=2),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    ],
)
def test_windows_are_what_the_kernel_sees(layer, rng):
    layer = layer()
    x = rng.normal(size=(2, 7, 8, 4)).astype("float32")
    expected = host(layer(x)).reshape(2, -1, host(layer.bias).size)
    op = get_op(layer)
    sums = []
    steps = np.arange(400) / 400
    for place in np.stack([steps, steps * 0, steps * 0], 1)[[0, 200]]:
        seen = op.patches(layer, x, place[None])
        _, taps, groups = seen.shape
        sums.append(np.einsum("nkg,kgm->ngm", seen, host(layer.kernel).reshape(taps, groups, -1)))
    first = expected[:, 0]
    np.testing.assert_allclose(np.concatenate(sums).reshape(2, -1), first, rtol=1e-4, atol=1e-5)


def test_a_walk_in_float_is_the_float_model(rng):
    model = peculiar(rng)
    x = images(rng, 8)
    q = intact.calibrate(intact.quantize_model(model), x, bias_correction=False, verbose=0)
    ((found,),) = run(q, cut([x], 8), in_float, q.outputs)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.ptp(expected))
    ((found,),) = run(q, cut([x], 8), as_filed, q.outputs)
    np.testing.assert_array_equal(found, q.predict(x, verbose=0))


# Equalization -------------------------------------------------------------------------------


def test_equalization_keeps_the_float_model(rng):
    model = peculiar(rng)
    x = images(rng)
    q = intact.calibrate(intact.quantize_model(model), x, bias_correction=False, verbose=0)
    names = [(p.first.layer.name, p.second.layer.name) for p in pairs(kernel_graph(q))]
    assert names == [("conv", "depthwise"), ("depthwise", "pointwise")]
    before = weights(q)
    assert equalize(q, cut([x], 16)) == 2
    assert any((a != b).any() for a, b in zip(before, weights(q), strict=True))
    ((found,),) = run(q, cut([x], 48), in_float, q.outputs)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.ptp(expected))


def test_equalization_never_moves_where_a_relu_clamps(rng):
    model = enliven(cnn("relu6"), rng)
    x = images(rng)
    q = intact.calibrate(intact.quantize_model(model), x, bias_correction=False, verbose=0)
    expected = model.predict(x, verbose=0)
    assert [p.upper for p in pairs(kernel_graph(q))] == [6.0]
    equalize(q, cut([x], 16))
    ((found,),) = run(q, cut([x], 48), in_float, q.outputs)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.ptp(expected))


def test_equalization_evens_out_channels(rng):
    model = peculiar(rng)
    x = images(rng)
    q = intact.quantize_model(model)
    plain = error(intact.calibrate(q, x, bias_correction=False, verbose=0), model, x)
    only = {"bias_correction": False, "round": False}
    q = intact.recover(intact.quantize_model(model), x, equalize=True, **only, verbose=0)
    assert error(q, model, x) < plain


# The whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["int8", "weight_only_4", "float16"])
def test_recovers_and_the_file_holds_it(scheme, rng):
    model = peculiar(rng)
    x, x_test = images(rng, 96), images(rng, 96)
    plain = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    q = intact.recover(intact.quantize_model(model, scheme), x, verbose=0)
    recovered, before = error(q, model, x_test), error(plain, model, x_test)
    # In 8 bits there is little to win, and what is not surely better is rejected.
    assert recovered < before or (scheme == "int8" and recovered == before)
    if scheme != "float16":
        found = intact.load_litert(intact.export(q)).predict(x_test)
        seen = q.predict(x_test, verbose=0)
        assert np.abs(found - seen).max() <= 1e-5 * np.ptp(seen)


def test_weights_are_multiples_of_their_scales(rng):
    model = peculiar(rng)
    q = intact.recover(intact.quantize_model(model, "weight_only_4"), images(rng), verbose=0)
    for layer in filter(adjustable, q.layers):
        rounded = host(layer.real_weights()["kernel"])
        np.testing.assert_allclose(host(layer.layer.kernel), rounded, rtol=1e-5, atol=1e-7)


def test_a_calibrated_model_recovers_alike(rng):
    """What calibration has corrected is taken back first."""
    model, x = peculiar(rng), images(rng)
    fresh = intact.recover(intact.quantize_model(model), x, round=True, verbose=0)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    loaded = Quantized.from_config(q.get_layer("conv").get_config())
    np.testing.assert_array_equal(loaded.corrected, q.get_layer("conv").corrected)
    intact.recover(q, x, round=True, verbose=0)
    for a, b in zip(weights(fresh), weights(q), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_never_worse_on_samples_put_aside(rng):
    model, x = enliven(mlp(), rng), rng.normal(size=(40, 6)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    aside = x[np.random.default_rng(0).permutation(40)[:10]]
    expected = model.predict(aside, verbose=0)
    before = np.mean((q.predict(aside, verbose=0) - expected) ** 2)
    intact.recover(q, x, verbose=0)
    assert np.mean((q.predict(aside, verbose=0) - expected) ** 2) <= before


def test_same_seed_same_model(rng):
    model, x = peculiar(rng), images(rng)
    first, second = (
        intact.recover(intact.quantize_model(model), x, equalize=False, verbose=0) for _ in "ab"
    )
    assert intact.export(first) == intact.export(second)


def test_a_failure_leaves_the_model_as_it_was(rng, monkeypatch):
    model, x = peculiar(rng), images(rng)
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    before, corrected = weights(q), q.get_layer("conv").corrected
    monkeypatch.setattr("intact.recovery.recover.adjust", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        intact.recover(q, x, verbose=0)
    for old, new in zip(before, weights(q), strict=True):
        np.testing.assert_array_equal(old, new)
    assert q.get_layer("conv").corrected is corrected
    assert all(fake.calibrated for fake in quantizers(q).values())


def test_bad_input(rng):
    with pytest.raises(IntactError, match="no quantized weights"):
        intact.recover(mlp(), np.zeros((4, 6)))
    with pytest.raises(InvalidDataError, match="empty"):
        intact.recover(intact.quantize_model(mlp()), np.zeros((0, 6)))


# What is kept -------------------------------------------------------------------------------


def test_where_nothing_helps_it_is_plain_calibration(rng, monkeypatch):
    monkeypatch.setattr("intact.recovery.recover.surely_better", lambda *errors: False)
    model, x = peculiar(rng), images(rng)
    plain = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    q = intact.quantize_model(model)
    trials = try_steps(q, x)
    assert [trial.name for trial in trials] == ["round", "bias_correction", "equalize"]
    assert not any(trial.kept for trial in trials)
    assert intact.export(q) == intact.export(plain)


def test_each_sample_is_judged_by_a_model_that_has_not_seen_it(rng, monkeypatch):
    x = images(rng, 43)
    fitted, judged = [], []
    find_ranges, adjust, run = (
        getattr(intact.recovery.recover, name) for name in ("find_ranges", "adjust", "run")
    )

    def indices(batches):
        samples = np.concatenate(batches)
        return {int(np.argmax(np.all(x == sample, axis=(1, 2, 3)))) for sample in samples}

    def spy_ranges(model, data, **kwargs):
        fitted.append(indices([data]))
        return find_ranges(model, data, **kwargs)

    def spy_adjust(model, batches, *args):
        fitted.append(indices([batch[0] for batch in batches]))
        return adjust(model, batches, *args)

    def spy_run(model, batches, call, wanted):
        if call is as_filed:
            judged.append(indices([batch[0] for batch in batches]))
            assert not judged[-1] & set().union(*fitted)
            assert judged[-1] | set().union(*fitted) == set(range(43))
            fitted.clear()
        return run(model, batches, call, wanted)

    monkeypatch.setattr("intact.recovery.recover.find_ranges", spy_ranges)
    monkeypatch.setattr("intact.recovery.recover.adjust", spy_adjust)
    monkeypatch.setattr("intact.recovery.recover.run", spy_run)
    errors = itertools.chain([0.5, 1.0] * FOLDS, itertools.repeat(0.6))
    monkeypatch.setattr(
        "intact.recovery.recover._Recovery._judge", lambda *_: np.full(8, next(errors))
    )
    try_steps(intact.quantize_model(peculiar(rng)), x)
    # The step and what was before, fold after fold.
    for way in (judged[: 2 * FOLDS : 2], judged[1 : 2 * FOLDS : 2]):
        assert set().union(*way) == set(range(43)) and sum(map(len, way)) == 43
    # What is kept is fitted to all of them.
    assert set().union(*fitted) == set(range(43))


def test_a_step_that_fails_on_a_fold_is_rejected_at_once(rng, monkeypatch):
    # In turns with the step and without it; what is known already is not fitted again.
    errors = (np.full(8, error) for error in [0.5, 1.0, 1.5, 1.0, 2.0])
    monkeypatch.setattr("intact.recovery.recover._Recovery._judge", lambda *_: next(errors))
    options = dict.fromkeys(STEPS, False) | {"round": None, "equalize": None}
    first, second = try_steps(intact.quantize_model(enliven(mlp(), rng)), rows(rng), options)
    assert (first.name, first.error, first.before, first.kept) == ("round", 1.0, 1.0, False)
    assert (second.name, second.error, second.before) == ("equalize", 2.0, 1.0)


def test_the_steps_that_are_said_are_made_without_a_judgement(rng, monkeypatch):
    monkeypatch.setattr("intact.recovery.recover.run", lambda *_: 1 / 0)
    options = dict.fromkeys(STEPS, False) | {"round": True}
    assert try_steps(intact.quantize_model(enliven(mlp(), rng)), rows(rng), options) == []


def test_a_single_sample_proves_nothing(rng):
    model, x = enliven(mlp(), rng), rows(rng, 1)
    plain = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    q = intact.recover(intact.quantize_model(model), x, verbose=0)
    assert intact.export(q) == intact.export(plain)


@lossy
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_no_worse_on_samples_that_it_has_not_seen(seed):
    rng = np.random.default_rng(seed)
    model, x, unseen = peculiar(rng), images(rng, 60), images(rng, 300)
    for scheme in ("int8", "int4"):
        plain = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
        q = intact.recover(intact.quantize_model(model, scheme), x, seed=seed, verbose=0)
        assert error(q, model, unseen) <= error(plain, model, unseen) * (1 + 1e-6)


def test_chance_is_no_gain(rng):
    before = rng.uniform(1, 2, 25)
    assert surely_better([0.9 * before], [before])
    assert not surely_better([before], [before])
    assert not surely_better([before - 0.01 + 0.2 * rng.normal(size=25)], [before])
    assert not surely_better([before[:1] / 2], [before[:1]])
    assert not surely_better([np.zeros(25)], [np.zeros(25)])
    # Much for one sample, and nothing for the others.
    assert not surely_better([np.minimum(before, np.sort(before)[-2])], [before])
    wins = sum(chance(*rng.uniform(1, 2, (2, 25))) < 0.05 for _ in range(2000))
    assert wins == pytest.approx(0.05 * 2000, abs=40)


def test_a_gain_has_to_be_there_in_each_fit(rng):
    before = [rng.uniform(1, 2, 20) for _ in range(5)]
    errors = [0.5 * fold for fold in before]
    assert surely_better(errors, before)
    errors[3] = before[3] * 1.01
    assert chance(np.concatenate(errors), np.concatenate(before)) < 1e-6
    assert not surely_better(errors, before)


def test_the_more_is_tried_the_more_a_gain_has_to_prove(rng):
    before = np.ones(25)
    gains = rng.normal(size=25)
    errors = before - (gains - gains.mean()) / gains.std(ddof=1) - 2.7 / 5
    assert 0.01 / 4 < chance(errors, before) < 0.01
    assert surely_better([errors], [before], 1) and not surely_better([errors], [before], 4)


@pytest.mark.parametrize(
    "t, freedom, probability",
    [(0.0, 4, 0.5), (1.0, 1, 0.25), (3.747, 4, 0.01), (2.920, 2, 0.05), (-2.132, 4, 0.95)],
)
def test_the_tail_of_students_t(t, freedom, probability):
    """Values of a printed table, and of the Cauchy distribution."""
    assert student_tail(t, freedom) == pytest.approx(probability, rel=2e-3)


def test_what_was_kept_is_said(rng, capsys):
    q = intact.quantize_model(enliven(mlp(), rng))
    intact.recover(q, rng.normal(size=(40, 6)).astype("float32"), verbose=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Recovering accuracy"
    assert "rejected" in "".join(lines) and "step" in "".join(lines)
    assert lines[-1].startswith(("Changed: ", "Nothing was changed"))
    assert describe([]) == "No step was left to choose."
