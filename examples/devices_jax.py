"""Eight devices of one process train one model, on JAX: `python examples/devices_jax.py`."""

import os

os.environ["KERAS_BACKEND"] = "jax"
# Splits the processor in eight; leave this out to take all GPUs or TPU cores of a machine.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import keras
import numpy as np

import intact


def split_kernels():
    """Four groups of devices share each batch; the two of a group share the kernels."""
    mesh = keras.distribution.DeviceMesh((4, 2), ["batch", "model"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*conv2d.*kernel"] = (None, None, None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def train(distribution):
    """Make, train and export a model on all devices."""
    keras.distribution.set_distribution(distribution)
    layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    end = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
    q = intact.quantize_model(keras.Sequential([keras.Input((8, 8, 3)), *layers, *end]))
    x = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype("float32")
    y = x.mean(axis=(1, 2, 3))[:, None]
    q.compile("adam", "mse")
    q.fit(x, y, batch_size=32, verbose=0)
    return intact.compare(q, intact.export(q), x).different


if __name__ == "__main__":
    for each in (keras.distribution.DataParallel(), split_kernels()):
        print(f"{type(each).__name__}. Values that differ: {train(each)}")
