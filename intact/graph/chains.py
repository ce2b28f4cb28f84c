"""Merges elementwise functions that follow each other into one table.

`sigmoid(x) * 2 - 1` is three kernels and more, and is rounded three times. It is a function of one
tensor, value by value, and so a table of 256 entries, as it would be inside a `Lambda` layer.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from intact.graph.view import Graph, Node, view, with_calls
from intact.ops.registry import activation_name
from intact.ops.relu import Clamp
from intact.ops.steps import Step
from intact.ops.table import TABLE_KERNELS, Elementwise

TABLE = 3
"""The kernels that a table is: CAST, ADD and GATHER."""

ACTIVATIONS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "hard_silu": "HardSilu"}
"""The operations that canonical activation layers are, by the names of their functions."""

Call = tuple[Any, keras.KerasTensor]
"""A layer and the tensor that it reads."""

PAIRS: dict[type, str] = {
    layers.Add: "Add",
    layers.Multiply: "Multiply",
    layers.Subtract: "Subtract",
}
"""The operations that layers of two tensors are."""


def fuse_chains(
    model: keras.Model, joins: Callable[[Any], Any], kept: set[str], always: bool = False
) -> keras.Model:
    """Merge layers that are one elementwise function into a table, if that takes fewer kernels.

    A table has the name of the last layer that it stands for.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        joins: Layers can share a table if this returns the same value for them; None keeps a layer
            separate.
        kept: Names of layers whose outputs stay; only layers before them can join their table.
        always: Whether everything that ends in a kept layer becomes one table, at any cost.

    Returns:
        A functional model that computes the same; the model itself if there is nothing to fuse.

    Example:

    >>> x = keras.Input((4,))
    >>> y = keras.layers.Activation("sigmoid")(x)
    >>> for i in range(2):
    ...     y = keras.layers.Rescaling(2.0, -1.0, name=f"line_{i}")(y)
    >>> model = fuse_chains(keras.Model(x, y), lambda layer: True, set())
    >>> [layer.name for layer in model.layers][1:]
    ['line_1']
    """
    graph = view(model)
    chains = _Chains(graph, joins, kept)
    tables: dict[int, Call] = {}
    for members in chains.groups():
        tables |= chains.fused(members, always)
    return with_calls(model, graph, tables) if tables else model


def scalar(layer: Any) -> tuple[float, float] | None:
    """The factor and offset by which a layer scales and shifts all values, or None."""
    if type(layer) is not layers.Rescaling or np.size(layer.scale) * np.size(layer.offset) > 1:
        return None
    return float(np.ravel(layer.scale)[0]), float(np.ravel(layer.offset)[0])


def steps_of(layer: Any) -> list[Step] | None:
    """The steps of an elementwise canonical layer; None for any other layer.

    Args:
        layer: The layer. Its inputs are the first operands, its own results follow.
    """
    kind = type(layer)
    if kind is Elementwise:
        return layer.steps
    if kind in PAIRS:
        return [(PAIRS[kind], [0, 1], {})]
    if scalar(layer) is not None:
        factor, offset = scalar(layer) or (1.0, 0.0)
        return [("Multiply", [0, factor], {}), ("Add", [1, offset], {})]
    if kind is layers.Activation and activation_name(layer) in ACTIVATIONS:
        return [(ACTIVATIONS[activation_name(layer)], [0], {})]
    if kind is layers.LeakyReLU:
        return [("LeakyRelu", [0], {"negative_slope": float(layer.negative_slope)})]
    if kind is Clamp or (kind is layers.ReLU and not layer.negative_slope and not layer.threshold):
        lower, upper = (layer.lower, layer.upper) if kind is Clamp else (0.0, layer.max_value)
        ends = [("Maximum", lower), ("Minimum", upper)]
        ends = [(name, float(limit)) for name, limit in ends if limit is not None]
        return [(name, [i, limit], {}) for i, (name, limit) in enumerate(ends)]
    return None


def _kernels(node: Node) -> int:
    """How many kernels a layer is by itself."""
    layer = node.layer
    if type(layer) is Elementwise:
        name = layer.steps[0][0]
        return 1 if len(layer.steps) == 1 and name in TABLE_KERNELS["int8"] else TABLE
    if type(layer) is layers.Rescaling:
        # It needs a reshape before it and another one after it.
        return 1 if len(node.outputs[0].shape) == 4 else 3
    return 1


class _Chains:
    """The parts of a graph that are functions of one tensor."""

    def __init__(self, graph: Graph, joins: Callable[[Any], Any], kept: set[str]) -> None:
        self.graph = graph
        self.joins = joins
        self.kept = kept
        self.calls = Counter(id(node.layer) for node in graph.nodes)
        self.source: dict[int, keras.KerasTensor] = {}
        self.members: dict[int, list[Node]] = {}
        for node in graph.nodes:
            source = None if node.is_input else self._source(node)
            for tensor in node.outputs:
                # A new group begins after a kept layer.
                ends = source is None or self._stays(node.layer)
                self.source[id(tensor)] = tensor if ends else source
            if source is not None:
                self.members.setdefault(id(source), []).append(node)

    def groups(self) -> list[list[Node]]:
        """The layers that are functions of one tensor, together; in an order to compute them."""
        return list(self.members.values())

    def _source(self, node: Node) -> keras.KerasTensor | None:
        """The tensor that a layer's output is a function of, value by value."""
        steps = steps_of(node.layer)
        sources = {id(self.source[id(tensor)]): self.source[id(tensor)] for tensor in node.inputs}
        if not steps or len(sources) != 1 or self.calls[id(node.layer)] > 1:
            return None
        (source,) = sources.values()
        common = self.joins(node.layer)
        before = self.members.get(id(source), [])
        if common is None or source.dtype != "float32" or node.outputs[0].dtype != "float32":
            return None
        if before and self.joins(before[0].layer) != common:
            return None
        # The kernel before it clamps, which also narrows its range.
        limits = isinstance(node.layer, layers.ReLU | Clamp)
        return None if limits and node.inputs[0] is source else source

    def fused(self, members: list[Node], always: bool) -> dict[int, Call]:
        """By the id of a tensor that a group hands on: its table, and the table's input.

        Empty if tables would take no fewer kernels.
        """
        group = {id(node) for node in members}
        ends = [node for node in members if self._is_read(node, group)]
        parts = [self._needed(node, members) for node in ends]
        cost = sum(_kernels(part[0]) if len(part) == 1 else TABLE for part in parts)
        long = [part for part in parts if len(part) > 1]
        if always:
            long = [part for part in long if part[-1].layer.name in self.kept]
        elif cost >= sum(map(_kernels, members)):
            return {}
        return {id(part[-1].outputs[0]): self._table(part) for part in long}

    def _is_read(self, node: Node, group: set[int]) -> bool:
        (tensor,) = node.outputs
        readers = self.graph.consumers(tensor)
        outside = not readers or any(id(reader) not in group for reader in readers)
        return outside or self.graph.is_output(tensor) or self._stays(node.layer)

    def _stays(self, layer: Any) -> bool:
        """Whether a layer's output must remain: the user named the layer, or a loss reads it."""
        return layer.name in self.kept or hasattr(layer, "activity")

    def _needed(self, end: Node, members: list[Node]) -> list[Node]:
        """The members that one of them is computed from, itself the last."""
        wanted = {id(tensor) for tensor in end.inputs}
        needed = [end]
        for node in reversed(members[: members.index(end)]):
            if id(node.outputs[0]) in wanted:
                needed.insert(0, node)
                wanted.update(map(id, node.inputs))
        return needed

    def _table(self, nodes: list[Node]) -> Call:
        """The table that computes the output of the last of some layers, and what it reads."""
        last = nodes[-1].layer
        source = self._origin(nodes)
        place = {id(source): 0}
        steps: list[Step] = []
        for node in nodes:
            operands = [place[id(tensor)] for tensor in node.inputs]
            own = len(steps) + 1 - len(operands)
            for name, inputs, config in steps_of(node.layer) or []:
                moved = [
                    i if isinstance(i, float) else operands[i] if i < len(operands) else i + own
                    for i in inputs
                ]
                steps.append((name, moved, config))
            place[id(node.outputs[0])] = len(steps)
        table = Elementwise(steps, name=last.name)
        for name in ("own_rule", "owner", "activity"):
            if hasattr(last, name):
                setattr(table, name, getattr(last, name))
        return table, source

    def _origin(self, nodes: list[Node]) -> keras.KerasTensor:
        """The one tensor that all of these layers are computed from."""
        produced = {id(node.outputs[0]) for node in nodes}
        return next(t for node in nodes for t in node.inputs if id(t) not in produced)
