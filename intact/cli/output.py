"""What commands print and write."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from intact.errors import ExportError

if TYPE_CHECKING:
    import keras


def warn(text: str) -> None:
    """Print a warning on stderr.

    Args:
        text: The warning.
    """
    click.echo(f"Warning: {text}", err=True)


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


def progress() -> int:
    """How verbose long work is: silent, unless somebody watches."""
    return int(sys.stderr.isatty())


def echo_file(as_json: bool, path: Path, content: bytes) -> None:
    """Print what was written to a LiteRT file.

    Args:
        as_json: Whether to print JSON.
        path: The file.
        content: Its bytes.
    """
    from intact.litert.inspection import inspect

    inspection = inspect(content)
    ops, floats = sum(inspection.op_counts.values()), list(inspection.float_ops)
    data = {"file": str(path), "bytes": len(content), "ops": ops, "float_ops": floats}
    share = f"{len(floats) or 'none'} of them in float"
    echo(as_json, data, f"{path}: {len(content) / 1024:.1f} KiB, {ops} ops, {share}")


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
