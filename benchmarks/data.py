"""The real data and models of the benchmarks; they lie beside the project, not in it."""

import contextlib
import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

CIFAR_MEAN = np.array([0.485, 0.456, 0.406], "float32")
CIFAR_STD = np.array([0.229, 0.224, 0.225], "float32")
CIFAR_BLACK = -CIFAR_MEAN / CIFAR_STD


def cifar10() -> tuple[np.ndarray, ...]:
    """CIFAR-10 as ResNet-20 takes it: `x_train, y_train, x_test, y_test`."""
    file = np.load(DATA / "cifar10.npz")

    def scaled(x: np.ndarray) -> np.ndarray:
        return ((x.astype("float32") / 255 - CIFAR_MEAN) / CIFAR_STD).astype("float32")

    labels = (file[f"y_{part}"].reshape(-1).astype("int32") for part in ("train", "test"))
    y_train, y_test = labels
    return scaled(file["x_train"]), y_train, scaled(file["x_test"]), y_test


def imagenet() -> tuple[np.ndarray, np.ndarray]:
    """The 600 images as MobileNet takes them, in an order of no meaning."""
    from PIL import Image

    with zipfile.ZipFile(DATA / "imagenet_600.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    x = np.stack(images).astype("float32") / 127.5 - 1
    y = np.array([int(Path(n).stem.split("_")[0]) for n in names])
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


def keywords() -> tuple[np.ndarray, ...]:
    """Keyword MFCCs, split by speaker: a fifth of the speakers are for testing."""
    file = np.load(DATA / "kws_mfcc.npz")
    x, y, speaker = file["mfcc"].astype("float32"), file["label"].astype("int32"), file["speaker"]
    names = np.unique(speaker)
    chosen = np.random.default_rng(0).permutation(names)[: len(names) // 5]
    test = np.isin(speaker, chosen)
    return x[~test], y[~test], x[test], y[test]


def scaled_keywords() -> tuple[np.ndarray, ...]:
    """The same, each of the 10 features with mean 0 and deviation 1 in training.

    One range is for them all: without that the small ones would be a few integers.
    """
    x, y, x_test, y_test = keywords()
    mean, std = x.mean((0, 1)), x.std((0, 1))
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def pretrained(name: str) -> keras.Model:
    """A pretrained model by its file's name."""
    return keras.saving.load_model(DATA / "models" / f"{name}.keras", compile=False)


def saved(path: str) -> keras.Model:
    """A model from a file, also one of KerasHub's layers or our own.

    Keras imports TensorFlow, where there is one, when it first asks a layer for its settings. That
    happens here, so that it is not part of what is timed later.
    """
    for package in ("tensorflow", "transformer_models"):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    return keras.saving.load_model(path, compile=False)


def positional(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray] | np.ndarray:
    """The array of a single input without its name, which tools change."""
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def fashion_mnist() -> tuple[np.ndarray, ...]:
    """Fashion-MNIST: `x_train, y_train, x_test, y_test`, images as 0 to 255."""
    file = np.load(DATA / "fashion_mnist.npz")
    x_train, x_test = (file[f"x_{part}"].astype("float32") for part in ("train", "test"))
    y_train, y_test = (file[f"y_{part}"].astype("int32") for part in ("train", "test"))
    return x_train, y_train, x_test, y_test


def augmented(
    x: np.ndarray,
    rng: np.random.Generator,
    margin: tuple[int, int] = (4, 4),
    fill: np.ndarray | None = None,
    mirror: bool = True,
) -> np.ndarray:
    """Images at random: mirrored or not, and moved by as much as a margin each way.

    Args:
        x: Images or spectrograms, `(n, height, width, channels)`.
        rng: What decides.
        margin: How far up or down, and to the left or right, in pixels.
        fill: The pixel that comes in from outside; None repeats the edge.
        mirror: Whether half of them are mirrored.
    """
    if mirror:
        x = np.where(rng.random((len(x), 1, 1, 1)) < 0.5, x[:, :, ::-1], x)
    (up, left), (height, width) = margin, x.shape[1:3]
    padded = np.pad(x, ((0, 0), (up, up), (left, left), (0, 0)), mode="edge")
    if fill is not None:
        padded = np.broadcast_to(fill, padded.shape).copy()
        padded[:, up : up + height, left : left + width] = x
    corners = rng.integers(0, [2 * up + 1, 2 * left + 1], size=(len(x), 2))
    moved = [p[i : i + height, j : j + width] for p, (i, j) in zip(padded, corners, strict=True)]
    return np.stack(moved)


class Augmented(keras.utils.PyDataset):
    """Batches of `augmented` samples, in another order and drawn anew in each epoch.

    Args:
        x: As for `augmented`.
        y: Labels, or None for batches without.
        batch: Samples in each; what is left over waits for another epoch.
        seed: Of order and augmentation.
        how: Passed on to `augmented`.
    """

    def __init__(
        self, x: np.ndarray, y: np.ndarray | None = None, batch: int = 64, seed: int = 0, **how: Any
    ) -> None:
        super().__init__()
        self.x, self.y, self.batch, self.how = x, y, batch, how
        self.rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.x) // self.batch

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[index * self.batch : (index + 1) * self.batch]
        x = augmented(self.x[chosen], self.rng, **self.how)
        return x if self.y is None else (x, self.y[chosen])

    def on_epoch_end(self) -> None:
        self.order = self.rng.permutation(len(self.x))
