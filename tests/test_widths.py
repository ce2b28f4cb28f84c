"""Quantizers: the papers' formulas, by numbers; then whole models, and their files."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import cnn, enliven, gradients, host, lossy, op_names, parse, quantizers

import intact
from intact import IntactError, Quantizer, Rule, Scheme, TensorSpec
from intact.layers.base import Dequantize
from intact.layers.fake_quantize import FakeQuantize
from intact.numerics.affine import stored_range
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import ScaleLayout
from intact.quantizers.base import ActivationStats, QuantizeContext, get_quantizer

# Random weights in 1 or 2 bits lose most of what they compute.
pytestmark = lossy

RATE = 1e-3

CHANNELS = ScaleLayout((-1,))


@pytest.fixture
def w(rng):
    """Weights of two scales; none is near a boundary."""
    return (rng.normal(size=(40, 2)) * [0.5, 2.0]).astype("float32")


def values(rule, w, at, **state):
    state = {key: ops.convert_to_tensor(value) for key, value in state.items()}
    n, scale = rule.weights(ops.convert_to_tensor(w), state, at)
    return n * scale


def weight_gradients(rule, w, upstream, at, **state):
    """The gradients of weights and of trained numbers, where the values have `upstream`."""
    names = list(state)

    upstream = ops.convert_to_tensor(upstream, "float32")

    def loss(w, *parts):
        return ops.sum(values(rule, w, at, **dict(zip(names, parts, strict=True))) * upstream)

    return gradients(loss, w, *state.values())


def check_host(rule, w, at, **state):
    """What the file has is what the model has."""
    given = {key: np.asarray(value, "float32") for key, value in state.items()}
    ours = rule.weights(
        ops.convert_to_tensor(w), {k: ops.convert_to_tensor(v) for k, v in given.items()}, at
    )
    on_host = QuantizeContext(at.bits, at.layout, at.symmetric, at.power_of_two, numpy_ops)
    for a, b in zip(ours, rule.weights(w, given, on_host), strict=True):
        np.testing.assert_array_equal(host(a), b)


class Weights(layers.Layer):
    """Gives the integers and scales of its weights, whatever it is called with."""

    def __init__(self, rule, at, value):
        super().__init__()
        self.rule, self.at, self.value = rule, at, value
        state = rule.weight_state(value, at)
        self.held = {k: self.constant(v) for k, v in {"w": value, **state}.items()}
        self.built = True

    def constant(self, value):
        found = self.add_weight(shape=value.shape, initializer="zeros")
        found.assign(value)
        return found

    def call(self, x):
        w, *state = self.held.values()
        n, scale = self.rule.weights(
            ops.convert_to_tensor(w), dict(zip([*self.held][1:], state, strict=True)), self.at
        )
        return [ops.expand_dims(n, 0) + 0 * x, ops.expand_dims(scale, 0) + 0 * x]

    def compute_output_shape(self, shape):
        return [(None, *self.value.shape), (None, *[1] * (self.value.ndim - 1), 1)]


# Weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bits, name", [(4, "lsq"), (1, "xnor"), (1, "dorefa"), (2, "twn"), (2, "ttq")]
)
def test_compilers_leave_integers_and_scales_as_they_are(bits, name, rng):
    """As many weights as a layer has, of sizes from small to large: an ulp off would show."""
    value = (rng.normal(size=(3, 3, 64, 64)) * 10.0 ** rng.uniform(-3, 1, 64)).astype("float32")
    rule, at = get_quantizer(name), QuantizeContext(bits, CHANNELS, True)
    inputs = keras.Input((1, 1, 1, 1))
    model = keras.Model(inputs, Weights(rule, at, value)(inputs))
    found = model.predict(np.zeros((1, 1, 1, 1, 1), "float32"), verbose=0)
    on_host = QuantizeContext(bits, CHANNELS, True, xp=numpy_ops)
    expected = rule.weights(value, rule.weight_state(value, at), on_host)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a[0], b)


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_lsq_of_weights(bits, w, rng):
    at, rule = QuantizeContext(bits, CHANNELS), get_quantizer("lsq")
    scale = np.array([[0.21, 0.83]], "float32")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    v = w / scale
    expected = np.rint(v.clip(low, high)) * scale
    np.testing.assert_allclose(host(values(rule, w, at, scale=scale)), expected, rtol=1e-6)
    g = rng.normal(size=w.shape).astype("float32")
    by_w, by_scale = weight_gradients(rule, w, g, at, scale=scale)
    inside = (v > low) & (v < high)
    np.testing.assert_allclose(by_w, g * inside, rtol=1e-5)
    # Equation 3, and the gradient's scale.
    slope = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    expected = (g * slope).sum(0, keepdims=True) / np.sqrt(len(w) * high)
    np.testing.assert_allclose(by_scale, expected, rtol=1e-4)
    start = rule.weight_state(w, at)["scale"]
    np.testing.assert_allclose(start, 2 * np.abs(w).mean(0, keepdims=True) / np.sqrt(high), 1e-6)
    check_host(rule, w, at, scale=scale)


@pytest.mark.parametrize("axes", [(-1,), ()])
def test_xnor(axes, w, rng):
    at, rule = QuantizeContext(1, ScaleLayout(axes)), get_quantizer("xnor")
    reduced = at.reduced(w)
    alpha = np.abs(w).mean(reduced, keepdims=True)
    np.testing.assert_allclose(host(values(rule, w, at)), np.sign(w) * alpha, rtol=1e-5)
    g = rng.normal(size=w.shape).astype("float32")
    (by_w,) = weight_gradients(rule, w, g, at)
    count = w.size // alpha.size
    np.testing.assert_allclose(by_w, g * (1 / count + alpha * (np.abs(w) < 1)), rtol=1e-4)
    check_host(rule, w, at)


def test_sign(w, rng):
    at, rule = QuantizeContext(1, CHANNELS), get_quantizer("sign")
    w[0] = 0
    np.testing.assert_array_equal(host(values(rule, w, at)), np.where(w < 0, -1, 1))
    g = rng.normal(size=w.shape).astype("float32")
    (by_w,) = weight_gradients(rule, w, g, at)
    np.testing.assert_allclose(by_w, g * (np.abs(w) < 1), rtol=1e-6)
    check_host(rule, w, at)


def test_twn(w, rng):
    at, rule = QuantizeContext(2, CHANNELS), get_quantizer("twn")
    size = np.abs(w)
    large = size > 0.7 * size.mean(0)
    alpha = (size * large).sum(0) / large.sum(0)
    np.testing.assert_allclose(host(values(rule, w, at)), np.sign(w) * large * alpha, rtol=1e-5)
    g = rng.normal(size=w.shape).astype("float32")
    (by_w,) = weight_gradients(rule, w, g, at)
    np.testing.assert_allclose(by_w, g, rtol=1e-5)
    check_host(rule, w, at)


def test_ttq(w, rng):
    at, rule = QuantizeContext(2, CHANNELS), get_quantizer("ttq")
    positive, negative = np.array([[0.7, 1.9]], "float32"), np.array([[0.4, 2.1]], "float32")
    delta = 0.05 * np.abs(w).max(0)
    up, down = w > delta, w < -delta
    found = host(values(rule, w, at, positive=positive, negative=negative))
    # The smaller number is a whole number of 127ths of the larger one.
    step = np.maximum(positive, negative) / 127
    assert (np.abs(found - (up * positive - down * negative)) <= 0.5001 * step).all()
    assert (found[~up & ~down] == 0).all()
    g = rng.normal(size=w.shape).astype("float32")
    by_w, by_positive, by_negative = weight_gradients(
        rule, w, g, at, positive=positive, negative=negative
    )
    np.testing.assert_allclose(by_positive, (g * up).sum(0, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(by_negative, -(g * down).sum(0, keepdims=True), rtol=1e-4)
    factor = up * positive + down * negative + ~(up | down)
    np.testing.assert_allclose(by_w, g * factor, rtol=1e-5)
    check_host(rule, w, at, positive=positive, negative=negative)


@pytest.mark.parametrize("bits", [2, 4])
def test_dorefa_of_weights(bits, w, rng):
    at, rule = QuantizeContext(bits), get_quantizer("dorefa")
    steps = 2**bits - 1
    bent = np.tanh(w)
    top = np.abs(bent).max()
    expected = 2 * np.rint(steps * (bent / (2 * top) + 0.5)) / steps - 1
    np.testing.assert_allclose(host(values(rule, w, at)), expected, atol=1e-6)
    g = rng.normal(size=w.shape).astype("float32")
    (by_w,) = weight_gradients(rule, w, g, at)
    # The chain rule through `tanh(w) / max|tanh(w)|`, whose largest weight is special.
    by_bent = g / top
    peak = np.unravel_index(np.abs(bent).argmax(), w.shape)
    by_bent[peak] -= np.sign(bent[peak]) * (g * bent).sum() / top**2
    np.testing.assert_allclose(by_w, by_bent * (1 - bent**2), rtol=1e-3, atol=1e-5)


def test_dorefa_of_one_bit(w, rng):
    at, rule = QuantizeContext(1), get_quantizer("dorefa")
    expected = np.sign(w) * np.abs(w).mean()
    np.testing.assert_allclose(host(values(rule, w, at)), expected, rtol=1e-5)
    g = rng.normal(size=w.shape).astype("float32")
    np.testing.assert_allclose(weight_gradients(rule, w, g, at)[0], g, rtol=1e-5)
    check_host(rule, w, at)


@pytest.mark.parametrize("name", ["range", "lsq", "xnor", "twn"])
def test_powers_of_two(name, w):
    bits = {"xnor": 1, "twn": 2}.get(name, 4)
    rule = get_quantizer(name)
    free, fixed = (QuantizeContext(bits, CHANNELS, True, power) for power in (False, True))
    state = {"scale": np.array([[0.21, 0.5]], "float32")} if name == "lsq" else {}
    given = {key: ops.convert_to_tensor(value) for key, value in state.items()}
    (_, scale), (n, power) = (
        (host(part) for part in rule.weights(ops.convert_to_tensor(w), given, at))
        for at in (free, fixed)
    )
    np.testing.assert_allclose(power, 2.0 ** np.ceil(np.log2(scale)), rtol=0)
    assert (n == np.rint(n)).all()
    check_host(rule, w, fixed, **state)
    if name == "lsq":
        # arXiv:1903.08066: the gradient of the logarithm goes through as it is.
        v = w / power
        slope = np.where(np.abs(v) < 7, np.rint(v) - v, v.clip(-7, 7)).sum(0, keepdims=True)
        found = weight_gradients(rule, w, 1.0, fixed, **state)[1]
        np.testing.assert_allclose(found, slope * power / scale / np.sqrt(40 * 7), rtol=1e-3)


# Activations -------------------------------------------------------------------------------


def trained(layer, x, upstream, **call):
    """Outputs, and the gradients of the input and of each trained number, by one step."""
    seen = {}

    @keras.saving.register_keras_serializable("tests")
    class Shift(layers.Layer):
        def build(self, shape):
            self.shift = self.add_weight(shape=shape[1:], initializer="zeros")

        def call(self, x):
            return x + self.shift

    inputs, shift = keras.Input(x.shape[1:]), Shift()
    model = keras.Model(inputs, Dequantize()(layer(shift(inputs), **call)))
    model.compile(keras.optimizers.SGD(RATE), loss=lambda y, p: ops.sum(y * p))
    seen["y"] = host(model(x, training=True))
    model.fit(x, upstream, batch_size=len(x), verbose=0)
    seen["x"] = -host(shift.shift) / RATE
    for name, delta in layer.learned.items():
        seen[name] = -host(delta) / RATE
    return seen


@pytest.fixture
def x(rng):
    return rng.uniform(-1.0, 3.0, size=(1, 30)).astype("float32")


@pytest.mark.parametrize(("bits", "sign"), [(2, 1), (4, 1), (4, -1), (12, -1)])
def test_lsq_of_activations(bits, sign, x, rng):
    x = np.abs(x) if sign > 0 else x
    layer = FakeQuantize(TensorSpec(bits, quantizer="lsq"))
    low, high = (0, 2**bits - 1) if sign > 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    first = 2 * np.abs(x).mean() / np.sqrt(high)
    g = rng.normal(size=x.shape).astype("float32")
    layer(0.5 * x, training=True)
    layer.reset()
    found = trained(layer, x, g)
    v = x / first
    inside = (v > low) & (v < high)
    np.testing.assert_allclose(found["y"], np.rint(v.clip(low, high)) * first, rtol=1e-3)
    np.testing.assert_allclose(found["x"], (g * inside)[0], rtol=1e-2, atol=1e-4)
    slope = np.where(inside, np.rint(v) - v, v.clip(low, high))
    expected = (g * slope).sum() / np.sqrt(x.size * high)
    # In units of the first value, so that the scale itself moves by the rate times that.
    np.testing.assert_allclose(found["scale"] * first, expected, rtol=1e-2)


def test_lsq_plus(x, rng):
    layer = FakeQuantize(TensorSpec(3, quantizer="lsq_plus"))
    layer.set_range(-0.4, 1.0)  # an offset of just -2 steps of 0.2
    g = rng.normal(size=x.shape).astype("float32")
    layer.trainable = True
    found = trained(layer, x, g)
    s, offset = 0.2, -0.4
    v = (x - offset) / s
    inside = (v > 0) & (v < 7)
    np.testing.assert_allclose(found["y"], np.rint(v.clip(0, 7)) * s + offset, atol=1e-5)
    np.testing.assert_allclose(found["x"], (g * inside)[0], rtol=1e-2, atol=1e-4)
    factor = 1 / np.sqrt(x.size * 7)
    slope = np.where(inside, np.rint(v) - v, v.clip(0, 7))
    np.testing.assert_allclose(found["scale"] * s, (g * slope).sum() * factor, rtol=1e-2)
    expected = (g * ~inside).sum() * factor
    np.testing.assert_allclose(found["offset"] * 7 * s, expected, rtol=1e-2)


@pytest.mark.parametrize("bits", [1, 4])
def test_pact(bits, x, rng):
    layer = FakeQuantize(TensorSpec(bits, quantizer="pact"))
    layer.set_range(0.0, 2.0)
    g = rng.normal(size=x.shape).astype("float32")
    found = trained(layer, x, g)
    steps = 2**bits - 1
    clipped = 0.5 * (np.abs(x) - np.abs(x - 2.0) + 2.0)  # equation 1
    expected = np.rint(clipped * steps / 2.0) * 2.0 / steps
    np.testing.assert_allclose(found["y"], expected, atol=1e-5)
    np.testing.assert_allclose(found["x"], (g * ((x > 0) & (x < 2)))[0], rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(found["clip"] * 2.0, (g * (x >= 2)).sum(), rtol=1e-2)


@pytest.mark.parametrize("bits", [1, 3])
def test_dorefa_of_activations(bits, x, rng):
    rule = get_quantizer("dorefa")
    layer = FakeQuantize(TensorSpec(bits, quantizer="dorefa"), fixed=rule.fixed(bits))
    values, scale, *_ = map(host, layer(x, training=True))
    steps = 2**bits - 1
    np.testing.assert_allclose(values * scale, np.rint(x.clip(0, 1) * steps) / steps, rtol=1e-6)
    assert layer.calibrated


def signs_of(x):
    return np.where(x < 0, -1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "bits", "values", "passes"),
    [
        # BinaryNet: equation 1 forward, equation 4 backward.
        ("sign", 1, signs_of, lambda x: np.abs(x) <= 1),
        # GXNOR-Net: -1, 0 and 1 beyond a half; the gradient of a rectangle about each step.
        ("ternary", 2, lambda x: np.sign(x) * (np.abs(x) > 0.5), lambda x: np.abs(x) < 1),
    ],
)
def test_activations_of_a_fixed_scale(name, bits, values, passes, x, rng):
    layer = FakeQuantize(TensorSpec(bits, quantizer=name), fixed=get_quantizer(name).fixed(bits))
    g = rng.normal(size=x.shape).astype("float32")
    layer.learned = {}
    found = trained(layer, x, g)
    np.testing.assert_array_equal(found["y"], values(x))
    np.testing.assert_allclose(found["x"], (g * passes(x))[0], rtol=1e-2, atol=1e-4)
    assert layer.calibrated


def test_scaled_signs_of_activations(x, rng):
    """XNOR-Net: `mean|x| sign(x)`, with a scale that trains."""
    layer = FakeQuantize(TensorSpec(1, quantizer="xnor"))
    x = 0.5 * x
    size = np.abs(x).mean()
    layer(x, training=True)
    layer.reset()
    g = rng.normal(size=x.shape).astype("float32")
    found = trained(layer, x, g)
    np.testing.assert_allclose(found["y"], size * signs_of(x), rtol=1e-5)
    expected = size * (g * (np.abs(x) <= 1))[0]
    np.testing.assert_allclose(found["x"], expected, rtol=1e-2, atol=1e-4)
    expected = (g * signs_of(x)).sum() / np.sqrt(x.size)
    np.testing.assert_allclose(found["scale"] * size, expected, rtol=1e-2)


def test_the_scale_keeps_its_bound_where_an_activation_clamps(x, rng):
    """Beyond a clamp of its own the output is constant, whatever the scale."""
    layer = FakeQuantize(TensorSpec(4, quantizer="lsq"))
    layer.set_range(0.0, 60.0)
    x, g = 40 + np.abs(x), np.ones_like(x)
    found = trained(layer, x, g, lower=0.0, upper=6.0)
    np.testing.assert_allclose(found["y"], 0.0 * x + found["y"].flat[0])
    first = 60 / np.sqrt(15)
    step = np.rint(6.0 / first) - 6.0 / first  # what rounding the clamp leaves
    expected = x.size * step / np.sqrt(x.size * 15)
    np.testing.assert_allclose(found["scale"] * first, expected, rtol=1e-2)


@pytest.mark.parametrize("bits", [2, 4, 6, 7])
@pytest.mark.parametrize("symmetric", [False, True])
def test_few_bits_are_the_topmost_integers(bits, symmetric, x):
    layer = FakeQuantize(TensorSpec(bits, symmetric))
    layer(x, training=True)
    values, scale, zero_point, _ = map(host, layer(10 * np.sign(x)))
    stored = np.unique(values + zero_point)
    assert (stored.min(), stored.max()) == stored_range(bits, symmetric)
    assert stored.max() == 127
    if not symmetric:
        inside = (x > -scale * 0.4) | (x > x.min())
        gap = np.abs(host(layer(x)[0]) * scale - x)
        assert gap[inside].max() <= 1.01 * scale


def test_stochastic_rounding_is_right_in_the_mean(rng):
    layer = FakeQuantize(TensorSpec(4, stochastic=True))
    layer.set_range(0.0, 15.0)
    x = np.full((4000, 1), 3.3, "float32")
    seen = host(layer(x, training=True)[0])
    assert set(np.unique(seen)) == {3, 4}
    np.testing.assert_allclose(seen.mean(), 3.3, atol=0.05)
    assert set(np.unique(host(layer(x)[0]))) == {3}
    other = host(layer(x, training=True)[0])
    assert (seen != other).any()


# Whole models ------------------------------------------------------------------------------

WEIGHTS = [("lsq", 2), ("lsq", 4), ("lsq", 8), ("xnor", 1), ("sign", 1), ("twn", 2), ("ttq", 2)]
WEIGHTS += [("dorefa", 1), ("dorefa", 4), ("range", 3)]
ACTIVATIONS = [("lsq", 2), ("lsq", 8), ("lsq_plus", 4), ("pact", 1), ("pact", 4), ("dorefa", 2)]
ACTIVATIONS += [("range", 2), ("range", 6)]


@pytest.fixture
def images(rng):
    y = rng.integers(0, 4, size=64)
    x = rng.normal(size=(64, 8, 8, 3)) * 0.3
    x[..., 0] += y[:, None, None] - 1.5
    return x.astype("float32"), y


def residual():
    """A sum of branches, a concatenation, an average and a sigmoid."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch")(x)
    x = layers.ReLU(4.0, name="sum_act")(layers.Add(name="sum")([x, y]))
    y = layers.Activation("sigmoid")(layers.Conv2D(2, 1, name="gate")(x))
    x = layers.AveragePooling2D(2, name="average")(layers.Concatenate(name="both")([x, y]))
    x = layers.Conv2DTranspose(4, 2, name="up")(x)
    return keras.Model(image, layers.Dense(4, name="head")(layers.Flatten()(x)))


def scheme(weights=("range", 8), activations=("range", 8), per_axis=True, **fields):
    (w_name, w_bits), (a_name, a_bits) = weights, activations
    return Scheme(
        "own",
        (
            Rule(
                weights=TensorSpec(w_bits, True, per_axis, quantizer=w_name, **fields),
                activations=TensorSpec(a_bits, a_bits > 8, quantizer=a_name, **fields),
            ),
        ),
    )


def train(q, images, epochs=1, rate=0.01):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.Adam(rate), loss)
    return q.fit(*images, epochs=epochs, batch_size=16, shuffle=False, verbose=0).history["loss"]


def check_equal(q, x):
    content = intact.export(q)
    comparison = intact.compare(q, content, x)
    assert all(t.max_lsb <= 1e-3 for t in (*comparison.outputs, *comparison.layers)), comparison
    return content


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_weights_of_few_bits_train_and_run(weights, images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), scheme(weights))
    losses = train(q, images, epochs=3)
    assert np.isfinite(losses).all()
    content = check_equal(q, images[0])
    (values, _), *_ = q.get_layer("conv").quantized_weights().values()
    per_channel = [len(np.unique(channel)) for channel in host(values).reshape(-1, 8).T]
    assert max(per_channel) <= 3 if weights[0] == "ttq" else 2 ** weights[1]
    assert "MAXIMUM" not in op_names(content)


@pytest.mark.parametrize("model", [cnn, residual])
@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
def test_activations_of_few_bits_train_and_run(activations, model, images, rng):
    q = intact.quantize_model(
        enliven(model(), rng), scheme(("lsq", 4), activations, per_axis=False)
    )
    losses = train(q, images, epochs=3)
    assert np.isfinite(losses).all()
    check_equal(q, images[0])
    fakes = [f for f in quantizers(q).values() if f.fixed is None]
    for fake in fakes:
        for delta in (fake.learned or {}).values() if fake.learns else ():
            assert np.isfinite(host(delta))
    if activations[0] == "lsq":
        moved = [host(delta) != 0 for f in fakes for delta in f.learned.values()]
        assert np.mean(moved) > 0.5


@pytest.mark.parametrize("name", ["range", "lsq"])
def test_powers_of_two_run(name, images, rng):
    made = scheme((name, 4), (name, 4), power_of_two=True)
    q = intact.quantize_model(enliven(cnn(), rng), made)
    train(q, images)
    check_equal(q, images[0])
    for fake in quantizers(q).values():
        assert np.log2(float(host(fake.grid().scale))) % 1 == 0


def test_twelve_bits_of_activations_run(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), scheme(("lsq", 4), ("lsq", 12)))
    train(q, images)
    comparison = intact.compare(q, intact.export(q), images[0])
    assert comparison.max_lsb <= 2.01


def test_learned_scales_start_from_the_weights_and_lower_the_loss(images, rng):
    model = enliven(cnn(), rng)
    q = intact.quantize_model(model, scheme(("lsq", 3)))
    layer = q.get_layer("conv")
    first, delta = layer.learned["kernel"]["scale"]
    kernel = host(model.get_layer("conv").kernel)
    expected = 2 * np.abs(kernel).mean((0, 1, 2)) / np.sqrt(3)
    np.testing.assert_allclose(host(first).ravel(), expected, rtol=1e-5)
    assert any(v is delta for v in layer.trainable_variables)
    losses = train(q, images, epochs=6)
    assert losses[-1] < 0.8 * losses[0]
    assert (host(delta) != 0).all()


def test_frozen_scales_stay(images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), scheme(("lsq", 3), ("lsq", 4)))
    train(q, images)
    q.get_layer("conv").trainable = False
    intact.freeze_ranges(q)
    kept = [*q.get_layer("conv").variables]
    kept += [v for fake in quantizers(q).values() for v in fake.variables]
    before = [host(v) for v in kept]
    train(q, images)
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(host(variable), value)


def test_calibration_starts_the_scales_anew(images, rng):
    x, _ = images
    q = intact.quantize_model(enliven(cnn(), rng), scheme(("lsq", 4), ("lsq", 4)))
    train(q, images)
    intact.calibrate(q, x, verbose=0, bias_correction=False)
    fake = quantizers(q)["image"]
    assert host(fake.learned["scale"]) == 0
    expected = 2 * np.abs(x).mean() / np.sqrt(7)
    np.testing.assert_allclose(host(fake.grid().scale), expected, rtol=1e-4)
    check_equal(q, x)


def test_saved_and_loaded(images, rng, tmp_path):
    made = Scheme(
        "own",
        (
            Rule(
                "head",
                TensorSpec(2, per_axis=True, quantizer=get_quantizer("ttq")),
                TensorSpec(8, quantizer="lsq_plus"),
            ),
            Rule(
                weights=TensorSpec(2, quantizer=type(get_quantizer("twn"))(threshold=0.5)),
                activations=TensorSpec(4, quantizer="pact", power_of_two=True),
            ),
        ),
        inputs=TensorSpec(8),
    )
    q = intact.quantize_model(enliven(cnn(), rng), made)
    train(q, images)
    assert quantizers(q)["image"].spec == TensorSpec(8)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert loaded.get_layer("conv").spec.rule.threshold == 0.5
    assert intact.export(loaded) == intact.export(q)
    np.testing.assert_allclose(train(loaded, images), train(q, images), rtol=1e-3)


def test_weights_alone(images, rng):
    rule = Rule(weights=TensorSpec(2, per_axis=True, quantizer="lsq"), activations=None)
    q = intact.quantize_model(enliven(cnn(), rng), Scheme("own", (rule,)))
    train(q, images, epochs=2)
    seen = q.predict(images[0], verbose=0)
    found = intact.load_litert(intact.export(q)).predict(images[0])
    assert np.abs(found - seen).max() <= 1e-5 * np.ptp(seen)


def binary_cnn():
    """Without ReLU, for signs; the pools look at signs, a mean, and a sum of branches."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = y = layers.BatchNormalization(name="stem_norm")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(8, 1, strides=2, name="gate")(y)
    x = layers.Concatenate(name="both")([x, layers.Add(name="sum")([x, y])])
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(4, name="head")(x))


@pytest.mark.parametrize(("name", "bits"), [("sign", 1), ("xnor", 1), ("ternary", 2)])
def test_activations_of_two_or_three_values(name, bits, images, rng, tmp_path):
    few = TensorSpec(bits, quantizer=name)
    weights = TensorSpec(1, symmetric=True, per_axis=True, quantizer="xnor")
    rules = (Rule(layers.Dense), Rule("gate"), Rule("mean"), Rule(None, weights, few))
    q = intact.quantize_model(enliven(binary_cnn(), rng), Scheme("few", rules))
    losses = train(q, images, epochs=4)
    assert losses[-1] < losses[0]
    q.save(tmp_path / "q.keras")
    for model in (q, keras.saving.load_model(tmp_path / "q.keras"), intact.freeze(q)):
        content = intact.export(model, integer_only=True)
        found = intact.load_litert(content).predict(images[0])
        np.testing.assert_array_equal(found, model.predict(images[0], verbose=0))
    assert content == intact.export(q, integer_only=True)
    tensors = {t.name.decode(): t for t in parse(content).subgraphs[0].tensors}
    scale = {"sign": 1, "ternary": 1}.get(name)
    assert scale in (None, tensors["stem_norm"].quantization.scale[0])
    assert intact.compare(q, content, images[0]).max_lsb == 0


def test_calibration_finds_the_scale_of_signs(images, rng):
    few = TensorSpec(1, quantizer="xnor")
    rules = (Rule(layers.Dense), Rule("mean"), Rule(activations=few))
    model = enliven(binary_cnn(), rng)
    q = intact.quantize_model(model, Scheme("few", rules))
    intact.calibrate(q, images[0], verbose=0, bias_correction=False)
    inner = keras.Model(model.inputs, model.get_layer("gate").output)
    size = np.abs(inner.predict(images[0], verbose=0)).mean()
    np.testing.assert_allclose(host(quantizers(q)["gate"].grid().scale), size, rtol=0.02)
    assert quantizers(q)["image"].spec.bits == 8


def test_signs_of_what_has_but_one():
    few = TensorSpec(1, quantizer="sign")
    with pytest.raises(IntactError, match=r"'act'.*'sign'.*constant"):
        intact.quantize_model(cnn(), Scheme("few", (Rule(activations=few),)))
    with pytest.raises(IntactError, match="'few' cannot reduce its inputs to their signs"):
        Scheme("few", inputs=few)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integer_inputs_of_few_bits(dtype, images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), scheme(activations=("range", 4)))
    train(q, images)
    content = intact.export(q, input_dtype=dtype, output_dtype=dtype, integer_only=True)
    model = intact.load_litert(content)
    (expected,) = [model.predict(images[0])]
    np.testing.assert_allclose(expected, q.predict(images[0], verbose=0), rtol=1e-5)


def test_layers_without_a_kernel_of_4_bits_store_8(rng, images):
    q = intact.quantize_model(enliven(residual(), rng), scheme(("lsq", 2)))
    train(q, images)
    stored = {t.name.decode(): t.type for t in parse(intact.export(q)).subgraphs[0].tensors}
    int8, int4 = 9, 17
    assert (stored["up/kernel"], stored["stem/kernel"]) == (int8, int4)


def two_bits(*sizes):
    inputs = x = keras.Input((sizes[0],), name="x")
    for i, size in enumerate(sizes[1:]):
        x = layers.Dense(size, use_bias=bool(i % 2), name=f"dense_{size}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize("weights", [("range", 2), ("twn", 2), ("xnor", 1), ("dorefa", 1)], ids=str)
@pytest.mark.parametrize("activations", [("range", 8), None, "dynamic"], ids=str)
def test_weights_of_2_bits_are_stored_so(weights, activations, rng):
    made = scheme(weights, activations if isinstance(activations, tuple) else ("range", 8))
    if not isinstance(activations, tuple):
        spec = activations and TensorSpec(dynamic=True)
        made = Scheme("own", (Rule(weights=made.rules[0].weights, activations=spec),))
    model = enliven(two_bits(12, 8, 1, 6, 4), rng)
    for norm in model.layers[2::3]:
        # Factors of both signs, which turn weights round.
        norm.gamma.assign(rng.normal(size=norm.gamma.shape) + 0.1)
    q = intact.quantize_model(model, made)
    x = rng.normal(size=(64, 12)).astype("float32")
    content = intact.export(intact.calibrate(q, x, verbose=0))
    stored = {t.name.decode(): t.type for t in parse(content).subgraphs[0].tensors}
    kinds = [stored[f"dense_{size}/kernel"] for size in (8, 1, 6, 4)]
    int2, int4 = 19, 17
    # XNNPACK takes as many inputs as are a multiple of 4: 12 and 8, but not 1 or 6.
    assert kinds == ([int2] * 4 if activations is None else [int2, int2, int4, int4])
    assert not intact.verify(content)
    seen = q.predict(x, verbose=0)
    found = intact.load_litert(content).predict(x)
    if isinstance(activations, tuple):
        np.testing.assert_array_equal(found, seen)
    else:
        assert np.abs(found - seen).max() <= 1e-4 * np.ptp(seen)


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        (TensorSpec(2, symmetric=True, quantizer="lsq", per_axis=True), "int4"),
        (TensorSpec(2, symmetric=True), "int4"),
        (TensorSpec(2, symmetric=True, per_axis=True, stored="int8"), "int8"),
        (TensorSpec(2, symmetric=True, per_axis=True), "int2"),
    ],
)
def test_where_weights_of_2_bits_are_not_stored_so(spec, stored):
    plan = intact.explain(two_bits(12, 8), Scheme("own", (Rule(weights=spec),))).plan
    assert plan.steps[0].weights.dtype == stored


@pytest.mark.parametrize(
    ("weights", "words"), [(("lsq", 12), "12 bits"), (("dorefa", 8), "stored as int16")]
)
def test_wide_weights_train_and_are_not_exported(weights, words, images, rng):
    q = intact.quantize_model(enliven(cnn(), rng), scheme(weights))
    assert np.isfinite(train(q, images)).all()
    with pytest.raises(intact.ExportError, match=f"'conv' has weights.*{words}"):
        intact.export(q)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TensorSpec(2, quantizer="lsd"), "no quantizer 'lsd'"),
        (lambda: TensorSpec(3, quantizer="twn"), "'twn' has 2 bits"),
        (lambda: TensorSpec(9, quantizer="pact"), "'pact' has 1 to 8 bits"),
        (lambda: TensorSpec(kind="uint", power_of_two=True), "to the nearest"),
        (lambda: Rule(weights=TensorSpec(4, quantizer="pact")), "not for weights"),
        (lambda: Rule(activations=TensorSpec(2, quantizer="twn")), "not for activations"),
    ],
)
def test_what_cannot_be(make, words):
    with pytest.raises(IntactError, match=words):
        make()


def test_every_quantizer_cites_its_paper():
    for rule in Quantizer.registry.values():
        if rule.__module__.startswith("intact.quantizers."):
            assert "arXiv:" in rule.__doc__


def test_grid_of_data_that_is_not_there():
    """A range of nothing must not make scales of 0."""
    zero = ops.zeros(())
    for name in ("lsq", "lsq_plus", "pact"):
        rule = get_quantizer(name)
        learned = dict.fromkeys(rule.trained, zero)
        found = rule.grid(ActivationStats(zero, zero, zero), learned, QuantizeContext(4))
        assert float(host(found.scale)) > 0


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_an_activation_of_few_bits_beside_one_of_eight(bits, rng):
    """A convolution reads the few bits, a shortcut all of them."""
    x = keras.Input((6, 6, 3))
    all_bits = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(x))
    few = layers.Conv2D(8, 3, padding="same")(layers.ReLU(name="few")(all_bits))
    model = keras.Model(x, layers.Add()([all_bits, few]))
    spec = TensorSpec(bits, quantizer="pact")
    scheme = intact.Scheme("few", (intact.Rule("few", activations=spec), intact.Rule()))
    data = rng.normal(size=(64, 6, 6, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    assert comparison.different == 0, str(comparison)
    tensor = next(t for t in comparison.layers if t.name == "few")
    assert tensor.values == 64 * 6 * 6 * 8
