"""Normalizations of the inputs, folded into the layer that reads them.

A batch norm folds into the weights before it. One on an input has none before it, and would stay
an op of its own. The layer behind it takes its factors and offsets instead:
`kernel * (factor * x + offset) = (kernel * factor) * x + kernel * offset`, which is exact where the
layer pads nothing.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

from intact.graph.view import Graph, Node, view, with_replaced
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.ops.registry import get_op, known_config, share_code

MAX_SPREAD = 8.0
"""The largest ratio of a norm's factors. Weights that differ by more would lose bits."""


def fold_input_norms(model: keras.Model) -> keras.Model:
    """Fold normalizations of a model's inputs into the layers that read them.

    A batch norm without statistics stays, because it has yet to train. One with statistics can fold
    for good: those of an input do not depend on weights.

    Args:
        model: What `canonicalize` returned; its layers are reused.

    Returns:
        A functional model that computes the same; the model itself if there is nothing to fold.

    Example:

    >>> norm = keras.layers.Rescaling(0.5, name="norm")
    >>> dense = keras.layers.Dense(2, name="dense")
    >>> model = keras.Sequential([keras.Input((4,)), norm, dense])
    >>> [layer.name for layer in fold_input_norms(model).layers[1:]]
    ['dense']
    """
    graph = view(model)
    values: dict[int, keras.KerasTensor] = {}
    calls: dict[int, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(id(node.layer), []).append(node)
    for norms in calls.values():
        readers = [_reader(graph, norm, len(norms)) for norm in norms]
        if None in readers or len({id(reader.layer) for reader in readers if reader}) != 1:
            continue
        # Twin networks call a norm, and the layer behind it, for each of their inputs.
        assert readers[0] is not None
        layer = with_norm_before(readers[0], norms[0].layer)
        for norm, reader in zip(norms, readers, strict=True):
            assert reader is not None
            values[id(reader.outputs[0])] = layer(_without(graph, norm, reader))
    return with_replaced(model, graph, values) if values else model


def _without(graph: Graph, norm: Node, reader: Node) -> keras.KerasTensor:
    """The tensor that a layer behind a norm would read without the norm."""
    (x,) = norm.inputs
    node = graph.sole_consumer(norm.outputs[0])
    while node is not reader:
        assert node is not None
        x = node.layer(x)
        node = graph.sole_consumer(node.outputs[0])
    return x


def _reader(graph: Graph, norm: Node, times: int) -> Node | None:
    """The layer that can take in a norm of an input, behind reshapes that keep the channels.

    Args:
        graph: The graph.
        norm: A call of the norm.
        times: How many calls there are.
    """
    if norm.is_input or not _is_input_norm(graph, norm):
        return None
    channels = norm.outputs[0].shape[-1]
    node = graph.sole_consumer(norm.outputs[0])
    while node is not None and isinstance(node.layer, layers.Reshape):
        if node.outputs[0].shape[-1] != channels:
            return None
        node = graph.sole_consumer(node.outputs[0])
    if node is None or not takes_in(graph, node, norm, channels, times):
        return None
    return node


def _is_input_norm(graph: Graph, norm: Node) -> bool:
    """Whether a node scales an input of the model by known factors of like size."""
    layer = norm.layer
    known = isinstance(layer, layers.BatchNormalization | layers.Rescaling)
    if not known or not graph.producer(norm.inputs[0]).is_input:
        return False
    if isinstance(layer, layers.BatchNormalization):
        mean, variance = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
        if not mean.any() and (variance == 1).all():
            return False
    factor = np.abs(_factors(layer, norm.inputs[0].shape[-1])[0])
    return bool(factor.max() <= MAX_SPREAD * factor.min())


def takes_in(graph: Graph, node: Node, norm: Node, channels: int, times: int = 1) -> bool:
    """Whether a layer can take in a norm of its input.

    Args:
        graph: The graph.
        node: The layer's call.
        norm: The norm's.
        channels: How many channels the norm has.
        times: How often each of the two layers may be called.
    """
    layer = node.layer
    op: Any = get_op(layer)
    calls = [other for other in graph.nodes if other.layer in (layer, norm.layer)]
    if getattr(op, "input_axis", None) is None or len(calls) != 2 * times:
        return False
    if getattr(layer, "own_rule", None) is not getattr(norm.layer, "own_rule", None):
        return False
    one = all(size == 1 for size in getattr(layer, "kernel_size", (1,)))
    padded = getattr(layer, "padding", "valid") != "valid" and not one
    offset = _factors(norm.layer, channels)[1]
    return layer.kernel.shape[op.input_axis] == channels and not (padded and offset.any())


def _factors(norm: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset of each channel."""
    op: Any = get_op(norm)
    factor, offset = op.factors(norm, channels)
    ones = np.ones(channels, "float32")
    return numpy_ops.cast(factor, "float32") * ones, numpy_ops.cast(offset, "float32") * ones


def with_norm_before(reader: Node, norm: Any) -> Any:
    """A layer that computes a norm and its reader in one.

    Args:
        reader: The reader's call.
        norm: The norm.
    """
    layer = reader.layer
    op: Any = get_op(layer)
    kernel = to_numpy(layer.kernel)
    channels = kernel.shape[op.input_axis]
    factor, offset = _factors(norm, channels)
    shape = [channels if axis == op.input_axis % kernel.ndim else 1 for axis in range(kernel.ndim)]
    outputs = {axis % kernel.ndim for axis in op.weights["kernel"].layout.axes}
    taps = tuple(axis for axis in range(kernel.ndim) if axis not in outputs)
    shift = (kernel * offset.reshape(shape)).sum(taps).reshape(-1)
    bias = 0.0 if layer.bias is None else to_numpy(layer.bias)

    folded = type(layer).from_config({**known_config(layer), "use_bias": True})
    share_code(layer, folded, {})
    folded.build(reader.inputs[0].shape)
    folded.kernel.assign(kernel * factor.reshape(shape))
    folded.bias.assign(bias + shift)
    for name in ("one_range", "own_rule", "owner", "activity"):
        if hasattr(layer, name):
            setattr(folded, name, getattr(layer, name))
    return folded
