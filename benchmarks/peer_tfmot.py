"""TFMOT's file and its training step, in Keras 2.

    python benchmarks/peer_tfmot.py FOLDER out.tflite int8    writes the file, and its cost
    python benchmarks/peer_tfmot.py FOLDER                    serves steps, as `serve` says

It needs an environment of Keras 2, which `make peers` makes. TFMOT cannot load files of Keras 3, so
this script builds the network again and sets its weights. TFMOT learns ranges in training only, so
the samples pass five times, with a learning rate of 0, and ranges follow faster than by default.
`peers.py` writes the folder.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from measuring import measured, serve, write
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops

layers = keras.layers
PASSES = 5
# Its averages begin at -6 and 6; with its decay of 0.999 they would stay there in so few steps.
quant_ops.MovingAvgQuantize = partial(quant_ops.MovingAvgQuantize, ema_decay=0.9)


def resnet20() -> keras.Model:
    """The layers of `resnet20_cifar10.keras`; TFMOT takes all of them."""

    def norm(x):
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def conv(x, filters, strides=1):
        padding = "same"
        if strides == 2:
            x, padding = layers.ZeroPadding2D(1)(x), "valid"
        return norm(layers.Conv2D(filters, 3, strides, padding, use_bias=False)(x))

    def shortcut(x):
        x = layers.Permute((1, 3, 2))(layers.MaxPooling2D(1, strides=2)(x))
        pad = x.shape[2] // 2
        return layers.Permute((1, 3, 2))(layers.ZeroPadding2D(((0, 0), (pad, pad)))(x))

    image = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv(image, 16))
    for filters in (16, 32, 64):
        for block in range(3):
            wider = filters > 16 and block == 0
            y = layers.ReLU()(conv(x, filters, 1 + wider))
            x = layers.Add()([conv(y, filters), shortcut(x) if wider else x])
            x = layers.ReLU()(x)
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "resnet20": resnet20,
    "mobilenet_0.25": lambda: keras.applications.MobileNet(alpha=0.25, weights=None),
    "mobilenet_0.75": lambda: keras.applications.MobileNet(alpha=0.75, weights=None),
}


def build(folder: str) -> keras.Model:
    """The network of a folder, which is called as the model is."""
    model = MODELS[Path(folder).name]()
    model.set_weights(list(np.load(f"{folder}/weights.npz").values()))
    return model


def quantized(model: keras.Model, x: np.ndarray) -> keras.Model:
    """TFMOT's model, with ranges."""
    q = tfmot.quantization.keras.quantize_model(model)
    for layer in q.layers:
        inner = getattr(layer, "layer", layer)
        if isinstance(inner, layers.BatchNormalization):
            inner.trainable = False  # Statistics of these few samples would be worse.
    q.compile(keras.optimizers.SGD(0.0), "mse")
    targets = np.zeros((len(x), *q.output_shape[1:]), "float32")
    q.fit(x, targets, batch_size=10, epochs=PASSES, verbose=0)
    return q


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    """What a file computes."""
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (input_details,) = interpreter.get_input_details()
    (output_details,) = interpreter.get_output_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(input_details["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(output_details["index"])[0])
    return np.stack(outputs)


def main(folder: str, out: str, scheme: str) -> None:
    model = build(folder)
    (samples,), (test,) = (np.load(f"{folder}/{n}.npz").values() for n in ("samples", "test"))
    with measured() as cost:
        q = quantized(model, samples)
        converter = tf.lite.TFLiteConverter.from_keras_model(q)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content = converter.convert()
    test = test[:50]
    cost["equal"] = float(np.mean(run(content, test) == q.predict(test, verbose=0)))
    write(out, content, cost)


def steps(folder: str) -> None:
    """Serve steps of the float and the quantized model."""
    x, y = np.load(f"{folder}/batch.npz").values()
    models = {"float": build(folder)}
    models["quantized"] = tfmot.quantization.keras.quantize_model(build(folder))
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    serve({kind: lambda m=m: m.train_on_batch(x, y) for kind, m in models.items()})


if __name__ == "__main__":
    (main if sys.argv[2:] else steps)(*sys.argv[1:])
