"""Two replicas train one model, on TensorFlow: `python examples/replicas_tensorflow.py`."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import intact


def main():
    """Split the processor in two; leave this out to take all GPUs of a machine."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    halves = [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
    tf.config.set_logical_device_configuration(cpu, halves)
    layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    end = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
    x = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype("float32")
    y = x.mean(axis=(1, 2, 3))[:, None]
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        q = intact.quantize_model(keras.Sequential([keras.Input((8, 8, 3)), *layers, *end]))
        intact.calibrate(q, x[:64], verbose=0)
        q.compile("adam", "mse")
        q.fit(x, y, batch_size=32, verbose=0)
    print("Values that differ:", intact.compare(q, intact.export(q), x).different)


if __name__ == "__main__":
    main()
