"""The command `evaluate`: the accuracy of models and files on labelled samples."""

from pathlib import Path
from typing import Any

import click

import intact
from intact.cli import options
from intact.cli.options import Samples, input_shapes
from intact.cli.output import Command, echo, quiet_stdout, say


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=options.ANY_FILE)
@options.with_samples()
@options.labels(required=True)
@options.kernels
@options.as_json
def evaluate(
    files: tuple[Path, ...], samples: Samples, labels: Path, kernels: Any, as_json: bool
) -> None:
    """Measure the accuracy of models and LiteRT files on labelled samples.

    FILES are .tflite files or Keras models in .keras or .h5 files, float or quantized. The accuracy
    is the share of samples whose largest output is at the label. Its standard error says by how
    much it would vary on other samples.

    \b
    Example:
        intact evaluate model.keras model.tflite --data test.npy --labels y.npy
    """
    from intact.search.measures import top1
    from intact.tables import table

    results = []
    for file in files:
        say(f"Running {file}")
        with quiet_stdout():
            outputs, y = _outputs_and_labels(file, samples, labels, kernels)
            score = top1(y)(outputs)
        error = (score * (1 - score) / len(y)) ** 0.5
        results.append(
            {"file": str(file), "accuracy": score, "standard_error": error, "samples": len(y)}
        )
    rows = [("", "accuracy", "standard error", "samples")]
    for r in results:
        numbers = (f"{100 * r[key]:.2f} %" for key in ("accuracy", "standard_error"))
        rows.append((r["file"], *numbers, str(r["samples"])))
    echo(as_json, results, table(rows))


def _outputs_and_labels(file: Path, samples: Samples, labels: Path, kernels: Any) -> Any:
    """What a model or a file computes on the samples, and their labels."""
    if file.suffix in options.KERAS_SUFFIXES:
        model = intact.load_keras(file)
        y = samples.load_labels(labels, input_shapes(model))
        return model.predict(samples.load_for(model), verbose=0), y
    litert = intact.load_litert(file, kernels=kernels)
    y = samples.load_labels(labels, litert.input_shapes)
    return litert.predict(samples.load(litert.input_shapes)), y
