"""Writes the legacy files beside it: real ones of Keras 2, with inputs and outputs, in a zip each.

It needs Keras 2, which is no dependency of the tests: `pip install --target DIR tf_keras`,
then `PYTHONPATH=DIR python tests/data/make_legacy.py` with TensorFlow.
"""

import json
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

HERE = Path(__file__).parent


def ops():
    """Functions of TensorFlow, slices and names with slashes."""
    x = keras.Input((8, 8, 3), name="in/image")
    y = layers.DepthwiseConv2D(3, name="block/depthwise")(x)
    y = layers.SeparableConv2D(4, 3, activation="relu", name="block_depthwise")(y)
    y = layers.BatchNormalization(name="block/bn")(y)
    y = tf.nn.relu6(y)
    z = tf.math.add(y + 1.0, y)
    z = 2.0 - z * [0.5, 0.25, -1.0, 2.0]
    z = tf.nn.leaky_relu(z, 0.1)[:, 1:, ::2]
    z = tf.pad(z, [[0, 0], [1, 0], [0, 1], [0, 0]])
    z = tf.clip_by_value(tf.transpose(z, [0, 3, 1, 2]), -1.5, 1.5)
    z = tf.reduce_mean(z, axis=[2, 3], keepdims=True)
    z = tf.concat([tf.reshape(z, [-1, 4]), tf.sigmoid(tf.squeeze(z, [2, 3]))], 1)
    z = tf.stack([z, tf.maximum(-z, 0.1)], 1)[:, 0]
    return keras.Model(x, layers.Dense(2, name="head")(z) / 3.0)


def nested():
    """Shared and nested models, some of them frozen in part, and branches."""
    inner = keras.Sequential(
        [
            layers.Conv2D(4, 3, padding="same", use_bias=False, input_shape=(6, 6, 4)),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
        ],
        name="inner",
    )
    inner.layers[0].trainable = False
    x = keras.Input((6, 6, 4), name="a")
    y = layers.Conv2D(4, 1, name="left")(x)
    y = layers.Add()([y, layers.Conv2D(4, 1, name="right")(x)])
    middle = keras.Model(x, [inner(y), layers.Conv2D(4, 1, name="right_2")(y)], name="middle")
    left, right = keras.Input((6, 6, 4), name="one"), keras.Input((6, 6, 4), name="two")
    (a, b), (c, d) = middle(left), middle(right)
    y = layers.Concatenate()([a, b, c, d])
    y = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(y))
    return keras.Model([left, right], [layers.Dense(3, name="p")(y), layers.Dense(1)(y)])


def recurrent():
    """Recurrent layers, wrappers, an embedding."""
    x = keras.Input((7,), dtype="int32", name="tokens")
    y = layers.Embedding(9, 5, input_length=7)(x)
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(y)
    y = layers.TimeDistributed(layers.Dense(4, "tanh"))(y)
    y, h, c = layers.LSTM(3, return_sequences=True, return_state=True)(y)
    y = layers.LSTM(3, return_sequences=True)(y, initial_state=[h, c])
    y = layers.GRU(3, reset_after=False, return_sequences=True)(y)
    y = layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)])(y)
    return keras.Model(x, y)


def attention():
    """Attention and normalization."""
    x = keras.Input((5, 6), name="x")
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(2, 3, name="attend")(y, value=x) + x
    y = layers.Dense(6, "gelu", kernel_regularizer="l2")(y)
    return keras.Model(x, layers.Softmax()(y))


def activations():
    """Activations that are other ones in Keras 3, or have other names."""
    return keras.Sequential(
        [
            layers.Dense(6, "hard_sigmoid", input_shape=(4,)),
            layers.Activation("hard_sigmoid"),
            layers.ThresholdedReLU(0.4),
            layers.Dense(5),
            layers.PReLU(),
            layers.ELU(0.3),
            layers.Dense(4, layers.LeakyReLU(0.05)),
            layers.Reshape((2, 2)),
            layers.LSTM(2, recurrent_activation="hard_sigmoid"),
        ]
    )


def plain():
    """A Sequential model, of which `old` makes what Keras 2.1 wrote."""
    return keras.Sequential(
        [
            layers.Conv2D(3, 3, input_shape=(5, 5, 2), name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.Flatten(),
            layers.Dense(2, "softmax", name="head"),
        ]
    )


def old(path):
    """Rewrite a config as Keras 2.1 and TensorFlow 1 wrote them."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        entries = [e for e in config["config"]["layers"] if e["class_name"] != "InputLayer"]
        for entry in entries:
            entry["config"].pop("dtype")
            for key, value in entry["config"].items():
                if key.endswith("_initializer"):
                    entry["config"][key] = {
                        "class_name": value["class_name"],
                        "config": {**value["config"], "dtype": "float32"},
                    }
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": entries})
        file.attrs["keras_version"] = "2.1.6-tf"


def fill(model, rng):
    """Random weights and statistics."""
    values = []
    for weight in model.weights:
        value = rng.normal(size=weight.shape) * 0.5
        values.append(np.abs(value) + 0.3 if "variance" in weight.name else value)
    model.set_weights(values)


def main():
    for make in (ops, nested, recurrent, attention, activations, plain):
        keras.backend.clear_session()
        model, rng = make(), np.random.default_rng(3)
        fill(model, rng)
        x = [
            rng.integers(0, 9, (3, *i.shape[1:]))
            if i.dtype == "int32"
            else rng.normal(size=(3, *i.shape[1:])).astype("float32")
            for i in model.inputs
        ]
        y = model.predict(x, verbose=0)
        y = y if isinstance(y, list) else [y]
        arrays = {f"x{i}": a for i, a in enumerate(x)} | {f"y{i}": a for i, a in enumerate(y)}
        # The weights as Keras 2 knows them, for their sum tells whether all are there.
        arrays["total"] = np.float64(sum(np.abs(w.numpy()).sum() for w in model.weights))
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            np.savez_compressed(folder / "data.npz", **arrays)
            model.save(folder / "model.h5")
            if make is plain:
                old(folder / "model.h5")
            else:
                model.save(folder / "model.keras")
            path = HERE / f"legacy_{make.__name__}.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                for file in sorted(folder.iterdir()):
                    archive.write(file, file.name)


if __name__ == "__main__":
    main()
