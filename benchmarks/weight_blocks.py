"""Weights of 4 bits with a scale per channel, and in blocks: accuracy, size and time.

    python benchmarks/weight_blocks.py

Writes to `docs/results.md`.
"""

import os
import time

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import fashion_mnist
from keras import layers
from results import write_section

import intact
from intact import Rule, Scheme, TensorSpec

WEIGHTS = {
    "8 bits": TensorSpec(8, symmetric=True, per_axis=True),
    "4 bits": TensorSpec(4, symmetric=True, per_axis=True),
    "blocks of 128": TensorSpec(4, symmetric=True, block=128),
    "blocks of 32": TensorSpec(4, symmetric=True, block=32),
}
ACTIVATIONS = {"alone": None, "dynamic": TensorSpec(dynamic=True)}
HEADING = ["model", "weights", "", "accuracy", "top-1 as float", "SNR dB", "bytes", "time"]


def trained(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """A network of dense layers, after three epochs."""
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(size, activation="relu") for size in (512, 256)]
    model = keras.Sequential([keras.Input((1024,)), *hidden, layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=3, batch_size=256, verbose=0)
    return model


def with_outliers(model: keras.Model) -> keras.Model:
    """The same function, with eight rows of the second matrix 20 times as large."""
    changed = keras.models.clone_model(model)
    first, second, *others = ([*layer.get_weights()] for layer in model.layers)
    rows = np.random.default_rng(0).choice(512, 8, replace=False)
    first[0][:, rows] /= 20
    first[1][rows] /= 20
    second[0][rows] *= 20
    for layer, weights in zip(changed.layers, (first, second, *others), strict=True):
        layer.set_weights(weights)
    return changed


def ratios(files: list[bytes], x: np.ndarray) -> list[float]:
    """Processor times of one sample, in turns, as shares of the last file's."""
    models = [intact.load_litert(file) for file in files]
    times = []
    for _ in range(31):
        taken = []
        for model in models:
            start = time.process_time()
            for _ in range(5):
                model.predict(x)
            taken.append(time.process_time() - start)
        times.append(taken)
    rounds = np.array(times)[1:]
    return list(np.median(rounds / rounds[:, -1:], axis=0))


def measure(name: str, model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[list[str]]:
    """A row for each kind of weights, alone and with ranges at run time."""
    expected = model.predict(x, verbose=0)
    rows, files = [], []
    for kind, activations in ACTIVATIONS.items():
        for weights, spec in WEIGHTS.items():
            rule = Rule(weights=spec, activations=activations)
            file = intact.export(intact.quantize_model(model, Scheme(weights, (rule,))))
            outputs = intact.load_litert(file).predict(x)
            noise = np.square(outputs - expected).mean()
            shares = [np.mean(outputs.argmax(1) == labels) for labels in (y, expected.argmax(1))]
            snr = 10 * np.log10(np.square(expected).mean() / noise)
            accuracy = [f"{100 * share:.2f} %" for share in shares]
            rows.append([name, weights, kind, *accuracy, f"{snr:.1f}", str(len(file))])
            files.append(file)
    float_ratios = ratios([*files, intact.export(model)], x[:1])
    return [[*row, f"{ratio:.2f}"] for row, ratio in zip(rows, float_ratios, strict=False)]


def main() -> None:
    """Fashion-MNIST, in 32 x 32: three dense layers, after training. The second model computes the
    same function with a few large weights in each channel. Time is that of one sample on one
    thread, as a share of the float file's."""
    x_train, y_train, x_test, y_test = fashion_mnist()
    x_train, x_test = (
        np.pad(x / 255, ((0, 0), (2, 2), (2, 2))).reshape(len(x), -1) for x in (x_train, x_test)
    )
    model = trained(x_train, y_train)
    rows = [HEADING, *measure("plain", model, x_test, y_test)]
    rows += measure("outliers", with_outliers(model), x_test, y_test)
    write_section("weight_blocks", main.__doc__ or "", rows, "python benchmarks/weight_blocks.py")


if __name__ == "__main__":
    main()
