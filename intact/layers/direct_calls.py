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

from intact.graph.view import Graph, Node, structure, view
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

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        # By this name Keras asks what may be passed on to a layer.
        kind: Any = type(layer)
        self._call_context_args = _context(kind)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.call(*args, **kwargs)


@functools.cache
def _context(kind: Any) -> set[str]:
    """What the layers of a class take from the model's call."""
    return {"training"} & set(inspect.signature(kind.call).parameters)


class _Step:
    """A call of a graph, prepared for all runs.

    Args:
        node: The call.
        spent: The ids of the symbolic tensors that nothing reads after it.
    """

    def __init__(self, node: Node, spent: list[int]) -> None:
        self.layer: Any = node.layer
        self.is_direct = isinstance(self.layer, QuantizedLayer)
        self.direct = DirectCall(self.layer)
        self.args, self.kwargs = filler(node.args), filler(node.kwargs)
        self.outputs = [id(tensor) for tensor in node.outputs]
        self.spent = spent

    def run(self, values: dict[int, Any], call_of: Callable[[Any], Callable]) -> None:
        """Make the call.

        Args:
            values: The computed tensors by the ids of the symbolic ones, which it updates.
            call_of: As for `run_directly`.
        """
        layer = self.layer
        # Keras adds the loss of an activity regularizer around the call.
        plain = self.is_direct and layer.activity_regularizer is None
        if plain and not any(getattr(layer, name) for name in HOOKS):
            layer = self.direct
        results = call_of(layer)(*self.args(values), **self.kwargs(values))
        parts = leaves(results) if self.is_direct else keras.tree.flatten(results)
        values.update(zip(self.outputs, parts, strict=False))
        # Memory that is used again is at hand; new memory takes longer than most operations.
        for key in self.spent:
            values.pop(key, None)


def _steps(graph: Graph) -> list[_Step]:
    """The calls of a graph, in order."""
    inputs = {id(tensor) for tensor in graph.inputs}
    nodes = [node for node in graph.nodes if id(node.outputs[0]) not in inputs]
    known = {id(tensor) for tensor in graph.outputs}
    steps = []
    for node in reversed(nodes):
        used = {id(tensor) for tensor in (*node.inputs, *node.outputs)}
        steps.append(_Step(node, sorted(used - known)))
        known |= used
    return steps[::-1]


_graphs: MutableMapping[Any, tuple[Graph, list[_Step]]] = WeakKeyDictionary()


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
        graph = view(model)
        _graphs[model] = graph, _steps(graph)
    graph, steps = _graphs[model]
    values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
    for step in steps:
        step.run(values, call_of)
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
    if not any(map(is_symbolic, keras.tree.flatten(value))):
        return lambda values: value
    if isinstance(value, dict):
        named = {key: filler(part) for key, part in value.items()}
        return lambda values: {key: part(values) for key, part in named.items()}
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
