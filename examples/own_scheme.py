"""A scheme of one's own: 8 bits at both ends, 4 between, and a head in float."""

import keras
import numpy as np
from keras import layers

import intact
from intact import Rule, Scheme, TensorSpec

FOUR = Rule(
    lambda layer: layer.name.startswith(("block", "pool")),
    weights=TensorSpec(4, per_axis=True, quantizer="lsq"),
    activations=TensorSpec(4, quantizer="lsq"),
)
FLOAT = Rule("head", weights=None, activations=None)
SCHEME = Scheme("ends_in_8", (FOUR, FLOAT, Rule()), inputs=TensorSpec(8))


def main():
    """Quantize a small CNN with it; the table says what becomes of each layer."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(8, 3, activation="relu", name="stem"),
            layers.Conv2D(8, 3, activation="relu", name="block_1"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(4, name="head"),
        ]
    )
    data = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    print(intact.explain(model, SCHEME).plan)
    q = intact.calibrate(intact.quantize_model(model, SCHEME), data, verbose=0)
    return q, intact.compare(q, intact.export(q), data)
