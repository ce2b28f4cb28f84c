"""The command line. All printing lives here."""

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np

from intact import __version__
from intact.analysis.bisection import bisect as bisect_model
from intact.analysis.explanation import explain as explain_model
from intact.analysis.report import compare as compare_model
from intact.analysis.report import table
from intact.api import IO_DTYPES, is_quantized, quantize_model, write_c_array
from intact.api import export as export_model
from intact.calibration.calibration import calibrate
from intact.calibration.data_files import count_samples
from intact.calibration.data_files import load_data as load_samples
from intact.check import check as check_target
from intact.demo import DATASETS, Result, load_data, run_demo
from intact.errors import IntactError
from intact.keras_files.legacy import load_keras
from intact.layers.fake_quantize import FakeQuantize
from intact.litert.inspection import inspect as inspect_file
from intact.litert.runtime import LiteRTModel, load_litert
from intact.litert.targets import TARGETS
from intact.litert.timing import benchmark as benchmark_file
from intact.litert.verification import verify as verify_file
from intact.paths import check_output_path, write_whole
from intact.plan.planner import InputStats
from intact.quantizers.observers import OBSERVERS
from intact.recovery.recover import describe, try_steps
from intact.schemes import SCHEMES
from intact.search.advice import OPTIONS
from intact.search.advice import advise as advise_on


class _CleanError(click.ClickException):
    """One line on stderr, without the usage that is not at fault."""

    exit_code = 1


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: _warn(str(message))
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

    A model of your own, from the file on disk to the file on disk:

    \b
        intact explain model.keras            what becomes of each layer
        intact advise model.keras --data images/          which way to take
        intact quantize model.keras --data images/ -o model.tflite
        intact compare model.keras model.tflite --data test.npz --html page.html
        intact benchmark model.tflite         how long it takes

    The same in Python, and with training if you want to:

    \b
        q = intact.quantize_model(model)      a Keras model with quantized ops
        intact.calibrate(q, images)           ranges from about 100 samples
        q.compile(...); q.fit(...)            if you want to train it, too
        intact.export(q, "model.tflite")      the integer file
        print(intact.compare(q, "model.tflite", images))

    Of any LiteRT file, `intact inspect FILE` says what is in it, and `intact verify FILE`
    what in it is broken.

    The exit code is 0 if all went well, 1 if a file or model is at fault, 2 if the command
    is. The environment variable KERAS_BACKEND chooses jax, torch or tensorflow.
    """


# Options that several commands have -----------------------------------------------------

_PATH = click.Path(path_type=Path)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
_model = click.argument("model", type=_PATH)
_file = click.argument("file", type=_PATH)
_scheme = click.option(
    "--scheme",
    type=click.Choice(list(SCHEMES)),
    default="int8",
    show_default=True,
    help="How to quantize: weights and activations of int8, 4-bit weights, ...",
)
_kernels = click.option(
    "--kernels",
    type=click.Choice(list(LiteRTModel.resolvers)),
    default="default",
    show_default=True,
    help="default is XNNPACK where it takes an op; reference rounds as TFLite Micro does.",
)
_threads = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to use."
)


def _numbers(ctx: Any, param: Any, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number, or several with commas.") from error


def _std(ctx: Any, param: Any, value: str | None) -> tuple[float, ...] | None:
    numbers = _numbers(ctx, param, value)
    if numbers and min(numbers) <= 0:
        raise click.BadParameter(f"{value!r} is not above 0.")
    return numbers


def _with_options(*options: Callable) -> Callable:
    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _with_data(samples: int | None = None, required: bool = True) -> Callable:
    """The options of samples on disk."""
    return _with_options(
        click.option(
            "--data",
            type=_PATH,
            required=required,
            help="Samples: a .npy file, a .npz file (an array for each input), or a folder of "
            "images, which are cropped to the input's size.",
        ),
        click.option("--array", metavar="NAME", help="Which array of a .npz file to take."),
        click.option(
            "--mean",
            callback=_numbers,
            metavar="X[,X,X]",
            help="Taken from the values: one number, or one per channel.",
        ),
        click.option("--std", callback=_std, metavar="X[,X,X]", help="Then divided by this."),
        click.option(
            "--samples",
            type=click.IntRange(min=1),
            default=samples,
            help="How many samples to take at most, evenly from all. "
            f"[default: {samples or 'all'}]",
        ),
    )


_io_dtypes = _with_options(
    click.option(
        "--input-dtype",
        type=click.Choice(IO_DTYPES),
        default="float32",
        show_default=True,
        help="Type of the file's inputs.",
    ),
    click.option(
        "--output-dtype",
        type=click.Choice(IO_DTYPES),
        default="float32",
        show_default=True,
        help="Type of its outputs.",
    ),
    click.option("--integer-only", is_flag=True, help="Refuse to leave any op in float."),
    click.option(
        "--target",
        type=click.Choice(list(TARGETS)),
        help="Write only kernels that are there; fixed sizes, where it takes no others.",
    ),
)


def _shapes(model: keras.Model) -> dict[str, Any]:
    return {tensor.name: tensor.shape for tensor in model.inputs}


def _samples(
    model: keras.Model,
    data: Path,
    array: str | None,
    mean: Any,
    std: Any,
    samples: int | None,
) -> Any:
    """Samples for a model; what may not be meant is said on stderr."""
    x = load_samples(data, _shapes(model), array, mean, std, samples)
    # A quantized model may have its scaling in the first layer.
    is_scaled = is_quantized(model) or any(
        isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
        for layer in model._flatten_layers()
    )
    arrays = x if isinstance(x, dict) else {model.inputs[0].name: x}
    for tensor in model.inputs:
        is_bytes = arrays[tensor.name].dtype == "uint8" and "float" in str(tensor.dtype)
        if is_bytes and not is_scaled:
            _warn(
                f"the bytes in {str(data)!r} are taken as they are, from 0 to 255. If the model "
                "was trained on scaled values, pass --mean and --std."
            )
    return x


def _warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keras shows its progress on stdout, which is for the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _progress() -> int:
    return int(sys.stderr.isatty())


def _written(path: Path, content: bytes) -> str:
    """What is said of a file that was written."""
    found = inspect_file(content)
    ops, floats = sum(found.op_counts.values()), len(found.float_ops)
    return f"{path}: {len(content) / 1024:.1f} KiB, {ops} ops, {floats or 'none'} of them in float"


def _written_dict(path: Path, content: bytes) -> dict[str, Any]:
    found = inspect_file(content)
    return {
        "file": str(path),
        "bytes": len(content),
        "ops": sum(found.op_counts.values()),
        "float_ops": list(found.float_ops),
    }


def _echo(as_json: bool, data: Any, text: Any) -> None:
    click.echo(json.dumps(data, indent=2) if as_json else str(text))


# Models to files ------------------------------------------------------------------------


@main.command()
@_model
@click.option("-o", "--output", type=_PATH, required=True, help="The .tflite file to write.")
@_scheme
@_with_data(samples=100, required=False)
@click.option(
    "--observer",
    type=click.Choice(sorted(OBSERVERS)),
    help="How ranges are found from the samples. [default: as the scheme says]",
)
@_io_dtypes
@click.option("--allow-float", is_flag=True, help="Keep in float what has no integer kernel.")
@click.option(
    "--recover",
    "recovers",
    is_flag=True,
    help="Win back accuracy from the samples alone, as `intact recover` does. Takes longer.",
)
@click.option("--save", type=_PATH, help="Write the quantized model, too: a .keras file.")
@click.option("--html", type=_PATH, help="Write a page on what each layer loses, too.")
@_as_json
def quantize(
    model: Path,
    output: Path,
    scheme: str,
    data: Path | None,
    array: str | None,
    mean: Any,
    std: Any,
    samples: int,
    observer: str | None,
    input_dtype: str,
    output_dtype: str,
    integer_only: bool,
    target: str | None,
    allow_float: bool,
    recovers: bool,
    save: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Quantize a Keras model after training, and write it as a LiteRT file.

    MODEL is a float model in a .keras or .h5 file, of Keras 3 or Keras 2. The ranges of its
    activations come from about 100 samples, such as it sees when it is used; the schemes
    dynamic_range, float16 and weight_only_* need none.

    With --input-dtype uint8 or int8, one input, and --mean and --std, the file's bytes, from 0
    on, are the pixels before they are scaled. One number each fixes the scale of the input;
    numbers for each channel become a layer at the beginning of the model.

    \b
    Examples:
        intact quantize model.keras --data images/ --mean 127.5 --std 127.5 -o model.tflite
        intact quantize model.keras --data calib.npz -o model.tflite \\
            --input-dtype int8 --output-dtype int8 --integer-only
        intact quantize model.h5 --scheme float16 -o model.tflite
    """
    for path in (output, html):
        if path is not None:
            check_output_path(path)
    if save is not None:
        _check_keras_path(save)
    loaded = load_keras(model)
    if input_dtype in ("int8", "uint8") and _per_channel(loaded, mean, std):
        loaded, mean, std = _with_scaling(loaded, mean, std), None, (1.0,)
    stats = _input_stats(loaded, input_dtype, mean, std)
    q = quantize_model(loaded, scheme, allow_float, target=target, input_stats=stats)
    observed = [layer for layer in q.layers if isinstance(layer, FakeQuantize)]
    x = None
    if data is not None:
        x = _samples(loaded, data, array, mean, std, samples)
    elif recovers or any(not layer.calibrated for layer in observed):
        what = "--recover" if recovers else f"The scheme {scheme}"
        raise click.UsageError(f"{what} needs samples: pass them with --data.")
    elif html is not None:
        raise click.UsageError("The page needs samples: pass them with --data.")
    with _quiet_stdout():
        if recovers:
            click.echo(describe(try_steps(q, x, observer=observer, verbose=_progress())), err=True)
        elif x is not None and is_quantized(q):
            # It is new: of weights alone, too, the biases are yet to be corrected.
            calibrate(q, x, observer=observer, bias_correction=True, verbose=_progress())
        content = export_model(q, None, input_dtype, output_dtype, integer_only, target)
        if html is not None:
            compare_model(q, content, x, float_model=loaded).to_html(html)
    if save is not None:
        _save(q, save)
    write_whole(content, output)
    _echo(as_json, _written_dict(output, content), _written(output, content))


def _input_stats(model: keras.Model, dtype: str, mean: Any, std: Any) -> InputStats | None:
    """What `--mean` and `--std` say of the bytes that a file takes."""
    numbers = (mean or (0.0,), std or (1.0,))
    single = len(model.inputs) == 1 and all(len(found) == 1 for found in numbers)
    if dtype not in ("int8", "uint8") or not (mean or std) or not single:
        return None
    return {model.inputs[0].name: (numbers[0][0], numbers[1][0])}


def _per_channel(model: keras.Model, mean: Any, std: Any) -> bool:
    """Whether `--mean` or `--std` has a number for each channel of the one input."""
    several = any(numbers is not None and len(numbers) > 1 for numbers in (mean, std))
    return several and len(model.inputs) == 1


def _with_scaling(model: keras.Model, mean: Any, std: Any) -> keras.Model:
    """A model of pixels, which it scales itself: bytes have one scale for all channels."""
    (tensor,) = model.inputs
    for numbers in (mean, std):
        if numbers is not None and len(numbers) not in (1, tensor.shape[-1]):
            raise click.UsageError(
                f"Expected one number, or one for each of the {tensor.shape[-1]} channels. "
                f"Received: {len(numbers)}."
            )
    scale = 1 / np.array(std or (1.0,))
    offset = -np.array(mean or (0.0,)) * scale
    scale, offset = (np.broadcast_to(a, tensor.shape[-1:]).tolist() for a in (scale, offset))
    pixels = keras.Input(batch_shape=tensor.shape, name=tensor.name)
    scaled = keras.layers.Rescaling(scale, offset, name="pixel_scaling")(pixels)
    return keras.Model(pixels, model(scaled), name=model.name)


def _check_keras_path(path: Path) -> None:
    check_output_path(path)
    if path.suffix != ".keras":
        raise IntactError(f"Expected a .keras file to save to. Received: {str(path)!r}.")


def _save(model: keras.Model, path: Path) -> None:
    """Save a Keras model, whole or not at all."""
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.stem}.part.keras")
    try:
        model.save(part)
        part.replace(path)
    except OSError as error:
        raise IntactError(f"Cannot write {str(path)!r}: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


@main.command()
@_model
@click.option("-o", "--output", type=_PATH, required=True, help="The .keras file to write.")
@_with_data(samples=200)
def recover(
    model: Path, output: Path, data: Path, array: str | None, mean: Any, std: Any, samples: int
) -> None:
    """Win back accuracy that quantization costs, from samples without labels.

    MODEL is a quantized model that was not trained (`intact quantize --save` writes it). The
    result is one, too: `intact export` makes a LiteRT file of it. For all in one go, there is
    `intact quantize --recover`.
    """
    _check_keras_path(output)
    q = load_keras(model)
    x = _samples(q, data, array, mean, std, samples)
    with _quiet_stdout():
        trials = try_steps(q, x, verbose=_progress())
    _save(q, output)
    click.echo(f"{output}: {describe(trials)}")


@main.command()
@_model
@_with_data(samples=200)
@click.option(
    "--labels",
    type=_PATH,
    help="Classes of the samples, whole numbers in a .npy file. Without, the score is the "
    "share of samples with the float model's top-1.",
)
@click.option(
    "--options",
    default=",".join(OPTIONS),
    show_default=True,
    help="What to try: schemes, each perhaps with +recover behind it.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much of the score may be lost.",
)
@_as_json
def advise(
    model: Path,
    data: Path,
    array: str | None,
    mean: Any,
    std: Any,
    samples: int,
    labels: Path | None,
    options: str,
    tolerance: float,
    as_json: bool,
) -> None:
    """Try every way to quantize a model after training, and recommend one.

    MODEL is a float model. Each way becomes a file whose size, time and score are measured on
    this machine.
    """
    loaded = load_keras(model)
    x = _samples(loaded, data, array, mean, std, samples)
    y = None
    if labels is not None:
        here, there = (
            count_samples(labels, {"labels": (None,)}),
            count_samples(data, _shapes(loaded), array),
        )
        if here != there:
            raise IntactError(
                f"{str(labels)!r} has {here} labels, and {str(data)!r} {there} samples. "
                "Each sample needs its label, in the same order."
            )
        y = load_samples(labels, {"labels": (None,)}, samples=samples)
    with _quiet_stdout():
        found = advise_on(
            loaded,
            x,
            y,
            options=options.split(","),
            tolerance=tolerance,
            verbose=_progress(),
        )
    _echo(as_json, dataclasses.asdict(found), found)


@main.command()
@_model
@click.option("-o", "--output", type=_PATH, required=True, help="The file to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["tflite", "c-array"]),
    default="tflite",
    show_default=True,
    help="What to write; c-array is C source, with a header beside it.",
)
@_io_dtypes
@_as_json
def export(
    model: Path,
    output: Path,
    kind: str,
    input_dtype: str,
    output_dtype: str,
    integer_only: bool,
    target: str | None,
    as_json: bool,
) -> None:
    """Write a saved Keras model as a LiteRT file or as C source, as it is.

    MODEL is a .keras or .h5 file. A quantized model, trained or calibrated and saved, becomes
    a file of integer kernels; a float model a float32 file. To quantize a float model, use
    `intact quantize`.
    """
    check_output_path(output)
    loaded = load_keras(model)
    content = export_model(loaded, None, input_dtype, output_dtype, integer_only, target)
    if kind == "c-array":
        write_c_array(content, output)
    else:
        write_whole(content, output)
    _echo(as_json, _written_dict(output, content), _written(output, content))


@main.command()
@_model
@_scheme
@_as_json
def explain(model: Path, scheme: str, as_json: bool) -> None:
    """Say what would become of each layer of a Keras model, before anything is done.

    MODEL is a float model in a .keras or .h5 file. The exit code is 0 also where layers
    cannot be quantized; the JSON has "integer" and "supported".
    """
    found = explain_model(load_keras(model), scheme)
    data = {
        "integer": found.integer,
        "supported": found.supported,
        "layers": [dataclasses.asdict(entry) for entry in found.layers],
    }
    _echo(as_json, data, found)


# What a file computes -------------------------------------------------------------------


@main.command()
@_model
@_file
@_with_data(samples=100)
@click.option(
    "--float", "float_model", type=_PATH, help="The float model that a quantized MODEL was."
)
@_kernels
@click.option("--html", type=_PATH, help="Write a page to look at.")
@click.option("--model-explorer", type=_PATH, help="Write node data for Model Explorer.")
@_as_json
def compare(
    model: Path,
    file: Path,
    data: Path,
    array: str | None,
    mean: Any,
    std: Any,
    samples: int,
    float_model: Path | None,
    kernels: str,
    html: Path | None,
    model_explorer: Path | None,
    as_json: bool,
) -> None:
    """Compare a Keras model with a LiteRT file, layer by layer.

    MODEL is the quantized model, to see that the file computes the same; with --float, also
    what each layer loses by itself. Or MODEL is the float model, to see what the file lost.

    \b
    Example:
        intact compare model.keras model.tflite --data test.npz --html page.html
    """
    for path in (html, model_explorer):
        if path is not None:
            check_output_path(path)
    loaded = load_keras(model)
    reference = None if float_model is None else load_keras(float_model)
    x = _samples(loaded, data, array, mean, std, samples)
    with _quiet_stdout():
        found = compare_model(loaded, file, x, kernels=kernels, float_model=reference)
    if html is not None:
        found.to_html(html)
    if model_explorer is not None:
        found.to_model_explorer(model_explorer)
    _echo(as_json, found.to_dict(), found)


@main.command()
@_model
@click.argument("float_model", type=_PATH)
@_with_data(samples=200)
@click.option(
    "--drop",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much of the score may be lost: of the share with the float model's top-1.",
)
@_as_json
def bisect(
    model: Path,
    float_model: Path,
    data: Path,
    array: str | None,
    mean: Any,
    std: Any,
    samples: int,
    drop: float,
    as_json: bool,
) -> None:
    """Find the first layer where a quantized model loses accuracy.

    MODEL is the quantized model (`intact quantize --save` writes it), FLOAT_MODEL the float
    one that it was. The model runs in integers up to a layer, and in float from there on.
    """
    loaded = load_keras(model)
    x = _samples(loaded, data, array, mean, std, samples)
    with _quiet_stdout():
        found = bisect_model(loaded, load_keras(float_model), x, drop=drop, verbose=_progress())
    _echo(as_json, dataclasses.asdict(found), found)


@main.command()
@_file
@_with_data()
@click.option("-o", "--output", type=_PATH, help="Write the outputs: .npy, or .npz for several.")
@click.option("--raw", is_flag=True, help="Keep the integers of integer outputs.")
@_threads
@_kernels
@_as_json
def run(
    file: Path,
    data: Path,
    array: str | None,
    mean: Any,
    std: Any,
    samples: int | None,
    output: Path | None,
    raw: bool,
    threads: int,
    kernels: str,
    as_json: bool,
) -> None:
    """Run a LiteRT file on samples.

    FILE is a .tflite file of any origin. Samples are real values whatever the type of its
    inputs; integers of just that type are taken as they are.

    \b
    Example:
        intact run model.tflite --data x.npz -o y.npy
    """
    model = load_litert(file, threads, kernels)
    if output is not None:
        check_output_path(output)
        kinds = (".npz",) if len(model.output_names) > 1 else (".npy", ".npz")
        if output.suffix not in kinds:
            raise IntactError(
                f"Expected a {' or '.join(kinds)} file to write. Received: {str(output)!r}."
            )
    x = load_samples(data, model.input_shapes, array, mean, std, samples)
    found = model.predict(x, raw=raw)
    named = found if isinstance(found, dict) else {model.output_names[0]: found}
    if output is not None:
        write_whole(_packed(named, output), output)
    rows: list[tuple[str, ...]] = [("output", "shape", "type", "smallest", "largest", "mean")]
    for name, y in named.items():
        numbers = (f"{n:.6g}" for n in (y.min(), y.max(), y.mean(dtype="float64")))
        rows.append((name, str(y.shape), str(y.dtype), *numbers))
    _echo(as_json, {name: y.tolist() for name, y in named.items()}, table(rows))


def _packed(outputs: dict[str, np.ndarray], path: Path) -> bytes:
    """The bytes of a `.npy` or `.npz` file."""
    parts = {}
    for name, values in outputs.items():
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


@main.command()
@_file
@_threads
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="How long to measure.",
)
@_kernels
@_as_json
def benchmark(file: Path, threads: int, seconds: float, kernels: str, as_json: bool) -> None:
    """Measure how long a LiteRT file takes for one sample, on this machine."""
    found = benchmark_file(file, threads, seconds, kernels)
    _echo(as_json, dataclasses.asdict(found), found)


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
@_as_json
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
    with _quiet_stdout():
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
@_file
@_as_json
def inspect(file: Path, as_json: bool) -> None:
    """Say what is in a LiteRT file.

    The table has the ops in order, with their versions, types, shapes, scales and bytes of
    constants. FILE is a .tflite file of any origin; it is read, and not run.
    """
    found = inspect_file(file)
    _echo(as_json, found.to_dict(), found)


@main.command()
@_file
@_as_json
def verify(file: Path, as_json: bool) -> None:
    """Check a LiteRT file against rules that LiteRT does not check.

    Scales that kernels take to be equal, scales of biases, zero points, versions of ops: where
    these are wrong, LiteRT mostly runs the file and computes something else.

    The exit code is 1 if there are errors, or if FILE is no LiteRT file, and 0 if there are
    none or only warnings.
    """
    findings = verify_file(file)
    _echo(as_json, findings.to_dict(), findings)
    if findings.errors:
        sys.exit(1)


@main.command()
@_file
@click.option(
    "--target",
    required=True,
    help=f"One of {', '.join(TARGETS)}; an Ethos-U also with its MACs, as in ethos-u55-256.",
)
@_as_json
def check(file: Path, target: str, as_json: bool) -> None:
    """Say whether a file runs on a target, and where its ops run there.

    FILE is a .tflite file of any origin, or a Keras model in a .keras or .h5 file: one that is
    float or has seen no data gets ranges for the check, and is looked at as int8.

    The target's own tool is asked: TFLite Micro runs the file, Vela compiles it for an Ethos-U.
    They come with pip install 'intact[targets]'.

    The exit code is 1 if the target does not run the file, runs none of its ops, or computes other
    values than LiteRT.
    """
    is_keras = file.suffix in (".keras", ".h5", ".hdf5")
    found = check_target(load_keras(file) if is_keras else file, target)
    _echo(as_json, found.to_dict(), found)
    if not found.ok:
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
