"""The demo's data: handwritten digits, or Fashion-MNIST."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from intact.errors import IntactError, InvalidDataError
from intact.names import DatasetName


@dataclass(frozen=True)
class Data:
    """Images of one channel with their classes, and how to train on them.

    Args:
        x_train: Images to train on, float32 from 0 to 1, (samples, height, width, 1).
        y_train: Their classes, whole numbers.
        x_test: Images to score on.
        y_test: Their classes.
        batch_size: Images per training step.
        epochs: Epochs of float training that suffice.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    batch_size: int
    epochs: int


def load_data(dataset: DatasetName = "digits", path: Path | None = None, seed: int = 0) -> Data:
    """Load one of the demo's data sets.

    Args:
        dataset: "digits", which come with scikit-learn, or "fashion_mnist".
        path: A local `.npz` file to use instead of downloading Fashion-MNIST.
        seed: Seed of the split of the digits into train and test images.

    Returns:
        The data.

    Raises:
        IntactError: The data set is unknown, or cannot be loaded here.
        InvalidDataError: The file does not have the expected arrays.
    """
    known = get_args(DatasetName)
    if dataset not in known:
        raise IntactError(f"There is no data set {dataset!r}. Known: {', '.join(known)}.")
    if dataset == "fashion_mnist":
        return _fashion_mnist(path)
    if path is not None:
        raise IntactError(
            "The digits come with scikit-learn and take no file. "
            "Add `--dataset fashion_mnist` to use your `--data`."
        )
    return _digits(seed)


def _digits(seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise IntactError(
            "The digits come with scikit-learn, which is not installed. "
            "Run `pip install 'keras-intact[demo]'`."
        ) from error
    images, classes = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(
        images, classes, test_size=0.2, stratify=classes, random_state=seed
    )
    return Data(x_train, y_train, x_test, y_test, batch_size=32, epochs=15)


def _fashion_mnist(path: Path | None) -> Data:
    if path is not None:
        arrays = _read_npz(path)
    else:
        import keras

        try:
            (x_train, y_train), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
        # Keras raises a bare Exception where a download fails.
        except Exception as error:
            raise IntactError(
                "Fashion-MNIST could not be downloaded. "
                "Pass a local copy with `--data PATH.npz`, or use `--dataset digits`."
            ) from error
        arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    images = {
        name: (arrays[name].reshape(*arrays[name].shape[:3], 1) / 255).astype("float32")
        for name in ("x_train", "x_test")
    }
    classes = {name: arrays[name].ravel().astype("int64") for name in ("y_train", "y_test")}
    return Data(**images, **classes, batch_size=128, epochs=2)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    names = ("x_train", "y_train", "x_test", "y_test")
    if not path.is_file():
        raise InvalidDataError(f"There is no file {str(path)!r}. Pass a `.npz` file as `--data`.")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in names if name in file}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InvalidDataError(f"{str(path)!r} is not a `.npz` file of arrays.") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InvalidDataError(f"{str(path)!r} has no {', '.join(missing)}. It needs all of these.")
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim not in (3, 4) or x.shape[3:] not in ((), (1,)) or not len(x) == y.size > 0:
            raise InvalidDataError(
                f"Expected x_{part} of shape (samples, height, width) and one class for each in "
                f"y_{part}. Received: {x.shape} and {y.shape} in {str(path)!r}."
            )
    return arrays
