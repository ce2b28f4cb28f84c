"""Factors and offsets that all values share, folded into the layers beside them.

`x * 2 - 1` is a kernel of its own, and where there are no images, a reshape on both sides of it.
The layer before or behind it can take it in: `a * (kernel * x + bias) + b` and
`kernel * (a * x + b)` are that layer with other weights. One factor for all weights loses no bits,
and a rounding is saved.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import layers

from intact.graph.chains import Call, scalar
from intact.graph.input_norms import takes_in, with_norm_before
from intact.graph.view import Graph, Node, view, with_calls
from intact.numerics.tensors import to_numpy
from intact.ops.norm import ChannelScale
from intact.ops.registry import get_op, known_config, share_code


def fold_scalings(model: keras.Model, named: set[str], kept: Collection[str] = ()) -> keras.Model:
    """Fold the factors and offsets of all values into the layers before or behind them.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        named: Names of layers whose outputs stay as they are.
        kept: Names of factors and offsets that stay.

    Returns:
        A functional model that computes the same; the model itself if there is nothing to fold.

    Example:

    >>> dense = [keras.layers.Dense(2, name=name) for name in "ab"]
    >>> half = keras.layers.Rescaling(0.5, name="half")
    >>> model = keras.Sequential([keras.Input((4,)), dense[0], half, dense[1]])
    >>> [layer.name for layer in fold_scalings(model, set()).layers[1:]]
    ['a', 'b']
    """
    while True:
        graph = view(model)
        calls = Counter(id(node.layer) for node in graph.nodes)
        folded: dict[int, Call] = {}
        touched: set[int] = set()
        for node in graph.nodes:
            if not _is_scaling(node, {*named, *kept}) or calls[id(node.layer)] > 1:
                continue
            around = {id(node), id(graph.producer(node.inputs[0]))}
            around |= {id(reader) for reader in graph.consumers(node.outputs[0])}
            own = {} if around & touched else _folded(graph, node, calls, named)
            folded |= own
            touched |= around if own else set()
        if not folded:
            return model
        model = with_calls(model, graph, folded)


def join_channel_scales(model: keras.Model, kept: Collection[str]) -> keras.Model:
    """Make one layer of trained factors and of the trained offsets behind them.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        kept: Names of layers whose outputs stay as they are.

    Returns:
        A functional model that computes the same; the model itself if there is nothing to join.

    Example:

    >>> x = keras.Input((4,))
    >>> y = ChannelScale(4, center=False, name="gamma")(x)
    >>> y = ChannelScale(4, scale=False, name="beta")(y)
    >>> model = join_channel_scales(keras.Model(x, y), set())
    >>> [(layer.name, layer.scale, layer.center) for layer in model.layers[1:]]
    [('beta', True, True)]
    """
    graph = view(model)
    calls = Counter(id(node.layer) for node in graph.nodes)
    joined: dict[int, Call] = {}
    for node in graph.nodes:
        offset = _offset_behind(graph, node, kept)
        if offset is None or not calls[id(node.layer)] == calls[id(offset)] == 1:
            continue
        factor = node.layer
        both = ChannelScale(factor.channels, name=offset.name)
        both.gamma.assign(factor.gamma)
        both.beta.assign(offset.beta)
        both.trainable = offset.trainable
        for name in ("one_range", "own_rule", "owner", "activity"):
            if hasattr(offset, name):
                setattr(both, name, getattr(offset, name))
        (behind,) = graph.consumers(node.outputs[0])
        joined[id(behind.outputs[0])] = both, node.inputs[0]
    return with_calls(model, graph, joined) if joined else model


def _offset_behind(graph: Graph, node: Node, kept: Collection[str]) -> ChannelScale | None:
    """The layer that only shifts what this one only scales, and which alone reads it; or None."""
    factor, behind = node.layer, graph.sole_consumer(node.outputs[0])
    if behind is None or not isinstance(factor, ChannelScale) or factor.center:
        return None
    offset = behind.layer
    if not isinstance(offset, ChannelScale) or offset.scale or hasattr(factor, "activity"):
        return None
    alike = getattr(factor, "own_rule", None) is getattr(offset, "own_rule", None)
    alike = alike and factor.trainable == offset.trainable
    return offset if alike and factor.name not in kept else None


def _is_scaling(node: Node, kept: set[str]) -> bool:
    return not node.is_input and scalar(node.layer) is not None and node.layer.name not in kept


def _folded(graph: Graph, node: Node, calls: Counter, named: set[str]) -> dict[int, Call]:
    """By the id of a tensor, the layer with a scaling in it, and what it reads; or nothing."""
    before = graph.producer(node.inputs[0])
    alone = graph.sole_consumer(node.inputs[0]) is node and calls[id(before.layer)] == 1
    if alone and not before.is_input and before.layer.name not in named:
        layer = _with_scaling_behind(before, node)
        if layer is not None:
            return {id(node.outputs[0]): (layer, before.inputs[0])}
    reader = graph.sole_consumer(node.outputs[0])
    channels = node.outputs[0].shape[-1]
    if reader is None or before.is_input or channels is None or not _free(reader.layer):
        return {}
    if not takes_in(graph, reader, node, channels):
        return {}
    return {id(reader.outputs[0]): (with_norm_before(reader, node.layer), node.inputs[0])}


def _with_scaling_behind(node: Node, scaling: Node) -> Any:
    """A copy of a layer that takes in the scaling of its output; None if it cannot."""
    layer, other = node.layer, scaling.layer
    factor, offset = scalar(other) or (1.0, 0.0)
    if getattr(layer, "own_rule", None) is not getattr(other, "own_rule", None):
        return None
    if scalar(layer) is not None:
        scale, shift = scalar(layer) or (1.0, 0.0)
        twin: Any = layers.Rescaling(scale * factor, shift * factor + offset, name=other.name)
    elif getattr(get_op(layer), "input_axis", None) is None or not _free(layer) or not factor:
        return None
    else:
        biased = layer.bias is not None or offset != 0
        twin = type(layer).from_config({**known_config(layer), "use_bias": biased})
        share_code(layer, twin, {})
        twin.build(node.inputs[0].shape)
        twin.kernel.assign(to_numpy(layer.kernel) * np.float32(factor))
        if biased:
            bias = 0.0 if layer.bias is None else to_numpy(layer.bias)
            twin.bias.assign(
                bias * np.float32(factor) + np.float32(offset) * np.ones(twin.bias.shape)
            )
    for name in ("one_range", "own_rule", "owner"):
        if hasattr(layer, name):
            setattr(twin, name, getattr(layer, name))
    return twin


def _free(layer: Any) -> bool:
    """Whether no regularizer or constraint depends on a layer's weights or outputs."""
    names = ("kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")
    return not any(getattr(layer, name, None) for name in (*names, "activity"))
