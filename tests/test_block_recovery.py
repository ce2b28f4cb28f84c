"""Rounding that the weights of a block learn together."""

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, host

import intact
from intact import IntactError, Rule, Scheme, TensorSpec
from intact.calibration.walk import cut
from intact.graph.view import view
from intact.recovery.blocks import find_blocks, float_blocks, reconstruct
from intact.recovery.recover import STEPS, try_steps

FOUR = TensorSpec(4, symmetric=True, per_axis=True)
INSIDE = Rule("first", FOUR), Rule("second", FOUR)
W4A8 = Scheme("w4a8", (*INSIDE, Rule()))
W4A4 = Scheme("w4a4", (Rule("inside", activations=TensorSpec(4)), *INSIDE, Rule()))
"""One block has 4 bits: each one that learns is compiled on JAX and TensorFlow."""

ROUND = dict.fromkeys(STEPS, False) | {"round": True}


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr("intact.recovery.blocks.STEPS", 20)


def residual(rng):
    """A convolution, a block with a shortcut, and a head."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = fork = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU(name="inside")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.ReLU(name="sum")(layers.Add(name="add")([x, fork]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return enliven(keras.Model(inputs, layers.Dense(4, name="head")(x)), rng)


def images(rng, count):
    coarse = rng.normal(size=(count, 4, 4, 3))
    return np.repeat(np.repeat(coarse, 2, 1), 2, 2).astype("float32")


def error(q, model, x):
    return float(np.mean((q.predict(x, verbose=0) - model.predict(x, verbose=0)) ** 2))


def test_blocks_reach_from_a_fork_to_its_join(rng):
    q = intact.quantize_model(residual(rng), "int4")
    blocks = [[layer.name for layer in block.layers] for block in find_blocks(view(q))]
    assert blocks == [["stem"], ["first", "second"], ["head"]]
    assert not find_blocks(view(intact.quantize_model(residual(rng))))


@pytest.mark.parametrize("scheme", [W4A8, W4A4], ids=["W4A8", "W4A4"])
def test_it_beats_the_rounding_of_single_layers(scheme, rng):
    model, x, unseen = residual(rng), images(rng, 128), images(rng, 256)
    alone, together = (intact.quantize_model(model, scheme) for _ in "ab")
    try_steps(alone, x, ROUND)
    try_steps(together, x, ROUND | {"blocks": True})
    assert error(together, model, unseen) < error(alone, model, unseen)
    assert intact.compare(together, intact.export(together), unseen).different == 0
    for name in ("first", "second"):
        layer = together.get_layer(name)
        rounded = host(layer.real_weights()["kernel"])
        np.testing.assert_allclose(host(layer.layer.kernel), rounded, rtol=1e-5, atol=1e-7)


def test_ranges_of_few_bits_are_learned(rng, few_steps):
    model, x = residual(rng), images(rng, 64)
    q = intact.calibrate(intact.quantize_model(model, W4A4), x, verbose=0)
    (block,) = [block for block in find_blocks(view(q)) if block.ranges]
    (layer,) = block.ranges
    before, others = host(layer.maximum), host(q.get_layer("sum_quantizer").maximum)
    batches = cut([x], 32)
    reconstruct(q, batches, float_blocks(q, batches), 0)
    assert (host(layer.maximum) != before).all()
    np.testing.assert_array_equal(host(q.get_layer("sum_quantizer").maximum), others)


def test_the_same_seed_gives_the_same_file(rng, few_steps):
    model, x = residual(rng), images(rng, 32)
    files = []
    for seed in (0, 0, 1):
        q = intact.quantize_model(model, W4A8)
        try_steps(q, x, ROUND | {"blocks": True}, seed=seed)
        files.append(intact.export(q))
    assert files[0] == files[1] != files[2]


def test_what_does_not_help_is_not_kept(rng, monkeypatch):
    model, x = residual(rng), images(rng, 40)
    plain, q = (intact.quantize_model(model, W4A8) for _ in "ab")
    try_steps(plain, x, ROUND)

    def harm(model, *_):
        layer = model.get_layer("first").layer
        layer.kernel.assign(-host(layer.kernel))

    monkeypatch.setattr("intact.recovery.recover.reconstruct", harm)
    (trial,) = try_steps(q, x, ROUND | {"blocks": None})
    assert trial.name == "blocks" and not trial.kept
    assert intact.export(q) == intact.export(plain)


def test_models_without_few_bits_are_refused(rng):
    q = intact.quantize_model(cnn("relu"))
    with pytest.raises(IntactError, match="no block with weights of fewer than 8 bits"):
        intact.recover(q, images(rng, 8), blocks=True)
