"""Opens Keras files without running code in them."""

import contextlib
import io
import json
import math
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras

from intact.errors import InvalidModelError, UnsupportedLayerError
from intact.keras_files import h5check
from intact.keras_files.h5check import EXPANSION, SLACK

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

# Seconds for reading a file once.
_PATIENCE = 600


@dataclass(eq=False)
class _File:
    """The checked, but untrusted content of a file.

    Args:
        config: The model's config.
        weights: The open group of the weights.
        is_zip: Whether it is a `.keras` file, whose weights are laid out by class names.
        keras_2: Whether Keras 2 (or older) wrote it.
        elements: How many numbers the file stores.
    """

    config: dict[str, Any]
    weights: h5py.Group
    is_zip: bool
    keras_2: bool
    elements: int


def _open(path: Path, stack: contextlib.ExitStack) -> _File:
    if zipfile.is_zipfile(path):
        return _open_zip(path, stack)
    if not h5py.is_hdf5(path):
        raise InvalidModelError("it is neither a `.keras` nor an `.h5` file, or is cut short.")
    elements = _check_h5(path)
    file = stack.enter_context(h5py.File(path, "r"))
    if "model_config" not in file.attrs or "model_weights" not in file:
        raise InvalidModelError(
            "it holds no whole model, maybe weights alone. Save it by `model.save`."
        )
    config = _parse(file.attrs["model_config"])
    version = _text(file.attrs.get("keras_version", b"1"))
    return _File(config, file["model_weights"], False, not version.startswith("3"), elements)


def _open_zip(path: Path, stack: contextlib.ExitStack) -> _File:
    archive = stack.enter_context(zipfile.ZipFile(path))
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ":" in name or ".." in name.split("/"):
            raise InvalidModelError(f"its member {info.filename!r} points out of the archive.")
        if info.file_size > EXPANSION * info.compress_size + SLACK:
            raise InvalidModelError(
                f"its member {info.filename!r} claims {info.file_size} bytes, "
                f"of which the file holds {info.compress_size}."
            )
    missing = [n for n in (CONFIG, METADATA, WEIGHTS) if n not in archive.namelist()]
    if missing:
        raise InvalidModelError(f"it has no {', '.join(missing)}: it is no model saved by Keras.")
    config, metadata = _parse(archive.read(CONFIG)), _parse(archive.read(METADATA))
    content = archive.read(WEIGHTS)
    elements = _check_h5(content)
    file = stack.enter_context(h5py.File(io.BytesIO(content), "r"))
    version = str(metadata.get("keras_version", "3"))
    return _File(config, file, True, not version.startswith("3"), elements)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _parse(text: Any) -> dict[str, Any]:
    value = json.loads(_text(text))
    if not isinstance(value, dict):
        raise InvalidModelError(f"its config is no object, but {type(value).__name__}.")
    return value


def _check_h5(source: Path | bytes) -> int:
    """Read a file once in another process, because a damaged file may crash it.

    Args:
        source: Its path or its bytes.

    Returns:
        How many numbers it stores.
    """
    command = [sys.executable, h5check.__file__]
    done = subprocess.run(
        command if isinstance(source, bytes) else [*command, str(source)],
        input=source if isinstance(source, bytes) else None,
        capture_output=True,
        timeout=_PATIENCE,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        crashed = done.returncode < 0 or not lines
        raise InvalidModelError("its HDF5 data is damaged." if crashed else f"{lines[-1]}.")
    return int(done.stdout)


def _refuse_code(config: Any) -> None:
    """Refuse Lambda layers that are Python bytecode."""
    todo: list[tuple[Any, str]] = [(config, "")]
    while todo:
        value, name = todo.pop()
        if isinstance(value, dict):
            kind, inner = value.get("class_name"), value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                name = inner["name"]
            bytecode = (
                kind == "Lambda"
                and isinstance(inner, dict)
                and (
                    isinstance(inner.get("function"), list)
                    or inner.get("function_type") == "lambda"
                )
            )
            if kind == "__lambda__" or bytecode:
                raise UnsupportedLayerError(
                    f"Lambda {name!r} is Python bytecode, which intact never runs. If you trust "
                    "the file, build the model from your own code and load its weights, or put "
                    "a layer or `keras.ops` in place of the Lambda, and save it again."
                )
            todo += [(v, name) for v in value.values()]
        elif isinstance(value, list):
            todo += [(v, name) for v in value]


@contextlib.contextmanager
def _limited_weights(limit: int) -> Iterator[None]:
    """Limit how many numbers the weights of this thread may have, before they are allocated.

    A config can ask for more memory than there is; every layer asks through `add_weight`.
    """
    original, thread, left = keras.Layer.add_weight, threading.get_ident(), [limit]

    def add_weight(self: Any, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            left[0] -= math.prod(shape) if isinstance(shape, tuple | list) else 1
            if left[0] < 0:
                raise InvalidModelError(
                    f"layer {self.name!r} asks for a weight of shape {tuple(shape)}, "
                    "and the file does not hold that many numbers."
                )
        return original(self, shape, *args, **kwargs)

    keras.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.Layer.add_weight = original
