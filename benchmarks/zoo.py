"""The model zoo: every real model that was measured, as one table.

    python benchmarks/zoo.py                  measures the models that need no training
    python benchmarks/zoo.py resnet_20        some of them

A row is a model in a scheme: accuracy, size and latency of the file on LiteRT, the share of output
values that equal Keras', with version and processor. Rows of trained models come from the records
that other scripts have written. `docs/results.md` begins with the table.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from results import Record, marked, processor, read, save, table, unbroken, version, write_page

SCHEMES = ("int8", "int16x8", "dynamic_range", "weight_only_8", "float16")
HEADING = [
    "model",
    "scheme",
    "accuracy",
    "float",
    "bytes",
    "of float's",
    "latency, ms",
    "of float's",
    "equal to Keras",
]


@dataclass(frozen=True)
class Source:
    """Where a model and its data are from.

    Args:
        title: The model's name.
        model: Where its weights are from.
        data: What it is scored on.
    """

    title: str
    model: str
    data: str


OURS = "trained by the script"
IMAGENET = "600 images of ImageNet, 100 of them for calibration"
SOURCES = {
    "resnet_20": Source(
        "ResNet-20", "pretrained on CIFAR-10", "CIFAR-10, 2,000 of the test images"
    ),
    "mobilenet_25": Source("MobileNetV1 0.25", "pretrained on ImageNet", IMAGENET),
    "mobilenet_75": Source("MobileNetV1 0.75", "pretrained on ImageNet", IMAGENET),
    "small_cnn": Source("Small CNN", OURS, "digits of scikit-learn, 360 test images"),
    "kws": Source("DS-CNN", OURS, "Speech Commands, 12 classes, 900 samples of other speakers"),
    "vit": Source("ViT 3 x 64", OURS, "Fashion-MNIST, 10,000 test images"),
}


# Measured here -------------------------------------------------------------------------


def resnet_20() -> tuple[Any, Any, Any, Any]:
    """The model, samples to calibrate on, and test data."""
    from data import cifar10, pretrained

    x, _, x_test, y_test = cifar10()
    return pretrained("resnet20_cifar10"), x[:100], x_test[:2000], y_test[:2000]


def mobilenet(width: str) -> tuple[Any, Any, Any, Any]:
    """The same of a MobileNetV1."""
    from data import imagenet, pretrained

    x, y = imagenet()
    return pretrained(f"mobilenet_v1_{width}_224"), x[:100], x, y


def small_cnn() -> tuple[Any, Any, Any, Any]:
    """The same of the model of `intact demo`."""
    import keras

    from intact.cli.demo_data import load_data
    from intact.cli.demo_run import _fit, small_cnn

    keras.utils.set_random_seed(0)
    data = load_data("digits", None, 0)
    model = small_cnn(data.x_train.shape[1:], 10)
    _fit(model, data, data.epochs, 2e-3, 0)
    return model, data.x_train[:100], data.x_test, data.y_test


MODELS: dict[str, Callable[[], tuple[Any, Any, Any, Any]]] = {
    "small_cnn": small_cnn,
    "resnet_20": resnet_20,
    "mobilenet_25": lambda: mobilenet("0.25"),
    "mobilenet_75": lambda: mobilenet("0.75"),
}


def measure(name: str) -> list[list[str]]:
    """The rows of a model: its float file, and one for each scheme."""
    import intact

    model, samples, x_test, y_test = MODELS[name]()
    files = {"float": intact.export(model)}
    quantized = {}
    for scheme in SCHEMES:
        q = intact.quantize_model(model, scheme)
        intact.calibrate(q, samples, verbose=0)
        files[scheme], quantized[scheme] = intact.export(q), q
    times = best_times(list(files.values()), x_test[:1])
    rows = []
    for (scheme, file), seconds in zip(files.items(), times, strict=True):
        outputs = intact.load_litert(file).predict(x_test, batch_size=50)
        score = f"{100 * (outputs.argmax(1) == y_test).mean():.2f} %"
        real = rows[0] if rows else ["", "", score, "", str(len(file)), "", str(1000 * seconds)]
        same = ""
        if scheme in quantized:
            in_keras = quantized[scheme].predict(x_test[:100], batch_size=50, verbose=0)
            same = f"{100 * (in_keras == outputs[:100]).mean():.4g} %"
        rows.append(
            [
                SOURCES[name].title,
                scheme,
                score,
                real[2],
                f"{len(file):,}",
                f"{len(file) / int(real[4].replace(',', '')):.3f}",
                f"{1000 * seconds:.3g}",
                f"{1000 * seconds / float(real[6]):.2f}",
                same,
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def best_times(files: list[bytes], x: Any, rounds: int = 30) -> list[float]:
    """Seconds of one run of each file, one thread: the best of runs that are taken in turns."""
    from real_models import latency

    return [float(t) for t in latency(files, x, rounds).min(0)]


def record_rows(name: str, rows: list[list[str]]) -> None:
    """Put the rows of a model in place of those that the zoo has."""
    before = read("zoo")
    title = SOURCES[name].title
    kept = []
    if before is not None:
        triples = zip(before.rows[1:], before.versions, before.processors, strict=True)
        kept = [triple for triple in triples if triple[0][0] != title]
    now = version(), processor()
    triples = [*kept, *((row, *now) for row in rows)]
    order = [SOURCES[model].title for model in MODELS]
    triples.sort(key=lambda triple: order.index(triple[0][0]))
    rows, versions, processors = (list(part) for part in zip(*triples, strict=True))
    save(Record("zoo", "", [HEADING, *rows], versions, processors, ["make zoo"], place=0))


# From other scripts' records -----------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """How rows of another script's record become rows of the zoo.

    Args:
        source: A key of `SOURCES`, or a source.
        model: The column of the model; None where the record has one alone.
        scheme: The column of what was done.
        accuracy: The column of the accuracy.
        equal: The column of the share of equal values; None where it was not measured.
        share: The column of the size, as a share of float's.
    """

    source: str | Source
    model: int | None = None
    scheme: int = 1
    accuracy: int = 2
    equal: int | None = 5
    share: int | None = None


OTHERS = {
    "post_training_resnet": Rows("resnet_20", None, 0, 1, None, 4),
    "resnet": Rows("resnet_20"),
    "low_bits": Rows("resnet_20", None, 0, 2, 5, 6),
    "post_training_25": Rows("mobilenet_25", None, 0, 1, None, 4),
    "mobilenet_25": Rows("mobilenet_25"),
    "post_training_75": Rows("mobilenet_75", None, 0, 1, None, 4),
    "kws": Rows("kws"),
    "kws_delay": Rows("kws"),
    "trained_vit": Rows("vit", equal=5),
    "composites": Rows(Source("", OURS, "see the section"), 0, 1, 2, 4),
}


def rows_of(name: str, how: Rows) -> list[list[str]]:
    """The rows of another script's record, as rows of the zoo, with version and command."""
    record = read(name)
    if record is None:
        return []
    rows, real = [], ""
    for row, made in zip(record.rows[1:], marked(record.versions), strict=True):
        scheme, accuracy = row[how.scheme], row[how.accuracy]
        if scheme.startswith("float") and scheme[5:8] != "16":
            real = accuracy
            continue
        title = row[how.model] if how.model is not None else _title(how)
        rows.append(
            [
                title,
                scheme,
                accuracy,
                real,
                row[how.share] if how.share is not None else "",
                row[how.equal] if how.equal is not None else "",
                unbroken(made),
                f"[{name}](#{name})",
            ]
        )
    return rows


def _title(how: Rows) -> str:
    return SOURCES[how.source].title if isinstance(how.source, str) else how.source.title


def zoo_section() -> str:
    """The first section of the results page."""
    record = read("zoo")
    parts = ["## zoo", "Where the models are from, and what they are scored on:"]
    where = [["model", "weights", "scored on"]]
    parts.append(table(where + [[s.title, s.model, s.data] for s in SOURCES.values()]))
    if record is not None:
        rows = [list(row) for row in record.rows]
        for row, made in zip(rows, ["made by", *marked(record.versions)], strict=True):
            row.append(unbroken(made))
        on = ", ".join(sorted(set(record.processors)))
        parts += [
            "After training, calibrated on 100 samples. Latency is that of one sample on one "
            "thread, the best of runs taken in turns with those of the other files, on a machine "
            "that others used, too. Equal values are counted on 100 samples.",
            table(rows),
            f"Measured on {on}. `make zoo`",
        ]
    others = [row for name, how in OTHERS.items() for row in rows_of(name, how)]
    heading = [*HEADING[:4], "bytes, of float's", "equal to Keras", "made by", "section"]
    parts += [
        "Rows of longer runs, from the records of other scripts: trained, with few bits, with "
        "`recover`. Each section below has the command, the version and the processor.",
        table([heading, *others]),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODELS:
        record_rows(chosen, measure(chosen))
        write_page()
