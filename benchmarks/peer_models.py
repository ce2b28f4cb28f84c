"""The models that `peers.py` measures, and their data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
from applications import FAMILIES, random_model
from data import cifar10, imagenet, pretrained
from keras import layers
from transformer_models import bert, random_texts, vit

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Args:
        model: The float model.
        samples: What calibrates it.
        test: What scores it; the models learned nothing from it.
        labels: Classes of `test`; None for random weights.
    """

    model: keras.Model
    samples: Arrays | np.ndarray
    test: Arrays | np.ndarray
    labels: np.ndarray | None = None


def resnet20() -> Subject:
    """The pretrained model and images of CIFAR-10."""
    x, _, x_test, y_test = cifar10()
    return Subject(pretrained("resnet20_cifar10"), x[:100], x_test[:2000], y_test[:2000])


def mobilenet(width: str) -> Subject:
    """A pretrained MobileNetV1 and images of ImageNet."""
    x, y = imagenet()
    return Subject(pretrained(f"mobilenet_v1_{width}_224"), x[:100], x[100:], y[100:])


def family(name: str) -> Subject:
    """A family of `keras.applications` with random weights."""
    model, x = random_model(name)
    return Subject(model, x[:4], x[4:])


def images100() -> Subject:
    """MobileNetV2 with random weights and as many images as most users calibrate on."""
    x = np.random.default_rng(0).uniform(-1, 1, (108, 224, 224, 3))
    return Subject(keras.applications.MobileNetV2(weights=None), x[:100], x[100:])


def texts() -> Subject:
    """A BERT with random weights and tokens."""
    x = random_texts(48)
    calibration, test = ({k: v[part] for k, v in x.items()} for part in (slice(24), slice(24, 48)))
    return Subject(bert(4), calibration, test)


def noise(model: keras.Model) -> Subject:
    """A model and random inputs."""
    x = np.random.default_rng(0).normal(size=(48, *model.input_shape[1:]))
    return Subject(model, x[:24], x[24:])


def recurrent(layer: type[layers.Layer]) -> Subject:
    """64 units on 100 frames of 40 features."""
    frames = keras.Input((100, 40), name="frames")
    return noise(keras.Model(frames, layers.Dense(12)(layer(64)(frames))))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "resnet20": resnet20,
    "mobilenet_0.25": partial(mobilenet, "0.25"),
    "mobilenet_0.75": partial(mobilenet, "0.75"),
    "bert": texts,
    "vit": lambda: noise(vit(10)),
    "lstm": partial(recurrent, layers.LSTM),
    "gru": partial(recurrent, layers.GRU),
    **{name: partial(family, name) for name in FAMILIES},
    "MobileNetV2_100": images100,
}
PRETRAINED = ("resnet20", "mobilenet_0.25", "mobilenet_0.75")
"""These are scored, and TFMOT takes them."""


def named(model: keras.Model, x: Arrays | np.ndarray) -> Arrays:
    """Arrays by the names of the model's inputs."""
    arrays = x if isinstance(x, dict) else {model.inputs[0].name: x}
    return {
        name: array.astype("float32") if array.dtype == "float64" else array
        for name, array in arrays.items()
    }


def write_folder(name: str, folder: Path) -> None:
    """Write what all scripts read of a model: itself, its data, and its outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    subject = SUBJECTS[name]()
    model = subject.model
    model.save(folder / "model.keras")
    np.savez(folder / "weights.npz", *model.get_weights())
    np.savez(folder / "samples.npz", **named(model, subject.samples))
    np.savez(folder / "test.npz", **named(model, subject.test))
    if subject.labels is not None:
        np.save(folder / "labels.npy", subject.labels)
        rng = np.random.default_rng(0)
        count = 64 if name == "resnet20" else 16
        x = rng.normal(size=(count, *model.input_shape[1:])).astype("float32")
        np.savez(folder / "batch.npz", x, rng.integers(0, 10, count))
    expected = flat(model.predict(subject.test, batch_size=25, verbose=0))
    np.save(folder / "expected.npy", expected)


def flat(outputs: object) -> np.ndarray:
    """The single output of a model or a file, samples first."""
    (array,) = keras.tree.flatten(outputs)
    return np.asarray(array, "float64").reshape(len(array), -1)
