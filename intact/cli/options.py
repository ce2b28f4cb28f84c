"""Arguments and options that several commands have.

A path is checked when the arguments are read, before Keras and its backend are imported.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from intact.cli.output import warn
from intact.errors import ExportError, InvalidDataError
from intact.names import IODtype, Kernels, SchemeName, TargetName
from intact.paths import (
    check_data_path,
    check_litert_path,
    check_model_path,
    check_output_path,
)

if TYPE_CHECKING:
    import keras

    from intact.calibration.data_files import Shape


class _CheckedPath(click.Path):
    """A path that is checked when it is read.

    Args:
        check: Raises an `IntactError` for a path of no use.
    """

    def __init__(self, check: Callable[[Path], None]) -> None:
        super().__init__(path_type=Path)
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        self._check(path)
        return path


def _check_keras_output(path: Path) -> None:
    check_output_path(path)
    if path.suffix != ".keras":
        raise ExportError(f"Expected a .keras file to save to. Received: {str(path)!r}.")


KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def _check_any_model(path: Path) -> None:
    (check_model_path if path.suffix in KERAS_SUFFIXES else check_litert_path)(path)


KERAS_FILE = _CheckedPath(check_model_path)
LITERT_FILE = _CheckedPath(check_litert_path)
ANY_FILE = _CheckedPath(_check_any_model)
DATA = _CheckedPath(check_data_path)
OUTPUT = _CheckedPath(check_output_path)
KERAS_OUTPUT = _CheckedPath(_check_keras_output)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model = click.argument("model", type=KERAS_FILE)
file = click.argument("file", type=LITERT_FILE)
scheme = click.option(
    "--scheme",
    type=click.Choice(get_args(SchemeName)),
    default="int8",
    show_default=True,
    help="How to quantize weights and activations.",
)
kernels = click.option(
    "--kernels",
    type=click.Choice(get_args(Kernels)),
    default="default",
    show_default=True,
    help="default uses XNNPACK where it has a kernel; reference rounds as TFLite Micro does.",
)
threads = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to use."
)


def with_options(*options: Callable) -> Callable:
    """Several options as one decorator.

    Args:
        options: The options, in the order of the help text.

    Returns:
        The decorator.
    """

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


# Samples --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The options that describe samples on disk.

    Args:
        data: The file or folder.
        array: Which array of a `.npz` file to use.
        mean: Subtracted from the values: one number, or one per channel.
        std: What the values are then divided by, likewise.
        count: How many samples to use at most.
    """

    data: Path | None
    array: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    count: int | None

    def load(self, inputs: "dict[str, Shape]") -> Any:
        """Load the samples.

        Args:
            inputs: Names and shapes of the model's inputs, samples first.

        Returns:
            An array, or a dict of arrays.
        """
        from intact.calibration.data_files import load_data

        if self.data is None:
            raise click.UsageError("Samples are needed: pass them with --data.")
        return load_data(self.data, inputs, self.array, self.mean, self.std, self.count)

    def load_labels(self, path: Path, inputs: "dict[str, Shape]") -> Any:
        """Load the labels of the samples that `load` returns.

        Args:
            path: A `.npy` or `.npz` file.
            inputs: As for `load`.

        Returns:
            An array, samples first.

        Raises:
            InvalidDataError: There is not one label for each sample of the data.
        """
        from intact.calibration.data_files import DiskData, chosen

        if self.data is None:
            raise click.UsageError("Samples are needed: pass them with --data.")
        labels, samples = DiskData(path, {"labels": (None,)}), self._count(inputs)
        if len(labels) != samples:
            raise InvalidDataError(
                f"{str(path)!r} has {len(labels)} labels, and {str(self.data)!r} {samples} "
                "samples. Each sample needs its label, in the same order."
            )
        return labels.read(chosen(samples, self.count))

    def _count(self, inputs: "dict[str, Shape]") -> int:
        from intact.calibration.data_files import DiskData

        assert self.data is not None
        return len(DiskData(self.data, inputs, self.array))

    def load_for(self, model: "keras.Model") -> Any:
        """Load the samples for a Keras model; warn of bytes that are probably not scaled.

        Args:
            model: The model.

        Returns:
            An array, or a dict of arrays.

        Raises:
            InvalidDataError: They do not fit the model's inputs.
        """
        from intact.calibration.sources import check_batch

        x = self.load(input_shapes(model))
        check_batch(x, model.inputs)
        arrays = x if isinstance(x, dict) else {model.inputs[0].name: x}
        for tensor in model.inputs:
            is_bytes = arrays[tensor.name].dtype == "uint8" and "float" in str(tensor.dtype)
            if is_bytes and not _may_scale_inputs(model):
                warn(
                    f"the bytes in {str(self.data)!r} are used as they are, from 0 to 255. If the "
                    "model was trained on scaled values, pass --mean and --std."
                )
        return x

    def shard_for(self, model: "keras.Model", number: int, count: int, batch_size: int) -> Any:
        """One shard of the samples for a Keras model, read batch by batch.

        Args:
            model: The model.
            number: Which shard, from 1 on.
            count: How many shards there are.
            batch_size: Samples per batch.

        Returns:
            An iterator of batches.
        """
        from intact.calibration.data_files import DiskData, chosen

        if self.data is None:
            raise click.UsageError("Samples are needed: pass them with --data.")
        disk = DiskData(self.data, input_shapes(model), self.array, self.mean, self.std)
        # Every so many, so that shards of sorted files are alike.
        places = chosen(len(disk), self.count)[number - 1 :: count]
        if not len(places):
            raise InvalidDataError(
                f"Shard {number} of {count} is empty: {str(self.data)!r} has {len(disk)} samples."
            )
        return disk.batches(places, batch_size)


def input_shapes(model: "keras.Model") -> "dict[str, Shape]":
    """The shapes of a model's inputs by name.

    Args:
        model: The model.
    """
    return {tensor.name: tensor.shape for tensor in model.inputs}


def _may_scale_inputs(model: "keras.Model") -> bool:
    """Whether a model may scale its inputs itself."""
    from keras import layers

    from intact.api import is_quantized

    scaling = (layers.Rescaling, layers.Normalization)
    # A quantized model may have its scaling in the first layer.
    return is_quantized(model) or any(isinstance(one, scaling) for one in model._flatten_layers())


def _parse_numbers(ctx: Any, param: Any, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is not a number, or several numbers with commas between them."
        ) from error


def _parse_std(ctx: Any, param: Any, value: str | None) -> tuple[float, ...] | None:
    numbers = _parse_numbers(ctx, param, value)
    if numbers and min(numbers) <= 0:
        raise click.BadParameter(f"{value!r} is not above 0.")
    return numbers


def _sample_options(count: int | None, required: bool) -> Callable:
    return with_options(
        click.option(
            "--data",
            type=DATA,
            required=required,
            help="Samples: a .npy file, a .npz file (one array per input), or a folder of "
            "images, which are cropped to the input's size.",
        ),
        click.option("--array", metavar="NAME", help="Which array of a .npz file to use."),
        click.option(
            "--mean",
            callback=_parse_numbers,
            metavar="X[,X,X]",
            help="Subtract this from the values: one number, or one per channel.",
        ),
        click.option("--std", callback=_parse_std, metavar="X[,X,X]", help="Then divide by this."),
        click.option(
            "--samples",
            "count",
            type=click.IntRange(min=1),
            default=count,
            help="Use at most this many samples, evenly spread over all. "
            f"[default: {count or 'all'}]",
        ),
    )


def with_samples(count: int | None = None, required: bool = True) -> Callable:
    """The options that describe samples; the command gets them as one `Samples`.

    Args:
        count: How many samples to use by default; None for all.
        required: Whether `--data` is required.

    Returns:
        The decorator.
    """

    def add(command: Callable) -> Callable:
        @functools.wraps(command)
        def run(data: Any, array: Any, mean: Any, std: Any, count: Any, **others: Any) -> Any:
            return command(samples=Samples(data, array, mean, std, count), **others)

        return _sample_options(count, required)(run)

    return add


def labels(otherwise: str = "", required: bool = False) -> Callable:
    """The option for the classes of samples.

    Args:
        otherwise: What happens without them.
        required: Whether they have to be given.

    Returns:
        The decorator.
    """
    return click.option(
        "--labels",
        type=DATA,
        required=required,
        help=f"Classes of the samples: integers in a .npy file. {otherwise}".rstrip(),
    )


# Files to write -------------------------------------------------------------------------


@dataclass(frozen=True)
class FileFormat:
    """The options that describe a LiteRT file to write, named as the arguments of `export`.

    Args:
        input_dtype: The type of its inputs.
        output_dtype: The type of its outputs.
        integer_only: Whether to refuse an op in float.
        target: Where the file is to run.
        unroll: Whether to write the steps of recurrent layers one after the other.
    """

    input_dtype: IODtype
    output_dtype: IODtype
    integer_only: bool
    target: TargetName | None
    unroll: bool


def with_file_format(command: Callable) -> Callable:
    """The options that describe a file to write; the command gets them as one `FileFormat`.

    Args:
        command: The command.

    Returns:
        The command with the options.
    """

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        names = [field.name for field in dataclasses.fields(FileFormat)]
        file_format = FileFormat(**{name: values.pop(name) for name in names})
        return command(file_format=file_format, **values)

    dtypes = click.Choice(get_args(IODtype))
    return with_options(
        *(
            click.option(
                f"--{side}-dtype",
                type=dtypes,
                default="float32",
                show_default=True,
                help=f"Type of the file's {side}s.",
            )
            for side in ("input", "output")
        ),
        click.option("--integer-only", is_flag=True, help="Fail if an op would stay in float."),
        click.option(
            "--target",
            type=click.Choice(get_args(TargetName)),
            help="Write only kernels that this target has, with fixed sizes if it needs them.",
        ),
        click.option("--unroll", is_flag=True, help="Write no loops for recurrent layers."),
    )(run)
