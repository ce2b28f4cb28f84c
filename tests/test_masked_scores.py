"""Masks that are added to scores end where a softmax no longer sees them."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven

import intact
from intact.ops.relu import Clamp

STEPS, SIZE = 8, 12
FORMS = {
    "product": lambda mask, low: (1.0 - mask) * low,
    "product on the left": lambda mask, low: low * (1.0 - mask),
    "where": lambda mask, low: ops.where(mask > 0.5, 0.0, low),
}
LOWS = {"1e4": -1e4, "1e9": -1e9, "float32": float(np.finfo("float32").min), "infinity": -np.inf}


def attention(form, low, heads=2):
    """Attention that is written out, with hidden places."""
    x, mask = keras.Input((STEPS, SIZE), name="x"), keras.Input((STEPS,), name="mask")
    hidden = FORMS[form](mask, low)[:, None, None, :]

    def split(t):
        return ops.transpose(ops.reshape(t, (-1, STEPS, heads, SIZE // heads)), (0, 2, 1, 3))

    y = x
    for _ in range(2):
        query, key, value = (split(layers.Dense(SIZE)(y)) for _ in range(3))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / np.sqrt(SIZE // heads)
        shares = ops.softmax(scores + hidden)
        y = ops.reshape(ops.transpose(ops.matmul(shares, value), (0, 2, 1, 3)), (-1, STEPS, SIZE))
    return keras.Model([x, mask], layers.Dense(3, name="head")(y[:, 0]))


@pytest.mark.parametrize("low", LOWS)
def test_scores_that_a_number_replaces(low, rng):
    """As in gpt-oss, whose sinks and maximum stand before the softmax, too."""
    x, mask = keras.Input((6, 6), name="x"), keras.Input((6,), dtype="bool", name="mask")
    scores = ops.where(np.tri(6, dtype=bool), layers.Dense(6, name="scores")(x), LOWS[low])
    scores = ops.where(mask[:, None, :], scores, LOWS[low])
    scores = ops.concatenate([scores, x[:, :, :1]], axis=-1)
    scores = scores - ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True))
    model = enliven(keras.Model([x, mask], ops.softmax(scores)), rng)
    data = [rng.normal(size=(64, 6, 6)).astype("float32"), rng.uniform(size=(64, 6)) > 0.3]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert not any(t.different for t in intact.compare(q, content, data).outputs)
    assert loss(model, q, data) > 20


def test_a_mask_in_a_bias_of_the_scores(rng):
    """As in T5: the sum of both is a bias of all layers."""
    scores, mask = keras.Input((6, 6), name="scores"), keras.Input((6,), name="mask")
    bias = layers.Dense(6, name="bias")(scores) + ((1.0 - mask) * -1e9)[:, None, :]
    shares = ops.softmax(ops.softmax(scores + bias) * 3.0 + bias)
    model = enliven(keras.Model([scores, mask], shares), rng)
    data = [rng.normal(size=(64, 6, 6)), rng.integers(0, 2, size=(64, 6)).astype("float32")]
    data[1][:, 0] = 1
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert loss(model, q, data) > 20


def padded(rng, samples=64):
    lengths = rng.integers(3, STEPS + 1, samples)
    mask = (np.arange(STEPS) < lengths[:, None]).astype("float32")
    return [rng.normal(size=(samples, STEPS, SIZE)).astype("float32"), mask]


def loss(model, q, data):
    """How far the quantized model is below the float one, in decibels."""
    expected = model.predict(data, verbose=0)
    error = q.predict(data, verbose=0) - expected
    return 10 * np.log10(expected.var() / (error**2).mean())


@pytest.mark.parametrize("low", LOWS)
@pytest.mark.parametrize("form", FORMS)
def test_hidden_places_cost_no_accuracy(form, low, rng):
    if low == "infinity" and form != "where":
        pytest.skip("0 times infinity is not a number")
    model = enliven(attention(form, LOWS[low]), rng)
    data = padded(rng)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert not any(t.different for t in intact.compare(q, content, data).outputs)
    assert loss(model, q, data) > 20


def test_hidden_places_cost_no_accuracy_in_training(rng):
    model = enliven(attention("product", -1e9), rng)
    data = padded(rng)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    q.compile(keras.optimizers.SGD(0.0), "mse")
    q.fit(data, np.zeros((64, 3)), epochs=2, verbose=0)
    assert loss(model, q, data) > 20


def test_a_large_factor_of_small_numbers_is_kept(rng):
    """It ends at the same bound, and is itself above that."""
    scores, distance = keras.Input((4, 6), name="scores"), keras.Input((6,), name="distance")
    shares = ops.softmax(scores + (distance * -1e4)[:, None, :])
    model = keras.Model([scores, distance], shares)
    data = [rng.normal(size=(64, 4, 6)), rng.uniform(0, 5e-4, size=(64, 6))]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert loss(model, q, data) > 20


def test_what_others_read_stays_as_it_is(rng):
    scores, mask = keras.Input((6,), name="scores"), keras.Input((6,), name="mask")
    hidden = mask * -1e4
    model = keras.Model([scores, mask], [ops.softmax(scores + hidden), hidden])
    data = [rng.normal(size=(64, 6)), rng.integers(0, 2, size=(64, 6)).astype("float32")]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    np.testing.assert_allclose(q.predict(data, verbose=0)[1], -1e4 * data[1], atol=40)


def test_infinity_elsewhere_is_refused():
    x = keras.Input((6,))
    model = keras.Model(x, ops.where(x > 0, x, -np.inf))
    with pytest.raises(intact.IntactError, match="values are infinite"):
        intact.quantize_model(model)


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (-0.5, None), (None, 0.5), (-0.25, 6.0)])
def test_a_clamp_behind_a_kernel_is_part_of_it(limits, rng):
    x = keras.Input((6, 6, 3))
    y = Clamp(*limits, name="clamp")(layers.Conv2D(4, 3)(x))
    model = enliven(keras.Model(x, y), rng)
    data = rng.normal(size=(64, 6, 6, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, input_dtype="int8", output_dtype="int8")
    assert intact.inspect(content).op_counts == {"CONV_2D": 1}
    wide = 3 * data
    assert not any(t.different for t in intact.compare(q, content, wide).outputs)
    y = q.predict(wide, verbose=0)
    step, _ = intact.load_litert(content).output_params("clamp")
    lower, upper = (-np.inf if limits[0] is None else limits[0]), limits[1] or np.inf
    assert lower - step <= y.min() and y.max() <= upper + step
