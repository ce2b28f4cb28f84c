"""Normalizations by statistics of each sample."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.graph.view import listed_axes
from intact.numerics.tensors import to_numpy
from intact.ops.base import Case, Op
from intact.ops.norm import channel_scale
from intact.ops.registry import register_op


def inverse_root(epsilon: float) -> Callable:
    """`1 / sqrt(v + epsilon)`, or 0 instead of a division by 0."""

    def function(v: Any) -> Any:
        return ops.where(v + epsilon > 0.0, ops.rsqrt(ops.maximum(v + epsilon, 1e-30)), 0.0)

    return function


def standardized(x: Any, axes: Any, epsilon: float, centre: bool = True) -> Any:
    """`(x - mean) / sqrt(variance + epsilon)`, of symbolic tensors.

    Args:
        x: A tensor.
        axes: The axes of the statistics.
        epsilon: Added to the variance.
        centre: Whether to subtract the mean.
    """
    centred = x - ops.mean(x, axes, keepdims=True) if centre else x
    variance = ops.mean(centred * centred, axes, keepdims=True)
    # It is elementwise: one table.
    return centred * layers.Activation(inverse_root(epsilon), name="inverse_root")(variance)


def scaled(x: Any, gamma: Any, beta: Any, layer: Any, tracer: Any) -> Any:
    """`gamma * x + beta`, for weights along the last axis, or along several.

    Args:
        x: A tensor of the new graph.
        gamma: The factors, or None.
        beta: The offsets, or None.
        layer: The layer that they belong to.
        tracer: The tracer.
    """
    if gamma is None and beta is None:
        return x
    channels = x.shape[-1]
    weight = gamma if gamma is not None else beta
    if to_numpy(weight).size == channels:
        channel_layer = channel_scale(f"{layer.name}_scale", channels, tracer, gamma, beta)
        return tracer.emit(channel_layer, x)
    with tracer.scope(layer):
        for value, merge, name in ((gamma, layers.Multiply, "gamma"), (beta, layers.Add, "beta")):
            if value is not None:
                other = tracer.constant(value, name, len(x.shape))
                x = tracer.emit(merge(name=f"by_{name}"), [x, other])
    return x


@register_op
class LayerNormalization(Op):
    """Means, a table of roots and products (arXiv:1607.06450, arXiv:1910.07467)."""

    keras_layers = (layers.LayerNormalization, layers.RMSNormalization)
    operations = ("LayerNorm", "RMSNorm")
    litert = ("MEAN", "SUB", "MUL", "GATHER", "DEPTHWISE_CONV_2D")
    cases = (
        Case(lambda: layers.LayerNormalization(), (4, 6)),
        Case(lambda: layers.LayerNormalization(axis=(1, 2), center=False), (4, 6)),
        Case(lambda: layers.LayerNormalization(scale=False, epsilon=1e-6), (3, 4, 5)),
        Case(lambda: layers.RMSNormalization(), (4, 6)),
        Case(lambda: lambda x: ops.rms_normalization(x), (6,)),
        Case(lambda: lambda x: ops.layer_normalization(x), (4, 6)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if getattr(layer, "rms_scaling", False):
            tracer.refuse(layer, "rms_scaling=True; use `RMSNormalization`")
        x, *weights = args
        centre = "RMS" not in type(layer).__name__
        if isinstance(layer, layers.Layer):
            gamma, beta = getattr(layer, "gamma", None), getattr(layer, "beta", None)
            if not centre:
                gamma = layer.scale
        else:
            gamma, beta = [*weights, *kwargs.values(), None, None][:2]
        axis = listed_axes(layer)
        axes = tuple(sorted(a % len(x.shape) for a in axis))
        last = tuple(range(len(x.shape)))[-len(axes) :]
        if centre and axes != last and (gamma is not None or beta is not None):
            tracer.refuse(layer, f"its weights are along axes {axes}, which are not the last ones")
        epsilon = 1e-7 if layer.epsilon is None else float(layer.epsilon)
        y = tracer.expand(layer, lambda t: standardized(t, axes, epsilon, centre), x)
        return scaled(y, gamma, beta, layer, tracer)


@register_op
class GroupNormalization(Op):
    """A layer normalization of groups of channels (arXiv:1803.08494)."""

    keras_layers = (layers.GroupNormalization,)
    litert = ("RESHAPE", "MEAN", "SUB", "MUL", "GATHER", "DEPTHWISE_CONV_2D")
    cases = (
        Case(lambda: layers.GroupNormalization(2), (4, 5, 6)),
        Case(lambda: layers.GroupNormalization(2, axis=1), (4, 5, 3)),
        Case(lambda: layers.GroupNormalization(-1), (4, 3)),
        Case(lambda: layers.GroupNormalization(2), (None, None, 6)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        rank = len(x.shape)
        order = [*(a for a in range(1, rank) if a != layer.axis % rank), layer.axis % rank]
        if order != sorted(order):
            x = tracer.emit_new(layers.Permute(order, name=f"{layer.name}_channels_last"), x)
        sizes = x.shape[1:]
        channels, groups = sizes[-1], layer.groups

        def of_groups(t: Any, axes: list[int]) -> Any:
            """Means over axes and the channels of a group, for each channel."""
            same = np.eye(groups, dtype="float32").repeat(channels // groups, 0)
            return ops.matmul(ops.mean(t, axes, keepdims=True), same @ same.T * groups / channels)

        def normalized_by_channel(t: Any) -> Any:
            axes = list(range(1, rank - 1))
            centred = t - of_groups(t, axes)
            inverse = layers.Activation(inverse_root(layer.epsilon), name="inverse_root")
            return centred * inverse(of_groups(centred * centred, axes))

        def normalized(t: Any) -> Any:
            groups = ops.reshape(t, (-1, *sizes[:-1], layer.groups, sizes[-1] // layer.groups))
            axes = [a for a in range(1, len(groups.shape)) if a != len(groups.shape) - 2]
            return ops.reshape(standardized(groups, axes, layer.epsilon), (-1, *sizes))

        # Without a reshape where sizes are unknown.
        free = None in sizes
        y = tracer.expand(layer, normalized_by_channel if free else normalized, x)
        y = scaled(y, layer.gamma, layer.beta, layer, tracer)
        if order != sorted(order):
            back = [order.index(axis) + 1 for axis in range(1, rank)]
            y = tracer.emit_new(layers.Permute(back, name=f"{layer.name}_channels_back"), y)
        return y


@register_op
class UnitNormalization(Op):
    """Vectors of length 1; one that is too short for its integers becomes 0."""

    keras_layers = (layers.UnitNormalization,)
    operations = ("Normalize",)
    litert = ("MUL", "SUM", "GATHER")
    notes = "Norms of order 1 and 2."
    cases = (
        Case(lambda: layers.UnitNormalization(), (4, 6)),
        Case(lambda: lambda x: ops.normalize(x, axis=1), (4, 6)),
        Case(lambda: lambda x: ops.normalize(x, axis=-1, order=1), (4, 6), low=0.1),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        order = getattr(layer, "order", 2)
        if order not in (1, 2):
            tracer.refuse(layer, f"order={order} is not known; 1 and 2 are")
        axis = listed_axes(layer)
        axes = tuple(a % len(x.shape) for a in axis)

        def normalized(t: Any) -> Any:
            if order == 1:
                least = layer.epsilon or keras.backend.epsilon()
                return t / ops.maximum(ops.sum(ops.abs(t), axes, keepdims=True), least)
            total = ops.sum(t * t, axes, keepdims=True)
            return t * layers.Activation(inverse_root(0.0), name="inverse_root")(total)

        return tracer.expand(layer, normalized, x)
