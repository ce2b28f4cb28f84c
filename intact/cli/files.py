"""Commands on LiteRT files: `inspect`, `verify`, `check`, `run`, `benchmark`. None needs Keras."""

import dataclasses
import io
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

import intact
from intact.cli import options
from intact.cli.options import Samples
from intact.cli.output import Command, echo
from intact.errors import ExportError
from intact.names import Kernels, Target, TargetName
from intact.paths import write_whole

if TYPE_CHECKING:
    import numpy as np


@click.command(cls=Command)
@options.file
@options.as_json
def inspect(file: Path, as_json: bool) -> None:
    """List what is in a LiteRT file.

    The table shows the ops in order, with their versions, types, shapes, scales and bytes of
    constants. FILE is any .tflite file. It is read, and not run.
    """
    inspection = intact.inspect(file)
    echo(as_json, inspection.to_dict(), inspection)


@click.command(cls=Command)
@options.file
@options.as_json
def verify(file: Path, as_json: bool) -> None:
    """Check a LiteRT file against rules that LiteRT does not check.

    Some kernels need equal scales, certain scales of biases, certain zero points, or certain
    versions of ops. Where these are wrong, LiteRT usually runs the file and computes wrong
    values.

    The exit code is 1 if there are errors or FILE is not a LiteRT file. Warnings alone give 0.
    """
    findings = intact.verify(file)
    echo(as_json, findings.to_dict(), findings)
    if findings.errors:
        sys.exit(1)


@click.command(cls=Command)
@click.argument("file", type=options.ANY_FILE)
@click.option(
    "--target",
    required=True,
    help=f"One of {', '.join(get_args(TargetName))}. An Ethos-U may have its number of MACs, as "
    "in ethos-u55-256.",
)
@options.as_json
def check(file: Path, target: Target, as_json: bool) -> None:
    """Check whether a file runs on a target, and where its ops run.

    FILE is any .tflite file, or a Keras model in a .keras or .h5 file. A float model is checked
    as int8. A model that has seen no data gets ranges for the check alone.

    The target's own tool is used: TFLite Micro runs the file, and Vela compiles it for an
    Ethos-U. Install them with pip install 'keras-intact[targets]'.

    The exit code is 1 if the target does not run the file, runs none of its ops, or computes
    other values than LiteRT.
    """
    if file.suffix in options.KERAS_SUFFIXES:
        placement = intact.check(intact.load_keras(file), target)
    else:
        from intact.litert.reader import read_bytes
        from intact.targets.placement import place

        placement = place(read_bytes(file), target)
    echo(as_json, placement.to_dict(), placement)
    if not placement.ok:
        sys.exit(1)


@click.command(cls=Command)
@options.file
@options.with_samples()
@click.option(
    "-o",
    "--output",
    type=options.OUTPUT,
    help="Write the outputs: .npy, or .npz if there are several.",
)
@click.option("--raw", is_flag=True, help="Write integer outputs as integers.")
@options.threads
@options.kernels
@options.as_json
def run(
    file: Path,
    samples: Samples,
    output: Path | None,
    raw: bool,
    threads: int,
    kernels: Kernels,
    as_json: bool,
) -> None:
    """Run a LiteRT file on samples.

    FILE is any .tflite file. Samples are real values, whatever the type of the file's inputs.
    Integers of exactly that type are used as they are.

    \b
    Example:
        intact run model.tflite --data x.npz -o y.npy
    """
    from intact.tables import table

    model = intact.load_litert(file, threads, kernels)
    if output is not None:
        _check_suffix(output, len(model.output_names))
    y = model.predict(samples.load(model.input_shapes), raw=raw)
    arrays = y if isinstance(y, dict) else {model.output_names[0]: y}
    if output is not None:
        write_whole(_packed(arrays, output), output)
    rows = [_statistics(name, values) for name, values in arrays.items()]
    heading = ("output", "shape", "type", "smallest", "largest", "mean")
    lists = {name: values.tolist() for name, values in arrays.items()}
    echo(as_json, lists, table([heading, *rows], left=None))


def _check_suffix(path: Path, outputs: int) -> None:
    suffixes = (".npz",) if outputs > 1 else (".npy", ".npz")
    if path.suffix not in suffixes:
        raise ExportError(
            f"Expected a {' or '.join(suffixes)} file to write. Received: {str(path)!r}."
        )


def _statistics(name: str, values: "np.ndarray") -> tuple[str, ...]:
    """One row of the table: an output and its values."""
    numbers = (values.min(), values.max(), values.mean(dtype="float64"))
    return name, str(values.shape), str(values.dtype), *(f"{n:.6g}" for n in numbers)


def _packed(arrays: "dict[str, np.ndarray]", path: Path) -> bytes:
    """The bytes of a `.npy` or `.npz` file."""
    import numpy as np

    parts = {}
    for name, values in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        parts[name] = buffer.getvalue()
    if path.suffix == ".npy":
        return next(iter(parts.values()))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"{name}.npy", content)
    return packed.getvalue()


@click.command(cls=Command)
@options.file
@options.threads
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="How long to measure.",
)
@options.kernels
@options.as_json
def benchmark(file: Path, threads: int, seconds: float, kernels: Kernels, as_json: bool) -> None:
    """Measure how long a LiteRT file takes for one sample on this machine."""
    timing = intact.benchmark(file, threads, seconds, kernels)
    echo(as_json, dataclasses.asdict(timing), timing)
