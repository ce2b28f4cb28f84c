"""The command line: `intact demo`, `inspect`, `verify` and `check`. All printing lives here."""

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import keras

from intact import __version__
from intact.check import check as check_target
from intact.demo import DATASETS, Result, load_data, run_demo
from intact.errors import IntactError
from intact.legacy import load_keras
from intact.litert.inspection import inspect as inspect_file
from intact.litert.targets import TARGETS
from intact.litert.verification import verify as verify_file
from intact.report import table


class _CleanError(click.ClickException):
    """One line on stderr, without the usage that is not at fault."""

    exit_code = 2


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IntactError as error:
            raise _CleanError(" ".join(str(error).split())) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="intact %(version)s")
def main() -> None:
    """Quantize Keras 3 models to integer LiteRT files.

    What the quantized model computes in Keras is what the file computes on the device.
    See it for yourself, in about a minute:

    \b
        intact demo

    In Python, on a model of your own:

    \b
        q = intact.quantize_model(model)      a Keras model with quantized ops
        intact.calibrate(q, images)           ranges from about 100 samples
        q.compile(...); q.fit(...)            if you want to train it, too
        intact.export(q, "model.tflite")      the integer file
        print(intact.compare(q, "model.tflite", images))

    Of any LiteRT file, `intact inspect FILE` says what is in it, and `intact verify FILE`
    what in it is broken.

    The environment variable KERAS_BACKEND chooses jax, torch or tensorflow.
    """


@main.command()
@click.option(
    "--dataset",
    type=click.Choice(DATASETS),
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def demo(
    dataset: str, data: Path | None, output: Path, epochs: int | None, seed: int, as_json: bool
) -> None:
    """Train, quantize, export and run a small CNN.

    A CNN learns to read handwritten digits in float. It is then quantized twice: after
    training, from 100 images, and with training, for a few epochs more. All three models
    are written as LiteRT files and run there on the test images.

    The table tells, for each: its accuracy in Keras and on LiteRT, how many output
    values differ between the two, the size of the file, and the time for one image on
    one core. Progress goes to stderr, the table to stdout.

    \b
    Examples:
        intact demo
        intact demo --epochs 3 --seed 1 --json
        intact demo --dataset fashion_mnist --data fashion_mnist.npz
    """
    start = time.perf_counter()
    # Keras shows its progress on stdout, which is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        results = run_demo(
            load_data(dataset, data, seed),
            output,
            epochs,
            seed,
            verbose=1 if sys.stderr.isatty() else 2,
            say=lambda line: click.echo(line, err=True),
        )
    seconds = time.perf_counter() - start
    if as_json:
        rows = [dataclasses.asdict(r) for r in results]
        summary = {"dataset": dataset, "backend": keras.backend.backend(), "seconds": seconds}
        click.echo(json.dumps({**summary, "results": rows}, indent=2))
        return
    click.echo(as_table(results))
    click.echo(f"\n{seconds:.0f} s on {keras.backend.backend()}. The files are in {output}/")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def inspect(file: Path, as_json: bool) -> None:
    """Say what is in a LiteRT file.

    The table has the ops in order, with their versions, types, shapes, scales and bytes of
    constants. FILE is a .tflite file of any origin; it is read, and not run.
    """
    found = inspect_file(file)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def verify(file: Path, as_json: bool) -> None:
    """Check a LiteRT file against rules that LiteRT does not check.

    Scales that kernels take to be equal, scales of biases, zero points, versions of ops: where
    these are wrong, LiteRT mostly runs the file and computes something else.

    The exit code is 1 if there are errors, 0 if there are none or only warnings, and 2 if FILE
    is no LiteRT file.
    """
    findings = verify_file(file)
    click.echo(json.dumps(findings.to_dict(), indent=2) if as_json else str(findings))
    if findings.errors:
        sys.exit(1)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    help=f"One of {', '.join(TARGETS)}; an Ethos-U also with its MACs, as in ethos-u55-256.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def check(file: Path, target: str, as_json: bool) -> None:
    """Say whether a file runs on a target, and where its ops run there.

    FILE is a .tflite file of any origin, or a Keras model in a .keras or .h5 file: one that is
    float or has seen no data gets ranges for the check, and is looked at as int8.

    The target's own tool is asked: TFLite Micro runs the file, Vela compiles it for an Ethos-U.
    They come with pip install 'intact[targets]'.

    The exit code is 1 if the target does not run the file.
    """
    is_keras = file.suffix in (".keras", ".h5", ".hdf5")
    found = check_target(load_keras(file) if is_keras else file, target)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
    if not found.runs:
        sys.exit(1)


def as_table(results: list[Result]) -> str:
    """The demo's results in aligned columns.

    Args:
        results: What `run_demo` returned.

    Returns:
        The lines.
    """
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


if __name__ == "__main__":
    main()
