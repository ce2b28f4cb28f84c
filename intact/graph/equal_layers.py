"""Layers that compute the same from the same, of which one is enough.

Positions, masks and their embeddings are often computed in each block of a model, or for queries
and for keys. Each would be kernels of its own, with a range of its own.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from intact.graph.view import Graph, Node, repeat_call, view, with_replaced
from intact.numerics.tensors import to_numpy
from intact.ops.base import AllSame, SameAsInput, Weighted
from intact.ops.constant import Constant
from intact.ops.registry import get_op, known_config

Key = tuple[Any, ...]


def share_equal(
    model: keras.Model, named: set[str], rule_of: Callable[[Any], Any] = lambda layer: None
) -> keras.Model:
    """Compute once what several layers compute alike.

    Args:
        model: A flat model whose layers an op knows; they are reused.
        named: Names of layers whose outputs stay as they are.
        rule_of: How a layer is quantized; only layers of one rule are alike.

    Returns:
        A functional model that computes the same; the model itself if no layers are alike.

    Example:

    >>> x = keras.Input((4, 6))
    >>> parts = [keras.layers.Reshape((6, 4))(x) for _ in range(2)]
    >>> model = keras.Model(x, keras.layers.Multiply()(parts))
    >>> [type(layer).__name__ for layer in share_equal(model, set()).layers][1:]
    ['Reshape', 'Multiply']
    """
    graph = view(model)
    sharing = _Sharing(graph, named, rule_of)
    if not sharing.first:
        return model
    values = {id(tensor): tensor for tensor in graph.inputs}
    for node in graph.nodes:
        if node.is_input:
            continue
        first = sharing.first.get(id(node))
        results = (
            repeat_call(node, values)
            if first is None
            else [values[id(tensor)] for tensor in first.outputs]
        )
        values.update(zip(map(id, node.outputs), results, strict=True))
    return with_replaced(model, graph, values)


class _Sharing:
    """Which calls of a graph compute the same; `first` has, by the id of a call, the one to keep.

    Args:
        graph: The graph.
        named: Names of layers that stay.
        rule_of: How a layer is quantized.
    """

    def __init__(self, graph: Graph, named: set[str], rule_of: Callable[[Any], Any]) -> None:
        self.graph = graph
        self.rule_of = rule_of
        # The kind of each tensor, and of each call: those of one kind are equal.
        self.kinds: dict[int, tuple[int, int]] = {}
        self.calls: dict[int, int] = {}
        known: dict[Key, int] = {}
        alike: dict[int, list[Node]] = {}
        for node in graph.nodes:
            kind = known.setdefault(self._key(node), len(known))
            self.calls[id(node)] = kind
            alike.setdefault(kind, []).append(node)
            self.kinds.update((id(t), (kind, n)) for n, t in enumerate(node.outputs))
        self.joined = self._joined()
        self.first: dict[int, Node] = {}
        for first, *others in alike.values():
            for node in others:
                if not isinstance(node.layer, Constant) and self._replaces(first, node, named):
                    self.first[id(node)] = first

    def _replaces(self, first: Node, node: Node, named: set[str]) -> bool:
        """Whether the results of an equal call can stand for those of a call."""
        if any(self.graph.is_output(tensor) for tensor in node.outputs):
            return False
        if first.layer is node.layer:
            return True
        stays = node.layer.name in named or hasattr(node.layer, "activity")
        pairs = zip(first.outputs, node.outputs, strict=True)
        return not stays and all(self.joined[id(a)] == self.joined[id(b)] for a, b in pairs)

    def _joined(self) -> dict[int, frozenset[int]]:
        """For each tensor, the kinds of calls that give it the range of other tensors.

        One tensor in the place of two would tie the ranges of what they are joined with.
        """
        joined: dict[int, frozenset[int]] = {}
        for node in reversed(self.graph.nodes):
            for tensor in node.outputs:
                kinds: set[int] = set()
                for reader in self.graph.consumers(tensor):
                    output = get_op(reader.layer).output
                    if isinstance(output, AllSame):
                        kinds.add(self.calls[id(reader)])
                    if isinstance(output, AllSame | SameAsInput):
                        kinds.update(*(joined[id(t)] for t in reader.outputs))
                joined[id(tensor)] = frozenset(kinds)
        return joined

    def _key(self, node: Node) -> Key:
        """What calls have in common that compute the same."""
        own = (id(node),)
        if node.is_input or getattr(node.layer, "one_range", False):
            return own
        what = _identity(node.layer)
        if what is None:
            return own
        read = keras.tree.map_structure(
            lambda value: self.kinds[id(value)] if isinstance(value, keras.KerasTensor) else value,
            (node.args, node.kwargs) if not isinstance(node.layer, Constant) else (),
        )
        limit = getattr(node.layer, "range_limit", None)
        return (*what, repr(read), id(self.rule_of(node.layer)), id(limit))


def _identity(layer: Any) -> Key | None:
    """What equal layers have in common; None if a layer may give other results at each call."""
    variables = layer.variables
    fixed = variables and not layer.trainable_variables
    if isinstance(get_op(layer), Weighted) and not (fixed and type(layer) is layers.Dense):
        return (id(layer),)
    if variables and not (fixed and type(layer) in (Constant, layers.Dense)):
        return None
    if not type(layer).__module__.startswith(("intact.ops.", "keras.src.layers.")):
        return None
    config = {k: v for k, v in known_config(layer).items() if k not in ("name", "trainable")}
    policy = config.pop("dtype", None)
    if not all(isinstance(v, int | float | str | None) for v in keras.tree.flatten(config)):
        return None
    values = (np.ascontiguousarray(to_numpy(v)) for v in variables)
    weights = tuple((v.shape, v.dtype.str, v.tobytes()) for v in values)
    return (type(layer), repr(sorted(config.items())), repr(policy), weights)
