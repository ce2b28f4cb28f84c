"""The command `demo`."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from intact.cli import options
from intact.cli.output import Command, echo, quiet_stdout
from intact.errors import ExportError
from intact.names import DatasetName

if TYPE_CHECKING:
    from intact.cli.demo_run import Result


@click.command(cls=Command)
@click.option(
    "--dataset",
    type=click.Choice(get_args(DatasetName)),
    default="digits",
    show_default=True,
    help="digits comes with scikit-learn; fashion_mnist is downloaded by Keras, unless --data.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH.npz",
    help="Fashion-MNIST from a local file with x_train, y_train, x_test, y_test.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="intact-demo",
    show_default=True,
    help="Folder for the three .tflite files.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Epochs of float training; a third as many with quantization. "
    "[default: 15 for digits, 2 for fashion_mnist]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the split, the weights and the shuffling.",
)
@options.as_json
def demo(
    dataset: DatasetName,
    data: Path | None,
    output: Path,
    epochs: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Train, quantize, export and run a small CNN.

    A CNN learns to read handwritten digits in float. It is quantized without training, from 100
    images, and then trained for a few epochs more. All three models are written as LiteRT files,
    which are run on the test images.

    For each model, the table shows the accuracy in Keras and on LiteRT, how many output values
    differ between the two, the size of the file, and the latency for one image on one core.

    \b
    Examples:
        intact demo
        intact demo --dataset fashion_mnist --data fashion_mnist.npz
    """
    from intact.cli.demo_data import load_data

    start = time.perf_counter()
    with quiet_stdout():
        images = load_data(dataset, data, seed)
        _make_folder(output)
        # Keras is imported last, so that a wrong path is reported at once.
        from intact.cli.demo_run import run_demo

        results = run_demo(
            images,
            output,
            epochs,
            seed,
            verbose=1 if sys.stderr.isatty() else 2,
            say=lambda line: click.echo(line, err=True),
        )
    _echo_results(results, dataset, output, time.perf_counter() - start, as_json)


def _echo_results(
    results: "list[Result]", dataset: DatasetName, output: Path, seconds: float, as_json: bool
) -> None:
    import keras

    backend = keras.backend.backend()
    rows = [dataclasses.asdict(result) for result in results]
    data = {"dataset": dataset, "backend": backend, "seconds": seconds, "results": rows}
    end = f"{seconds:.0f} s on {backend}. The files are in {output}/"
    echo(as_json, data, f"{_table(results)}\n\n{end}")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot make the folder {str(path)!r}: {error.strerror}.") from error


def _table(results: "list[Result]") -> str:
    """The results in aligned columns."""
    from intact.tables import table

    heading = (
        "model",
        "accuracy in Keras",
        "accuracy on LiteRT",
        "outputs that differ",
        "file size",
        "latency",
    )
    rows = [
        (
            r.model,
            f"{100 * r.keras_accuracy:.2f} %",
            f"{100 * r.litert_accuracy:.2f} %",
            f"{r.different} of {r.outputs}",
            f"{r.bytes / 1024:.1f} KiB",
            f"{r.microseconds:.1f} µs",
        )
        for r in results
    ]
    return table([heading, *rows])
