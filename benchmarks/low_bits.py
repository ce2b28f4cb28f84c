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
from data import cifar10, pretrained
from keras import layers
from real_models import HEADING, augmented, floating, row
from results import RESULTS, write_section

import intact
from intact import Rule, Scheme, TensorSpec

SEED = 0
EIGHT = TensorSpec(symmetric=True, per_axis=True)


@dataclass
class Variant:
    """What is trained and how: weights and activations inside of the network; the first and the
    last layer and the sums of the shortcuts have 8 bits, as in the papers."""

    weights: TensorSpec
    activations: TensorSpec
    epochs: int
    rate: float
    freeze_norms: bool = False
    mirrored: bool = False
    temperature: float | None = None  # of the divergence of shares; None: squares of logits
    batch: int = 64

    def scheme(self, name: str) -> Scheme:
        def last(layer: layers.Layer) -> bool:
            return layer.name in ("re_lu_18", "linear")

        return Scheme(
            name,
            (
                Rule(last, EIGHT, TensorSpec()),
                Rule(layers.ReLU, EIGHT, self.activations),
                Rule("conv1", EIGHT, TensorSpec()),
                Rule(layers.Conv2D, self.weights, TensorSpec()),
                Rule(),
            ),
        )


def weights(bits: int, quantizer: str) -> TensorSpec:
    return TensorSpec(bits, symmetric=True, per_axis=True, quantizer=quantizer)


VARIANTS = {
    "W8A8": Variant(EIGHT, TensorSpec(), 4, 2e-4, freeze_norms=True, mirrored=True),
    "W4A8": Variant(weights(4, "lsq"), TensorSpec(), 3, 5e-4),
    "W4A4": Variant(weights(4, "lsq"), TensorSpec(4, quantizer="lsq"), 3, 5e-4),
    "W2A8": Variant(weights(2, "lsq"), TensorSpec(), 6, 1e-3),
    "W2A2": Variant(
        weights(2, "lsq"), TensorSpec(2, quantizer="lsq"), 12, 2e-3, temperature=2.0, batch=32
    ),
    "ternary": Variant(weights(2, "twn"), TensorSpec(), 3, 1e-3),
    "binary": Variant(weights(1, "xnor"), TensorSpec(), 6, 1e-3),
}


class Augmented(keras.utils.PyDataset):
    """Flipped and cropped images, drawn anew in each epoch."""

    def __init__(self, x: np.ndarray, batch: int) -> None:
        super().__init__()
        self.x, self.batch = x, batch
        self.rng = np.random.default_rng(SEED)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.x) // self.batch

    def __getitem__(self, index: int) -> np.ndarray:
        chosen = self.order[index * self.batch : (index + 1) * self.batch]
        return augmented(self.x[chosen], self.rng)

    def on_epoch_end(self) -> None:
        self.order = self.rng.permutation(len(self.x))


def mirrored(model: keras.Model) -> keras.Model:
    """What a model says of an image and of its mirror image, on average: a better teacher."""
    image = keras.Input(model.input_shape[1:])
    mirror = keras.ops.flip(image, axis=2)
    return keras.Model(image, layers.Average()([model(image), model(mirror)]))


def trained(name: str, model: keras.Model, x: np.ndarray) -> keras.Model:
    """A variant after its training: it learns the float model's outputs, from images alone."""
    keras.utils.set_random_seed(SEED)
    variant = VARIANTS[name]
    q = intact.quantize_model(model, variant.scheme(name))
    intact.calibrate(q, x[:256], verbose=0)
    data = Augmented(x, variant.batch)
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
    crops of the 20,000 images without their labels, at a batch of 64 (W2A2: 32) with Adam,
    seed 0. Inside of the network: W, the bits of the weights; A, those of what ReLU gives;
    ternary (TWN) and binary (XNOR) weights with A8. The first and last layers and the
    shortcuts' sums have 8 bits. W8A8 learns what the float model says of an image and its
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
