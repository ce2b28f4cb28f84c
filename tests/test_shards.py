"""Shards of the data, observed one by one, give the ranges of one pass over all of it."""

import dataclasses
import functools
import itertools
import pickle
import tracemalloc

import keras
import numpy as np
import pytest
from small import host, lossy, quantizers

import intact
from intact.calibration.calibration import observed_layers
from intact.calibration.shards import Observations
from intact.cli import main
from intact.errors import IntactError, InvalidDataError

pytestmark = lossy
CUTS = [7, 50, 51, 120, 200, 317]


@pytest.fixture(scope="module")
def model():
    """Shared ranges, and factors of products, whose ranges depend on their partners."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 3, padding="same")(x)])
    x = keras.layers.LayerNormalization()(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(4)(x))


@pytest.fixture(scope="module")
def data():
    """Samples of very different sizes: each shard has another range."""
    sizes = np.linspace(0.1, 5, 333, dtype="float32")[:, None, None, None]
    return np.random.default_rng(0).normal(size=(333, 6, 6, 3)).astype("float32") * sizes


@pytest.mark.parametrize("observer", ["min_max", "percentile", "entropy", "mse"])
def test_seven_uneven_shards_are_one_pass(model, data, observer):
    whole = intact.quantize_model(model)
    intact.calibrate(whole, data, observer=observer, bias_correction=False, verbose=0)
    q = intact.quantize_model(model)
    shards = [
        intact.observe(q, part, observer=observer, verbose=0) for part in np.split(data, CUTS)
    ]
    assert not any(layer.calibrated for layer in quantizers(q).values())
    left = functools.reduce(Observations.merge, shards)
    right = functools.reduce(lambda a, b: b.merge(a), reversed(shards))
    middle = (
        shards[3]
        .merge(shards[6].merge(shards[0]))
        .merge(shards[5].merge(shards[1]).merge(shards[2].merge(shards[4])))
    )
    for merged in (left, right, middle):
        for ours, theirs in zip(merged.few, left.few, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        intact.apply(q, merged)
        for a, b in zip(quantizers(q).values(), quantizers(whole).values(), strict=True):
            for name in ("minimum", "maximum", "scale", "zero_point"):
                np.testing.assert_array_equal(host(getattr(a, name)), host(getattr(b, name)), name)
        assert intact.export(q) == intact.export(whole)


def test_two_rounds_are_the_calibration_that_corrects_biases(model, data):
    whole = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    q = intact.quantize_model(model)
    for part in ("biases", "ranges"):
        shards = [intact.observe(q, x, part=part, verbose=0) for x in np.split(data, CUTS)]
        intact.apply(q, shards)
    for ours, theirs in zip(q.weights, whole.weights, strict=True):
        np.testing.assert_allclose(host(ours), host(theirs), rtol=1e-6, atol=1e-8)


def test_learned_scales_start_from_all_shards(model, data):
    spec = intact.TensorSpec(quantizer="lsq")
    scheme = intact.Scheme("learned", (intact.Rule(activations=spec),))
    whole = intact.quantize_model(model, scheme)
    intact.calibrate(whole, data, bias_correction=False, verbose=0)
    q = intact.quantize_model(model, scheme)
    intact.apply(q, [intact.observe(q, x, verbose=0) for x in np.split(data, CUTS)])
    for a, b in zip(quantizers(q).values(), quantizers(whole).values(), strict=True):
        np.testing.assert_allclose(host(a.size), host(b.size), rtol=1e-6)


def test_observations_are_saved_pickled_and_loaded(model, data, tmp_path):
    q = intact.quantize_model(model)
    first, second = (intact.observe(q, x, observer="mse", verbose=0) for x in (data[:9], data[9:]))
    first.save(tmp_path / "first.obs")
    loaded = intact.Observations.load(tmp_path / "first.obs")
    assert dataclasses.asdict(loaded).keys() == dataclasses.asdict(first).keys()
    intact.apply(q, [pickle.loads(pickle.dumps(second)), loaded])
    expected = intact.quantize_model(model)
    intact.calibrate(expected, data, observer="mse", bias_correction=False, verbose=0)
    assert intact.export(q) == intact.export(expected)


def test_what_does_not_fit_is_refused(model, data, tmp_path):
    q = intact.quantize_model(model)
    shard = intact.observe(q, data[:20], verbose=0)
    with pytest.raises(IntactError, match="no observations"):
        intact.apply(q, [])
    with pytest.raises(InvalidDataError, match="empty"):
        intact.observe(q, data[:0], verbose=0)
    with pytest.raises(IntactError, match="different observers"):
        shard.merge(intact.observe(q, data[20:30], observer="mse", verbose=0))
    average = intact.observe(q, data[:20], observer="moving_average", verbose=0)
    with pytest.raises(IntactError, match="depends on the order"):
        average.merge(average)
    with pytest.raises(IntactError, match="different models or parts"):
        shard.merge(intact.observe(q, data[:20], part="biases", verbose=0))
    with pytest.raises(IntactError, match="'ranges' or 'biases'"):
        intact.observe(q, data[:20], part="weights", verbose=0)
    other = intact.quantize_model(model)
    other.get_layer("dense").layer.kernel.assign(np.zeros((8, 4), "float32"))
    with pytest.raises(IntactError, match="another model"):
        intact.apply(other, shard)
    (tmp_path / "not.obs").write_bytes(b"nothing of this kind")
    with pytest.raises(InvalidDataError, match="no observations that can be read"):
        intact.Observations.load(tmp_path / "not.obs")


def test_each_shard_comes_once(model, data, tmp_path):
    q = intact.quantize_model(model)
    parts = [
        intact.observe(q, part, shard=(n, 3), verbose=0)
        for n, part in enumerate(np.split(data, [20, 30]), 1)
    ]
    parts[0].save(tmp_path / "1.obs")
    loaded = intact.Observations.load(tmp_path / "1.obs")
    assert loaded.merge(parts[2]).missing() == [(2, 3)]
    with pytest.raises(IntactError, match="shard 1/3 twice"):
        parts[0].merge(parts[1]).merge(loaded)
    with pytest.raises(IntactError, match="Missing: shard 2/3"):
        intact.apply(q, [parts[2], loaded])
    assert not any(layer.calibrated for layer in observed_layers(q))
    with pytest.raises(IntactError, match="from \\(1, n\\)"):
        intact.observe(q, data, shard=(0, 3), verbose=0)
    intact.apply(q, [parts[1], loaded, parts[2]])


def test_a_shard_that_fails_leaves_the_model_as_it_was(model, data):
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    before = [host(v).copy() for v in q.weights]
    broken = itertools.chain([data[:10]], [np.full((4, 6, 6, 3), np.nan, "float32")])
    for part in ("ranges", "biases"):
        with pytest.raises(InvalidDataError, match="NaN"):
            intact.observe(q, broken, part=part, verbose=0)
        broken = iter([data[:10], np.full((4, 6, 6, 3), np.nan, "float32")])
    for ours, theirs in zip(q.weights, before, strict=True):
        np.testing.assert_array_equal(host(ours), theirs)


def test_a_pass_keeps_one_batch(model):
    batch = np.ones((64, 6, 6, 3), "float32")
    q = intact.quantize_model(model)

    def peak(observed, count):
        tracemalloc.start()
        observed(count)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    def sharded(count):
        intact.observe(q, (batch + n for n in range(count)), verbose=0)

    def called(count):
        intact.calibrate(q, lambda: (batch + n for n in range(count)), verbose=0)

    for observed in (sharded, called):
        peak(observed, 2)
        assert peak(observed, 100) < peak(observed, 5) + 8 * batch.nbytes


def test_the_command_line_calibrates_in_shards(model, data, tmp_path):
    def run(*arguments):
        main([*map(str, arguments)], standalone_mode=False)

    saved, samples = tmp_path / "q.keras", tmp_path / "x.npy"
    intact.quantize_model(model).save(saved)
    np.save(samples, data)
    states = [tmp_path / f"{n}.obs" for n in (1, 2, 3)]
    for n, state in enumerate(states, 1):
        run("calibrate", saved, "--data", samples, "--shard", f"{n}/3", "--state", state)
    merges = [part for state in reversed(states) for part in ("--merge", state)]
    run("calibrate", saved, *merges, "-o", tmp_path / "c.keras")
    with pytest.raises(Exception, match="Missing: shard 1/3"):
        run("calibrate", saved, *merges[:4], "-o", tmp_path / "d.keras")
    assert not (tmp_path / "d.keras").exists()
    whole = intact.quantize_model(model)
    intact.calibrate(whole, data, bias_correction=False, verbose=0)
    assert intact.export(intact.load_keras(tmp_path / "c.keras")) == intact.export(whole)
    with pytest.raises(Exception, match="go together"):
        run("calibrate", saved, "--shard", "1/2")
    with pytest.raises(Exception, match="is not a shard"):
        run("calibrate", saved, "--data", samples, "--shard", "3/2", "--state", states[0])


def test_a_repr_is_short(model, data):
    observed = intact.observe(intact.quantize_model(model), data[:8], shard=(1, 8), verbose=0)
    tensors = len(observed.states)
    assert repr(observed) == f"<Observations: ranges of {tensors} tensors, shards 1/8>"
