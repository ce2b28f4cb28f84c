"""Masks that are added to the scores of a softmax, bounded where the softmax no longer sees them.

A hidden place has a score of minus a billion, or of minus infinity. A range that reaches so far
has no integers left for the other scores. So such a mask ends at `-MASKED`, as the masks do that
`MultiHeadAttention` makes: a softmax leaves e^-16 to a place so far below the others.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

from intact.graph.view import Graph, Node, view, with_replaced
from intact.numerics.tensors import to_numpy
from intact.ops.constant import Constant
from intact.ops.logic import Select
from intact.ops.masking import MASKED
from intact.ops.moves import MOVES, Moved
from intact.ops.relu import Clamp

FAR = 1000.0
"""How large a number is that stands for infinity: softmax sees nothing of e^-1000."""


def bound_masks(model: keras.Model) -> keras.Model:
    """Bound the masks that a model adds to the scores of a softmax.

    A mask is what is made of inputs and constants alone, by layers without weights that train,
    and has a number beyond `FAR` in it. Other tensors stay as they are.

    Args:
        model: What `canonicalize` returned; its layers are reused, and its constants change.

    Returns:
        The model with its masks bounded; the model itself if it has none.

    Example:

    >>> scores, hidden = keras.Input((2, 4)), keras.Input((4,))
    >>> mask = keras.layers.Reshape((1, 4))(keras.layers.Rescaling(-1e9)(hidden))
    >>> shares = keras.layers.Softmax()(keras.layers.Add()([scores, mask]))
    >>> model = bound_masks(keras.Model([scores, hidden], shares))
    >>> [layer.lower for layer in model.layers if isinstance(layer, Clamp)]
    [-16.0]
    """
    graph = view(model)
    bounds = _Bounds(graph)
    for node in graph.nodes:
        if bounds.is_scores(node):
            for tensor in node.inputs:
                bounds.bound(tensor, node)
    return with_replaced(model, graph, bounds.values) if bounds.values else model


class Readers:
    """Tells whether only softmaxes depend on a tensor.

    Args:
        graph: The graph.
        between: The layers that may stand between a tensor and the softmax.
    """

    def __init__(self, graph: Graph, between: tuple[Any, ...]) -> None:
        self.graph, self.between = graph, between
        self._known: dict[int, bool] = {}

    def only_softmax(self, tensor: keras.KerasTensor) -> bool:
        """Whether nothing but softmaxes depends on a tensor."""
        if id(tensor) not in self._known:
            nodes = self.graph.consumers(tensor)
            only = all(map(self._leads_to_softmax, nodes))
            self._known[id(tensor)] = bool(nodes) and only and not self.graph.is_output(tensor)
        return self._known[id(tensor)]

    def _leads_to_softmax(self, node: Node) -> bool:
        if isinstance(node.layer, layers.Softmax):
            return True
        return isinstance(node.layer, self.between) and self.only_softmax(node.outputs[0])


class _Bounds:
    """Finds the masks of a graph; `values` has what stands for a tensor once it is bounded."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[int, keras.KerasTensor] = {}
        self.readers = Readers(graph, (layers.Add, *MOVES, Moved))

    def is_scores(self, node: Node) -> bool:
        """Whether a node adds tensors that only softmaxes depend on."""
        return isinstance(node.layer, layers.Add) and self.readers.only_softmax(node.outputs[0])

    def bound(self, tensor: keras.KerasTensor, scores: Node) -> None:
        """Bound a tensor that is added to scores, if it is a mask."""
        if not (self._is_constant(tensor) and self._reaches_far(tensor)):
            return
        reader = scores
        while not isinstance(reader.layer, layers.Softmax):
            reader = self.graph.consumers(reader.outputs[0])[0]
        lower = -MASKED / getattr(reader.layer, "beta", 1.0)
        source = self._source(tensor)
        if self.is_scores(source):
            # The mask is a part of this sum.
            return
        parts = source.inputs[:2] if isinstance(source.layer, Select) else source.outputs
        for part in parts:
            self._end(part, lower)

    def _source(self, tensor: keras.KerasTensor) -> Node:
        """The node that computes the values of a tensor, which others move but do not change."""
        node = self.graph.producer(tensor)
        while isinstance(node.layer, (*MOVES, Moved)):
            node = self.graph.producer(node.inputs[0])
        return node

    def _end(self, tensor: keras.KerasTensor, lower: float) -> None:
        """Let a tensor's values end at a lower bound."""
        layer = self.graph.producer(tensor).layer
        if id(tensor) in self.values or not self._is_read_by_scores(tensor):
            return
        if isinstance(layer, Constant):
            layer.value.assign(np.maximum(to_numpy(layer.value), np.float32(lower)))
            return
        clamp = Clamp(lower, None, name=f"{layer.name}_bounded")
        if hasattr(layer, "own_rule"):
            clamp.own_rule = layer.own_rule
        self.values[id(tensor)] = clamp(tensor)

    def _is_read_by_scores(self, tensor: keras.KerasTensor) -> bool:
        """Whether all that reads a tensor adds it to scores."""
        return not self.graph.is_output(tensor) and all(
            self.is_scores(node)
            or (
                isinstance(node.layer, (*MOVES, Moved, Select))
                and self._is_read_by_scores(node.outputs[0])
            )
            for node in self.graph.consumers(tensor)
        )

    def _ancestors(self, tensor: keras.KerasTensor) -> list[Any]:
        """The layers that compute a tensor, without those that only give a constant its batch."""
        nodes: dict[int, Node] = {}
        left = [self.graph.producer(tensor)]
        while left:
            node = left.pop()
            if id(node) in nodes or node.is_input:
                continue
            nodes[id(node)] = node
            if not isinstance(node.layer, Constant):
                left += map(self.graph.producer, node.inputs)
        return [node.layer for node in nodes.values()]

    def _is_constant(self, tensor: keras.KerasTensor) -> bool:
        """Whether a tensor depends on no weights that train."""
        return not any(layer.trainable_variables for layer in self._ancestors(tensor))

    def _reaches_far(self, tensor: keras.KerasTensor) -> bool:
        """Whether a number that stands for infinity is in a tensor's formula."""
        numbers: list[Any] = [0.0]
        for layer in self._ancestors(tensor):
            if isinstance(layer, Constant):
                numbers.append(np.abs(to_numpy(layer.value)).max())
            elif isinstance(layer, layers.Rescaling):
                numbers += [np.abs(layer.scale).max(), np.abs(layer.offset).max()]
        return max(numbers) > FAR
