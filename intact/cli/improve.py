"""Commands that make a quantized model better: `recover`, `advise`."""

import dataclasses
from pathlib import Path
from typing import Any

import click

import intact
from intact.cli import options
from intact.cli.options import Samples, input_shapes
from intact.cli.output import echo, progress, quiet_stdout, save_model
from intact.errors import InvalidDataError
from intact.names import ADVICE_OPTIONS

_LABELS: dict[str, tuple[int | None, ...]] = {"labels": (None,)}


@click.command()
@options.model
@click.option(
    "-o", "--output", type=options.KERAS_OUTPUT, required=True, help="The .keras file to write."
)
@options.with_samples(count=200)
def recover(model: Path, output: Path, samples: Samples) -> None:
    """Recover accuracy that quantization costs, from samples without labels.

    MODEL is a quantized model that was not trained, as `intact quantize --save` writes it. The
    result is a quantized model, too; `intact export` writes it as a LiteRT file. `intact quantize
    --recover` does all of this in one step.
    """
    from intact.recovery.recover import describe, try_steps

    q = intact.load_keras(model)
    x = samples.load_for(q)
    with quiet_stdout():
        trials = try_steps(q, x, verbose=progress())
    save_model(q, output)
    click.echo(f"{output}: {describe(trials)}")


@click.command()
@options.model
@options.with_samples(count=200)
@click.option(
    "--labels",
    type=options.DATA,
    help="Classes of the samples: integers in a .npy file. Without labels, the score is the "
    "share of samples with the same top-1 class as the float model.",
)
@click.option(
    "--options",
    "names",
    default=",".join(ADVICE_OPTIONS),
    show_default=True,
    help="What to try: schemes, each with or without +recover.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much of the score may be lost.",
)
@options.as_json
def advise(
    model: Path,
    samples: Samples,
    labels: Path | None,
    names: str,
    tolerance: float,
    as_json: bool,
) -> None:
    """Try several ways to quantize a model without training, and recommend one.

    MODEL is a float model. Each way gives a file, whose size, latency and score are measured on
    this machine.
    """
    float_model = intact.load_keras(model)
    x = samples.load_for(float_model)
    y = None if labels is None else _load_labels(labels, samples, input_shapes(float_model))
    with quiet_stdout():
        advice = intact.advise(
            float_model,
            x,
            y,
            options=names.split(","),
            tolerance=tolerance,
            verbose=progress(),
        )
    echo(as_json, dataclasses.asdict(advice), advice)


def _load_labels(path: Path, samples: Samples, inputs: dict[str, Any]) -> Any:
    """The labels of the samples that are used."""
    from intact.calibration.data_files import DiskData, load_data

    assert samples.data is not None
    labels = len(DiskData(path, _LABELS))
    images = len(DiskData(samples.data, inputs, samples.array))
    if labels != images:
        raise InvalidDataError(
            f"{str(path)!r} has {labels} labels, and {str(samples.data)!r} {images} samples. "
            "Each sample needs its label, in the same order."
        )
    return load_data(path, _LABELS, samples=samples.count)
