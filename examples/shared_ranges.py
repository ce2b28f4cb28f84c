"""An algorithm that spans layers: all hidden activations share one scale, as some NPUs want."""

import keras
import numpy as np
from keras import layers

import intact
from intact.layers.fake_quantize import FakeQuantize


def share_ranges(q, names):
    """Give ranges the union of them all.

    Args:
        q: A calibrated model.
        names: Names of the layers whose outputs have the ranges.
    """
    found = [
        layer
        for layer in q.layers
        if isinstance(layer, FakeQuantize) and layer.name.removesuffix("_quantizer") in names
    ]
    low = min(float(keras.ops.min(layer.minimum)) for layer in found)
    high = max(float(keras.ops.max(layer.maximum)) for layer in found)
    for layer in found:
        layer.set_range(low, high)


def main():
    """Share them between three layers, and compare the model with its file."""
    hidden = [layers.Dense(8, activation="relu", name=f"hidden_{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(4, name="head")])
    data = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    share_ranges(q, [f"hidden_{i}_relu" for i in range(3)])
    return q, intact.compare(q, intact.export(q), data)
