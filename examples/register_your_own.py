"""A layer of one's own with an integer kernel of its own: depth to space, in one class.

Without the class it would be traced into reshapes and a transposition, which works too.
"""

import keras
import numpy as np
from keras import layers, ops

import intact
from intact.ops import SAME_AS_INPUT, Case
from intact.testing import check_op


@keras.saving.register_keras_serializable("examples")
class PixelShuffle(layers.Layer):
    """Channels become a finer grid of pixels (Shi et al., arXiv:1609.05158)."""

    def call(self, x):
        _, h, w, c = x.shape
        x = ops.reshape(x, (-1, h, w, 2, 2, c // 4))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 2 * h, 2 * w, c // 4))


@intact.register_op
class DepthToSpace(intact.Op):
    """Moves values and changes none: the output has the input's scale."""

    keras_layers = (PixelShuffle,)
    litert = ("DEPTH_TO_SPACE",)
    output = SAME_AS_INPUT
    cases = (Case(PixelShuffle, (3, 4, 8)),)

    def call(self, layer, inputs, weights, training):
        (x,) = inputs
        return x._replace(values=layer(x.values))

    def lower(self, node, builder):
        builder.add("DEPTH_TO_SPACE", [node.input], [node.output], {"blockSize": 2})


def main():
    """Quantize a model with the layer, and compare it with its file."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, PixelShuffle(name="shuffle")(x))
    data = np.random.default_rng(0).uniform(-1, 1, (32, 8, 8, 3)).astype("float32")
    print(intact.explain(model))
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    comparison = intact.compare(q, intact.export(q, integer_only=True), data)
    print(comparison)
    check_op(DepthToSpace)
    return comparison


if __name__ == "__main__":
    main()
