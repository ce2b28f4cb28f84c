"""Commands that show what quantization does to a Keras model: `explain`, `compare`, `bisect`."""

import dataclasses
import sys
from pathlib import Path

import click

import intact
from intact.cli import options
from intact.cli.options import Samples
from intact.cli.output import Command, echo, quiet_stdout, say
from intact.names import Kernels, SchemeName


@click.command(cls=Command)
@options.model
@options.scheme
@click.option("--details", is_flag=True, help="List all parts of a layer, with their ranges.")
@options.as_json
def explain(model: Path, scheme: SchemeName, details: bool, as_json: bool) -> None:
    """Show what quantization would do to each layer of a Keras model.

    The table has one row for each of your layers: what it computes with, and the kernels that it
    becomes. Below are the layers that stay in float, with the reasons, and the scheme.

    MODEL is a float model in a .keras or .h5 file. The exit code is 0 even if some layers cannot
    be quantized; the JSON has "integer" and "supported".
    """
    explanation = intact.explain(intact.load_keras(model), scheme)
    data = {
        "integer": explanation.integer,
        "supported": explanation.supported,
        "layers": [dataclasses.asdict(entry) for entry in explanation.layers],
    }
    echo(as_json, data, f"{explanation.details}\n\n{explanation}" if details else explanation)


@click.command(cls=Command)
@options.model
@options.file
@options.with_samples(count=100)
@click.option(
    "--float",
    "float_model",
    type=options.KERAS_FILE,
    help="The float model that the quantized MODEL was made of.",
)
@options.kernels
@click.option(
    "--fail-on-difference",
    is_flag=True,
    help="End with exit code 1 if a value of an output or of a quantized tensor differs.",
)
@click.option("--html", type=options.OUTPUT, help="Also write the result as a page.")
@click.option(
    "--model-explorer", type=options.OUTPUT, help="Also write node data for Model Explorer."
)
@options.as_json
def compare(
    model: Path,
    file: Path,
    samples: Samples,
    float_model: Path | None,
    kernels: Kernels,
    fail_on_difference: bool,
    html: Path | None,
    model_explorer: Path | None,
    as_json: bool,
) -> None:
    """Compare a Keras model with a LiteRT file, layer by layer.

    If MODEL is the quantized model, this shows whether the file computes the same values; with
    --float, also how much each layer loses by itself. If MODEL is the float model, this shows
    how much the file loses.

    \b
    Example:
        intact compare model.keras model.tflite --data test.npz --html page.html
    """
    loaded = intact.load_keras(model)
    reference = None if float_model is None else intact.load_keras(float_model)
    x = samples.load_for(loaded)
    say("Comparing")
    with quiet_stdout():
        comparison = intact.compare(
            loaded, file, x, kernels=kernels, float_model=reference, latency=html is not None
        )
    if html is not None:
        comparison.to_html(html)
    if model_explorer is not None:
        comparison.to_model_explorer(model_explorer)
    echo(as_json, comparison.to_dict(), comparison)
    if fail_on_difference and any(a.different for a in (*comparison.outputs, *comparison.layers)):
        sys.exit(1)


@click.command(cls=Command)
@options.model
@click.argument("float_model", type=options.KERAS_FILE)
@options.with_samples(count=200)
@click.option(
    "--drop",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much of the score may be lost. The score is the share of samples with the same "
    "top-1 class as the float model.",
)
@options.as_json
def bisect(model: Path, float_model: Path, samples: Samples, drop: float, as_json: bool) -> None:
    """Find the first layer where a quantized model loses accuracy.

    MODEL is the quantized model, as `intact quantize --save` writes it. FLOAT_MODEL is the float
    model that it was made of. The model is run in integers up to a layer, and in float from there
    on.
    """
    q, reference = intact.load_keras(model), intact.load_keras(float_model)
    x = samples.load_for(q)
    with quiet_stdout():
        bisection = intact.bisect(q, reference, x, drop=drop, verbose=1)
    echo(as_json, dataclasses.asdict(bisection), bisection)
