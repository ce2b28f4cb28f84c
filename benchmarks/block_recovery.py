"""ResNet-20 at W4A8 and W4A4 after training: weights rounded by layers, and by blocks.

    python benchmarks/block_recovery.py          all of it, about ten minutes on two cores

Scores are of the files, as LiteRT runs them. Writes to `docs/results.md`.
"""

import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import cifar10, pretrained
from low_bits import EIGHT, INSIDE, forked
from real_models import accuracy, percent
from results import write_section

import intact
from intact import Rule, Scheme, TensorSpec

SEEDS = 2
SAMPLES = 256
HEADING = [
    "bits",
    "seed",
    "calibrate",
    "by layers",
    "by blocks",
    "core seconds by layers",
    "core seconds by blocks",
]
ROUND = {"round": True, "bias_correction": True, "weight_scales": False, "equalize": False}
WEIGHTS = TensorSpec(4, symmetric=True, per_axis=True)
ACTIVATIONS = {"W4A8": TensorSpec(), "W4A4": TensorSpec(4, observer="mse")}


def quantized(model: keras.Model, bits: str) -> keras.Model:
    """The model with the bits of `low_bits.py`, by ranges in place of learned scales."""

    def read(layer: keras.layers.Layer) -> bool:
        return layer.name in INSIDE or layer.name.endswith("_read")

    scheme = Scheme(
        bits,
        (
            Rule("linear", EIGHT, TensorSpec()),
            Rule(read, EIGHT, ACTIVATIONS[bits]),
            Rule("conv1", EIGHT, TensorSpec()),
            Rule(keras.layers.Conv2D, WEIGHTS, TensorSpec()),
            Rule(),
        ),
    )
    return intact.quantize_model(forked(model) if bits == "W4A4" else model, scheme)


def measure(model: keras.Model, bits: str, seed: int) -> list[str]:
    """A row of the table."""
    x, _, x_test, y_test = cifar10()
    samples = x[np.random.default_rng(seed).permutation(18000)[:SAMPLES]]
    q = intact.calibrate(quantized(model, bits), samples, verbose=0)
    scores, seconds = [percent(accuracy(intact.export(q), x_test, y_test))], []
    for blocks in (False, None):
        q = quantized(model, bits)
        start = time.process_time()
        intact.recover(q, samples, **ROUND, blocks=blocks, seed=seed, verbose=1)
        seconds.append(f"{time.process_time() - start:.0f}")
        scores.append(percent(accuracy(intact.export(q), x_test, y_test)))
    return [bits, str(seed), *scores, *seconds]


def main(chosen: list[str]) -> None:
    """ResNet-20 on CIFAR-10, float 91.73 %, with 4 bits after training: 256 training images without
    labels, scored on the 10,000 test images. W, the bits of the weights; A, those of the
    activations that convolutions read, whose ranges have the smallest squared error ("mse"). The
    first and the last layer, and what shortcuts read and add, have 8 bits. By layers: `recover`
    with `round=True` and `bias_correction=True`. By blocks: with `blocks=None`, too. Its settings
    were chosen on training images that calibrated nothing.
    """
    model, rows = pretrained("resnet20_cifar10"), [HEADING]
    for bits in chosen or ACTIVATIONS:
        for seed in range(SEEDS):
            rows.append(measure(model, bits, seed))
            print(rows[-1], flush=True)
    if not chosen:
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/block_recovery.py"
        write_section("block_recovery", main.__doc__ or "", rows, command)


if __name__ == "__main__":
    main(sys.argv[1:])
