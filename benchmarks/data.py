"""The real data and models of the benchmarks; they lie beside the project, not in it."""

import io
import zipfile
from pathlib import Path

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
    """The same with features of mean 0 and deviation 1 in training."""
    x, y, x_test, y_test = keywords()
    mean, std = x.mean(), x.std()
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def pretrained(name: str) -> keras.Model:
    """A pretrained model by its file's name."""
    return keras.saving.load_model(DATA / "models" / f"{name}.keras", compile=False)


def fashion_mnist() -> tuple[np.ndarray, ...]:
    """Fashion-MNIST: `x_train, y_train, x_test, y_test`, images as 0 to 255."""
    file = np.load(DATA / "fashion_mnist.npz")
    x_train, x_test = (file[f"x_{part}"].astype("float32") for part in ("train", "test"))
    y_train, y_test = (file[f"y_{part}"].astype("int32") for part in ("train", "test"))
    return x_train, y_train, x_test, y_test
