"""Composite architectures, trained for real, quantized both ways, scored on LiteRT.

    python benchmarks/composites.py               all of them, about half an hour on two cores
    python benchmarks/composites.py vit gru       some

Each is trained in float, calibrated on 200 samples, then trained with quantization for a few
epochs. All scores are from the LiteRT files, integers only; those of LSTM and GRU, with 900 samples
to test on, are means of three trainings.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import cifar10, fashion_mnist, keywords, scaled_keywords
from keras import layers, ops
from results import mean_row, write_section

import intact

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclass
class Task:
    """A network and its data.

    Args:
        build: Makes the float network.
        data: `x, y, x_test, y_test`; targets may be dicts.
        loss: The loss, or one per output.
        score: From outputs and targets to a share.
        epochs: Of training in float.
        tuning: Epochs of training with quantization.
        rate: Learning rate in float; with quantization a tenth.
        seeds: How often to train, from other seeds; scores are means.
    """

    build: Callable[[], keras.Model]
    data: Callable[[], tuple]
    loss: Any = LOGITS
    score: Callable[[Any, Any], float] = lambda out, y: float((out.argmax(-1) == y).mean())
    epochs: int = 10
    tuning: int = 3
    rate: float = 1e-3
    seeds: int = 1


# Segmentation -------------------------------------------------------------------------


def garments(count: int = 6000) -> tuple:
    """Garments on a noisy ground, and where they are."""
    x, _, x_test, _ = fashion_mnist()
    rng = np.random.default_rng(0)

    def make(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask = (images > 8).astype("int32")
        ground = rng.normal(0.35, 0.2, size=images.shape)
        noisy = np.where(mask, images / 255 + rng.normal(0, 0.1, images.shape), ground)
        return noisy[..., None].astype("float32"), mask

    return (*make(x[:count]), *make(x_test[:2000]))


def unet(upsample: Callable[[int], Callable]) -> keras.Model:
    """A U-Net of two levels (Ronneberger et al., arXiv:1505.04597)."""

    def block(x: Any, width: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        return x

    inputs = keras.Input((28, 28, 1))
    first = block(inputs, 8)
    second = block(layers.MaxPooling2D()(first), 16)
    x = block(layers.MaxPooling2D()(second), 32)
    x = block(layers.Concatenate()([upsample(16)(x), second]), 16)
    x = block(layers.Concatenate()([upsample(8)(x), first]), 8)
    return keras.Model(inputs, layers.Conv2D(2, 1)(x), name="unet")


def transposed(width: int) -> Callable:
    """Upsampling by a transposed convolution."""
    return layers.Conv2DTranspose(width, 2, strides=2)


def resized(width: int) -> Callable:
    """Upsampling by interpolation and a convolution."""

    def apply(x: Any) -> Any:
        x = layers.Resizing(2 * x.shape[1], 2 * x.shape[2])(x)
        return layers.Conv2D(width, 1)(x)

    return apply


# Detection ----------------------------------------------------------------------------

CANVAS, CELLS = 56, (14, 7)


def scenes(count: int = 8000) -> tuple:
    """One garment on a canvas; per cell of two grids its class (0: nothing) and its box."""
    x, y, x_test, y_test = fashion_mnist()
    rng = np.random.default_rng(0)

    def make(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, dict]:
        canvas = rng.normal(0.2, 0.1, size=(len(images), CANVAS, CANVAS, 1)).astype("float32")
        corners = rng.integers(0, CANVAS - 28, size=(len(images), 2))
        targets = {}
        for i, ((top, left), image) in enumerate(zip(corners, images, strict=True)):
            canvas[i, top : top + 28, left : left + 28, 0] += image / 255
        centre = corners + 14
        for level, cells in enumerate(CELLS):
            classes = np.zeros((len(images), cells, cells), "int32")
            boxes = np.zeros((len(images), cells, cells, 2), "float32")
            row, column = (centre * cells // CANVAS).T
            index = np.arange(len(images))
            classes[index, row, column] = labels + 1
            boxes[index, row, column] = centre * cells / CANVAS - np.stack([row, column], 1) - 0.5
            targets[f"class_{level}"] = classes
            targets[f"box_{level}"] = np.concatenate([boxes, classes[..., None] > 0], -1)
        return canvas, targets

    return (*make(x[:count], y[:count]), *make(x_test[:1000], y_test[:1000]))


def box_loss(y: Any, out: Any) -> Any:
    """Squared distance of the centre, where there is something."""
    y = ops.cast(y, "float32")
    return ops.mean(ops.square(y[..., :2] - out) * y[..., 2:]) * 50.0


def class_loss(y: Any, out: Any) -> Any:
    """Cross-entropy; most cells are empty, so those count less."""
    found = keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True)
    return ops.mean(found * ops.where(y > 0, 20.0, 1.0))


def detector() -> keras.Model:
    """A single-shot detector's head on two grids (Liu et al., arXiv:1512.02325)."""
    x = inputs = keras.Input((CANVAS, CANVAS, 1))
    outputs = {}
    for i, width in enumerate((16, 32, 48)):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(width, 3, padding="same", activation="relu6")(x)
        if i:
            y = layers.Conv2D(32, 3, padding="same", activation="relu6")(x)
            outputs[f"class_{i - 1}"] = layers.Conv2D(11, 1, name=f"class_{i - 1}")(y)
            outputs[f"box_{i - 1}"] = layers.Conv2D(2, 1, name=f"box_{i - 1}")(y)
    return keras.Model(inputs, outputs, name="detector")


def detected(out: dict, y: dict) -> float:
    """Share of the scenes whose surest cell has the right class, and a centre 3 pixels near."""
    right = []
    for level, cells in enumerate(CELLS):
        scores = out[f"class_{level}"]
        flat = (scores[..., 1:].max(-1) - scores[..., 0]).reshape(len(scores), -1)
        best = flat.argmax(1)
        row, column = best // cells, best % cells
        index = np.arange(len(best))
        found = scores[index, row, column, 1:].argmax(-1) + 1
        target = y[f"class_{level}"]
        true_class = target.reshape(len(best), -1).max(1)
        cell = target.reshape(len(best), -1).argmax(1)
        true_box = y[f"box_{level}"].reshape(len(best), -1, 3)[index, cell, :2]
        true_box = true_box + np.stack([cell // cells, cell % cells], 1)
        box = out[f"box_{level}"][index, row, column] + np.stack([row, column], 1)
        near = np.abs(box - true_box).max(1) * CANVAS / cells <= 3
        right.append((found == true_class) & near)
    return float(np.mean(right))


# Transformers -------------------------------------------------------------------------


def transformer(x: Any, depth: int, heads: int, epsilon: float = 1e-3) -> Any:
    """Pre-norm blocks (Vaswani et al., arXiv:1706.03762)."""
    width = x.shape[-1]
    for _ in range(depth):
        y = layers.LayerNormalization(epsilon=epsilon)(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(y, y)
        y = layers.LayerNormalization(epsilon=epsilon)(x)
        y = layers.Dense(2 * width, activation="gelu")(y)
        x = x + layers.Dense(width)(layers.Dropout(0.1)(y))
    return layers.LayerNormalization(epsilon=epsilon)(x)


class Positions(layers.Layer):
    """Adds a vector to each position."""

    def build(self, shape: tuple) -> None:
        """One weight."""
        self.table = self.add_weight(shape=(1, *shape[1:]), initializer="normal", name="table")

    def call(self, x: Any) -> Any:
        """The sum."""
        return x + self.table


def vit() -> keras.Model:
    """A small vision transformer (Dosovitskiy et al., arXiv:2010.11929)."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(48, 4, strides=4)(inputs)
    x = Positions()(layers.Reshape((64, 48))(x))
    x = layers.GlobalAveragePooling1D()(transformer(x, 2, 4))
    return keras.Model(inputs, layers.Dense(10)(x), name="vit")


def tokens() -> tuple:
    """Keywords as a text: each frame of MFCCs is a word of 256."""
    from sklearn.cluster import MiniBatchKMeans

    x, y, x_test, y_test = keywords()
    words = MiniBatchKMeans(256, random_state=0, n_init=1).fit(x.reshape(-1, 10)[::7])

    def text(part: np.ndarray) -> np.ndarray:
        return words.predict(part.reshape(-1, 10)).reshape(len(part), 49).astype("int32")

    return text(x), y, text(x_test), y_test


def reader() -> keras.Model:
    """A transformer that reads words."""
    inputs = keras.Input((49,), dtype="int32")
    x = Positions()(layers.Embedding(256, 48)(inputs))
    x = layers.GlobalAveragePooling1D()(transformer(x, 2, 4))
    return keras.Model(inputs, layers.Dense(12)(x), name="reader")


# Sequences ----------------------------------------------------------------------------


def frames() -> tuple:
    """Keywords as 49 frames of 10 features."""
    x, y, x_test, y_test = scaled_keywords()
    return x[..., 0], y, x_test[..., 0], y_test


def padded() -> tuple:
    """The same, cut at random and filled up with frames of zeros."""
    x, y, x_test, y_test = frames()
    rng = np.random.default_rng(0)

    def cut(part: np.ndarray) -> np.ndarray:
        lengths = rng.integers(25, 50, size=(len(part), 1, 1))
        return np.where(np.arange(49)[:, None] < lengths, part, 0).astype("float32")

    return cut(x), y, cut(x_test), y_test


def listener() -> keras.Model:
    """A transformer that hears frames; blank ones stay blank up to its first normalization."""
    inputs = keras.Input((49, 10))
    x = transformer(layers.Dense(48, use_bias=False)(inputs), 2, 4, epsilon=1e-6)
    return keras.Model(
        inputs, layers.Dense(12)(layers.GlobalAveragePooling1D()(x)), name="listener"
    )


def recurrent(cell: type) -> keras.Model:
    """One recurrent layer."""
    inputs = keras.Input((49, 10))
    x = layers.Dropout(0.2)(cell(64)(inputs))
    return keras.Model(inputs, layers.Dense(12)(x), name=cell.__name__.lower())


def temporal() -> keras.Model:
    """A temporal convolutional network: dilated, causal, residual (arXiv:1803.01271)."""
    inputs = keras.Input((49, 10))
    x = layers.Conv1D(48, 1)(inputs)
    for dilation in (1, 2, 4, 8):
        y = layers.Conv1D(48, 3, padding="causal", dilation_rate=dilation, use_bias=False)(x)
        y = layers.Dropout(0.1)(layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y)))
        x = layers.ReLU()(x + layers.Conv1D(48, 1)(y))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(12)(x), name="temporal")


def whole(out: np.ndarray, y: np.ndarray) -> float:
    """Share of the pixels."""
    return float((out.argmax(-1) == y).mean())


TASKS = {
    "unet_transposed": Task(lambda: unet(transposed), garments, score=whole, epochs=3, tuning=1),
    "unet_resized": Task(lambda: unet(resized), garments, score=whole, epochs=3, tuning=1),
    "detector": Task(
        detector,
        scenes,
        loss={
            "class_0": class_loss,
            "box_0": box_loss,
            "class_1": class_loss,
            "box_1": box_loss,
        },
        score=detected,
        epochs=5,
        tuning=1,
    ),
    "vit": Task(vit, cifar10, epochs=4, tuning=1),
    "reader": Task(reader, tokens, epochs=12),
    "listener": Task(listener, padded, epochs=5, rate=2e-3),
    "temporal": Task(temporal, frames, epochs=20),
    "lstm": Task(lambda: recurrent(layers.LSTM), frames, epochs=20, rate=3e-3, seeds=3),
    "gru": Task(lambda: recurrent(layers.GRU), frames, epochs=20, rate=3e-3, seeds=3),
}
HEADING = ["network", "", "score on LiteRT", "as Keras: top-1", "values equal", "max LSB", "s"]


def fit(model: keras.Model, task: Task, x: Any, y: Any, rate: float, epochs: int) -> None:
    """Train by Adam with a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, max(1, epochs * len(x) // 64))
    model.compile(keras.optimizers.Adam(schedule), task.loss)
    model.fit(x, y, 64, epochs=epochs, verbose=0)


def row(name: str, kind: str, model: keras.Model, task: Task, x: Any, y: Any) -> list[str]:
    """A line of the table."""
    start = time.perf_counter()
    quantized = kind != "float"
    content = intact.export(model, integer_only=quantized)
    seconds = time.perf_counter() - start
    score = task.score(intact.load_litert(content).predict(x, batch_size=100), y)
    cells = [name, kind, f"{100 * score:.2f} %"]
    if not quantized:
        return [*cells, "", "", "", ""]
    raw = intact.export(model, output_dtype="int8")
    seen = intact.compare(model, raw, x[:1000], 100, per_layer=False)
    ours = model.predict(x[:1000], verbose=0, batch_size=100)
    theirs = intact.load_litert(content).predict(x[:1000], batch_size=100)
    if not isinstance(ours, dict):
        ours, theirs = {"": ours}, {"": theirs}
    same = min(np.mean(ours[k].argmax(-1) == theirs[k].argmax(-1)) for k in ours)
    total = sum(a.values for a in seen.outputs)
    equal = 1 - seen.different / total
    lsb = f"{seen.max_lsb:g}"
    return [*cells, f"{100 * same:.2f} %", f"{100 * equal:.3f} %", lsb, f"{seconds:.2f}"]


def measure(name: str, seed: int) -> list[list[str]]:
    """Train a network both ways; its rows."""
    task = TASKS[name]
    keras.utils.set_random_seed(seed)
    x, y, x_test, y_test = task.data()
    model = task.build()
    start = time.perf_counter()
    fit(model, task, x, y, task.rate, task.epochs)
    print(f"{name} trained in {time.perf_counter() - start:.0f} s", flush=True)
    rows = [row(name, "float", model, task, x_test, y_test)]
    q = intact.calibrate(intact.quantize_model(model), x[:200], verbose=0)
    rows.append(row(name, "post-training", q, task, x_test, y_test))
    print(*rows, sep="\n", flush=True)
    start = time.perf_counter()
    fit(q, task, x, y, task.rate / 10, task.tuning)
    rows.append(row(name, f"trained, {task.tuning} epochs", q, task, x_test, y_test))
    print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    return rows


def main(names: list[str]) -> None:
    """Measure, print and write the table."""
    rows = [HEADING]
    for name in names or TASKS:
        found = [measure(name, seed) for seed in range(TASKS[name].seeds)]
        one = len(found) == 1
        rows += found[0] if one else [mean_row(list(k), 5) for k in zip(*found, strict=True)]
        print(*rows[-3:], sep="\n", flush=True)
    if not names:
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/composites.py"
        write_section("composites", (__doc__ or "").split("\n\n")[2], rows, command)


if __name__ == "__main__":
    main(sys.argv[1:])
