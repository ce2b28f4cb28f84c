"""Commands that make a quantized model better: `recover`, `advise`."""

import dataclasses
from pathlib import Path
from typing import get_args

import click

import intact
from intact.cli import options
from intact.cli.options import Samples, input_shapes
from intact.cli.output import Command, echo, quiet_stdout, save_model
from intact.names import ADVICE_OPTIONS, Target, TargetName


@click.command(cls=Command)
@options.model
@click.option(
    "-o", "--output", type=options.KERAS_OUTPUT, required=True, help="The .keras file to write."
)
@options.with_samples(count=200)
@options.as_json
def recover(model: Path, output: Path, samples: Samples, as_json: bool) -> None:
    """Recover accuracy that quantization costs, from samples without labels.

    MODEL is a quantized model that was not trained, as `intact quantize --save` writes it. The
    result is a quantized model, too; `intact export` writes it as a LiteRT file. `intact quantize
    --recover` does all of this in one step.
    """
    from intact.recovery.recover import describe, try_steps

    q = intact.load_keras(model)
    x = samples.load_for(q)
    with quiet_stdout():
        trials = try_steps(q, x, verbose=1)
    save_model(q, output)
    data = {"file": str(output), "steps": [dataclasses.asdict(trial) for trial in trials]}
    echo(as_json, data, f"{describe(trials)}\n{output}: saved")


@click.command(cls=Command)
@options.model
@options.with_samples(count=200)
@options.labels(
    "Without labels, the score is the share of samples with the same top-1 class as the float "
    "model."
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
@click.option(
    "--target",
    help=f"Where the file is to run: one of {', '.join(get_args(TargetName))}. An Ethos-U may have "
    "its number of MACs, as in ethos-u55-256.",
)
@click.option("--html", type=options.OUTPUT, help="Also write a page with a picture.")
@options.as_json
def advise(
    model: Path,
    samples: Samples,
    labels: Path | None,
    names: str,
    tolerance: float,
    target: Target | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Try several ways to quantize a model without training, and recommend one.

    MODEL is a float model. Each way gives a file, whose size, latency and score are measured on
    this machine.
    """
    float_model = intact.load_keras(model)
    x = samples.load_for(float_model)
    y = None if labels is None else samples.load_labels(labels, input_shapes(float_model))
    with quiet_stdout():
        advice = intact.advise(
            float_model,
            x,
            y,
            options=names.split(","),
            tolerance=tolerance,
            verbose=1,
            target=target,
        )
    if html is not None:
        advice.to_html(html)
    echo(as_json, dataclasses.asdict(advice), advice)
