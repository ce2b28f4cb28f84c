"""Training of quantized models: like any Keras model."""

import hashlib
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import BACKENDS, cnn, enliven, host, mlp, quantizers, ranges

import intact
from intact import Rule, Scheme, TensorSpec
from intact.numerics import moments

SAMPLES = 64
# Ranges that are those of the batch: rounding is then all that is not as in float.
FOLLOW = Scheme("follow", (Rule(activations=TensorSpec(momentum=0.0)),))


@pytest.fixture
def images(rng):
    """Images of four classes that a small network can tell apart."""
    y = rng.integers(0, 4, size=SAMPLES)
    x = rng.normal(size=(SAMPLES, 8, 8, 3)) * 0.3
    x[..., 0] += y[:, None, None] - 1.5
    return x.astype("float32"), y


def compiled(model, optimizer=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss)
    return model


def fit(model, data, epochs=1):
    """Train without shuffling; the losses."""
    return model.fit(*data, epochs=epochs, batch_size=16, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_fit_lowers_the_loss_and_finds_the_ranges(optimizer, images):
    q = intact.quantize_model(cnn())
    assert not any(f.calibrated for f in quantizers(q).values())
    made = getattr(keras.optimizers, optimizer)(0.02 if optimizer == "Adam" else 0.1)
    losses = fit(compiled(q, made), images, epochs=6)
    assert losses[-1] < 0.7 * losses[0], losses
    assert all(f.calibrated for f in quantizers(q).values())
    assert intact.compare(q, intact.export(q), images[0], per_layer=False).max_lsb <= 1


def test_batch_norm_learns_the_statistics_of_float_training(images):
    model = cnn()
    q = intact.quantize_model(model, FOLLOW)
    for m in (model, q):
        fit(compiled(m, keras.optimizers.SGD(0.01)), images, epochs=5)
    for name in ("bn", "bn_2"):
        expected, found = model.get_layer(name), q.get_layer(name).layer
        mean, variance = host(expected.moving_mean), host(expected.moving_variance)
        assert (mean != 0).all()
        assert (variance != 1).all()
        moved = 1 - 0.99**20
        deviation = np.sqrt(np.maximum((variance - 1) / moved + 1, 0))
        gap = np.abs(host(found.moving_mean) - mean) / moved
        assert (gap <= 0.1 * deviation).all(), (gap, deviation)
        np.testing.assert_allclose(host(found.moving_variance) - 1, variance - 1, rtol=0.05)


def test_moments_of_uneven_parts_are_those_of_the_whole_batch(rng, monkeypatch):
    """Also where a replica has no values, whose moments are not numbers."""
    x = (rng.normal(size=(50, 3)) * [1, 5, 0.1] + [0, 9, -4]).astype("float32")
    parts = np.split(x, [7, 7, 40])
    with np.errstate(invalid="ignore"), warnings.catch_warnings(action="ignore"):
        rows = [[part.mean(0), part.var(0), np.full(3, len(part))] for part in parts]
    rows = np.asarray(rows, "float32")
    monkeypatch.setattr(moments, "gather", lambda own: ops.convert_to_tensor(rows))
    mean, variance, count = map(host, moments.whole_moments(*map(ops.convert_to_tensor, rows[0])))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)
    np.testing.assert_array_equal(count, 50)


def test_batch_norm_alone_learns_the_statistics_too(rng):
    x = (rng.normal(size=(64, 5)) * [1, 2, 3, 4, 5] + [0, 1, 2, 3, 4]).astype("float32")
    model = keras.Sequential([keras.Input((5,)), layers.BatchNormalization(name="bn")])
    q = intact.quantize_model(model, FOLLOW)
    q.compile("sgd", "mse")
    fit(q, (x, x))
    mean, variance = 0.0, 1.0
    for batch in np.split(x, 4):
        mean = 0.99 * mean + 0.01 * batch.mean(0)
        variance = 0.99 * variance + 0.01 * batch.var(0)
    found = q.get_layer("bn").layer
    np.testing.assert_allclose(host(found.moving_mean), mean, atol=1e-3)
    np.testing.assert_allclose(host(found.moving_variance), variance, rtol=1e-3)


@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_layers_keep_their_weights_and_statistics(when, images, rng):
    model = enliven(cnn(), rng)
    frozen = ("bn", "depthwise")
    for name in frozen if when == "before" else ():
        model.get_layer(name).trainable = False
    q = intact.quantize_model(model)
    for name in frozen if when == "after" else ():
        q.get_layer(name).trainable = False
    before = {v.path: host(v) for layer in q.layers for v in layer.weights}
    fit(compiled(q), images)
    changed = {
        v.path for layer in q.layers for v in layer.weights if (host(v) != before[v.path]).any()
    }
    assert not [path for path in changed if "depthwise" in path and "quantizer" not in path]
    assert not [path for path in changed if "bn/" in path]
    assert [path for path in changed if "conv/" in path]
    assert len([path for path in changed if "bn_2/" in path and "moving" in path]) == 2


def test_a_frozen_model_keeps_its_ranges(images):
    x, y = images
    q = intact.calibrate(intact.quantize_model(cnn()), x, verbose=0)
    q.trainable = False
    model = keras.Sequential([keras.Input((8, 8, 3)), q, layers.Dense(4)])
    before = ranges(q), [host(v) for v in q.variables]
    fit(compiled(model), (10 * x, y))
    for path, value in ranges(q).items():
        np.testing.assert_array_equal(value, before[0][path])
    for variable, value in zip(q.variables, before[1], strict=True):
        np.testing.assert_array_equal(host(variable), value)


def test_freeze_ranges_holds_the_ranges_alone(images):
    x, y = images
    q = intact.calibrate(intact.quantize_model(cnn()), x, verbose=0)
    intact.freeze_ranges(q)
    before, kernel = ranges(q), host(q.get_layer("head").layer.kernel)
    fit(compiled(q), (10 * x, y))
    for path, value in ranges(q).items():
        np.testing.assert_array_equal(value, before[path])
    assert (host(q.get_layer("head").layer.kernel) != kernel).any()
    intact.freeze_ranges(q, frozen=False)
    fit(compiled(q), (10 * x, y))
    assert any((value != before[path]).any() for path, value in ranges(q).items())


def test_freeze_ranges_needs_ranges():
    with pytest.raises(intact.NotCalibratedError, match="freezing"):
        intact.freeze_ranges(intact.quantize_model(mlp()))


def test_prediction_does_not_move_ranges(images):
    x, _ = images
    q = intact.calibrate(intact.quantize_model(cnn()), x, verbose=0)
    before = ranges(q)
    q.predict(100 * x, verbose=0)
    for path, value in ranges(q).items():
        np.testing.assert_array_equal(value, before[path])


def test_regularization_losses_survive(rng):
    penalty = keras.regularizers.L2(0.1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(4, 3, kernel_regularizer=penalty, bias_regularizer=penalty),
            layers.SeparableConv2D(2, 3, pointwise_regularizer=penalty),
            layers.Flatten(),
            layers.Dense(2, kernel_regularizer=penalty),
        ]
    )
    q = intact.quantize_model(enliven(model, rng))
    expected, found = (sorted(float(host(loss)) for loss in m.losses) for m in (model, q))
    assert len(expected) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weight_constraints_survive(rng):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(3, kernel_constraint=keras.constraints.NonNeg(), name="head"),
        ]
    )
    q = intact.quantize_model(model)
    q.compile(keras.optimizers.SGD(1.0), "mse")
    x = rng.normal(size=(64, 6)).astype("float32")
    fit(q, (x, -x[:, :3]))
    assert (host(q.get_layer("head").layer.kernel) >= 0).all()


def test_separable_convolution_trains_as_in_float(images):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SeparableConv2D(8, 3, activation="relu", depth_multiplier=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
        ]
    )
    q = intact.quantize_model(model, FOLLOW)
    expected, found = (
        fit(compiled(m, keras.optimizers.SGD(0.02)), images, epochs=5) for m in (model, q)
    )
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_dropout_is_at_work_while_training_only(rng):
    model = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5)])
    q = intact.quantize_model(model)
    x = np.ones((8, 50), "float32")
    intact.calibrate(q, x, verbose=0)
    dropped = host(q(x, training=True))
    assert 0.3 < (dropped == 0).mean() < 0.7
    np.testing.assert_allclose(q.predict(x, verbose=0), x, rtol=1e-6)


def test_saved_in_the_middle_training_continues_as_if_it_had_not_been(images, tmp_path):
    q = compiled(intact.quantize_model(cnn()), keras.optimizers.Adam(0.02))
    fit(q, images)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    x, _ = images
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))
    np.testing.assert_allclose(fit(loaded, images, 2), fit(q, images, 2), rtol=1e-4)


def test_weights_only_go_to_a_model_made_anew(images, tmp_path):
    x, _ = images
    q = intact.calibrate(intact.quantize_model(cnn()), x, verbose=0)
    q.save_weights(tmp_path / "q.weights.h5")
    fresh = intact.quantize_model(cnn())
    fresh.load_weights(tmp_path / "q.weights.h5")
    assert intact.export(fresh) == intact.export(q)


ELSEWHERE = """
import hashlib, sys
import keras, numpy as np
import intact
folder = sys.argv[1]
q = keras.saving.load_model(folder + "/q.keras", compile=False)
np.save(folder + "/found.npy", q.predict(np.load(folder + "/x.npy"), verbose=0))
print(hashlib.sha256(intact.export(q)).hexdigest())
"""


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != keras.backend.backend()])
def test_saved_model_is_the_same_on_another_backend(backend, images, tmp_path):
    q = compiled(intact.quantize_model(cnn()))
    fit(q, images)
    q.save(tmp_path / "q.keras")
    np.save(tmp_path / "x.npy", images[0])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == hashlib.sha256(intact.export(q)).hexdigest()
    found, seen = np.load(tmp_path / "found.npy"), q.predict(images[0], verbose=0)
    np.testing.assert_array_equal(found, seen)
