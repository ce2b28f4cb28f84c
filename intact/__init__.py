"""intact: quantization for Keras 3, to LiteRT, with the outputs seen in Keras.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so that
commands that need no Keras, such as `inspect`, start without importing it.
"""

import ast as _ast
import importlib as _importlib
from pathlib import Path as _Path

from intact import backend as _backend
from intact import registration as _registration

__version__ = "0.1.0"


def _read_homes() -> dict[str, str]:
    """The module of each public name; that of a public module is the package."""
    stub = _Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = [node for node in _ast.parse(stub).body if isinstance(node, _ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOMES = _read_homes()
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'intact' has no attribute {name!r}")
    home = _HOMES[name]
    if home == __name__:
        return _importlib.import_module(f"{home}.{name}")
    value = getattr(_importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


_backend.choose()
_registration.register()
