"""Attention scores that are hidden by a large negative number before a softmax.

Hand-written attention often computes `where(seen, scores, -1e9)`. A range that contains -1e9 has no
integers left for the other scores. This module subtracts `MASKED` from the hidden scores instead,
as `MultiHeadAttention` does.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

from intact.graph.masked_scores import FAR, Readers
from intact.graph.view import Graph, Node, view, with_calls
from intact.numerics.tensors import to_numpy
from intact.ops.constant import Constant
from intact.ops.gradients import WithoutGradient
from intact.ops.logic import Select
from intact.ops.masking import MASKED
from intact.ops.moves import MOVES, Moved
from intact.ops.reduce import Max

BETWEEN = (
    *(layers.Add, layers.Subtract, layers.Concatenate),
    *(Max, Select, WithoutGradient, *MOVES, Moved),
)
"""Layers that may be between hidden scores and their softmax, because they keep low scores low."""


def hide_scores(model: keras.Model) -> keras.Model:
    """Let a model subtract from hidden scores, rather than replace them.

    Args:
        model: What `canonicalize` returned; its layers are reused.

    Returns:
        The model with its scores hidden; the model itself if it has none.

    Example:

    >>> scores, seen = keras.Input((4,)), keras.Input((4,), dtype="bool")
    >>> low = Constant((1, 1), name="low")
    >>> _ = low.value.assign([[-1e9]])
    >>> hidden = Select()([scores, low(scores), seen])
    >>> model = hide_scores(keras.Model([scores, seen], keras.layers.Softmax()(hidden)))
    >>> [layer.name for layer in model.layers if isinstance(layer, keras.layers.Add)]
    ['select_hidden']
    """
    graph = view(model)
    readers = Readers(graph, BETWEEN)
    calls: dict[int, tuple[Any, Any]] = {}
    for node in graph.nodes:
        if not isinstance(node.layer, Select) or not readers.only_softmax(node.outputs[0]):
            continue
        a, b, condition = node.inputs
        far = [_is_far(graph.producer(part)) for part in (a, b)]
        if far.count(True) == 1:
            scores = b if far[0] else a
            if len(scores.shape) == len(node.outputs[0].shape):
                calls[id(node.outputs[0])] = _Hiding(node, far[0], graph), [scores, condition]
    return with_calls(model, graph, calls) if calls else model


def _is_far(node: Node) -> bool:
    """Whether a node is a constant that stands for minus infinity."""
    return isinstance(node.layer, Constant) and bool(np.all(to_numpy(node.layer.value) < -FAR))


class _Hiding:
    """Subtracts from hidden scores, in the place of a `Select`.

    Args:
        node: The call of the `Select`.
        hides: Whether scores are hidden where its condition holds, or where it does not.
        graph: The graph.
    """

    def __init__(self, node: Node, hides: bool, graph: Graph) -> None:
        self.node, self.hides, self.anchor = node, hides, graph.inputs[0]

    def __call__(self, tensors: list[keras.KerasTensor]) -> keras.KerasTensor:
        scores, condition = tensors
        name = self.node.layer.name
        parts = [self._constant(n, len(scores.shape)) for n in (0.0, -MASKED)]
        penalty = self._like(Select(name=f"{name}_penalty"))
        add = self._like(layers.Add(name=f"{name}_hidden"))
        zero, low = parts
        return add([scores, penalty([*((low, zero) if self.hides else (zero, low)), condition])])

    def _constant(self, value: float, rank: int) -> keras.KerasTensor:
        """A number as a tensor of the graph."""
        kind = "hidden" if value else "seen"
        constant = Constant((1,) * rank, broadcast=True, name=f"{self.node.layer.name}_{kind}_by")
        constant.value.assign(np.full((1,) * rank, value, "float32"))
        constant.trainable = False
        return self._like(constant)(self.anchor)

    def _like(self, layer: Any) -> Any:
        """A layer with the rule of the `Select`."""
        if hasattr(self.node.layer, "own_rule"):
            layer.own_rule = self.node.layer.own_rule
        return layer
