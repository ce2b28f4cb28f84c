"""Weights of several layers that are one weight of the float model."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import intact
from intact.layers.sharing import find_shared_weights
from intact.numerics.tensors import to_numpy

WORDS, UNITS = 11, 6


class Words(layers.Layer):
    """A language model in one layer: rows of a weight, and products with it, twice."""

    def build(self, shape):
        self.table = self.add_weight(shape=(WORDS, UNITS), name="table")
        self.dense = layers.Dense(UNITS, "relu")
        self.dense.build((None, 5, UNITS))

    def call(self, x):
        x = self.dense(ops.take(self.table, x, axis=0))
        weights = ops.softmax(ops.matmul(x, ops.transpose(self.table)))
        return ops.einsum("btw,wu,vu->btv", weights, self.table, self.table)


def language_model() -> keras.Model:
    """A small model whose logits are products with its table."""
    keras.utils.set_random_seed(3)
    table = layers.ReversibleEmbedding(WORDS, UNITS, name="words")
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Dense(UNITS, "relu", name="hidden")(table(inputs))
    model = keras.Model(inputs, table(x, reverse=True))
    table.embeddings.assign(np.random.default_rng(0).normal(size=(WORDS, UNITS)))
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).integers(0, WORDS, (32, 5)).astype("int32")
    return x, (x + 1) % WORDS


def trained(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = data()
    model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    return model


def copies(q: keras.Model) -> list[np.ndarray]:
    """The copies of the shared weight, with the axes of the float model's."""
    (shared,) = q._origin.shared
    values = []
    for copy in shared.copies:
        layer = q.get_layer(copy.layer)
        w = to_numpy(getattr(getattr(layer, "layer", layer), copy.weight))
        w = w.reshape([shared.shape[axis] for axis in copy.axes])
        values.append(w.transpose(np.argsort(copy.axes)))
    return values


def assert_equal(first: np.ndarray, *others: np.ndarray, atol: float = 0.0) -> None:
    """Equal copies; what compiles a step may sum the gradients in another order for each."""
    atol = max(atol, 1e-5 if keras.backend.backend() == "jax" else 0.0)
    for other in others:
        np.testing.assert_allclose(first, other, rtol=0, atol=atol)


SCHEMES = ("int8", "weight_only_8", "dynamic_range")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_copies_of_a_table_stay_equal(scheme):
    model = language_model()
    q = intact.quantize_model(model, scheme)
    x, _ = data()
    if scheme == "int8":
        intact.calibrate(q, x, verbose=0)
    before = copies(q)[0]
    trained(q, keras.optimizers.Adam(1e-2))
    first, second = copies(q)
    assert np.abs(first - before).max() > 1e-3
    assert_equal(first, second)


def test_they_train_as_the_float_weight_does():
    """With 16 bits there is little rounding, so the steps are those of the float model."""
    model = language_model()
    q = intact.quantize_model(model, "int16x8")
    intact.calibrate(q, data()[0], verbose=0)
    before = to_numpy(model.get_layer("words").embeddings)
    trained(q, keras.optimizers.SGD(0.1))
    trained(model, keras.optimizers.SGD(0.1))
    moved = to_numpy(model.get_layer("words").embeddings) - before
    np.testing.assert_allclose(copies(q)[0] - before, moved, atol=0.1 * np.abs(moved).max())


def test_a_saved_model_and_a_clone_still_share(tmp_path):
    q = intact.quantize_model(language_model())
    intact.calibrate(q, data()[0], verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    clone = keras.models.clone_model(q)
    clone.set_weights(q.get_weights())
    for model in (loaded, clone):
        assert_equal(*copies(trained(model, keras.optimizers.Adam(1e-2))))
    x, _ = data()
    assert intact.compare(loaded, intact.export(loaded), x).different == 0


def test_products_written_by_the_user_share_too():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, Words()(inputs))
    q = trained(intact.quantize_model(model), keras.optimizers.Adam(1e-2))
    assert len(copies(q)) > 2
    # The order of three gradients' sum differs.
    assert_equal(*copies(q), atol=1e-4)


def test_equal_weights_of_two_layers_are_not_shared():
    inputs = keras.Input((4,))
    start = keras.initializers.GlorotUniform(7)
    outputs = layers.Dense(4, kernel_initializer=start)(inputs)
    outputs = layers.Dense(4, kernel_initializer=start)(layers.ReLU()(outputs))
    model = keras.Model(inputs, outputs)
    assert not find_shared_weights(intact.quantize_model(model), model)


def test_a_layer_called_twice_has_one_weight():
    inputs = keras.Input((4,))
    dense = layers.Dense(4)
    model = keras.Model(inputs, dense(layers.ReLU()(dense(inputs))))
    assert not find_shared_weights(intact.quantize_model(model), model)


def quantize_with_warning(model: keras.Model, match: str, **settings) -> None:
    """Quantize a model, and look for a warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", intact.NotKeptWarning)
        intact.quantize_model(model, **settings)
    assert any(re.search(match, str(warning.message)) for warning in seen)


def test_a_copy_in_float_is_said_to_train_by_itself():
    quantize_with_warning(
        language_model(), "words/embeddings.*words_matmul.*train by themselves", filters="hidden"
    )


def test_a_factor_in_one_copy_is_said_to_part_them():
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, language_model()(inputs) * 0.125)
    quantize_with_warning(model, "words/embeddings.*a factor")


def test_a_kernel_with_lora_is_no_weight_of_its_own():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="adapted")])
    model.layers[-1].enable_lora(2)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), x, verbose=0)
    assert len(q.trainable_variables) == len(model.trainable_variables) == 3
    q.compile(keras.optimizers.SGD(0.1), "mse")
    before = [to_numpy(v) for v in q.trainable_variables]
    q.fit(x, x[:, :3], verbose=0)
    changed = [
        (to_numpy(v) != old).any() for v, old in zip(q.trainable_variables, before, strict=True)
    ]
    # One of LoRA's factors begins with zeros, so the other has no gradient in the first step.
    assert sum(changed) >= 2
    assert intact.compare(q, intact.export(q), x).different == 0
