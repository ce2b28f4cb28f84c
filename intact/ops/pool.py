"""Pooling."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics import QTensor, Tensor, is_integer, round_clip, straight_through, unfused
from intact.ops.base import SAME_AS_INPUT, Case, Op, register_op
from intact.ops.conv import channels_first, same_padding
from intact.quantizers import Arithmetic

POOL_CASES = (
    lambda layer: Case(lambda: layer(2), (8, 8, 3)),
    lambda layer: Case(lambda: layer(3, strides=2, padding="same"), (9, 8, 3)),
    lambda layer: Case(lambda: layer((2, 3), strides=1), (6, 7, 3)),
)


def _options(layer: Any) -> dict[str, Any]:
    return {
        "padding": layer.padding.upper(),
        "strideH": layer.strides[0],
        "strideW": layer.strides[1],
        "filterHeight": layer.pool_size[0],
        "filterWidth": layer.pool_size[1],
        "fusedActivationFunction": "NONE",
    }


@register_op
class MaxPooling2D(Op):
    """The largest value of each window."""

    keras_layers = (layers.MaxPooling2D,)
    litert = ("MAX_POOL_2D",)
    output = SAME_AS_INPUT
    cases = tuple(case(layers.MaxPooling2D) for case in POOL_CASES)

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        return channels_first(layer)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(values=layer(x.values))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add("MAX_POOL_2D", [node.input], [node.output], _options(node.layer))


@register_op
class AveragePooling2D(Op):
    """The mean of each window, rounded half away from zero, as the kernel divides."""

    keras_layers = (layers.AveragePooling2D,)
    litert = ("AVERAGE_POOL_2D",)
    output = SAME_AS_INPUT
    cases = tuple(case(layers.AveragePooling2D) for case in POOL_CASES)

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        if layer.padding == "same" and None in shapes[0][1:3]:
            return f"with SAME padding its spatial size must be known, received {shapes[0]}"
        return channels_first(layer)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        size = float(layer.pool_size[0] * layer.pool_size[1])
        pads = [(0, 0)] * 4
        if layer.padding == "same":
            sizes = x.values.shape[1:3]
            pads[1:3] = same_padding(sizes, layer.pool_size, layer.strides, (1, 1))

        def window_sums(values: Tensor) -> Tensor:
            means = ops.average_pool(
                ops.pad(values, pads), layer.pool_size, layer.strides, "valid", "channels_last"
            )
            return means * size

        # Windows that reach over the edge have fewer values.
        inside = np.ones((1, *x.values.shape[1:3], 1), "float32")
        count = ops.round(window_sums(inside)) if layer.padding == "same" else size
        total = window_sums(x.values)
        mean = total / count
        # The kernel divides the sum of the stored integers, zero points included.
        stored = ops.round(total) + x.zero_point * count
        # Half a unit more keeps the floor clear of rounding; it changes no quotient.
        half = ops.floor(ops.convert_to_tensor(count) * 0.5) + 0.5
        quotient = ops.sign(stored) * ops.floor((ops.abs(stored) + half) / count)
        exact = ops.where(is_integer(x), quotient - x.zero_point, mean)
        return x._replace(values=straight_through(exact, mean))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add("AVERAGE_POOL_2D", [node.input], [node.output], _options(node.layer))


class MeanArithmetic(Arithmetic):
    """The mean of stored integers, in float32, rounded half to even with the zero point."""

    name = "mean"

    @staticmethod
    def output_shape(pending: Any) -> tuple[int | None, ...]:
        return pending[0].shape

    @staticmethod
    def real(pending: Any) -> Tensor:
        total, count, scale, _ = pending
        return total * (scale / count)

    @staticmethod
    def quantize(
        pending: Any, params: QTensor, low: Tensor, high: Tensor, training: bool
    ) -> Tensor:
        total, count, scale, zero_point = pending
        multiplier = (scale / params.scale) * (1.0 / count)
        offset = params.zero_point - unfused(unfused(zero_point * count) * multiplier)
        stored = unfused((total + zero_point * count) * multiplier) + offset
        return round_clip(stored, low + params.zero_point, high + params.zero_point) - (
            params.zero_point
        )


@register_op
class GlobalAveragePooling2D(Op):
    """The mean over both spatial axes."""

    keras_layers = (layers.GlobalAveragePooling2D,)
    litert = ("MEAN",)
    arithmetic = "mean"
    cases = (
        Case(lambda: layers.GlobalAveragePooling2D(), (6, 7, 5)),
        Case(lambda: layers.GlobalAveragePooling2D(keepdims=True), (4, 4, 5)),
    )

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        return channels_first(layer)

    @classmethod
    def pending_spec(cls, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        return tuple(keras.KerasTensor(s, "float32") for s in (shape, (), (), ()))

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        total = ops.sum(x.values, axis=(1, 2), keepdims=layer.keepdims)
        _, height, width, _ = ops.shape(x.values)
        count = ops.cast(height * width, "float32")
        return total, count, x.scale, x.zero_point

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        axes = builder.constant(np.array([1, 2], "int32"))
        options = {"keepDims": node.layer.keepdims}
        builder.add("MEAN", [node.input, axes], [node.output], options)


@register_op
class GlobalMaxPooling2D(Op):
    """The largest value over both spatial axes."""

    keras_layers = (layers.GlobalMaxPooling2D,)
    litert = ("REDUCE_MAX",)
    output = SAME_AS_INPUT
    cases = (
        Case(lambda: layers.GlobalMaxPooling2D(), (6, 7, 5)),
        Case(lambda: layers.GlobalMaxPooling2D(keepdims=True), (4, 4, 5)),
    )

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        return channels_first(layer)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(values=layer(x.values))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        axes = builder.constant(np.array([1, 2], "int32"))
        options = {"keepDims": node.layer.keepdims}
        builder.add("REDUCE_MAX", [node.input, axes], [node.output], options)
