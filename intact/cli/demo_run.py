"""The demo's run: a small CNN is trained in float, quantized twice, exported, and run on LiteRT."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
from keras import layers

import intact
from intact.cli.demo_data import Data

CALIBRATION_IMAGES = 100


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
        output: Folder for the three files.
        epochs: Epochs of float training, a third as many with quantization; None
            takes what the data set needs.
        seed: Seed of weights and shuffling.
        verbose: As for `fit`: 0 is silent.
        say: Called with a line of text at each stage.

    Returns:
        The results of the float, post-training and trained models.
    """
    keras.utils.set_random_seed(seed)
    epochs = epochs or data.epochs

    say("Training in float")
    model = small_cnn(data.x_train.shape[1:], int(data.y_train.max()) + 1)
    _fit(model, data, epochs, 2e-3, verbose)
    results = [_measure("float", model, data, output / "float.tflite")]

    say(f"Quantizing after training, with {CALIBRATION_IMAGES} images")
    q = intact.quantize_model(model)
    intact.calibrate(q, data.x_train[:CALIBRATION_IMAGES], verbose=int(verbose == 1))
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
    content = intact.export(model, path)
    ours = model.predict(data.x_test, batch_size=256, verbose=0)
    theirs = intact.load_litert(path).predict(data.x_test, batch_size=256)
    return Result(
        model=name,
        keras_accuracy=float((ours.argmax(1) == data.y_test).mean()),
        litert_accuracy=float((theirs.argmax(1) == data.y_test).mean()),
        outputs=ours.size,
        different=int((ours != theirs).sum()),
        bytes=len(content),
        microseconds=1e6 * intact.benchmark(content).best,
        file=str(path),
    )
