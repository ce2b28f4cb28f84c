"""The peer's training steps: ResNet-20 in Keras 2, in float and by TFMOT's quantize_model.

Run by `tfmot_step.py` in an environment with `tensorflow-model-optimization` and `tf_keras`. It
writes "ready", then reads "float" or "quantized" by line, and answers with the seconds of a step.
"""

import os
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras

layers = keras.layers
STEPS = 5


def resnet20() -> keras.Model:
    """The layers of `resnet20_cifar10.keras` with new weights; TFMOT takes all of them."""

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


def main() -> None:
    """Answer until the input ends."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 64)
    models = {"float": resnet20(), "quantized": tfmot.quantization.keras.quantize_model(resnet20())}
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        model.train_on_batch(x, y)
    print("ready", flush=True)
    while True:
        try:
            model = models[input()]
        except EOFError:
            return
        start = time.perf_counter()
        for _ in range(STEPS):
            model.train_on_batch(x, y)
        print((time.perf_counter() - start) / STEPS, flush=True)


if __name__ == "__main__":
    main()
