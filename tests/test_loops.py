"""Equal steps of a file as a loop: the same values, and few ops."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven, lossy, op_names

import intact
from intact.layers.loop import QuantizedLoop

STEPS = 10


def model_of(function, shape=(STEPS, 3)):
    x = keras.Input(shape)
    return keras.Model(x, function(x))


class Scaled(layers.Layer):
    """A cell of the user's own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.inner = layers.Dense(self.units)
        self.inner.build((None, shape[-1] + self.units))

    def call(self, x, states):
        h = ops.tanh(self.inner(ops.concatenate([x, states[0]], -1)))
        return h, [h]


def by_hand(x):
    """Steps that a user has written out."""
    inner, state = layers.Dense(4, "tanh"), layers.Dense(4, use_bias=False)
    h = inner(x[:, 0])
    for step in range(1, STEPS):
        h = ops.tanh(inner(x[:, step]) + state(h))
    return h


MODELS = {
    "simple": (layers.SimpleRNN(4), 1),
    "lstm": (layers.LSTM(4), 1),
    "gru": (layers.GRU(4), 1),
    "gru, one bias": (layers.GRU(4, reset_after=False), 1),
    "all outputs": (layers.LSTM(4, return_sequences=True), 1),
    "backwards": (layers.GRU(4, return_sequences=True, go_backwards=True), 1),
    "both directions": (layers.Bidirectional(layers.LSTM(4, return_sequences=True)), 2),
    "states": (lambda x: ops.concatenate(layers.LSTM(4, return_state=True)(x), -1), 1),
    "two layers": (
        lambda x: layers.GRU(3)(layers.LSTM(4, return_sequences=True)(x)),
        2,
    ),
    "stacked": (layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]), 2),
    "masked": (lambda x: layers.LSTM(4)(layers.Masking()(ops.relu(x))), 1),
    "custom": (layers.RNN(Scaled(4)), 1),
}


@lossy
@pytest.mark.parametrize("kind", MODELS)
def test_loops_have_the_values_of_steps(kind, rng):
    function, loops = MODELS[kind]
    model = enliven(model_of(function), rng)
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    rolled, unrolled = (intact.export(q, integer_only=True, unroll=flag) for flag in (False, True))
    assert op_names(rolled).count("WHILE") == loops
    assert "WHILE" not in op_names(unrolled)
    assert sum(intact.inspect(rolled).op_counts.values()) < len(op_names(unrolled)) / 2
    assert len(rolled) < len(unrolled)
    for size in (1, 32):
        files = [intact.load_litert(content) for content in (rolled, unrolled)]
        first, second = (file.predict(data[:size], batch_size=size) for file in files)
        np.testing.assert_array_equal(first, second)
    assert not any(t.different for t in intact.compare(q, rolled, data).outputs)
    assert not [finding for finding in intact.verify(rolled) if finding.level != "info"]


@lossy
@pytest.mark.parametrize("scheme", ["int16x8", "uint8"])
def test_other_types(scheme, rng):
    model = enliven(model_of(layers.LSTM(4, return_sequences=True)), rng)
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, scheme), data, verbose=0)
    files = [intact.load_litert(intact.export(q, unroll=flag)) for flag in (False, True)]
    first, second = (file.predict(data, batch_size=1) for file in files)
    np.testing.assert_array_equal(first, second)
    assert "WHILE" in op_names(files[0].content)


@pytest.mark.parametrize("kind", ["gru", "states", "masked", "custom"])
def test_training_finds_ranges_and_learns(kind, rng):
    model = enliven(model_of(MODELS[kind][0]), rng)
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.quantize_model(model)
    assert len(q.layers) < 80
    assert len([layer for layer in q.layers if isinstance(layer, QuantizedLoop)]) == 1
    expected = model.predict(data, verbose=0)
    # Without ranges, activations are not rounded.
    assert np.abs(q.predict(data, verbose=0) - expected).max() < 0.02 * np.ptp(expected)
    q.compile(keras.optimizers.Adam(0.01), "mse")
    losses = [float(q.train_on_batch(data, 0.5 * expected)) for _ in range(8)]
    assert losses[-1] < losses[0]
    content = intact.export(q, integer_only=True)
    assert not any(t.different for t in intact.compare(q, content, data).outputs)


def test_a_saved_loop_is_the_same(rng, tmp_path):
    model = enliven(
        model_of(lambda x: layers.GRU(3)(layers.LSTM(4, return_sequences=True)(x))), rng
    )
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert intact.export(loaded) == intact.export(q)
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), q.predict(data, verbose=0))
    against_float = intact.compare(q, intact.export(q), data, float_model=model)
    assert not any(t.different for t in against_float.outputs)
    assert intact.export(intact.freeze(q)) == intact.export(q)


def test_first_states_are_converted(rng):
    x, h = keras.Input((STEPS, 3)), keras.Input((4,))
    model = enliven(keras.Model([x, h], layers.GRU(4, return_state=True)(x, initial_state=h)), rng)
    data = [rng.normal(size=(32, *t.shape[1:])).astype("float32") for t in model.inputs]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    for unroll in (False, True):
        content = intact.export(q, integer_only=True, unroll=unroll)
        assert not any(t.different for t in intact.compare(q, content, data).outputs)


def test_a_layer_that_is_called_twice_keeps_one_set_of_weights(rng):
    layer = layers.LSTM(4)
    model = enliven(model_of(lambda x: layer(x) + layer(x * 0.5)), rng)
    q = intact.quantize_model(model)
    assert sum(np.prod(v.shape) for v in q.trainable_variables) == model.count_params()
    assert not [part for part in q.layers if isinstance(part, QuantizedLoop)]


def test_a_float_model(rng):
    model = enliven(model_of(layers.LSTM(4)), rng)
    data = rng.normal(size=(8, STEPS, 3)).astype("float32")
    content = intact.export(model)
    assert "WHILE" in op_names(content)
    predicted = intact.load_litert(content).predict(data)
    np.testing.assert_allclose(predicted, model.predict(data, verbose=0), atol=1e-5)


@lossy
def test_steps_that_are_written_out(rng):
    model = enliven(model_of(by_hand), rng)
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert not any(t.different for t in intact.compare(q, intact.export(q), data).outputs)


def irregular(x, ends):
    """Equal layers in a row; some of the last do more."""
    layer = layers.Dense(3)
    for step in range(STEPS):
        x = layer(x)
        x = ends[step](x) if step in ends else ops.tanh(x)
    return x


@pytest.mark.parametrize(
    "ends",
    [
        {STEPS - 2: lambda x: ops.sigmoid(x) + x},
        {STEPS - 3: lambda x: ops.sigmoid(ops.exp(x) + x) * x},
        {STEPS - 3: lambda x: ops.sigmoid(ops.abs(x)) * x, STEPS - 2: lambda x: ops.tanh(x) + x},
    ],
    ids=["last", "before the last", "both"],
)
def test_a_step_that_differs(ends, rng):
    model = enliven(model_of(lambda x: irregular(x, ends)), rng)
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert not any(t.different for t in intact.compare(q, intact.export(q), data).outputs)


@pytest.mark.parametrize("steps", [3, 7])
def test_few_steps_stay(steps, rng):
    model = enliven(model_of(layers.LSTM(4), (steps, 3)), rng)
    assert "WHILE" not in op_names(intact.export(model))


def test_targets_have_steps(rng):
    model = enliven(model_of(layers.GRU(4)), rng)
    data = rng.normal(size=(32, STEPS, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert "WHILE" not in op_names(intact.export(q, target="tflite-micro"))
