"""Checks paths before long work begins, and writes files as a whole."""

import contextlib
import os
from pathlib import Path

from intact.errors import ExportError, InvalidDataError, InvalidModelError


def check_model_path(path: Path) -> None:
    """Make sure that a path can be that of a Keras model's file.

    Args:
        path: The file.

    Raises:
        InvalidModelError: The path is a folder, or there is no such file.
    """
    if (path / "saved_model.pb").is_file():
        raise InvalidModelError(
            f"{str(path)!r} is a SavedModel of TensorFlow, which Keras 3 does not open as a model. "
            "Save the Keras model itself where it was made: `model.save('model.keras')`, or "
            "`model.save('model.h5')` in Keras 2."
        )
    if path.is_dir():
        raise InvalidModelError(
            f"{str(path)!r} is a folder. Pass a `.keras` or `.h5` file of a whole model."
        )
    if not path.is_file():
        raise InvalidModelError(
            f"There is no file {str(path)!r}. Pass a `.keras` or `.h5` file of a whole model."
        )


def check_litert_path(path: Path) -> None:
    """Check that a path leads to a file.

    Args:
        path: The file.

    Raises:
        InvalidModelError: The path is a folder, or there is no such file.
    """
    if path.is_dir():
        raise InvalidModelError(f"{str(path)!r} is a folder. Pass a `.tflite` file.")
    if not path.is_file():
        raise InvalidModelError(f"There is no file {str(path)!r}. Pass a `.tflite` file.")


def check_data_path(path: Path) -> None:
    """Make sure that a path can be that of samples.

    Args:
        path: The file or folder.

    Raises:
        InvalidDataError: There is nothing at the path.
    """
    if not path.is_dir() and not path.is_file():
        raise InvalidDataError(
            f"There is no file or folder {str(path)!r}. Pass a .npy or .npz file, or a folder of "
            "images."
        )


def check_output_path(path: Path) -> None:
    """Make sure that a file can be written to a path.

    Args:
        path: The file to write.

    Raises:
        ExportError: The path is a folder, a pipe or a device, or its folder is missing or
            cannot be written to.
    """
    path = _behind_links(path)
    if path.is_dir():
        raise ExportError(f"Cannot write {str(path)!r}: it is a folder. Name a file in it.")
    if path.exists() and not path.is_file():
        raise ExportError(
            f"Cannot write {str(path)!r}: it is a pipe or a device, which a file would replace. "
            "Name a regular file."
        )
    folder = path.parent
    if not folder.is_dir():
        raise ExportError(f"Cannot write {str(path)!r}: the folder {str(folder)!r} is missing.")
    if not os.access(folder, os.W_OK):
        raise ExportError(
            f"Cannot write {str(path)!r}: you have no permission to write in {str(folder)!r}."
        )


def write_whole(content: bytes, path: str | os.PathLike) -> None:
    """Write a file whole or not at all.

    Args:
        content: The bytes.
        path: The path; an existing file is replaced at the end, and a link is followed.

    Raises:
        ExportError: The path is a folder, a pipe or a device, or cannot be written.
    """
    path = _behind_links(path)
    part = path.with_name(f".{path.name}.part")
    try:
        check_output_path(path)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ExportError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


def _behind_links(path: str | os.PathLike) -> Path:
    """The target of a link; any other path unchanged, so that errors name it as the user did."""
    # `Path.is_symlink` raises an error for a name that is too long.
    is_link = os.path.islink(path)  # noqa: PTH114
    return Path(os.path.realpath(path) if is_link else path)
