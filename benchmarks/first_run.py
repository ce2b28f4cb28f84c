"""What a graph of TensorFlow costs before its second run: quantized against float, in turns.

    python benchmarks/first_run.py

Ops of the graph, and processor time to trace it and to run it once. Writes the section of
`docs/results.md`.
"""

import os
import statistics
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from results import write_section

import intact

ROUNDS = 5


def resnet(blocks: int = 9) -> keras.Model:
    """ResNet-56 of CIFAR-10, whose convolutions have biases."""

    def normed(x: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides=strides, padding="same")(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(normed(inputs, 16))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = layers.ReLU()(normed(x, filters, strides=strides))
            y = normed(y, filters)
            x = normed(x, filters, 1, strides) if strides > 1 else x
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def measure(model: keras.Model, x: tf.Tensor) -> tuple[int, float, float]:
    """Ops, and seconds of processor time to trace and to run once."""
    spec = tf.TensorSpec((None, *x.shape[1:]), "float32")
    times = [time.process_time()]
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    times.append(time.process_time())
    graph(x)
    times.append(time.process_time())
    return len(graph.graph.get_operations()), times[1] - times[0], times[2] - times[1]


def row_of(name: str, model: keras.Model) -> list[str]:
    """One row: medians, and the median of the rounds' ratios."""
    x = tf.constant(np.random.default_rng(0).normal(size=(1, *model.input_shape[1:])), "float32")
    q = intact.quantize_model(model)
    intact.calibrate(q, x.numpy(), verbose=0)
    pairs = [(measure(model, x), measure(q, x)) for _ in range(ROUNDS)]
    (ops, *_), (quantized_ops, *_) = pairs[0]
    cells = [name, f"{ops:,}", f"{quantized_ops:,}"]
    for what in (1, 2):
        before, after = (statistics.median(pair[i][what] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(pair[1][what] / pair[0][what] for pair in pairs)
        cells += [f"{before:.2f}", f"{after:.2f}", f"{ratio:.2f}"]
    return cells


if __name__ == "__main__":
    heading = ["model", "float ops", "ops"]
    for stage in ("trace", "first run"):
        heading += [f"float {stage}, s", f"{stage}, s", "ratio"]
    models = {
        "ResNet-56": resnet(),
        "MobileNetV2": keras.applications.MobileNetV2(weights=None),
    }
    measured = [row_of(name, model) for name, model in models.items()]
    text = """
        TensorFlow's graph of an inference, quantized against float, in turns: its ops, and the
        processor time to trace it and to run it once, on one image. Medians of 5 rounds.
    """
    write_section("first_run", text, [heading, *measured], "python benchmarks/first_run.py")
    for row in measured:
        print(" | ".join(row))
