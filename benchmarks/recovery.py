"""Whether `recover` is ever worse than `calibrate` on samples that it did not see.

    python benchmarks/recovery.py                     all of it, about an hour on two cores
    python benchmarks/recovery.py ds_cnn resnet_20    some of the models; docs stay as they are

The errors are those of the files' outputs, before a softmax, as LiteRT computes them. Writes to
`docs/results.md`.
"""

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import cifar10, imagenet, pretrained, scaled_keywords
from keras import layers
from real_models import ds_cnn, train_keywords
from results import write_section

import intact
from intact.calibration.walk import relative_error
from intact.recovery.recover import try_steps

SEEDS = 3
SAMPLES = 100
HEADING = ["model", "scheme", "seed", "calibrate", "recover", "change", "kept", "rejected", "s"]

Task = tuple[keras.Model, np.ndarray, np.ndarray]
"""A float model, samples to calibrate from, and samples that judge."""


def resnet_20() -> Task:
    x, _, x_test, _ = cifar10()
    return pretrained("resnet20_cifar10"), x, x_test[:2000]


def mobilenet(width: str) -> Task:
    x, _ = imagenet()
    model = pretrained(f"mobilenet_v1_{width}_224")
    return keras.Model(model.inputs, model.layers[-2].output), x, x


def autoencoder() -> Task:
    """Dense layers around a narrow one, on the 490 features of a keyword."""
    x, _, x_test, _ = scaled_keywords()
    x, x_test = (part.reshape(len(part), -1) for part in (x, x_test))
    keras.utils.set_random_seed(0)
    widths = (128, 128, 8, 128, 128)
    hidden = [layers.Dense(width, activation="relu") for width in widths]
    model = keras.Sequential([keras.Input(x.shape[1:]), *hidden, layers.Dense(x.shape[1])])
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(x, x, 64, epochs=20, verbose=0)
    return model, x, x_test


def keyword_cnn() -> Task:
    """The DS-CNN of `real_models.py`, trained for 8 epochs."""
    x, y, x_test, _ = scaled_keywords()
    keras.utils.set_random_seed(0)
    model = ds_cnn(12)
    train_keywords(model, x, y, 2e-3, 8, seed=0)
    return model, x, x_test


TASKS: dict[str, tuple[Callable[[], Task], tuple[str, ...]]] = {
    "resnet_20": (resnet_20, ("int8", "int4")),
    "mobilenet_25": (lambda: mobilenet("0.25"), ("int8", "weight_only_8")),
    "mobilenet_75": (lambda: mobilenet("0.75"), ("int8", "weight_only_8")),
    "autoencoder": (autoencoder, ("int8", "int4")),
    "ds_cnn": (keyword_cnn, ("int8", "int4")),
}


def error(q: keras.Model, expected: np.ndarray, x: np.ndarray) -> float:
    """The mean squared error of the file's outputs, in units of their variance."""
    return relative_error(expected, intact.load_litert(intact.export(q)).predict(x, 50))


def measure(name: str) -> list[list[str]]:
    """The rows of a model."""
    make, schemes = TASKS[name]
    model, x, x_test = make()
    rows = []
    for scheme in schemes:
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(len(x))
            samples = x[order[:SAMPLES]]
            unseen = x[order[SAMPLES:]] if x_test is x else x_test
            expected = intact.load_litert(intact.export(model)).predict(unseen, 50)
            q = intact.quantize_model(model, scheme)
            intact.calibrate(q, samples, bias_correction=True, verbose=0)
            plain = error(q, expected, unseen)
            q = intact.quantize_model(model, scheme)
            start = time.perf_counter()
            trials = try_steps(q, samples, seed=seed)
            seconds = time.perf_counter() - start
            recovered = error(q, expected, unseen)
            sides = [[t.name for t in trials if t.kept is kept] for kept in (True, False)]
            texts = [", ".join(side) or "nothing" for side in sides]
            change = f"{100 * (recovered / plain - 1):+.1f} %"
            figures = [f"{plain:.3g}", f"{recovered:.3g}", change]
            rows.append([name, scheme, str(seed), *figures, *texts, f"{seconds:.0f}"])
            print(rows[-1], flush=True)
    return rows


def main(names: list[str]) -> None:
    """Five models, three seeds each, of the choice of 100 samples and of `recover`.

    The errors are on samples that neither saw, in units of the outputs' variance, as LiteRT
    computes them. `calibrate` corrects biases, for weights alone too. How sure a gain has to be
    was chosen on other models.
    """
    rows = [HEADING]
    for name in names or TASKS:
        rows += measure(name)
    if not names:
        command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/recovery.py"
        write_section("recovery", main.__doc__ or "", rows, command)


if __name__ == "__main__":
    main(sys.argv[1:])
