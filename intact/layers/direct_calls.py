"""Calls of quantized layers without what Keras does around each call.

Around a call Keras converts arguments, binds them to a signature, and looks for masks, shapes to
build, scopes and symbolic tensors. A quantized model has hundreds of small layers, and torch runs
it anew each step: there this takes longer than the layers. The inputs of a quantized model have
been converted, its layers are built, and it hands on no masks.
"""

import functools
import inspect
import operator
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import keras
from keras import ops
from keras.src.backend import get_autocast_scope

from intact.graph.view import Graph, structure, view
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


_graphs: MutableMapping[Any, Graph] = WeakKeyDictionary()


def can_call_directly(inputs: Any) -> bool:
    """Whether a model's layers may be called directly.

    Args:
        inputs: The inputs of the model, in any structure.
    """
    if not TORCH or get_autocast_scope() is not None:
        return False
    return all(ops.is_tensor(x) and not is_symbolic(x) for x in keras.tree.flatten(inputs))


def run_directly(model: Any, inputs: Any, call_of: Callable[[Any], Callable]) -> Any:
    """What a graph model computes, by direct calls of its quantized layers.

    Args:
        model: The model.
        inputs: Its inputs, in any structure.
        call_of: From a layer, how Keras would have the model call it.

    Returns:
        The outputs.
    """
    if model not in _graphs:
        _graphs[model] = view(model)
    graph = _graphs[model]
    values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
    for node in graph.nodes:
        if id(node.outputs[0]) in values:
            continue
        layer = node.layer
        direct = isinstance(layer, QuantizedLayer)
        # Keras adds the loss of an activity regularizer around the call.
        plain = direct and layer.activity_regularizer is None
        if plain and not any(getattr(layer, name) for name in HOOKS):
            layer = DirectCall(layer)
        args, kwargs = filled(node.args, values), filled(node.kwargs, values)
        results = call_of(layer)(*args, **kwargs)
        parts = leaves(results) if direct else keras.tree.flatten(results)
        values.update(zip(map(id, node.outputs), parts, strict=False))
    return keras.tree.map_structure(lambda tensor: values[id(tensor)], structure(model)[1])


def filled(value: Any, values: dict[int, Any]) -> Any:
    """Arguments of a call with computed tensors in the place of symbolic ones."""
    if is_symbolic(value):
        return values[id(value)]
    if isinstance(value, dict):
        return {key: filled(part, values) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [filled(part, values) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def filler(value: Any) -> Callable[[dict[int, Any]], Any]:
    """A function that fills the same arguments again and again.

    Args:
        value: Arguments of a call, with symbolic tensors.

    Returns:
        A function from the computed tensors, by the ids of the symbolic ones, to the arguments.
    """
    if is_symbolic(value):
        return operator.itemgetter(id(value))
    if isinstance(value, dict):
        named = {key: filler(part) for key, part in value.items()}
        return lambda values: {key: part(values) for key, part in named.items()}
    if not isinstance(value, tuple | list):
        return lambda values: value
    make = value._make if hasattr(value, "_make") else type(value)
    if len(value) > 1 and all(map(is_symbolic, value)):
        several = operator.itemgetter(*map(id, value))
        return lambda values: make(several(values))
    parts = [filler(part) for part in value]
    return lambda values: make([part(values) for part in parts])


def leaves(value: Any) -> list[Any]:
    """The tensors of what a quantized layer returns."""
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]
