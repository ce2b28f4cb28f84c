"""The command `intact`, and how it ends."""

from typing import Any

import click

from intact import __version__
from intact.cli import analyze, calibrate, convert, demo, evaluate, files, improve, output
from intact.errors import IntactError


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IntactError as error:
            # A path that was refused while the arguments were read.
            raise output.CleanError(error) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="intact %(version)s")
def main() -> None:
    """Quantize Keras 3 models to integer LiteRT files.

    The quantized Keras model computes what the file computes on the device. Try it, in about a
    minute:

    \b
        intact demo

    With a model of your own:

    \b
        intact explain model.keras            what happens to each layer
        intact advise model.keras --data images/          which scheme to use
        intact quantize model.keras --data images/ -o model.tflite
        intact compare model.keras model.tflite --data test.npz --html page.html
        intact evaluate model.keras model.tflite --data test.npy --labels y.npy
        intact benchmark model.tflite         how fast it runs

    In Python, where you can also train the quantized model:

    \b
        q = intact.quantize_model(model)      a Keras model with quantized ops
        intact.calibrate(q, images)           ranges from about 100 samples
        q.compile(...); q.fit(...)            optional: training
        intact.export(q, "model.tflite")      the integer file
        print(intact.compare(q, "model.tflite", images))

    `intact inspect FILE` lists what is in any LiteRT file, and `intact verify FILE` lists what
    is wrong with it.

    The exit code is 0 on success, 1 if a file or a model is at fault, and 2 if the command line
    is wrong. The environment variable KERAS_BACKEND selects jax, torch or tensorflow.
    """


for command in (
    *(convert.quantize, convert.export),
    *(calibrate.calibrate, improve.recover, improve.advise),
    *(analyze.explain, analyze.compare, analyze.bisect, evaluate.evaluate),
    *(files.inspect, files.verify, files.check, files.run, files.benchmark),
    demo.demo,
):
    main.add_command(command)
