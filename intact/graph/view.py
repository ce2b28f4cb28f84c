"""A read-only view of a functional model: nodes, producers, consumers.

The only module that looks into Keras' private bookkeeping of graphs.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.ops.function import Function
from keras.src.ops.node import Node as KerasNode
from keras.src.utils.naming import to_snake_case


@dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer or operation.

    Args:
        layer: What is called.
        args: Positional arguments of the call; tensors are `KerasTensor`s.
        kwargs: Keyword arguments of the call.
        inputs: The tensors among the arguments, flat.
        outputs: The tensors that the call returns, flat.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]

    @property
    def is_input(self) -> bool:
        """Whether this is an input of the model."""
        return not self.inputs


@dataclass(frozen=True, eq=False)
class Graph:
    """The nodes of a model in an order in which they can be computed."""

    nodes: tuple[Node, ...]
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    _consumers: dict[int, list[Node]] = field(default_factory=dict)
    _producers: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.nodes:
            for tensor in node.outputs:
                self._producers[id(tensor)] = node
            for tensor in node.inputs:
                self._consumers.setdefault(id(tensor), []).append(node)

    def producer(self, tensor: keras.KerasTensor) -> Node:
        """The node that computes a tensor."""
        return self._producers[id(tensor)]

    def consumers(self, tensor: keras.KerasTensor) -> list[Node]:
        """The nodes that read a tensor."""
        return self._consumers.get(id(tensor), [])

    def is_output(self, tensor: keras.KerasTensor) -> bool:
        """Whether a tensor is an output of the model."""
        return any(tensor is out for out in self.outputs)

    def sole_consumer(self, tensor: keras.KerasTensor) -> Node | None:
        """The one node that reads a tensor, if nothing else does."""
        consumers = self.consumers(tensor)
        if len(consumers) == 1 and not self.is_output(tensor):
            return consumers[0]
        return None


def view(model: keras.Model) -> Graph:
    """The graph of a functional or Sequential model.

    Args:
        model: A built model.

    Returns:
        The view; it shares the model's layers and tensors.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> [node.layer.name for node in view(model).nodes if not node.is_input]
    ['head']
    """
    model = _functional(model)
    nodes = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            nodes.append(_node(node))
    return Graph(tuple(nodes), tuple(model.inputs), tuple(model.outputs))


def made_by(tensor: keras.KerasTensor) -> Node:
    """The call that made a tensor, in whatever graph it stands."""
    operation, index, _ = tensor._keras_history
    return _node(operation._inbound_nodes[index])


def _node(node: Any) -> Node:
    return Node(
        node.operation,
        tuple(node.arguments.args),
        dict(node.arguments.kwargs),
        tuple(node.input_tensors),
        tuple(node.outputs),
    )


def first_call(layer: Any) -> Node:
    """The first call of a layer, in whatever graph it stands."""
    return _node(layer._inbound_nodes[0])


def forget_calls(layer: Any) -> None:
    """Make a layer's next call its first, whose output Keras returns as the layer's `output`."""
    layer._inbound_nodes.clear()
    layer._outbound_nodes.clear()


def with_attributes(operation: Any, **attributes: Any) -> Any:
    """A copy of an operation with other attributes and without calls.

    `copy.copy` would save it to a Keras file and load that file.
    """
    new = object.__new__(type(operation))
    vars(new).update(vars(operation), _inbound_nodes=[], _outbound_nodes=[], **attributes)
    return new


def keras_counts_outputs() -> bool:
    """Whether Keras itself is reading a property `output`, to count a layer's tensors.

    It does so whenever it makes a functional model.
    """
    return sys._getframe(2).f_globals.get("__name__") == Function.__module__


def readers(tensor: keras.KerasTensor) -> list[Node]:
    """The calls that read a tensor, in whatever graphs they stand, in the order they were made."""
    nodes = tensor._keras_history.operation._outbound_nodes
    return [_node(node) for node in nodes if any(t is tensor for t in node.input_tensors)]


def all_layers(model: keras.Model) -> list[Any]:
    """The layers of a model and, at any depth, of the models and layers in it."""
    return list(model._flatten_layers(include_self=False))


def is_named(layer: Any) -> bool:
    """Whether the user named a layer, rather than Keras after its class."""
    automatic = re.escape(to_snake_case(type(layer).__name__))
    return re.fullmatch(rf"{automatic}(_\d+)?", layer.name) is None


def listed_axes(layer: Any) -> list[Any]:
    """The axes of a layer or an operation, whose `axis` is one number or several.

    Args:
        layer: What has an `axis`.

    Returns:
        The axes as they were passed; `[None]` where there is no axis.

    Example:

    >>> listed_axes(keras.layers.LayerNormalization(axis=-1))
    [-1]
    """
    return list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]


def is_shared(layer: Any) -> bool:
    """Whether a layer has been called more than once."""
    return len(layer._inbound_nodes) > 1


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """The mask that Keras hands on beside a tensor, if there is one."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: keras.KerasTensor, mask: keras.KerasTensor) -> None:
    """Let Keras hand on a mask beside a tensor."""
    tensor._keras_mask = mask


def has_graph(model: Any) -> bool:
    """Whether a model was made from a graph: Functional, or a built Sequential."""
    return getattr(_functional(model), "_nodes_by_depth", None) is not None


def is_graph(model: Any) -> bool:
    """Whether a model has a graph and computes just that graph."""
    if not has_graph(model) or has_own_call(model):
        return False
    return type(model).call in (Functional.call, keras.Sequential.call)


def has_own_call(layer: Any) -> bool:
    """Whether the `call` of one layer was replaced, so that its class does not stand for it."""
    return "call" in getattr(layer, "__dict__", ())


def structure(model: keras.Model) -> tuple[Any, Any]:
    """The nested structures of a graph model's inputs and outputs."""
    model = _functional(model)
    return model._inputs_struct, model._outputs_struct


def output_names(model: keras.Model) -> list[str]:
    """Keras' names of a graph model's outputs, the keys of a dict of losses."""
    return list(_functional(model).output_names)


def signature_names(model: keras.Model) -> list[str]:
    """Names of the outputs in a file: a dict's keys, else Keras' names, each once."""
    outputs = structure(model)[1]
    if isinstance(outputs, dict) and len(outputs) == len(model.outputs):
        return keras.tree.flatten({key: key for key in outputs})
    names: list[str] = []
    for base in output_names(model):
        name, n = base, 1
        while name in names:
            name, n = f"{base}_{n}", n + 1
        names.append(name)
    return names


def input_structure(model: keras.Model) -> Any:
    """The nested inputs of a graph model, with the names that data has for them.

    Args:
        model: A graph model.

    Returns:
        Symbolic tensors. An input that a dict has by another name than its own has the dict's.
    """
    inputs = structure(model)[0]
    if not isinstance(inputs, dict):
        return inputs
    return {
        key: keras.KerasTensor(x.shape, x.dtype, name=key)
        if isinstance(x, keras.KerasTensor) and x.name != key
        else x
        for key, x in inputs.items()
    }


def data_inputs(model: keras.Model) -> list[keras.KerasTensor]:
    """The inputs of a model, flat, with the names that data has for them.

    Args:
        model: Any built model.
    """
    return keras.tree.flatten(input_structure(model)) if has_graph(model) else model.inputs


def _functional(model: Any) -> Any:
    """The functional model of a graph model: itself, or the one inside it."""
    inner = isinstance(model, keras.Sequential) and not isinstance(model, Functional)
    return model._functional if inner else model


def with_outputs(model: keras.Model, outputs: Any) -> keras.Model:
    """A model that shares another's inputs and layers, with the given outputs.

    Args:
        model: A functional model.
        outputs: Tensors of its graph, or made from them.

    Returns:
        A functional model whose inputs are one tensor or a list.
    """
    inputs = list(model.inputs)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)


def recompute(graph: Graph, values: dict[int, keras.KerasTensor]) -> dict[int, keras.KerasTensor]:
    """Recompute a graph with some of its tensors replaced.

    Args:
        graph: The graph; its layers are called again.
        values: By the id of a tensor of the graph, its replacement; every input needs one.

    Returns:
        The same for all tensors of the graph.
    """
    values = dict(values)
    for node in graph.nodes:
        if all(id(tensor) in values for tensor in node.outputs):
            continue
        for old, new in zip(node.outputs, repeat_call(node, values), strict=True):
            values.setdefault(id(old), new)
    return values


def with_replaced(
    model: keras.Model, graph: Graph, values: dict[int, keras.KerasTensor]
) -> keras.Model:
    """A model with some of its tensors replaced.

    Args:
        model: A graph model.
        graph: Its view.
        values: By the id of a tensor of the graph, its replacement.

    Returns:
        A functional model with the same inputs, layers and names of outputs.
    """
    inputs, outputs = structure(model)
    values = recompute(graph, {id(tensor): tensor for tensor in graph.inputs} | values)
    outputs = keras.tree.map_structure(lambda tensor: values[id(tensor)], outputs)
    replaced = keras.Model(inputs, outputs, name=model.name)
    replaced.output_names = output_names(model)
    return replaced


def with_calls(model: keras.Model, graph: Graph, calls: dict[int, tuple[Any, Any]]) -> keras.Model:
    """A model that computes some of its tensors by other calls.

    Args:
        model: A graph model.
        graph: Its view.
        calls: By the id of a tensor of the graph, the layer that computes it now, and that layer's
            inputs: one or several tensors of the graph.

    Returns:
        As `with_replaced` does.
    """
    values = {id(tensor): tensor for tensor in graph.inputs}
    for node in graph.nodes:
        if node.is_input:
            continue
        if id(node.outputs[0]) in calls:
            layer, source = calls[id(node.outputs[0])]
            read = keras.tree.map_structure(lambda tensor: values[id(tensor)], source)
            values[id(node.outputs[0])] = layer(read)
            continue
        values.update(zip(map(id, node.outputs), repeat_call(node, values), strict=True))
    return with_replaced(model, graph, values)


def call_again(node: Node, values: dict[int, keras.KerasTensor]) -> Any:
    """Call a node's layer again, on other tensors.

    Args:
        node: The node.
        values: By the id of an input tensor, its replacement.

    Returns:
        What the layer returns.
    """

    args, kwargs = _on_others(node, values)
    return node.layer(*args, **kwargs)


def repeat_call(node: Node, values: dict[int, keras.KerasTensor]) -> list[keras.KerasTensor]:
    """The outputs of a node's layer, called again on other tensors.

    A call on tensors like those of before has outputs like those of before. So it is only recorded,
    because Keras takes many times as long to call a layer.

    Args:
        node: The node.
        values: As for `call_again`.
    """
    pairs = [(tensor, values[id(tensor)]) for tensor in node.inputs]
    plain = all(_is_plain(t) for t in (*(new for _, new in pairs), *node.outputs))
    if not plain or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
        return keras.tree.flatten(call_again(node, values))
    outputs = [keras.KerasTensor(t.shape, t.dtype, name=t.name) for t in node.outputs]
    args, kwargs = _on_others(node, values)
    KerasNode(operation=node.layer, call_args=args, call_kwargs=kwargs, outputs=outputs)
    return outputs


def _is_plain(tensor: keras.KerasTensor) -> bool:
    """Whether shape and type are all that a call can read of a symbolic tensor."""
    return mask_of(tensor) is None and not (tensor.sparse or tensor.ragged)


def _on_others(node: Node, values: dict[int, keras.KerasTensor]) -> tuple[Any, Any]:
    """The arguments of a call on other tensors."""

    def other(value: Any) -> Any:
        return values[id(value)] if isinstance(value, keras.KerasTensor) else value

    return keras.tree.map_structure(other, (node.args, node.kwargs))


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Make layers of float32, whatever policy the user's script has set for its own."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def deep_graphs(nodes: int) -> Iterator[None]:
    """Let Keras walk a graph of this many nodes: it recurses once or more per node."""
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(max(old, 1000 + 4 * nodes))
    try:
        yield
    finally:
        sys.setrecursionlimit(old)
