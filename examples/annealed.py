"""An algorithm that needs the training step: weights turn from float to integers bit by bit."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

import intact
from intact import Quantizer, Rule, Schedule, Scheme, TensorSpec
from intact.quantizers.base import RangeQuantizer


@dataclass(frozen=True)
class Annealed(Quantizer):
    """`(1 - a) w + a round(w)`, where `a` grows from 0 to 1 in so many steps."""

    name = "annealed"
    weight_bits = range(2, 9)
    steps: int = 100

    def weights(self, w, state, at):
        n, scale = RangeQuantizer().weights(w, state, at)
        if not at.training:  # predictions and files have the integers
            return n, scale
        share = ops.minimum(at.step / self.steps, 1.0)
        return share * n + (1.0 - share) * w / scale, scale


def main():
    """Train with it. A model with a schedule counts its steps."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(4)])
    data = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    spec = TensorSpec(3, True, True, quantizer=Annealed(steps=20))
    scheme = Scheme("annealed", (Rule(weights=spec),))
    q = intact.quantize_model(model, scheme, schedule=Schedule())
    q.compile(keras.optimizers.Adam(1e-2), "mse")
    losses = q.fit(data, data[:, :4], batch_size=32, epochs=4, verbose=0).history["loss"]
    return q, losses, intact.compare(q, intact.export(q), data)
