"""Masks that depend on the inputs, and who reads them."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import host

import intact
from intact.graph.canonicalize import canonicalize


def embedded(x):
    return layers.Embedding(7, 4, mask_zero=True, embeddings_initializer="glorot_normal")(x)


def softmax(x):
    scores = layers.Dense(5)(ops.cast(x, "float32"))
    return layers.Softmax()(scores, mask=ops.cast(x > 0, "int32"))


def attended(x):
    e = embedded(x)
    return layers.GlobalAveragePooling1D()(e + layers.MultiHeadAttention(2, 4)(e, e))


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Hands its mask to the layers in it, as Keras does, without a word of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.supports_masking = True

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.attention(x, x)


@keras.saving.register_keras_serializable("tests")
class Hidden(layers.Layer):
    """Takes the mask as an argument."""

    def call(self, x, mask=None):
        return x if mask is None else ops.where(mask[:, :, None], x, 0.0)


def nested(x):
    inner = [layers.Dense(4, "relu"), layers.GRU(3)]
    return keras.Sequential([keras.Input((5, 4)), *inner])(embedded(x))


def both_ways(x):
    recurrent = layers.LSTM(3, return_sequences=True)
    return layers.GlobalAveragePooling1D()(layers.Bidirectional(recurrent)(embedded(x)))


def sums(x):
    return layers.GRU(3)(layers.Add()([embedded(x), layers.Embedding(7, 4)(x)]))


def cells(x):
    return layers.RNN([layers.LSTMCell(3), layers.GRUCell(3)])(embedded(x))


def of_sources(x):
    e = embedded(x)
    return layers.GlobalAveragePooling1D()(layers.Attention()([e, e]))


def distributed(x):
    return layers.GlobalAveragePooling1D()(layers.TimeDistributed(layers.Dense(3))(embedded(x)))


MODELS = {
    "recurrent": lambda x: layers.LSTM(3)(layers.Dropout(0.1)(embedded(x))),
    "states": lambda x: layers.LSTM(3, return_state=True)(embedded(x)),
    "zeros": lambda x: layers.GRU(2, return_sequences=True, zero_output_for_mask=True)(embedded(x)),
    "custom block": lambda x: layers.GlobalAveragePooling1D()(Block()(embedded(x))),
    "argument": lambda x: layers.Flatten()(Hidden()(embedded(x))),
    "mean": lambda x: layers.GlobalAveragePooling1D()(embedded(x)),
    **{
        f.__name__: f
        for f in (softmax, attended, nested, both_ways, sums, cells, of_sources, distributed)
    },
}


@pytest.fixture
def tokens(rng):
    data = rng.integers(1, 7, size=(64, 5))
    data[np.arange(5) >= rng.integers(1, 6, size=(64, 1))] = 0
    return data.astype("int32")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking")
@pytest.mark.filterwarnings("ignore::intact.MaskedOutputWarning")
def test_masked_steps_do_not_count(name, tokens):
    x = keras.Input((5,), dtype="int32")
    model = keras.Model(x, MODELS[name](x))
    expected = keras.tree.flatten(model.predict(tokens, verbose=0))
    flat = keras.tree.flatten(canonicalize(model).predict(tokens, verbose=0))
    for ours, theirs in zip(flat, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    q = intact.calibrate(intact.quantize_model(model), tokens, verbose=0)
    assert intact.compare(q, intact.export(q, integer_only=True), tokens).max_lsb < 1.001
    for ours, theirs in zip(keras.tree.flatten(q(tokens)), expected, strict=True):
        error = np.abs(keras.ops.convert_to_numpy(ours) - theirs).max()
        assert error < 0.1 * np.ptp(theirs)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_steps_of_one_value_are_masked(value, rng):
    x = keras.Input((5, 3))
    model = keras.Model(x, layers.GRU(3)(layers.Dense(4)(layers.Masking(value)(x))))
    data = rng.uniform(-0.5, 1, size=(64, 5, 3)).astype("float32")
    data[np.arange(5) >= rng.integers(0, 6, size=(64, 1))] = value
    expected = model.predict(data, verbose=0)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    assert intact.compare(q, intact.export(q, integer_only=True), data).max_lsb < 1.001
    assert np.abs(q.predict(data, verbose=0) - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.filterwarnings("error::intact.MaskedOutputWarning")
def test_a_mask_that_losses_would_read_is_warned_of():
    x = keras.Input((4, 3))
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Masking()(x)))
    with pytest.raises(intact.MaskedOutputWarning, match="sample_weight"):
        intact.quantize_model(model)


REFUSED = {
    "norm": lambda x: layers.BatchNormalization(name="here")(layers.Masking()(x)),
    "named": lambda x: layers.BatchNormalization(name="here")(x, mask=x[:, :, 0] > 0.0),
    "channels first": lambda x: layers.GlobalAveragePooling1D("channels_first", name="here")(
        x, mask=x[:, 0] > 0.0
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_those_who_cannot_read_masks_say_so(name):
    x = keras.Input((4, 3))
    with pytest.raises(intact.UnsupportedLayerError, match=r"'here'.* mask"):
        intact.quantize_model(keras.Model(x, REFUSED[name](x)))


@pytest.mark.filterwarnings("ignore::intact.MaskedOutputWarning")
def test_a_mask_of_real_values_hides_below_a_half(rng):
    x, mask = keras.Input((6,), name="x"), keras.Input((6,), name="mask")
    model = keras.Model([x, mask], layers.Softmax()(x, mask=mask))
    seen = (np.arange(6) < rng.integers(1, 7, (32, 1))).astype("float32")
    data = [rng.normal(size=(32, 6)).astype("float32"), seen]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    assert not any(t.different for t in comparison.outputs)
    outputs = q.predict(data, verbose=0)
    assert np.abs(outputs - model.predict(data, verbose=0)).max() < 0.02
    assert outputs[seen == 0].max() == 0


def attend(x):
    return layers.MultiHeadAttention(2, 4)(x, x)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: attend(layers.Add()([x, attend(x)])),
        lambda x: attend(layers.LayerNormalization()(layers.Average()([attend(x), x]))),
        lambda x: attend(layers.Concatenate()([x, attend(x)])),
        lambda x: [attend(x), layers.LSTM(4)(x)],
        lambda x: [layers.LSTM(4)(x), attend(x)],
        lambda x: layers.GlobalAveragePooling1D()(layers.Dropout(0.5)(attend(attend(x)))),
    ],
    ids=["added", "averaged", "joined", "read after", "read before", "handed on"],
)
def test_attention_takes_the_mask_off_what_it_reads(build, rng):
    # Keras' graph still shows the mask to those who read the same tensor later.
    tokens = keras.Input((6,), dtype="int32")
    model = keras.Model(tokens, build(layers.Embedding(20, 8, mask_zero=True)(tokens)))
    x = rng.integers(1, 20, (16, 6)) * (np.arange(6) < rng.integers(1, 7, (16, 1)))
    for ours, theirs in zip(
        *map(keras.tree.flatten, (canonicalize(model)(x), model(x))), strict=True
    ):
        np.testing.assert_allclose(host(ours), host(theirs), atol=1e-5)


def test_a_mask_of_whole_numbers_hides_as_truth_values_do(rng):
    x, mask = keras.Input((6, 8), name="x"), keras.Input((6,), dtype="int32", name="mask")
    y = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=ops.expand_dims(mask, 1))
    model = keras.Model([x, mask], y)
    seen = np.arange(6) < rng.integers(1, 7, (32, 1))
    data = [rng.normal(size=(32, 6, 8)).astype("float32"), seen.astype("int32")]
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    assert not any(t.different for t in comparison.outputs)
    expected = model.predict(data, verbose=0)
    assert np.abs(q.predict(data, verbose=0) - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.skipif(
    "sliding_window" not in inspect.signature(layers.MultiHeadAttention).parameters,
    reason="a newer Keras has it",
)
@pytest.mark.parametrize("causal", [False, True])
def test_a_sliding_window_hides_what_is_far(causal, rng):
    x = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, sliding_window=2)
    model = keras.Model(x, attention(x, x, use_causal_mask=causal))
    data = rng.normal(size=(8, 6, 8)).astype("float32")
    found = intact.load_litert(intact.export(model)).predict(data)
    np.testing.assert_allclose(found, model.predict(data, verbose=0), atol=1e-4)
