"""The losses that layers of the float model add are those of the quantized model, or told."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import intact

L1 = keras.regularizers.L1(0.1)


class NoConfig(keras.regularizers.Regularizer):
    """A regularizer that cannot be saved."""

    def __call__(self, x):
        return 0.1 * ops.sum(ops.square(x))


def image(*made):
    """A model of an image, of layers in a row."""
    return keras.Sequential([keras.Input((6, 6, 3)), *made])


def shared():
    x = keras.Input((6, 6, 3))
    conv = layers.Conv2D(3, 1, activation="relu", activity_regularizer=L1)
    return keras.Model(x, conv(conv(x)))


def ranges_shared():
    x = keras.Input((6, 6, 3))
    left, right = (layers.Conv2D(2, 1, activation="relu", activity_regularizer=L1)(x) for _ in "ab")
    return keras.Model(x, layers.Concatenate()([left, right]))


MODELS = {
    "linear": lambda: image(layers.Dense(4, activity_regularizer=L1)),
    "relu inside": lambda: image(layers.Conv2D(4, 3, activation="relu", activity_regularizer=L1)),
    "relu behind": lambda: image(layers.Conv2D(4, 3, activity_regularizer=L1), layers.ReLU()),
    "softmax inside": lambda: image(layers.Dense(4, "softmax", activity_regularizer=L1)),
    "swish inside": lambda: image(layers.Dense(4, "swish", activity_regularizer=L1)),
    "before a norm": lambda: image(
        layers.Conv2D(4, 3, activity_regularizer=L1), layers.BatchNormalization(), layers.ReLU()
    ),
    "of a norm": lambda: image(
        layers.Conv2D(4, 3), layers.BatchNormalization(activity_regularizer=L1), layers.ReLU()
    ),
    "of a pool": lambda: image(layers.MaxPooling2D(2, activity_regularizer=L1), layers.Dense(2)),
    "a layer for it": lambda: image(layers.Dense(4), layers.ActivityRegularization(0.1, 0.2)),
    "two": lambda: image(
        layers.Dense(4, activity_regularizer=L1), layers.ActivityRegularization(0.1, 0.2)
    ),
    "called twice": shared,
    "ranges are shared": ranges_shared,
    "one axis": lambda: image(
        layers.Reshape((36, 3)), layers.Conv1D(4, 3, activity_regularizer=L1)
    ),
    "weights": lambda: image(
        layers.Conv2D(4, 3, kernel_regularizer="l2"),
        layers.DepthwiseConv2D(3, depthwise_regularizer="l1"),
        layers.BatchNormalization(gamma_regularizer="l2"),
        layers.EinsumDense("bhwc,cd->bhwd", (None, 2, 5), kernel_regularizer="l2"),
    ),
    "without a config": lambda: image(
        layers.Conv2D(4, 3, kernel_regularizer=NoConfig(), activity_regularizer=NoConfig()),
        layers.BatchNormalization(gamma_regularizer=NoConfig()),
        layers.SeparableConv2D(2, 3, depthwise_regularizer=NoConfig()),
    ),
    "functions": lambda: image(
        layers.Dense(
            4,
            kernel_regularizer=lambda w: ops.sum(ops.abs(w)),
            kernel_constraint=lambda w: ops.clip(w, -1.0, 1.0),
            kernel_initializer=lambda shape, dtype=None: ops.ones(shape, dtype),
        )
    ),
}
X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")


def loss(model):
    model(X)
    return sum(float(ops.convert_to_numpy(part)) for part in model.losses)


@pytest.mark.parametrize("scheme", ["int8", "weight_only_8"])
@pytest.mark.parametrize("case", MODELS)
def test_losses_of_layers_are_kept(case, scheme):
    model = MODELS[case]()
    q = intact.calibrate(intact.quantize_model(model, scheme), X, verbose=0)
    assert loss(q) == pytest.approx(loss(model), rel=0.05) and loss(q) > 0
    assert intact.explain(model).supported
    assert len(intact.export(model)) > 0
    if scheme == "int8":
        assert intact.export(intact.freeze(q)) == intact.export(q)


@pytest.mark.parametrize("case", ["relu inside", "relu behind", "ranges are shared", "two"])
@pytest.mark.parametrize("scheme", ["int8", "dynamic_range"])
def test_losses_are_saved(case, scheme, tmp_path):
    q = intact.calibrate(intact.quantize_model(MODELS[case](), scheme), X, verbose=0)
    q.save(tmp_path / "q.keras")
    assert loss(keras.saving.load_model(tmp_path / "q.keras")) == pytest.approx(loss(q))


def test_a_loss_of_activity_trains():
    q = intact.calibrate(intact.quantize_model(MODELS["relu inside"]()), X, verbose=0)
    before = loss(q)
    q.compile(keras.optimizers.SGD(0.05), loss=lambda y, p: 0.0 * p)
    q.fit(X, np.zeros((4, 4, 4, 4), "float32"), epochs=3, verbose=0)
    assert loss(q) < 0.9 * before


class Sampled(layers.Layer):
    """A layer that adds a loss in its call."""

    def call(self, x):
        self.add_loss(ops.mean(ops.square(x)))
        return 2.0 * x


def test_a_loss_that_cannot_be_kept_is_told():
    model = image(layers.Dense(4), Sampled(name="sampled"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        q = intact.quantize_model(model)
    (only,) = (w.message for w in told if w.category is intact.NotKeptWarning)
    assert "sampled" in str(only)
    np.testing.assert_allclose(q.predict(X, verbose=0), model.predict(X, verbose=0), atol=0.1)
    assert len(model.losses) <= 1  # The user's layer is as it was.
