"""When quantization begins in training, and what freezes when."""

import warnings
from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, host, mlp, parse, quantizers, ranges

import intact
from intact import IntactError, Rule, Schedule, Scheme, TensorSpec, callbacks
from intact.layers import fake_quantize as activations
from intact.layers.quantized import Quantized
from intact.ops import norm as ops_norm
from intact.quantizers import observers

BATCHES = 4


@pytest.fixture
def images(rng):
    y = rng.integers(0, 4, size=64)
    x = rng.normal(size=(64, 8, 8, 3)) * 0.3
    x[..., 0] += y[:, None, None] - 1.5
    return x.astype("float32"), y


def compiled(model, optimizer=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.05), loss)
    return model


def fit(model, data, epochs=1, **kwargs):
    kwargs = {"epochs": epochs, "batch_size": 16, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(*data, **kwargs).history["loss"]


def scheme(bits=2, **fields):
    weights = TensorSpec(bits, True, True, **fields)
    return Scheme("few", (Rule(weights=weights, activations=TensorSpec(bits, **fields)),))


@pytest.mark.parametrize("quantizer", ["range", "lsq"])
def test_before_the_delay_is_over_training_is_as_in_float(quantizer, images, rng):
    model = enliven(cnn(), rng)
    delayed = Schedule(quant_delay=2 * BATCHES)
    q = intact.quantize_model(model, scheme(quantizer=quantizer), schedule=delayed)
    at_once = intact.quantize_model(model, scheme(quantizer=quantizer))
    expected, found = fit(compiled(model), images, 2), fit(compiled(q), images, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert abs(fit(compiled(at_once), images, 2)[1] - expected[1]) > 2e-3 * expected[1]
    kernels = (host(model.get_layer("conv").kernel), host(q.get_layer("conv").layer.kernel))
    np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-5)
    bn = (model.get_layer("bn"), q.get_layer("bn").layer)
    for name in ("moving_mean", "moving_variance"):
        a, b = (host(getattr(layer, name)) for layer in bn)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # From here on it quantizes.
    expected, found = fit(model, images), fit(q, images)
    assert abs(found[0] - expected[0]) > 2e-3 * expected[0]


def test_ranges_are_observed_during_the_delay(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), schedule=Schedule(quant_delay=10**6))
    fit(compiled(q), images)
    assert all(fake.calibrated for fake in quantizers(q).values())


def test_learned_scales_start_when_the_delay_is_over(images, rng):
    spec = TensorSpec(4, quantizer="lsq")
    made = Scheme("own", (Rule(activations=spec),))
    q = intact.quantize_model(enliven(cnn(), rng), made, schedule=Schedule(quant_delay=BATCHES))
    x, y = images
    fit(compiled(q), (0.1 * x, y))
    fake = quantizers(q)["image"]
    small = float(host(fake.grid().scale))
    assert host(fake.learned["scale"]) == 0
    fit(q, images)
    assert float(host(fake.size)[0]) == pytest.approx(np.sqrt(7) / 2 * small, rel=1e-3)
    assert host(fake.learned["scale"]) != 0


def test_steps_are_counted_once_a_step(images, rng):
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.Concatenate()([shared(image), shared(shared(image))])
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    q = intact.quantize_model(model, schedule=Schedule())
    fit(compiled(q), images)
    assert intact.training_step(q) == BATCHES
    q.predict(images[0], verbose=0)
    clocks = [layer.clock for layer in q.layers if getattr(layer, "clock", None)]
    assert {int(host(clock.step)) for clock in clocks} == {BATCHES}


def test_ranges_freeze_at_a_step(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), schedule=Schedule(freeze_ranges=BATCHES))
    fit(compiled(q), images)
    before = ranges(q)
    assert any(value.any() for value in before.values())
    fit(q, (10 * images[0], images[1]))
    for path, value in ranges(q).items():
        if "clock" not in path:
            np.testing.assert_array_equal(value, before[path])


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="compiled steps hold both branches")
def test_a_step_computes_only_what_it_needs(images, rng, monkeypatch):
    calls = Counter()

    def count(holder, name):
        real = getattr(holder, name)

        def counting(*args):
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(holder, name, counting)

    count(observers.MovingAverage, "look")
    count(activations, "round_clip")
    count(ops_norm, "batch_norm")
    then = 2 * BATCHES
    schedule = Schedule(quant_delay=then, freeze_ranges=then, freeze_batch_norm=then)
    q = compiled(intact.quantize_model(enliven(cnn(), rng), schedule=schedule))
    fit(q, images)  # Keras calls all layers once before the first step.
    calls.clear()
    fit(q, images)
    assert set(calls) == {"look", "batch_norm"}
    calls.clear()
    fit(q, images)
    assert set(calls) == {"round_clip"}


def test_a_range_without_data_does_not_freeze(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), schedule=Schedule(freeze_ranges=0))
    fit(compiled(q), images)
    assert all(fake.calibrated for fake in quantizers(q).values())


def test_batch_norm_freezes_at_a_step(images, rng):
    schedule = Schedule(freeze_batch_norm=BATCHES)
    q = intact.quantize_model(enliven(cnn(), rng), schedule=schedule)
    norm = q.get_layer("bn").layer
    start = host(norm.moving_mean)
    fit(compiled(q), images)
    before = host(norm.moving_mean), host(norm.moving_variance), host(norm.gamma)
    assert (before[0] != start).all()
    frozen = [host(v) for v in q.variables]
    losses = fit(q, images)
    np.testing.assert_array_equal(host(norm.moving_mean), before[0])
    np.testing.assert_array_equal(host(norm.moving_variance), before[1])
    assert (host(norm.gamma) != before[2]).any()
    # It computes as a batch norm that the user froze by hand, but that gamma and beta train.
    for variable, value in zip(q.variables, frozen, strict=True):
        variable.assign(value)
    intact.set_schedule(q, Schedule(freeze_batch_norm=None))
    assert abs(fit(q, images)[0] - losses[0]) > 1e-4


def test_switched_off_and_on_while_it_trains(images, rng):
    model = enliven(cnn(), rng)
    q = compiled(intact.quantize_model(model, scheme(), schedule=Schedule()))
    traces = []
    original = q.compute_loss
    q.compute_loss = lambda *args, **kwargs: (traces.append(1), original(*args, **kwargs))[1]
    start = [host(v) for v in q.variables]
    epochs = {0: False, 1: True, 2: False}
    # A rate of 0: only quantization changes the loss.
    q.optimizer.learning_rate = 0.0
    norms = [layer for layer in q.layers if layer.name.startswith("bn")]
    for norm in norms:
        norm.trainable = False
    compiled(q, keras.optimizers.SGD(0.0))
    off, on, again = fit(q, images, 3, callbacks=[callbacks.Switch(epochs)])
    assert off == pytest.approx(again, rel=1e-5)
    assert abs(on - off) > 0.01 * off
    for norm in norms:
        model.get_layer(norm.name).trainable = False
    assert off == pytest.approx(fit(compiled(model, keras.optimizers.SGD(0.0)), images)[0], 1e-4)
    assert len(start) == len(q.variables)
    if keras.backend.backend() != "torch":
        # Compiled once, and perhaps once more to build.
        assert len(traces) <= 2


def test_callbacks_set_the_schedule(images, rng):
    q = compiled(intact.quantize_model(enliven(cnn(), rng), schedule=Schedule()))
    made = [
        callbacks.QuantDelay(3),
        callbacks.FreezeRanges(5),
        callbacks.FreezeBatchNorm(None),
    ]
    fit(q, images, callbacks=made)
    for layer in q.layers:
        if getattr(layer, "clock", None):
            starts = {name: float(host(v)) for name, v in layer.clock.starts.items()}
            assert starts == {
                "quant_delay": 3,
                "freeze_ranges": 5,
                "freeze_batch_norm": float("inf"),
            }


def test_resumed_in_the_middle_of_the_schedule(images, rng, tmp_path):
    schedule = Schedule(quant_delay=BATCHES + 2, freeze_ranges=2 * BATCHES)
    q = intact.quantize_model(enliven(cnn(), rng), scheme(4, quantizer="lsq"), schedule=schedule)
    fit(compiled(q, keras.optimizers.Adam(0.01)), images)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert intact.training_step(loaded) == BATCHES
    np.testing.assert_allclose(fit(loaded, images, 2), fit(q, images, 2), rtol=1e-3)
    assert intact.training_step(loaded) == 3 * BATCHES


def narrow():
    return keras.Sequential(
        [
            keras.Input((6,), name="x"),
            layers.Dense(5, use_bias=False, name="dense"),
            layers.BatchNormalization(momentum=0.8, name="norm"),
            layers.ReLU(name="act"),
            layers.Dense(3, name="head"),
        ]
    )


@pytest.mark.parametrize(
    ("at", "fold", "how"),
    [
        (2, False, "model"),
        (5, True, "weights"),
        (8, False, "weights"),
        (8, True, "model"),
        (11, False, "model"),
    ],
)
def test_a_checkpoint_goes_on_as_the_unbroken_run(at, fold, how, rng, tmp_path):
    """Saved before the delay is over, before and after ranges freeze, and after batch norm."""
    schedule = Schedule(quant_delay=3, freeze_ranges=6, freeze_batch_norm=10)
    x, y = rng.normal(size=(14 * 8, 6)).astype("float32"), rng.integers(0, 3, size=14 * 8)
    model = enliven(narrow(), rng)

    def make():
        made = intact.quantize_model(
            model, scheme(4, quantizer="lsq"), schedule=schedule, fold_batch_norm=fold
        )
        return compiled(made, keras.optimizers.Adam(0.01))

    def steps(q, first, last):
        return [float(q.train_on_batch(x[8 * i :][:8], y[8 * i :][:8])) for i in range(first, last)]

    q = make()
    steps(q, 0, at)
    if how == "model":
        q.save(tmp_path / "q.keras")
        resumed = keras.saving.load_model(tmp_path / "q.keras")
    else:
        q.save_weights(tmp_path / "q.weights.h5")
        resumed = make()
        resumed.optimizer.build(resumed.trainable_variables)
        resumed.load_weights(tmp_path / "q.weights.h5")
    assert intact.training_step(resumed) == at
    expected, found = steps(q, at, 14), steps(resumed, at, 14)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(q.variables, resumed.variables, strict=True):
        np.testing.assert_allclose(host(b), host(a), rtol=1e-4, atol=1e-6, err_msg=a.path)
    assert intact.export(resumed) == intact.export(q)


def warned(q, words):
    """The file of a model, whose export warns."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        content = intact.export(q)
    (found,) = [w for w in seen if w.category is intact.ScheduleWarning]
    assert words in str(found.message)
    return content


def test_export_says_that_the_delay_is_not_over(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), schedule=Schedule(quant_delay=6))
    fit(compiled(q), images)
    content = warned(q, "for 2 steps more")
    # The file is quantized, as predictions are.
    assert intact.compare(q, content, images[0]).different == 0
    intact.switch(q, False)
    warned(q, "switched off")
    intact.switch(q, True)
    intact.export(q)


@pytest.mark.parametrize("preset", ["float16", "weight_only_4", "dynamic_range"])
def test_weights_alone_wait_too(preset, images, rng):
    model = enliven(cnn(), rng)
    q = intact.quantize_model(model, preset, schedule=Schedule(quant_delay=BATCHES))
    expected, found = fit(compiled(model), images), fit(compiled(q), images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_model_without_schedule_says_so():
    q = intact.quantize_model(mlp())
    for function in (lambda: intact.switch(q, True), lambda: intact.training_step(q)):
        with pytest.raises(IntactError, match="has no schedule"):
            function()


@pytest.mark.parametrize("step", [-1, 0.5, "10"])
def test_steps_are_whole_numbers(step):
    with pytest.raises(IntactError, match="quant_delay to be a training step"):
        Schedule(quant_delay=step)


# Batch norm in the weights -------------------------------------------------------------------

ONE_SCALE = {
    "int8": Scheme("one", (Rule(weights=TensorSpec(8, symmetric=True)),)),
    "lsq": Scheme("one", (Rule(weights=TensorSpec(4, symmetric=True, quantizer="lsq")),)),
    "uint8": "uint8",
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_batch_norm_with_correction_and_freeze(depthwise, frozen, rng):
    """arXiv:1806.08342: weights by the moving variance, outputs by the batch's until it freezes."""
    conv = layers.DepthwiseConv2D(1, depth_multiplier=2) if depthwise else layers.Conv2D(4, 1)
    conv.build((None, 3, 3, 2))
    norm = layers.BatchNormalization(momentum=0.9)
    norm.build((None, 3, 3, 4))
    for variable in (*conv.variables, *norm.variables):
        value = rng.normal(size=variable.shape)
        variable.assign(np.abs(value) + 0.3 if "variance" in variable.path else value)
    spec = TensorSpec(8, symmetric=True)
    schedule = Schedule(freeze_batch_norm=0 if frozen else None)
    layer = Quantized(conv, spec, [(None, 3, 3, 2)], schedule, norm=norm)
    x = rng.integers(-100, 100, size=(6, 3, 3, 2)).astype("float32")
    gamma, beta, mean, var = (host(v) for v in norm.variables)
    kernel, bias = host(conv.kernel), host(conv.bias)
    sigma = np.sqrt(var + norm.epsilon)

    def product(w):
        if depthwise:
            return (x[..., None] * w[0, 0]).reshape(6, 3, 3, 4)
        return x @ w[0, 0]

    y = product(kernel) * 0.02 + bias
    batch = y.mean((0, 1, 2)), y.var((0, 1, 2))
    folded = kernel * (gamma / sigma).reshape((2, 2) if depthwise else (4,))
    step = np.abs(folded).max() / 127
    used, used_sigma = (mean, sigma) if frozen else (batch[0], np.sqrt(batch[1] + norm.epsilon))
    expected = product(np.rint(folded / step) * step) * 0.02 * (sigma / used_sigma)
    expected += beta + (bias - used) * gamma / used_sigma
    found = layer((x, np.float32(0.02), np.float32(0), np.bool_(True)), training=True)
    values, units, *scales = (host(part) for part in found)
    np.testing.assert_allclose(
        (values + units) * scales[0] * scales[1], expected, rtol=2e-3, atol=2e-2
    )
    share = 0.0 if frozen else 0.1
    moving = (norm.moving_mean, norm.moving_variance)
    for variable, before, seen in zip(moving, (mean, var), batch, strict=True):
        after = (1 - share) * before + share * seen
        np.testing.assert_allclose(host(variable), after, rtol=1e-4, atol=1e-5)


def test_folded_in_training_it_is_float_before_the_delay_is_over(images, rng):
    model = enliven(cnn(), rng)
    q = intact.quantize_model(
        model, ONE_SCALE["int8"], schedule=Schedule(quant_delay=100), fold_batch_norm=True
    )
    np.testing.assert_allclose(
        fit(compiled(q), images, 2), fit(compiled(model), images, 2), rtol=1e-3
    )


@pytest.mark.parametrize("name", ONE_SCALE)
def test_batch_norm_folded_in_training(name, images, rng, tmp_path):
    schedule = Schedule(freeze_batch_norm=4 * BATCHES)
    model = enliven(cnn(), rng)
    q = intact.quantize_model(model, ONE_SCALE[name], schedule=schedule, fold_batch_norm=True)
    losses = fit(compiled(q, keras.optimizers.Adam(0.02)), images, 6)
    assert losses[-1] < 0.8 * losses[0]
    norm = q.get_layer("conv").norm
    before = host(norm.moving_variance)
    fit(q, images)
    np.testing.assert_array_equal(host(norm.moving_variance), before)
    assert "bn" not in [layer.name for layer in q.layers]
    q.save(tmp_path / "q.keras")
    content = intact.export(q)
    for other in (keras.saving.load_model(tmp_path / "q.keras"), intact.freeze(q)):
        assert intact.export(other) == content
    assert intact.compare(q, content, images[0]).max_lsb <= (1 if name == "uint8" else 0)
    tensors = {t.name.decode(): t for t in parse(content).subgraphs[0].tensors}
    assert len(tensors["conv/kernel"].quantization.scale) == 1


def test_weights_do_not_follow_the_batch(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), ONE_SCALE["int8"], fold_batch_norm=True)
    conv = q.get_layer("conv")
    conv.norm.momentum = 1.0
    before = host(conv.quantized_weights()["kernel"][0])
    q(10 * images[0], training=True)
    np.testing.assert_array_equal(host(conv.quantized_weights()["kernel"][0]), before)
    with pytest.raises(IntactError, match=r"'conv'.*fold_batch_norm"):
        intact.recover(q, images[0], verbose=0)
