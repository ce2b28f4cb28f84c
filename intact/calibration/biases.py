"""Bias correction: what rounding the weights takes from the mean of a layer's sums.

Source: Nagel et al., arXiv:1906.04721, section 4.2.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from intact.calibration.capture import Watch, products
from intact.graph.view import Graph, Node, view
from intact.layers.alignment import folded_norm
from intact.layers.quantized import Quantized
from intact.numerics.affine import along, half_precision, host, to_numpy
from intact.ops.base import Weighted, get_op
from intact.quantizers.observers import Observer


class Total(NamedTuple):
    """The sum of samples, and how many they are."""

    total: Any
    count: Any


class Mean(Observer):
    """The mean over the samples."""

    def look(self, x: Any, xp: Any = ops) -> Total:
        """The sum of a batch."""
        return Total(xp.sum(x, axis=0), xp.sum(xp.ones_like(x[:, 0]), axis=0))

    def join(self, a: Total, b: Total, xp: Any = ops) -> Total:
        """The sum of both."""
        return Total(a.total + b.total, a.count + b.count)

    def update(self, state: Total, seen: Total, xp: Any = ops) -> Total:
        """The sum with one more batch."""
        return self.join(state, seen)


def correct_biases(model: keras.Model, look: Callable[[list[Watch]], list[Any]]) -> None:
    """Add to biases what rounding the weights takes from the mean of the outputs.

    Args:
        model: A quantized model; what was corrected before is taken back.
        look: Makes what each observer sees of its tensor, over all data.
    """
    take_back_corrections(model)
    graph = view(model)
    nodes = [node for node in graph.nodes if _has_kernel(node.layer)]
    inputs = look([(node.inputs[0], Mean()) for node in nodes])
    # Products are linear: the mean over the samples may be taken first.
    means = [np.asarray(seen.total / seen.count, "float32")[None] for seen in inputs]
    lost = products(model, nodes, [_rounding(node.layer) for node in nodes], means)
    per_layer: dict[int, list[Any]] = {}
    for node, gap in zip(nodes, lost, strict=True):
        shift = gap.mean(axis=tuple(range(gap.ndim - 1)))
        per_layer.setdefault(id(node.layer), [node]).append(shift)
    for node, *shifts in per_layer.values():
        node.layer.corrected = np.mean(shifts, axis=0)
        _shift(graph, node, node.layer.corrected)


def take_back_corrections(model: keras.Model) -> None:
    """Give layers the biases that they had before bias correction.

    Args:
        model: A quantized model.
    """
    graph = view(model)
    for node in graph.nodes:
        corrected = getattr(node.layer, "corrected", None)
        if corrected is not None:
            _shift(graph, node, -corrected)
            node.layer.corrected = None


@contextlib.contextmanager
def without_corrections(model: keras.Model) -> Iterator[None]:
    """Let a model have the biases that it had before bias correction, for a while.

    Args:
        model: A quantized model.
    """
    state = State(model)
    try:
        take_back_corrections(model)
        yield
    finally:
        state.restore()


class State:
    """A copy of all that calibration and recovery may change in a model.

    Args:
        model: A quantized model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.values = [np.array(to_numpy(variable)) for variable in model.variables]
        self.layers = [layer for layer in model.layers if isinstance(layer, Quantized)]
        self.corrected = [layer.corrected for layer in self.layers]

    def restore(self) -> None:
        """Put it back."""
        for variable, value in zip(self.model.variables, self.values, strict=True):
            variable.assign(value)
        for layer, corrected in zip(self.layers, self.corrected, strict=True):
            layer.corrected = corrected


def _shift(graph: Graph, node: Node, amount: np.ndarray) -> None:
    """Add to the bias of a layer, or to the batch norm that becomes part of it."""
    layer = folded_norm(node, graph) or node.layer.layer
    get_op(layer).shift(layer, amount)


def _has_kernel(layer: Any) -> bool:
    """Whether a layer sums products with a kernel that is rounded."""
    if not isinstance(layer, Quantized) or layer.spec is None or layer.norm is not None:
        return False
    op = get_op(layer.layer)
    return issubclass(op, Weighted) and "kernel" in op.weights


def _rounding(quantized: Quantized) -> np.ndarray:
    """What rounding takes from a layer's kernel."""
    kernel, axis = to_numpy(quantized.layer.kernel), quantized.weight_axes()["kernel"]
    assert quantized.spec is not None
    if quantized.spec.kind == "float":
        return kernel - half_precision(kernel, host)
    values, scale = quantized.quantized_weights(host)["kernel"]
    return kernel - values * along(scale, axis, kernel.shape, host)
