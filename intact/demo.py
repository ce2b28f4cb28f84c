"""The demo: a small CNN trained in float, quantized both ways, exported, run on LiteRT."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from intact.api import export, quantize_model
from intact.calibration.calibration import calibrate
from intact.errors import ExportError, IntactError, InvalidDataError
from intact.litert.runtime import load_litert
from intact.litert.timing import benchmark

DATASETS = ("digits", "fashion_mnist")
CALIBRATION_IMAGES = 100


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


@dataclass(frozen=True)
class Result:
    """One row of the demo's table.

    Args:
        model: "float", "post-training" or "trained".
        keras_accuracy: Share of the test images that are right in Keras.
        litert_accuracy: The same for the file on LiteRT.
        outputs: How many output values were compared.
        different: How many of them are not the same number in Keras and on LiteRT.
        bytes: Size of the file.
        microseconds: Time for one image on LiteRT, one thread.
        file: Where the file is.
    """

    model: str
    keras_accuracy: float
    litert_accuracy: float
    outputs: int
    different: int
    bytes: int
    microseconds: float
    file: str


def load_data(dataset: str = "digits", path: Path | None = None, seed: int = 0) -> Data:
    """Load one of the demo's data sets.

    Args:
        dataset: "digits", which scikit-learn brings along, or "fashion_mnist".
        path: A local `.npz` file to use instead of downloading Fashion-MNIST.
        seed: Seed of the split of the digits into train and test images.

    Returns:
        The data.

    Raises:
        IntactError: An unknown data set, or one that cannot be had here.
        InvalidDataError: The file is not what was expected.
    """
    if dataset not in DATASETS:
        raise IntactError(f"There is no data set {dataset!r}. Known: {', '.join(DATASETS)}.")
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
            "Run `pip install intact[demo]`."
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


def small_cnn(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """The demo's model: convolutions, a depthwise-separable block, a dense head.

    Args:
        input_shape: Shape of one image.
        classes: Number of classes.

    Returns:
        A model that is not trained; it returns logits.

    Example:

    >>> small_cnn((8, 8, 1), 10).output_shape
    (None, 10)
    """

    def normalize(x: keras.KerasTensor) -> keras.KerasTensor:
        # The statistics must settle within a few epochs of few steps.
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    image = keras.Input(input_shape, name="image")
    # Large images shrink at once: depthwise training is slow on a CPU.
    strides = 2 if input_shape[0] > 16 else 1
    x = normalize(layers.Conv2D(16, 3, strides, padding="same", use_bias=False)(image))
    x = normalize(layers.Conv2D(32, 3, padding="same", use_bias=False)(x))
    x = layers.MaxPooling2D()(x)
    x = normalize(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = normalize(layers.Conv2D(64, 1, use_bias=False)(x))
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="small_cnn")


def run_demo(
    data: Data,
    output: Path,
    epochs: int | None = None,
    seed: int = 0,
    verbose: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Train, quantize, export and measure.

    Args:
        data: What `load_data` returned.
        output: Folder for the three files; it is made if it is not there.
        epochs: Epochs of float training, a third as many with quantization; None
            takes what the data set needs.
        seed: Seed of weights and shuffling.
        verbose: As for `fit`: 0 is silent.
        say: Called with a line of text at each stage.

    Returns:
        The results of the float, post-training and trained models.

    Raises:
        ExportError: The folder cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot make the folder {str(output)!r}: {error.strerror}.") from error
    keras.utils.set_random_seed(seed)
    epochs = epochs or data.epochs

    say("Training in float")
    model = small_cnn(data.x_train.shape[1:], int(data.y_train.max()) + 1)
    _fit(model, data, epochs, 2e-3, verbose)
    results = [_measure("float", model, data, output / "float.tflite")]

    say(f"Quantizing after training, with {CALIBRATION_IMAGES} images")
    q = quantize_model(model)
    calibrate(q, data.x_train[:CALIBRATION_IMAGES], verbose=int(verbose == 1))
    results.append(_measure("post-training", q, data, output / "post_training.tflite"))

    say("Training with quantization")
    _fit(q, data, -(-epochs // 3), 2e-4, verbose)
    results.append(_measure("trained", q, data, output / "trained.tflite"))
    return results


def _fit(model: keras.Model, data: Data, epochs: int, rate: float, verbose: int) -> None:
    steps = epochs * -(-len(data.x_train) // data.batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        data.x_train, data.y_train, batch_size=data.batch_size, epochs=epochs, verbose=verbose
    )


def _measure(name: str, model: keras.Model, data: Data, path: Path) -> Result:
    content = export(model, path)
    ours = model.predict(data.x_test, batch_size=256, verbose=0)
    theirs = load_litert(path).predict(data.x_test, batch_size=256)
    return Result(
        model=name,
        keras_accuracy=float((ours.argmax(1) == data.y_test).mean()),
        litert_accuracy=float((theirs.argmax(1) == data.y_test).mean()),
        outputs=ours.size,
        different=int((ours != theirs).sum()),
        bytes=len(content),
        microseconds=1e6 * benchmark(content).best,
        file=str(path),
    )
