"""LSTMs that keep their state: the integer kernel, call after call."""

import keras
import numpy as np
import pytest
from keras import layers
from small import host, lossy, op_names

import intact
from intact.layers.stateful import StatefulQuantize
from intact.rounding.int16_tables import OFFSET, sigmoid_table, tanh_table

BATCH = 4


def model_of(function, *shape, batch=BATCH):
    x = keras.Input(shape, batch)
    return keras.Model(x, function(x))


def stream(rng, *shape, batches=6, size=1.0):
    return (rng.normal(size=(batches * BATCH, *shape)) * size).astype("float32")


def quantized(model, x, **kwargs):
    return intact.calibrate(intact.quantize_model(model, **kwargs), x, verbose=0)


def predict(model, x):
    return model.predict(x, batch_size=BATCH, verbose=0)


def the_state(q):
    (layer,) = [layer for layer in q.layers if isinstance(layer, StatefulQuantize)]
    return layer


def lsb(q):
    """The step of the output."""
    return float(host(the_state(q).scale))


@pytest.mark.parametrize(("steps", "size"), [(1, 1.0), (7, 4.0)])
def test_calls_in_a_row_equal_litert(steps, size, rng):
    model = model_of(layers.LSTM(5, stateful=True, return_sequences=True), steps, 3)
    x = stream(rng, steps, 3, size=size)
    q = quantized(model, x)
    content = intact.export(q, integer_only=True)
    assert op_names(content) == ["QUANTIZE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "DEQUANTIZE"]
    first, second = predict(q, x), predict(q, x)
    assert (second != first).any()
    intact.reset_states(q)
    np.testing.assert_array_equal(predict(q, x), first)
    for kernels in ("default", "builtin", "reference"):
        file = intact.load_litert(content, kernels=kernels)
        # DEQUANTIZE of the plain kernels rounds the last bit otherwise.
        for expected in (first, second):
            assert np.abs(file.predict(x) - expected).max() < 1e-3 * lsb(q)
        file.reset_states()
        assert np.abs(file.predict(x) - first).max() < 1e-3 * lsb(q)


def test_a_stream_in_chunks_equals_the_whole(rng):
    whole, part = (
        intact.quantize_model(model_of(layers.LSTM(4, stateful=True, name="lstm"), n, 3))
        for n in (12, 3)
    )
    x = stream(rng, 12, 3, batches=1)
    part.set_weights(intact.calibrate(whole, x, verbose=0).get_weights())
    for chunk in np.split(x, 4, axis=1):
        found = predict(part, chunk)
    np.testing.assert_array_equal(found, predict(whole, x))


def test_tables_are_the_kernels_own():
    # A bias for each of 256 units and 256 inputs: together all sums of 16 bits of a gate.
    n = np.arange(256)
    q, layer = wide()
    layer.recurrent_kernel.assign(np.zeros((256, 4, 256)))
    # The finest scale of a cell shows what a gate is.
    the_state(q).peak.assign(0.5)
    data = np.repeat((n - 128) / 128, 4).astype("float32").reshape(256, 1, 4)
    for gate, table, other in (
        (0, sigmoid_table(), tanh_table()),
        (2, tanh_table(), sigmoid_table()),
    ):
        kernel, bias = np.zeros((4, 4, 256)), np.full((4, 256), 0.5)
        kernel[:, gate] = 2.0
        bias[gate] = n / 4096
        layer.input_kernel.assign(kernel)
        layer.bias.assign(bias)
        file = intact.load_litert(intact.export(q))
        intact.reset_states(q)
        product = table.astype("int64") * other[OFFSET + 2048]
        new = np.sign(product) * ((np.abs(product) + (1 << 14)) >> 15)
        for call in range(2):
            found = q.predict(data, batch_size=256, verbose=0)
            np.testing.assert_array_equal(file.predict(data), found)
            cell = file.interpreter.get_tensor(tensor(file, "/cell"))
            np.testing.assert_array_equal(cell * cell_scale(q), host(the_state(q).cell))
            if not call:
                np.testing.assert_array_equal(cell.reshape(-1), new)


def wide():
    """A model of 256 units and samples, one step and inputs of scale 1/128; and its layer."""
    x = keras.Input((1, 4), 256, name="x")
    layer = layers.LSTM(256, stateful=True, recurrent_initializer="glorot_uniform", name="lstm")
    q = intact.quantize_model(keras.Model(x, layer(x)), input_stats={"x": (128.0, 128.0)})
    intact.calibrate(q, default_ranges=(-1.0, 1.0))
    return q, q.get_layer("lstm").layer


def tensor(file, end):
    """The index of the file's tensor whose name ends so."""
    details = file.interpreter.get_tensor_details()
    return next(d["index"] for d in details if d["name"].endswith(end))


def cell_scale(q):
    return float(host(the_state(q).cell_scale()))


def test_cells_of_every_scale(rng):
    # All 65536 cells: 256 units of 256 samples.
    q, _ = wide()
    state, cells = the_state(q), np.arange(-32768, 32768).reshape(256, 256)
    x = rng.normal(size=(256, 1, 4)).astype("float32")
    for peak, bits in ((0.5, 0), (1.5, 1), (3.0, 2), (7.0, 3), (15.0, 4), (31.0, 5), (1000.0, 6)):
        state.peak.assign(peak)
        assert cell_scale(q) == 2.0 ** (bits - 15)
        state.cell.assign(cells * cell_scale(q))
        file = intact.load_litert(intact.export(q))
        index = tensor(file, "/cell")
        file.interpreter.set_tensor(index, cells.astype("int16"))
        state.hidden.assign(np.zeros((256, 256)))
        found = q.predict(x, batch_size=256, verbose=0)
        np.testing.assert_array_equal(file.predict(x), found)
        cell = file.interpreter.get_tensor(index)
        np.testing.assert_array_equal(cell * cell_scale(q), host(state.cell))


def test_training_computes_what_the_kernel_does(rng):
    x = stream(rng, 6, 3, batches=1)
    q = quantized(model_of(layers.LSTM(5, stateful=True), 6, 3), x)
    intact.freeze_ranges(q)
    still = predict(q, x)
    intact.reset_states(q)
    np.testing.assert_array_equal(host(q(x, training=True)), still)


def test_training_finds_ranges_and_learns(rng):
    x = stream(rng, 6, 3, batches=8)
    y = x[:, :, :1].mean(1)
    model = model_of(lambda t: layers.Dense(1)(layers.LSTM(8, stateful=True)(t)), 6, 3)
    q = intact.quantize_model(model)
    q.compile(keras.optimizers.Adam(0.03), "mse")
    losses = q.fit(x, y, batch_size=BATCH, epochs=6, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert 0 < float(host(the_state(q).peak)) < 8
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, x).different == 0


def test_calibration_goes_through_a_stream(rng):
    x = stream(rng, 3, 2, batches=5)
    model = model_of(layers.LSTM(4, stateful=True), 3, 2)
    q = quantized(model, x)
    assert not host(the_state(q).hidden).any()
    first = host(the_state(q).peak)
    assert first > 0
    intact.calibrate(q, x * 0.1, verbose=0)
    assert host(the_state(q).peak) < first
    with pytest.raises(intact.InvalidDataError, match="state for each of the 4 samples"):
        intact.calibrate(q, x[:-1], verbose=0)
    with pytest.raises(intact.InvalidDataError, match="Leave out 3"):
        intact.compare(q, intact.export(q), x[:-1])


def test_states_are_saved_and_frozen(rng, tmp_path):
    x = stream(rng, 3, 2)
    q = quantized(model_of(layers.LSTM(4, stateful=True), 3, 2), x)
    predict(q, x)
    q.save(tmp_path / "q.keras")
    loaded, frozen = keras.saving.load_model(tmp_path / "q.keras"), intact.freeze(q)
    assert not frozen.trainable_variables
    expected = predict(q, x)
    np.testing.assert_array_equal(predict(loaded, x), expected)
    np.testing.assert_array_equal(predict(frozen, x), expected)
    assert intact.export(frozen) == intact.export(q)


def test_two_layers_have_states_and_ranges_of_their_own(rng):
    # A concatenation would have them share one range.
    def function(x):
        first, second = (layers.LSTM(3, stateful=True, return_sequences=True)(x) for _ in range(2))
        return layers.LSTM(2, stateful=True)(layers.Concatenate()([first, second]))

    x = stream(rng, 4, 2)
    q = quantized(model_of(function, 4, 2), x)
    assert len([layer for layer in q.layers if isinstance(layer, StatefulQuantize)]) == 3
    assert intact.compare(q, intact.export(q, integer_only=True), x).different == 0


def test_one_scale_for_all_gates(rng):
    rule = intact.Rule(weights=intact.TensorSpec(symmetric=True))
    x = stream(rng, 4, 2)
    q = quantized(
        model_of(layers.LSTM(3, stateful=True), 4, 2), x, scheme=intact.Scheme("s", (rule,))
    )
    assert intact.compare(q, intact.export(q), x).different == 0


@lossy
def test_few_bits_of_activations(rng):
    rule = intact.Rule(activations=intact.TensorSpec(5))
    x = stream(rng, 4, 2)
    model = model_of(layers.LSTM(3, stateful=True, return_sequences=True), 4, 2)
    q = quantized(model, x, scheme=intact.Scheme("s", (rule,)))
    assert intact.compare(q, intact.export(q), x).different == 0


@pytest.mark.parametrize("scheme", ["float16", "weight_only_8", "weight_only_4", "dynamic_range"])
def test_other_schemes_compute_in_float(scheme, rng):
    x = stream(rng, 4, 2)
    model = model_of(layers.LSTM(3, stateful=True, return_sequences=True), 4, 2)
    q = intact.quantize_model(model, scheme)
    file = intact.load_litert(intact.export(q))
    for _ in range(2):
        np.testing.assert_allclose(file.predict(x), predict(q, x), atol=1e-6)
    intact.reset_states(q)
    assert np.abs(predict(q, x)).max() > 0


def test_unsigned_integers_have_no_kernel(rng):
    model = model_of(layers.LSTM(3, stateful=True), 4, 2)
    with pytest.raises(intact.IntactError, match="uint8"):
        intact.quantize_model(model, "uint8")
    q = intact.quantize_model(model, "uint8", allow_float=True)
    x = stream(rng, 4, 2)
    np.testing.assert_allclose(
        intact.load_litert(intact.export(intact.calibrate(q, x, verbose=0))).predict(x),
        predict(q, x),
        atol=1e-6,
    )


REFUSED = {
    "activation": ({"activation": "relu"}, "activation must be tanh"),
    "gates": ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation must be sigmoid"),
    "backwards": ({"go_backwards": True}, "go_backwards must be False"),
    "states": ({"return_state": True}, "return_state must be False"),
    "dropout": ({"recurrent_dropout": 0.1}, "recurrent_dropout must be 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernel_does_not_do_is_refused(name):
    config, message = REFUSED[name]
    model = model_of(layers.LSTM(2, stateful=True, **config), 4, 3)
    with pytest.raises(intact.UnsupportedLayerError, match=message):
        intact.quantize_model(model)


@pytest.mark.parametrize("kind", [layers.GRU, layers.SimpleRNN])
def test_other_layers_hand_their_state_through_the_model(kind):
    model = model_of(kind(2, stateful=True), 4, 3)
    with pytest.raises(intact.UnsupportedLayerError, match=r"only an LSTM.*`initial_state=`"):
        intact.quantize_model(model)


def test_a_layer_called_twice_is_refused():
    layer = layers.LSTM(3, stateful=True, return_sequences=True)
    model = model_of(lambda x: layer(layer(x)), 4, 3)
    with pytest.raises(intact.UnsupportedLayerError, match=r"one state.*called twice"):
        intact.quantize_model(model)


RUNS_PARTS = {
    "recover": lambda model, q, x: intact.recover(q, x, verbose=0),
    "bisect": lambda model, q, x: intact.bisect(q, model, x, verbose=0),
    "sensitivity": lambda model, q, x: intact.sensitivity(model, x, batch_size=BATCH, verbose=0),
    "float model": lambda model, q, x: intact.compare(q, intact.export(q), x, float_model=model),
}


@pytest.mark.parametrize("name", RUNS_PARTS)
def test_what_would_move_the_state_is_refused(name, rng):
    model, x = model_of(layers.LSTM(2, stateful=True), 2, 3), stream(rng, 2, 3)
    q = intact.quantize_model(model)
    intact.calibrate(q, default_ranges=(-1.0, 1.0))
    with pytest.raises(intact.IntactError, match="keeps its state between calls"):
        RUNS_PARTS[name](model, q, x)


def test_regularizers_and_constraints_come_along():
    layer = layers.LSTM(2, stateful=True, kernel_regularizer="l2", recurrent_constraint="non_neg")
    q = intact.quantize_model(model_of(layer, 2, 3))
    kernel, recurrent = q.trainable_variables[:2]
    assert kernel.regularizer is not None
    assert recurrent.constraint is not None
    np.testing.assert_allclose(host(sum(q.losses)), 0.01 * (host(kernel) ** 2).sum(), rtol=1e-5)


def test_micro_runs_the_file(rng):
    pytest.importorskip("tflite_micro")
    x = stream(rng, 3, 2)
    q = quantized(model_of(layers.LSTM(4, stateful=True, return_sequences=True), 3, 2), x)
    content = intact.export(q, integer_only=True, input_dtype="int8", output_dtype="int8")
    placed = intact.check(content, "tflite-micro")
    assert placed.runs
    assert placed.figures["largest_difference"] <= 2
