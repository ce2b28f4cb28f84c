"""A quantizer of one's own: weights that are powers of two, or 0 (Miyashita et al., 1603.01025)."""

from dataclasses import dataclass

import numpy as np
from keras import Input, Sequential, layers

import intact
from intact import Quantizer, Rule, Scheme, TensorSpec
from intact.numerics.exact import inverse_of, power_of_two_above
from intact.numerics.straight_through import straight_through


@dataclass(frozen=True)
class Logarithmic(Quantizer):
    """Weights of 0, 1, 2, 4, ..., 64 and their negatives, times a scale."""

    name = "logarithmic"
    weight_bits = range(4, 5)

    def stored_bits(self, bits):
        return 8

    def weights(self, w, state, at):
        xp = at.xp
        top = xp.max(xp.abs(xp.stop_gradient(w)), axis=at.reduced(w), keepdims=True)
        scale = at.scale(top * np.float32(1 / 64))
        n = w * inverse_of(scale, xp)
        size = power_of_two_above(xp.maximum(xp.abs(n) * np.float32(0.7), np.float32(1)), xp)
        size = xp.where(xp.abs(n) < 0.5, xp.zeros_like(size), xp.minimum(size, np.float32(64)))
        return straight_through(xp.where(n < 0, -size, size), n, xp), scale


def main():
    """Quantize a model with it, and compare the model with its file."""
    model = Sequential([Input((8,)), layers.Dense(16, "relu"), layers.Dense(4)])
    data = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    spec = TensorSpec(4, per_axis=True, quantizer="logarithmic")
    q = intact.quantize_model(model, Scheme("logarithmic", (Rule(weights=spec),)))
    return q, intact.compare(intact.calibrate(q, data, verbose=0), intact.export(q), data)
