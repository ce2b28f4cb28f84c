"""What commands print and write."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intact.errors import ExportError, IntactError, InvalidDataError

if TYPE_CHECKING:
    import keras


class CleanError(click.ClickException):
    """Prints an error on stderr, without the usage text, because the command line was right.

    Args:
        error: The error. Its code, which `docs/errors.md` explains, ends the line.
        text: What to print in place of its message.
    """

    exit_code = 1

    def __init__(self, error: IntactError, text: str | None = None) -> None:
        super().__init__(f"{text or error} [{error.code}]")


class Command(click.Command):
    """A command whose errors name the file that they are about."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Args:
            ctx: The arguments.

        Raises:
            CleanError: A file or a model is at fault.
        """
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: warn(message)
                return super().invoke(ctx)
        except IntactError as error:
            raise CleanError(error, _with_file(error, ctx)) from error


def _with_file(error: IntactError, ctx: click.Context) -> str:
    """The text of an error, behind the names of the command's files if it has none of them."""
    text = str(error)
    arguments = [p.name for p in ctx.command.params if isinstance(p, click.Argument) and p.name]
    values = [ctx.params[name] for name in arguments]
    paths = [path for each in values for path in (each if isinstance(each, tuple) else (each,))]
    if isinstance(error, InvalidDataError) and ctx.params.get(error.argument) is not None:
        paths = [ctx.params[error.argument]]
    named = [*paths, *(value for value in ctx.params.values() if isinstance(value, Path))]
    if not paths or any(Path(path).name in text for path in named):
        return text
    return f"{', '.join(map(str, paths))}: {text}"


def say(text: str) -> None:
    """Print on stderr what is being done.

    Args:
        text: The stage, in a few words.
    """
    click.echo(text, err=True)


def warn(warning: str | Warning) -> None:
    """Print a warning on stderr, with its code if it has one.

    Args:
        warning: The warning.
    """
    code = getattr(warning, "code", None)
    click.echo(f"Warning: {warning}" + (f" [{code}]" if code else ""), err=True)


def echo(as_json: bool, data: Any, text: Any) -> None:
    """Print a result.

    Args:
        as_json: Whether to print JSON.
        data: The result as JSON.
        text: The result as text.
    """
    click.echo(json.dumps(data, indent=2) if as_json else str(text))


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send Keras' progress to stderr: stdout is for the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def echo_file(
    as_json: bool, path: Path, content: bytes, agreement: dict[str, Any] | None = None
) -> None:
    """Print what was written to a LiteRT file.

    Args:
        as_json: Whether to print JSON.
        path: The file.
        content: Its bytes.
        agreement: How its outputs agree with the float model's: "samples", "top1" and "snr".
    """
    from intact.litert.inspection import inspect

    inspection = inspect(content)
    ops, floats = sum(inspection.op_counts.values()), inspection.float_places
    data: dict[str, Any] = {"file": str(path), "bytes": len(content), "ops": ops}
    data["float_ops"] = list(inspection.float_ops)
    share = f"{len(floats) or 'none'} of them in float"
    lines = [f"{path}: {len(content) / 1024:.1f} KiB, {ops} ops, {share}"]
    if agreement is not None:
        data["agreement"] = agreement
        lines.append(_sentence(agreement))
    if 0 < len(floats) < ops:
        lines += [
            "In float (`intact explain` says why):",
            *(f"  {op} {name}" for op, name in floats),
        ]
    echo(as_json, data, "\n".join(lines))


def _sentence(agreement: dict[str, Any]) -> str:
    """How a file agrees with the float model, in words."""
    top1, snr, samples = (agreement[key] for key in ("top1", "snr", "samples"))
    parts = [] if top1 is None else [f"the same top-1 for {100 * top1:.1f} % of them"]
    parts += [] if snr is None else [f"a signal-to-noise ratio of {snr:.1f} dB"]
    return f"Against float, on {samples} of the samples: {', and '.join(parts)}."


def save_model(model: "keras.Model", path: Path) -> None:
    """Save a Keras model, whole or not at all.

    Args:
        model: The model.
        path: The `.keras` file; a link is followed.

    Raises:
        ExportError: The file cannot be written.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.stem}.part.keras")
    try:
        model.save(part)
        part.replace(path)
    except OSError as error:
        raise ExportError(f"Cannot write {str(path)!r}: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
