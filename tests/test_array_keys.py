"""Indexing by arrays in a `call`."""

import keras
import numpy as np
import pytest
from keras import layers

from intact.errors import UnsupportedLayerError
from intact.graph.canonicalize import canonicalize

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow's tensors take no arrays."
)

KEYS = {
    "an array": np.s_[:, np.array([1, 3, 3])],
    "negative": np.s_[:, np.array([0, -1])],
    "behind an ellipsis": np.s_[..., np.array([2, 0])],
    "of two axes": np.s_[:, np.array([[0, 1], [2, 3]])],
    "pairs": (slice(None), *np.triu_indices(5, 1)),
    "truth values": np.s_[:, np.array([True, False, True, True, False])],
    "a matrix of truth values": np.s_[:, np.eye(5) == 1],
    "beside a number": np.s_[:, 1, np.array([0, 2])],
    "beside a slice": np.s_[:, np.array([0, 1]), 1:3],
    "beside new axes": np.s_[:, None, np.array([1]), None],
    "a number of NumPy": np.s_[:, np.int64(2)],
}


if keras.backend.backend() == "torch":
    # JAX's arrays take no lists.
    KEYS["a list"] = np.s_[:, [1, 3]]


class Indexed(layers.Layer):
    """A layer that takes a part of its input."""

    def __init__(self, key):
        super().__init__()
        # In a function, because Keras replaces the lists in attributes.
        self.part = lambda x: x[key]

    def call(self, x):
        return self.part(x)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_with_arrays(name, rng):
    inputs = keras.Input((5, 5))
    model = keras.Model(inputs, Indexed(KEYS[name])(inputs))
    x = rng.normal(size=(4, 5, 5)).astype("float32")
    actual = canonicalize(model).predict(x, verbose=0)
    np.testing.assert_array_equal(actual, model.predict(x, verbose=0))


def test_arrays_that_stand_apart_are_refused():
    inputs = keras.Input((5, 5, 5))
    model = keras.Model(inputs, Indexed(np.s_[:, np.array([0, 1]), :, np.array([1, 2])])(inputs))
    with pytest.raises(UnsupportedLayerError, match="side by side"):
        canonicalize(model)
