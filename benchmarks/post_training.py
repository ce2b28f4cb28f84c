"""Every way to quantize after training, on real models: accuracy, size and time.

    python benchmarks/post_training.py                 all of it, about half an hour on two cores
    python benchmarks/post_training.py post_training_25

All scores are of the files, as LiteRT runs them. Writes to `docs/results.md`, by section.
"""

import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import cifar10, imagenet, pretrained
from real_models import percent
from results import write_section

import intact
from intact.calibration.biases import take_back_corrections

WITHOUT_DATA = ["model", "scheme", "float", "points lost", "top-1 as float"]
WITHOUT_DATA += ["points lost, corrected", "top-1 as float, corrected"]
HEADING = ["scheme", "accuracy", "points lost", "top-1 as float", "of float's bytes", "seconds"]
OPTIONS = (
    "float16",
    "float16+recover",
    "weight_only_8",
    "weight_only_8+recover",
    "dynamic_range",
    "dynamic_range+recover",
    "int16x8",
    "int8",
    "int8+recover",
)


def measure(
    name: str,
    samples: dict[str, np.ndarray],
    x_test: np.ndarray,
    y_test: np.ndarray,
    options: tuple[str, ...],
) -> list[list[str]]:
    """A row for the float file, and one for each option.

    Args:
        name: Of the pretrained model.
        samples: Calibration data by option; "" for all others.
        x_test: Inputs that are scored.
        y_test: Their labels.
        options: Presets, with "+recover" behind some.
    """
    model = pretrained(name)
    real = intact.export(model)
    expected = outputs(real, x_test)
    score = np.mean(expected == y_test)
    rows = [["float32", percent(score), "", "", "", ""]]
    for option in options:
        scheme, _, recovering = option.partition("+")
        x = samples.get(option, samples[""])
        start = time.perf_counter()
        q = intact.quantize_model(model, scheme)
        if recovering:
            intact.recover(q, x, verbose=0)
        else:
            intact.calibrate(q, x, verbose=0)
        file = intact.export(q)
        seconds = time.perf_counter() - start
        found = outputs(file, x_test)
        lost = f"{100 * (score - np.mean(found == y_test)):.2f}"
        same, share = percent(np.mean(found == expected)), f"{len(file) / len(real):.3f}"
        rows.append(
            [option, percent(np.mean(found == y_test)), lost, same, share, f"{seconds:.0f}"]
        )
        print(rows[-1], flush=True)
    return rows


def outputs(file: bytes, x: np.ndarray) -> np.ndarray:
    """The classes that a file says."""
    return intact.load_litert(file, threads=2).predict(x, batch_size=50).argmax(1)


def mobilenet(width: str, options: tuple[str, ...]) -> list[list[str]]:
    x, y = imagenet()
    return measure(f"mobilenet_v1_{width}_224", {"": x[:100]}, x[100:], y[100:], options)


def post_training_25(options: tuple[str, ...] = OPTIONS) -> list[list[str]]:
    """MobileNetV1 0.25 on the 600 images: calibrated on 100 of them, scored on the other 500."""
    return mobilenet("0.25", options)


def post_training_75(options: tuple[str, ...] = OPTIONS) -> list[list[str]]:
    """MobileNetV1 0.75 on the 600 images: calibrated on 100 of them, scored on the other 500."""
    return mobilenet("0.75", options)


def post_training_resnet(
    options: tuple[str, ...] = (*OPTIONS, "weight_only_4", "weight_only_4+recover"),
) -> list[list[str]]:
    """ResNet-20 on CIFAR-10's test images: calibrated on 100 training images, 4 bits on 500."""
    x, _, x_test, y_test = cifar10()
    samples = {"": x[:100], "weight_only_4+recover": x[:500]}
    return measure("resnet20_cifar10", samples, x_test, y_test, options)


def without_data(options: tuple[str, ...] = ("weight_only_8", "dynamic_range")) -> list[list[str]]:
    """Schemes without calibration on all 600 images, which chose nothing, with and without the
    bias correction that reads the batch norms.
    """
    x, y = imagenet()
    rows = []
    for name in ("mobilenet_v1_0.25_224", "mobilenet_v1_0.75_224"):
        model = pretrained(name)
        expected = outputs(intact.export(model), x)
        for scheme in options:
            q = intact.quantize_model(model, scheme)
            corrected = outputs(intact.export(q), x)
            take_back_corrections(q)
            row = [name, scheme, percent(np.mean(expected == y))]
            for says in (outputs(intact.export(q), x), corrected):
                lost = np.mean(expected == y) - np.mean(says == y)
                row += [f"{100 * lost:.2f}", percent(np.mean(says == expected))]
            rows.append(row)
    return rows


SECTIONS = {
    "post_training_25": post_training_25,
    "post_training_75": post_training_75,
    "post_training_resnet": post_training_resnet,
    "without_data": without_data,
}


if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if name in SECTIONS]
    extra = tuple(name for name in sys.argv[1:] if name not in SECTIONS)
    for section in chosen or SECTIONS:
        heading = WITHOUT_DATA if section == "without_data" else HEADING
        made = [heading, *(SECTIONS[section](extra) if extra else SECTIONS[section]())]
        print(*made, sep="\n", flush=True)
        if not extra:
            command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/post_training.py"
            text = SECTIONS[section].__doc__ or ""
            write_section(section, text, made, f"{command} {section}")
