"""Commands that make a LiteRT file of a Keras model: `quantize`, `export`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import intact
from intact.cli import options
from intact.cli.options import FileFormat, Samples
from intact.cli.output import Command, echo_file, quiet_stdout, save_model, say
from intact.errors import NotCalibratedError
from intact.names import ObserverName, SchemeName
from intact.paths import write_whole

if TYPE_CHECKING:
    import keras


@click.command(cls=Command)
@options.model
@click.option(
    "-o", "--output", type=options.OUTPUT, required=True, help="The .tflite file to write."
)
@options.scheme
@options.with_samples(count=100, required=False)
@click.option(
    "--test",
    "test_data",
    type=options.DATA,
    help="Samples that agreement with float and the page are measured on, scaled as those of "
    "--data. [default: those of --data]",
)
@click.option(
    "--observer",
    type=click.Choice(sorted(get_args(ObserverName))),
    help="How ranges are computed from the samples. [default: what the scheme says]",
)
@options.with_file_format
@click.option("--allow-float", is_flag=True, help="Keep layers without an integer kernel in float.")
@click.option(
    "--recover",
    "recovers",
    is_flag=True,
    help="Recover accuracy as `intact recover` does. This takes longer.",
)
@click.option(
    "--save", type=options.KERAS_OUTPUT, help="Also save the quantized model: a .keras file."
)
@click.option(
    "--html", type=options.OUTPUT, help="Also write a page that shows what each layer loses."
)
@options.as_json
def quantize(
    model: Path,
    output: Path,
    scheme: SchemeName,
    samples: Samples,
    test_data: Path | None,
    observer: ObserverName | None,
    file_format: FileFormat,
    allow_float: bool,
    recovers: bool,
    save: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Quantize a Keras model without training, and write it as a LiteRT file.

    MODEL is a .keras or .h5 file of a float model. About 100 typical samples give the ranges of
    its activations. The schemes dynamic_range, float16 and weight_only_* need no samples.

    --mean and --std scale the samples. With --input-dtype uint8 or int8 they also fix the scale
    of the file's input: its bytes are the pixels before scaling.

    \b
    Examples:
        intact quantize model.keras --data images/ --mean 127.5 --std 127.5 -o model.tflite
        intact quantize model.h5 --scheme float16 -o model.tflite
    """
    _require_samples(samples, recovers, html)
    float_model, samples = _with_byte_scaling(intact.load_keras(model), samples, file_format)
    q = _quantized(float_model, scheme, allow_float, samples, file_format)
    x = None if samples.data is None else samples.load_for(float_model)
    with quiet_stdout():
        if x is not None:
            _fit_ranges(q, x, observer, recovers)
        content = _file(q, scheme, file_format)
        test = x if test_data is None else _test_samples(samples, test_data, float_model)
        agreement = None if test is None else _agreement(float_model, content, test)
        if test is not None and html is not None:
            say("Comparing layer by layer")
            page = intact.compare(q, content, test, float_model=float_model, latency=True)
            dataclasses.replace(page, file=str(output)).to_html(html)
    if save is not None:
        save_model(q, save)
    write_whole(content, output)
    echo_file(as_json, output, content, agreement)


def _require_samples(samples: Samples, recovers: bool, html: Path | None) -> None:
    """Refuse options that need samples if there are none."""
    if samples.data is None and (recovers or html is not None):
        what = "--recover" if recovers else "--html"
        raise click.UsageError(f"{what} needs samples: pass them with --data.")


def _quantized(
    model: "keras.Model",
    scheme: SchemeName,
    allow_float: bool,
    samples: Samples,
    file_format: FileFormat,
) -> "keras.Model":
    stats = _input_stats(model, samples, file_format)
    target = file_format.target
    return intact.quantize_model(model, scheme, allow_float, target=target, input_stats=stats)


def _fit_ranges(q: "keras.Model", x: Any, observer: ObserverName | None, recovers: bool) -> None:
    """Calibrate a new quantized model, or recover its accuracy."""
    from intact.api import is_quantized

    if recovers:
        from intact.recovery.recover import describe, try_steps

        trials = try_steps(q, x, observer=observer, verbose=1)
        say(describe(trials))
    elif is_quantized(q):
        # Schemes without ranges get their biases corrected, too.
        intact.calibrate(q, x, observer=observer, bias_correction=True, verbose=1)


def _test_samples(samples: Samples, path: Path, model: "keras.Model") -> Any:
    """The samples to measure on, scaled as those for calibration."""
    return dataclasses.replace(samples, data=path).load_for(model)


def _agreement(float_model: "keras.Model", content: bytes, x: Any) -> dict[str, Any]:
    """How a file's outputs agree with the float model's: the worst of several outputs."""
    say("Comparing with float")
    comparison = intact.compare(float_model, content, x, per_layer=False)
    ratios = [a.snr for a in comparison.outputs if a.snr is not None]
    return {
        "samples": comparison.samples,
        "top1": comparison.top1,
        "snr": min(ratios, default=None),
    }


def _file(q: "keras.Model", scheme: SchemeName, file_format: FileFormat) -> bytes:
    try:
        return intact.export(q, **dataclasses.asdict(file_format))
    except NotCalibratedError as error:
        raise click.UsageError(
            f"The scheme {scheme} needs samples: pass them with --data."
        ) from error


def _input_stats(
    model: "keras.Model", samples: Samples, file_format: FileFormat
) -> dict[str, tuple[float, float]] | None:
    """What `--mean` and `--std` say of the bytes that a file reads."""
    mean, std = samples.mean, samples.std
    is_single = len(model.inputs) == 1 and all(len(each or (0.0,)) == 1 for each in (mean, std))
    if file_format.input_dtype not in ("int8", "uint8") or not (mean or std) or not is_single:
        return None
    return {model.inputs[0].name: ((mean or (0.0,))[0], (std or (1.0,))[0])}


def _with_byte_scaling(
    model: "keras.Model", samples: Samples, file_format: FileFormat
) -> tuple["keras.Model", Samples]:
    """A model of bytes that scales each channel itself: an input has one scale for all channels.

    Where it is not needed, the model and the samples stay as they are.
    """
    has_several = any(each is not None and len(each) > 1 for each in (samples.mean, samples.std))
    takes_bytes = file_format.input_dtype in ("int8", "uint8")
    if not (has_several and takes_bytes and len(model.inputs) == 1):
        return model, samples
    scaling = _scaling_model(model, samples.mean or (0.0,), samples.std or (1.0,))
    return scaling, dataclasses.replace(samples, mean=None, std=(1.0,))


def _scaling_model(
    model: "keras.Model", mean: tuple[float, ...], std: tuple[float, ...]
) -> "keras.Model":
    """A model of pixels: a scaling layer, then the given model."""
    import keras
    import numpy as np

    (tensor,) = model.inputs
    channels = tensor.shape[-1]
    for numbers in (mean, std):
        if len(numbers) not in (1, channels):
            raise click.UsageError(
                f"Expected one number, or one for each of the {channels} channels. "
                f"Received: {len(numbers)}."
            )
    scale = np.broadcast_to(1 / np.array(std), (channels,))
    offset = -np.array(mean) * scale
    pixels = keras.Input(batch_shape=tensor.shape, name=tensor.name)
    rescaling = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="pixel_scaling")
    return keras.Model(pixels, model(rescaling(pixels)), name=model.name)


@click.command(cls=Command)
@options.model
@click.option("-o", "--output", type=options.OUTPUT, required=True, help="The file to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["tflite", "c-array"]),
    default="tflite",
    show_default=True,
    help="c-array writes C source, with a header next to it.",
)
@options.with_file_format
@options.as_json
def export(model: Path, output: Path, kind: str, file_format: FileFormat, as_json: bool) -> None:
    """Write a saved Keras model as a LiteRT file or as C source.

    MODEL is a .keras or .h5 file. A quantized model that was trained or calibrated becomes a
    file of integer kernels, and a float model becomes a float32 file. To quantize a float model,
    use `intact quantize`.
    """
    content = intact.export(intact.load_keras(model), **dataclasses.asdict(file_format))
    if kind == "c-array":
        intact.write_c_array(content, output)
    else:
        write_whole(content, output)
    echo_file(as_json, output, content)
