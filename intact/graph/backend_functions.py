"""Functions of the backends, as operations of Keras, while a user's `call` runs.

A layer may call its backend's own functions, such as `tf.reduce_mean` or `torch.cat`. They take no
symbolic tensor. While a `call` runs on symbolic tensors, an operation of Keras with the same
meaning replaces each of those that have one. A module per backend lists them.
"""

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops
from keras.src.utils.backend_utils import DynamicBackend

from intact.numerics.tensors import is_symbolic

BACKENDS = ("jax", "tensorflow", "torch")
"""The backends that have a table, in `<backend>_functions.py`."""

OWN = "keras.src.backend."
"""How the names of Keras' modules for backends begin."""

ROOMS: dict[str, Any] = {
    **dict.fromkeys(("core", "linalg", "math", "nn", "numpy"), ops),
    "image": ops.image,
    "random": keras.random,
}
"""By the name of a module of Keras' backends, what has its functions for symbolic tensors."""


@contextlib.contextmanager
def symbolic_functions() -> Iterator[None]:
    """Inside a `with` block, let functions of the backend take symbolic tensors."""
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        yield
        return
    tables = importlib.import_module(f"intact.graph.{backend}_functions")
    with contextlib.ExitStack() as stack:
        get = DynamicBackend.__getattr__
        _set(stack, DynamicBackend, "__getattr__", lambda own, name: _of_layers(get, own, name))
        for path, functions in tables.FUNCTIONS.items():
            owner = pkgutil.resolve_name(path)
            for name, symbolic in functions.items():
                if hasattr(owner, name):
                    _set(stack, owner, name, _either(getattr(owner, name), symbolic))
        for name, value in tables.METHODS.items():
            _set(stack, keras.KerasTensor, name, value)
        yield


def _of_layers(get: Callable[[Any, str], Any], backend: Any, name: str) -> Any:
    """What Keras' layers for images and data, and subclasses of them, call by `self.backend`."""
    if name in ROOMS:
        return ROOMS[name]
    return getattr(ops, name) if hasattr(ops, name) else get(backend, name)


def _set(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack is left."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _either(function: Any, symbolic: Callable[..., Any]) -> Any:
    """A function that is another one where an argument is symbolic; a class always is."""

    def call(*args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        replaced = isinstance(symbolic, type) or any(map(_has_symbol, values))
        # Keras' own backend code is not traced, so that all backends support the same operations.
        if replaced and sys._getframe(1).f_globals.get("__name__", "").startswith(OWN):
            replaced = False
        return (symbolic if replaced else function)(*args, **kwargs)

    return call


def _has_symbol(value: Any) -> bool:
    return is_symbolic(value) or (isinstance(value, list | tuple) and any(map(is_symbolic, value)))
