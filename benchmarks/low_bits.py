"""Accuracy against bits: ResNet-20 on CIFAR-10, trained at 8 to 1 bits.

    python benchmarks/low_bits.py               all of it, about an hour on two cores
    python benchmarks/low_bits.py W2A2 binary

Scores are of the files, as LiteRT runs them. All of it is written to `docs/results.md` and, where
matplotlib is installed, drawn in `docs/low_bits.svg`.
"""

import os
import sys
import time
from dataclasses import dataclass

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import CIFAR_BLACK, Augmented, cifar10, pretrained
from keras import layers
from real_models import HEADING, floating, row
from results import RESULTS, write_section

import intact
from intact import Rule, Scheme, TensorSpec

SEED, BATCH = 0, 64
EIGHT = TensorSpec(symmetric=True, per_axis=True)
INSIDE = {f"re_lu_{n}" for n in range(1, 18, 2)}
"""The activations that a convolution alone reads."""


@dataclass
class Variant:
    """What is trained and how: weights, and activations that convolutions read; the first and the
    last layer, and what shortcuts read and add, have 8 bits, as in the papers."""

    weights: TensorSpec
    activations: TensorSpec
    epochs: int
    rate: float
    freeze_norms: bool = False
    mirrored: bool = False
    temperature: float | None = None  # of the divergence of shares; None: squares of logits

    def scheme(self, name: str) -> Scheme:
        def read(layer: layers.Layer) -> bool:
            return layer.name in INSIDE or layer.name.endswith("_read")

        return Scheme(
            name,
            (
                Rule("linear", EIGHT, TensorSpec()),
                Rule(read, EIGHT, self.activations),
                Rule("conv1", EIGHT, TensorSpec()),
                Rule(layers.Conv2D, self.weights, TensorSpec()),
                Rule(),
            ),
        )


def forked(model: keras.Model) -> keras.Model:
    """The same network with a ReLU more where a shortcut leaves, for the convolution there."""

    def call(layer: layers.Layer, x: keras.KerasTensor, **_: None) -> keras.KerasTensor:
        if layer.name.endswith("_conv1"):
            x = layers.ReLU(name=f"{layer.name}_read")(x)
        return layer(x)

    made = keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.from_config(layer.get_config()),
        call_function=call,
    )
    for layer in model.layers:
        made.get_layer(layer.name).set_weights(layer.get_weights())
    return made


def weights(bits: int, quantizer: str) -> TensorSpec:
    return TensorSpec(bits, symmetric=True, per_axis=True, quantizer=quantizer)


VARIANTS = {
    "W8A8": Variant(EIGHT, TensorSpec(), 4, 2e-4, freeze_norms=True, mirrored=True),
    "W4A8": Variant(weights(4, "lsq"), TensorSpec(), 3, 5e-4),
    "W4A4": Variant(weights(4, "lsq"), TensorSpec(4, quantizer="lsq"), 3, 5e-4),
    "W2A8": Variant(weights(2, "lsq"), TensorSpec(), 6, 1e-3),
    "W2A2": Variant(weights(2, "lsq"), TensorSpec(2, quantizer="lsq"), 12, 2e-3, temperature=2.0),
    "ternary": Variant(weights(2, "twn"), TensorSpec(), 3, 1e-3),
    "binary": Variant(weights(1, "xnor"), TensorSpec(), 6, 1e-3),
}


def mirrored(model: keras.Model) -> keras.Model:
    """What a model says of an image and of its mirror image, on average: a better teacher."""
    image = keras.Input(model.input_shape[1:])
    mirror = keras.ops.flip(image, axis=2)
    return keras.Model(image, layers.Average()([model(image), model(mirror)]))


def trained(name: str, model: keras.Model, x: np.ndarray) -> keras.Model:
    """A variant after its training: it learns the float model's outputs, from images alone."""
    keras.utils.set_random_seed(SEED)
    variant = VARIANTS[name]
    few = variant.activations.bits < 8
    q = intact.quantize_model(forked(model) if few else model, variant.scheme(name))
    intact.calibrate(q, x[:256], verbose=0)
    data = Augmented(x, batch=BATCH, seed=SEED, fill=CIFAR_BLACK)
    intact.distill(
        q,
        teacher=mirrored(model) if variant.mirrored else model,
        data=data,
        epochs=variant.epochs,
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(variant.rate, variant.epochs * len(data))
        ),
        loss="mse" if variant.temperature is None else "kl",
        temperature=variant.temperature or 1.0,
        freeze_norms=variant.freeze_norms,
        verbose=2,
    )
    return q


def draw(rows: list[list[str]]) -> None:
    """The table as a picture."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    names = [row[0] for row in rows]
    scores = [float(row[2].split()[0]) for row in rows]
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bars = axes.bar(names, scores, color="#4477aa")
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set(ylim=(min(scores) - 5, 95), ylabel="accuracy of the file, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS.parent / "low_bits.svg", metadata={"Date": None})


def main(chosen: list[str]) -> None:
    """ResNet-20 on CIFAR-10, from the pretrained float model, by distillation on flips and
    crops of the 20,000 images without their labels, at a batch of 64 with Adam, seed 0. W, the
    bits of the weights; A, those of the activations that convolutions read; ternary (TWN) and
    binary (XNOR) weights with A8. The first and last layers, and what shortcuts read and add,
    have 8 bits. W8A8 learns what the float model says of an image and its
    mirror image on average; W2A2 learns its shares at a temperature of 2, the others its
    logits."""
    x, _, x_test, y_test = cifar10()
    model = pretrained("resnet20_cifar10")
    size = len(intact.export(model))
    rows = {"float": [*floating("float", model, x_test, y_test), ""]}
    for name in chosen:
        start = time.perf_counter()
        q = trained(name, model, x)
        epochs = f"trained, {VARIANTS[name].epochs} epochs"
        share = len(intact.export(q)) / size
        rows[name] = [*row(name, epochs, q, x_test, y_test), f"{share:.3f}"]
        print(rows[name], f"{time.perf_counter() - start:.0f} s", flush=True)
    if set(chosen) == set(VARIANTS):
        made = [rows[known] for known in ("float", *VARIANTS)]
        draw(made)
        text = f"{main.__doc__}\n\n![Accuracy against bits](low_bits.svg)"
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/low_bits.py"
        write_section("low_bits", text, [[*HEADING, "of float's bytes"], *made], command)


if __name__ == "__main__":
    main(sys.argv[1:] or list(VARIANTS))
