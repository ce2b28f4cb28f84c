"""The command `calibrate`: ranges from samples, at once or shard by shard."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import intact
from intact.cli import options
from intact.cli.options import Samples
from intact.cli.output import Command, quiet_stdout, save_model
from intact.names import ObserverName, SchemeName

if TYPE_CHECKING:
    import keras

BATCH = 32
"""Samples that are read and run at once."""


def _parse_shard(ctx: Any, param: Any, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    number, slash, count = value.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"{value!r} is not a shard such as 1/8, the first of eight.")
    return int(number), int(count)


@click.command(cls=Command)
@options.model
@click.option(
    "-o", "--output", type=options.KERAS_OUTPUT, help="The calibrated model: a .keras file."
)
@options.scheme
@options.with_samples(required=False)
@click.option(
    "--observer",
    type=click.Choice(sorted(get_args(ObserverName))),
    help="How ranges are computed from the samples. [default: what the scheme says]",
)
@click.option(
    "--shard",
    callback=_parse_shard,
    metavar="I/N",
    help="Observe only every N-th of the samples, from the I-th on, and write what was seen to "
    "--state.",
)
@click.option("--state", type=options.OUTPUT, help="The file that a shard is written to.")
@click.option(
    "--merge",
    "states",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Calibrate by the states of shards in place of samples. Give it once for each shard.",
)
@click.option(
    "--biases",
    is_flag=True,
    help="Let the shards correct the biases, not set the ranges: a first round. The ranges are "
    "then observed with the model that comes of it.",
)
def calibrate(
    model: Path,
    output: Path | None,
    scheme: SchemeName,
    samples: Samples,
    observer: ObserverName | None,
    shard: tuple[int, int] | None,
    state: Path | None,
    states: tuple[Path, ...],
    biases: bool,
) -> None:
    """Find the ranges of a quantized model from samples, at once or in shards.

    MODEL is a quantized model, such as `intact quantize --save` or Keras writes, or a float model,
    which is quantized by --scheme first. The result is a quantized .keras model, which `intact
    export` writes as a LiteRT file.

    Shards may be observed by different processes or machines, and merged in any order. The ranges
    are those of all samples at once.

    \b
    Examples:
        intact calibrate q.keras --data images/ -o calibrated.keras
        intact calibrate q.keras --data images/ --shard 1/2 --state 1.obs
        intact calibrate q.keras --data images/ --shard 2/2 --state 2.obs
        intact calibrate q.keras --merge 1.obs --merge 2.obs -o calibrated.keras
    """
    _check_options(output, shard, state, states, samples, biases)
    q = _quantized(model, scheme)
    with quiet_stdout():
        if shard is not None and state is not None:
            batches = samples.shard_for(q, *shard, batch_size=BATCH)
            part: Any = "biases" if biases else "ranges"
            seen = intact.observe(q, batches, observer=observer, part=part, shard=shard, verbose=1)
            seen.save(state)
            click.echo(f"{state}: shard {shard[0]} of {shard[1]}")
            return
        if states:
            intact.apply(q, [intact.Observations.load(path) for path in states])
        else:
            intact.calibrate(q, samples.load_for(q), observer=observer, verbose=1)
    assert output is not None
    save_model(q, output)
    click.echo(f"{output}: calibrated")


def _check_options(
    output: Path | None,
    shard: tuple[int, int] | None,
    state: Path | None,
    states: tuple[Path, ...],
    samples: Samples,
    biases: bool,
) -> None:
    """Refuse options that do not go together, before Keras is imported."""
    if (shard is None) != (state is None):
        raise click.UsageError("--shard and --state go together.")
    if shard is not None and (states or output is not None):
        raise click.UsageError("--shard writes --state alone: leave out --merge and --output.")
    if shard is None and output is None:
        raise click.UsageError("Say where to write the calibrated model: --output.")
    if biases and shard is None:
        raise click.UsageError("--biases says what shards observe: give --shard and --state.")
    if states and samples.data is not None:
        raise click.UsageError("--merge takes the place of --data: leave out one of them.")
    if not states and samples.data is None:
        raise click.UsageError("Samples are needed: pass them with --data.")


def _quantized(path: Path, scheme: SchemeName) -> "keras.Model":
    """The quantized model of a file, or the float one quantized."""
    from intact.api import is_quantized

    model = intact.load_keras(path)
    return model if is_quantized(model) else intact.quantize_model(model, scheme)
