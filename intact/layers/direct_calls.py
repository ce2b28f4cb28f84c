"""Calls of quantized layers without what Keras does around each call.

Around a call Keras converts arguments, binds them to a signature, and looks for masks, shapes to
build, scopes and symbolic tensors. A quantized model has hundreds of small layers, and torch runs
it anew each step: there this takes longer than the layers. The inputs of a quantized model have
been converted, its layers are built, and it hands on no masks.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.src.backend import get_autocast_scope

from intact.layers.base import QuantizedLayer
from intact.numerics.backend_kernels import TORCH
from intact.numerics.tensors import is_symbolic

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a layer has the hooks that torch calls around it."""


class DirectCall:
    """A quantized layer, called by its `call` alone.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        self.call = layer.call
        # By this name Keras asks what may be passed on to a layer.
        kind: Any = type(layer)
        self._call_context_args = _context(kind)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


@functools.cache
def _context(kind: Any) -> set[str]:
    """What the layers of a class take from the model's call."""
    return {"training"} & set(inspect.signature(kind.call).parameters)


def can_call_directly(inputs: Any) -> bool:
    """Whether a model's layers may be called directly.

    Args:
        inputs: The inputs of the model, in any structure.
    """
    if not TORCH or get_autocast_scope() is not None:
        return False
    return all(ops.is_tensor(x) and not is_symbolic(x) for x in keras.tree.flatten(inputs))


def directly(call_of: Callable[[Any], Callable]) -> Callable[[Any], Callable]:
    """How a model calls its layers, where quantized ones are called directly.

    Args:
        call_of: From a layer, how Keras would have the model call it.
    """

    def direct(layer: Any) -> Callable:
        if not isinstance(layer, QuantizedLayer) or any(getattr(layer, name) for name in HOOKS):
            return call_of(layer)
        return call_of(DirectCall(layer))

    return direct
