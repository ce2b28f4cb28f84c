"""Runs a quantized model call by call, in float or as its file will."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.graph.view import Graph, Node, view
from intact.layers.base import QuantizedLayer
from intact.layers.kernel_graph import KernelGraph
from intact.layers.quantized_weights import QuantizedWeights
from intact.numerics.affine import QTensor
from intact.numerics.forward import no_gradients
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.numerics.weights import half_precision
from intact.ops.registry import get_op

Call = Callable[[KernelGraph, Node, tuple[Any, ...]], Any]


def in_float(kernels: KernelGraph, node: Node, args: tuple[Any, ...]) -> Any:
    """Make a call of a quantized model's graph without any rounding."""
    layer = node.layer
    if isinstance(layer, QuantizedLayer):
        return layer.unrounded(*args, **node.kwargs)
    return layer(*args, **node.kwargs)


def as_filed(kernels: KernelGraph, node: Node, args: tuple[Any, ...]) -> Any:
    """Make a call of a quantized model's graph as the file will.

    Only float16 differs from the model: the file folds a batch norm into weights before it rounds
    them.
    """
    layer, norm = node.layer, kernels.of(node).norm
    halves = isinstance(layer, QuantizedWeights) and layer.spec and layer.spec.kind == "float"
    if not halves or norm is None:
        return layer(*args, **node.kwargs)
    op, kernel = get_op(layer.layer), to_numpy(layer.layer.kernel)
    layout = op.weights["kernel"].layout
    channels = int(np.prod([kernel.shape[a] for a in layout.axes]))
    factor, _ = get_op(norm).factors(norm, channels)
    factor = np.where(factor == 0, np.float32(1), factor)
    factor = layout.spread(factor, kernel.shape, numpy_ops)
    weights = {"kernel": half_precision(kernel * factor, numpy_ops) / factor}
    return op.real(layer.layer, [args[0]], weights)


class Walk:
    """The tensors of a model's graph on some batches, for as long as they are needed.

    Args:
        graph: The view of a quantized model.
        batches: Per batch, the arrays of the inputs.
        keep: Tensors that are kept to the end.
    """

    def __init__(self, graph: Graph, batches: list[list[Any]], keep: Any = ()) -> None:
        self.graph = graph
        self.kernels = KernelGraph(graph)
        self.values: list[dict[int, Any]] = [
            {id(t): ops.convert_to_tensor(a) for t, a in zip(self.graph.inputs, batch, strict=True)}
            for batch in batches
        ]
        self._readers = Counter(id(t) for node in self.graph.nodes for t in node.inputs)
        self._kept = {id(t) for t in (*self.graph.outputs, *keep)}

    def step(self, node: Node, call: Call) -> None:
        """Make one call on every batch, and forget tensors that no later call reads."""
        for values in self.values:
            args = keras.tree.map_structure(
                lambda a, v=values: v[id(a)] if isinstance(a, keras.KerasTensor) else a, node.args
            )
            with no_gradients():
                outputs = keras.tree.flatten(call(self.kernels, node, args))
            values.update(zip(map(id, node.outputs), outputs, strict=True))
        for tensor in node.inputs:
            self._readers[id(tensor)] -= 1
            if not self._readers[id(tensor)] and id(tensor) not in self._kept:
                for values in self.values:
                    del values[id(tensor)]

    def real(self, operand: Any) -> list[Any]:
        """Per batch, the real values of a tensor of the graph, or of a `QTensor` of them."""
        if isinstance(operand, keras.KerasTensor):
            return [values[id(operand)] for values in self.values]
        x = QTensor(*operand)
        return [values[id(x.values)] * values[id(x.scale)] for values in self.values]


def cut(arrays: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Batches of arrays.

    Args:
        arrays: One per input, samples first.
        size: Samples per batch.

    Example:

    >>> [[part.tolist() for part in batch] for batch in cut([np.arange(3)], 2)]
    [[[0, 1]], [[2]]]
    """
    starts = range(0, len(arrays[0]), size)
    return [[array[start : start + size] for array in arrays] for start in starts]


def run(model: keras.Model, batches: list[list[Any]], call: Call, wanted: list[Any]) -> Any:
    """Run a model to the end.

    Args:
        model: A quantized model.
        batches: Per batch, the arrays of the inputs.
        call: Makes each call.
        wanted: Tensors of the graph, or `QTensor`s of them.

    Returns:
        Per batch, a list of arrays: the real values of the wanted tensors.
    """
    graph, results = view(model), []
    for batch in batches:
        walk = Walk(graph, [batch], [t for part in wanted for t in keras.tree.flatten(part)])
        for node in graph.nodes:
            if not node.is_input:
                walk.step(node, call)
        results.append([to_numpy(walk.real(part)[0]) for part in wanted])
    return results


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The mean squared error, in units of the variance over samples.

    Args:
        expected: Values, samples first.
        actual: The approximate values.

    Example:

    >>> relative_error(np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]]))
    0.5
    """
    return float(np.mean((expected - actual) ** 2) / variance(expected))


def variance(values: np.ndarray) -> float:
    """The variance over samples; the mean square if all samples are equal.

    Args:
        values: Values, samples first.
    """
    return float(np.mean((values - values.mean(axis=0)) ** 2) or np.mean(values**2) or 1.0)
