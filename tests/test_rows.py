"""Models whose first axis has the rows of one sample, such as the nodes of a graph."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small import enliven

import intact
from intact.errors import UnsupportedLayerError
from intact.graph.canonicalize import canonicalize

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unbuilt state"),
    # What Keras does with arrays of torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SENDERS, RECEIVERS = np.random.default_rng(0).integers(0, 8, (2, 20))
NEIGHBOURS = (np.random.default_rng(1).uniform(size=(8, 8)) > 0.5).astype("float32")
SEGMENTS = np.array([2, 2, 0, 1, 1, 0, 0, 2])


class OfRows(layers.Layer):
    """A layer that computes a function of its dense layers and its input."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function
        self.messages, self.update = layers.Dense(6, "relu"), layers.Dense(5)

    def call(self, x):
        return self.function(self, x)


def graph_convolution(layer, x):
    """As in keras.io's `gnn_citations`."""
    messages = layer.messages(ops.take(x, SENDERS, axis=0))
    sums = ops.segment_sum(messages, RECEIVERS, num_segments=8)
    return layer.update(ops.concatenate([x, sums], axis=1))


def graph_attention(layer, x):
    keys = layer.messages(x)
    scores = ops.matmul(keys, ops.transpose(keys)) + (NEIGHBOURS - 1) * 20
    return ops.matmul(ops.softmax(scores, axis=-1), layer.update(x))


FUNCTIONS = {
    "graph convolution": graph_convolution,
    "graph attention": graph_attention,
    "adjacency": lambda layer, x: ops.matmul(NEIGHBOURS, layer.update(x)),
    "centered": lambda layer, x: layer.update(x - ops.mean(x, axis=0, keepdims=True)),
    "centered by fewer axes": lambda layer, x: layer.update(x - ops.mean(x, axis=0)),
    "softmax": lambda layer, x: layer.update(ops.softmax(x, axis=0)),
    "readout": lambda layer, x: layer.update(ops.sum(layer.messages(x), axis=0, keepdims=True)),
    "readout of fewer axes": lambda layer, x: ops.max(layer.messages(x), axis=0),
    "part": lambda layer, x: layer.update(x[2:5]),
    "arrays": lambda layer, x: layer.update(x[np.arange(7, 0, -1)]),
    "more rows": lambda layer, x: layer.update(ops.concatenate([x, x[:2]], axis=0)),
    "padded": lambda layer, x: layer.update(ops.pad(x, ((1, 2), (0, 0)))),
    "flipped": lambda layer, x: layer.update(ops.flip(x, axis=0)),
    "sorted": lambda layer, x: layer.update(ops.sort(x, axis=0)),
    "split": lambda layer, x: layer.update(ops.split(x, 2, axis=0)[1]),
    "segments of two axes": lambda layer, x: ops.segment_sum(x[..., None], SEGMENTS, 3),
    "segments' maxima": lambda layer, x: layer.update(ops.segment_max(x, SEGMENTS, 3)),
}


if keras.backend.backend() == "tensorflow":
    # TensorFlow's tensors take no arrays.
    del FUNCTIONS["arrays"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_are_one_sample(name, rng):
    x = keras.Input(batch_shape=(8, 7))
    model = enliven(keras.Model(x, OfRows(FUNCTIONS[name])(x)), rng)
    rows = rng.normal(size=(8, 7)).astype("float32")
    expected = model.predict(rows, batch_size=8, verbose=0)
    flat = canonicalize(model).predict(rows, batch_size=8, verbose=0)
    np.testing.assert_allclose(flat, expected, rtol=1e-5, atol=1e-5)
    q = intact.quantize_model(model)
    if keras.backend.backend() != "torch":
        return
    intact.calibrate(q, rows, batch_size=8, verbose=0)
    file = intact.load_litert(intact.export(q, integer_only=True))
    actual = file.predict(rows, batch_size=8)
    np.testing.assert_array_equal(actual, q.predict(rows, batch_size=8, verbose=0))
    assert np.mean((actual - expected) ** 2) < 0.01 * np.mean(expected**2)


REFUSED = {
    "segments": (lambda x: ops.segment_sum(x, SEGMENTS, 3), "it joins samples of a batch"),
    "sum": (lambda x: ops.sum(x, axis=0), "cannot be reduced"),
    "part": (lambda x: x[2:5, :], "cannot be indexed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_samples_are_refused_with_the_remedy(name):
    function, reason = REFUSED[name]
    x = keras.Input((7,))
    with pytest.raises(UnsupportedLayerError, match=f"{reason}.*`batch_size` of `keras.Input`"):
        intact.quantize_model(keras.Model(x, function(x)))


def test_an_empty_segment_has_no_maximum():
    x = keras.Input(batch_shape=(8, 7))
    output = OfRows(lambda layer, x: ops.segment_max(x, SEGMENTS, num_segments=5))(x)
    with pytest.raises(UnsupportedLayerError, match="one of its segments is empty"):
        intact.quantize_model(keras.Model(x, output))
