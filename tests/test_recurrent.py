"""Recurrent layers: which layers they become, and what is refused."""

from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers
from small import lossy

import intact
from intact.graph.canonicalize import canonicalize
from intact.graph.view import view
from intact.layers.fake_quantize import FakeQuantize
from intact.numerics.tensors import to_numpy


def model_of(function, *shape):
    x = keras.Input(shape)
    return keras.Model(x, function(x))


def calls(model):
    """How often each layer of a model is called."""
    return Counter(node.layer.name for node in view(model).nodes if not node.is_input)


def test_steps_share_layers_weights_and_ranges(rng):
    model = model_of(layers.LSTM(4, name="lstm"), 6, 3)
    counts = calls(canonicalize(model))
    assert counts["lstm_lstm_cell_kernel"] == 1
    assert counts["lstm_lstm_cell_recurrent"] == 5
    assert counts["lstm_lstm_cell_h"] == 6
    q = intact.quantize_model(model)
    assert len([layer for layer in q.layers if isinstance(layer, FakeQuantize)]) == 13
    assert sum(np.prod(v.shape) for v in q.trainable_variables) == model.count_params()
    x = rng.normal(size=(16, 6, 3)).astype("float32")
    content = intact.export(intact.calibrate(q, x, verbose=0))
    operators = Counter(
        op["op_name"] for op in intact.load_litert(content).interpreter._get_ops_details()
    )
    assert operators["FULLY_CONNECTED"] == 1 + 5
    assert len(content) < 20_000


def a_long_memory():
    """An LSTM whose cells add up what comes in."""
    model = model_of(layers.LSTM(4, unit_forget_bias=False, name="lstm"), 20, 4)
    bias = np.repeat([4.0, 4.0, 0.0, 4.0], 4)  # all gates are open
    model.set_weights([np.tile(np.eye(4), 4) * 0.5, np.zeros((4, 16)), bias])
    return model


@lossy
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_the_range_of_a_cell_ends_where_tanh_does(scheme, rng):
    model = a_long_memory()
    x = (rng.normal(size=(256, 20, 4)) + 0.5).astype("float32")
    q = intact.calibrate(intact.quantize_model(model, scheme), x, verbose=0)
    ranges = {layer.name.split("_cell_")[-1]: layer for layer in q.layers}
    seen = {name: ranges[f"{name}_quantizer"] for name in ("c", "kept")}
    limits = {layer.spec.limit for layer in seen.values()}
    assert limits == {np.arctanh(255 / 256) if scheme == "int8" else None}
    for layer in seen.values():
        low, high = (float(to_numpy(end).min()) for end in (layer.minimum, -layer.maximum))
        assert -high > 5, "what the test is about"
        scale, _ = layer.stored_pair()
        if scheme == "int8":
            assert scale * 255 == pytest.approx(min(3.12, -high) + min(3.12, -low), abs=0.05)
        else:
            assert scale * 32767 == pytest.approx(max(-high, -low), rel=1e-3)
    comparison = intact.compare(q, intact.export(q, integer_only=True), x)
    assert comparison.max_lsb <= (1 if scheme == "int8" else 1e-3), str(comparison)


def test_an_lstm_with_another_activation_has_no_such_end():
    model = model_of(layers.LSTM(4, activation="relu", name="lstm"), 3, 4)
    specs = [layer.spec for layer in intact.quantize_model(model).layers if hasattr(layer, "spec")]
    assert all(getattr(spec, "limit", None) is None for spec in specs)


def test_the_first_step_has_no_state(rng):
    model = model_of(layers.GRU(4, reset_after=False, name="gru"), 1, 3)
    names = calls(canonicalize(model))
    assert not [name for name in names if "recurrent" in name or "reset" in name]


@keras.saving.register_keras_serializable("tests")
class Leaky(layers.Layer):
    """A cell of one's own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.state_size = units
        self.inner = layers.Dense(units)
        self.outer = layers.Dense(units, "relu")

    def build(self, shape):
        self.inner.build(shape)
        self.outer.build((None, self.state_size))

    def call(self, x, states):
        state = 0.5 * states[0] + keras.ops.tanh(self.inner(x))
        return self.outer(state), [state]


def test_a_cell_of_ones_own(rng):
    model = model_of(layers.RNN(Leaky(4), return_sequences=True), 4, 3)
    x = rng.uniform(-1, 1, size=(32, 4, 3)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    expected = model.predict(x, verbose=0)
    assert np.abs(q.predict(x, verbose=0) - expected).max() < 0.05 * np.ptp(expected)
    assert all(t.max_lsb < 1.001 for t in intact.compare(q, intact.export(q), x).outputs)


@pytest.mark.parametrize("stacked", [False, True])
def test_states_in_and_out(stacked, rng):
    x, h, c = keras.Input((3, 2)), keras.Input((4,)), keras.Input((4,))
    if stacked:
        layer = layers.RNN([layers.LSTMCell(4), layers.SimpleRNNCell(4)], return_state=True)
        initial = [[h, c], [c]]
    else:
        layer = layers.Bidirectional(layers.LSTM(4, return_state=True))
        initial = [h, c, c, h]
    outputs = keras.tree.flatten(layer(x, initial_state=initial))
    model = keras.Model([x, h, c], outputs)
    data = [rng.uniform(-1, 1, size=(16, *t.shape[1:])).astype("float32") for t in model.inputs]
    flat = canonicalize(model)
    for ours, theirs in zip(
        flat.predict(data, verbose=0), model.predict(data, verbose=0), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_dropout_is_at_work_while_training(rng):
    q = intact.quantize_model(model_of(layers.GRU(4, dropout=0.5, recurrent_dropout=0.5), 3, 2))
    x = rng.uniform(-1, 1, size=(32, 3, 2)).astype("float32")
    intact.calibrate(q, x, verbose=0)
    still = keras.ops.convert_to_numpy(q(x, training=False))
    np.testing.assert_allclose(q.predict(x, verbose=0), still, atol=1e-6)
    intact.freeze_ranges(q)
    assert np.abs(keras.ops.convert_to_numpy(q(x, training=True)) - still).max() > 0.05


REFUSED = {
    "steps": (
        lambda x: layers.LSTM(2, recurrent_dropout=0.5)(x),
        (None, 3),
        "number of steps must be known",
    ),
    "time": (
        lambda x: layers.TimeDistributed(layers.Conv1D(2, 1))(x),
        (None, 3, 2),
        "all sizes but the batch must be known",
    ),
    "constant state": (
        lambda x: layers.GRU(2)(x, initial_state=[np.ones((1, 2), "float32")]),
        (4, 3),
        "initial state is a constant",
    ),
    "mask": (
        lambda x: layers.LSTM(2)(x, mask=x[:, :, 0]),
        (4, 3),
        "its mask must be whole numbers",
    ),
    "positional mask": (
        lambda x: layers.LSTM(2)(x, None, x[:, :, 0]),
        (4, 3),
        "its mask must be whole",
    ),
    "constant mask": (
        lambda x: layers.LSTM(2)(x, mask=np.ones((1, 4), bool)),
        (4, 3),
        "does not come from a comparison",
    ),
    "masked steps": (
        lambda x: layers.TimeDistributed(layers.BatchNormalization())(layers.Masking()(x)),
        (4, 3),
        "is given a mask at every step",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused(name):
    function, shape, message = REFUSED[name]
    with pytest.raises(intact.UnsupportedLayerError, match=message):
        intact.quantize_model(model_of(function, *shape))


def test_a_stream_in_chunks_equals_the_whole(rng):
    # The state leaves the file as an output and comes back as an input.
    def listening(steps):
        keras.utils.set_random_seed(3)
        x, h, c = keras.Input((steps, 3)), keras.Input((4,)), keras.Input((4,))
        y, *states = layers.LSTM(4, return_state=True)(x, initial_state=[h, c])
        return keras.Model([x, h, c], [layers.Dense(2)(y), *states])

    stream = rng.uniform(-1, 1, size=(64, 8, 3)).astype("float32")
    state = [np.zeros((64, 4), "float32")] * 2
    expected = listening(8).predict([stream, *state], verbose=0)[0]
    model = listening(2)
    seen = []
    for chunk in np.split(stream, 4, axis=1):
        seen.append([chunk, *state])
        _, *state = model.predict(seen[-1], verbose=0)
    data = [np.concatenate(arrays) for arrays in zip(*seen, strict=True)]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data).different == 0
    file = intact.load_litert(content)
    state = [np.zeros((64, 4), "float32")] * 2
    for chunk in np.split(stream, 4, axis=1):
        found, *state = file.predict([chunk, *state]).values()
    assert np.abs(found - expected).max() < 0.06 * np.ptp(expected)


class Limited(layers.Add):
    """A layer that has a limit of its own, which is nobody else's."""

    def __init__(self, limit=3.0, **kwargs):
        super().__init__(**kwargs)
        self.limit = limit

    def get_config(self):
        return {**super().get_config(), "limit": self.limit}


def test_a_limit_of_a_users_layer_is_no_end_of_a_range(rng):
    x = keras.Input((4,))
    model = keras.Model(x, Limited(name="sum")([x, layers.ReLU()(x)]))
    data = rng.normal(size=(64, 4)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert q.get_layer("sum_quantizer").spec.limit is None
    assert intact.compare(q, intact.export(q), data).max_lsb <= 1
