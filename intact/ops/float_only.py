"""Ops that LiteRT computes in float only: refused, unless float is allowed."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.tensors import Tensor, broadcast_sizes, is_whole, to_numpy
from intact.ops.base import COUNTS, Case, Op, Weight
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op


class FloatOnly(Op):
    """Base of the ops without integer kernels."""

    def refuse(self, layer: Any, shapes: list) -> str | None:
        return f"{self.litert[0]} has no integer kernel"


MAX_SUMS = 512
"""The longest axis whose cumulative sum is a matrix product; the matrix has its square."""


def _sums(x: Tensor, axis: int, size: int) -> Tensor:
    ones = np.triu(np.ones((size, size), "float32"))
    return ops.moveaxis(ops.matmul(ops.moveaxis(x, axis, -1), ones), -1, axis)


@keras.saving.register_keras_serializable("intact")
class CumulativeSum(FunctionLayer):
    """Cumulative sums along an axis.

    Args:
        axis: The axis.
    """

    axis: int

    def call(self, x: Tensor) -> Tensor:
        """The sums."""
        return ops.cumsum(x, self.axis)


@register_op
class CumSum(FloatOnly):
    """Cumulative sums."""

    keras_layers = (CumulativeSum,)
    operations = ("Cumsum",)
    litert = ("CUMSUM",)
    whole = COUNTS
    notes = "As a matrix product; in float only along axes of unknown or large size."
    cases = (
        Case(lambda: lambda x: ops.cumsum(layers.Dense(4)(x), axis=1), (5, 3)),
        Case(lambda: lambda x: ops.cumsum(x, axis=-1), (5, 3)),
    )
    float_cases = (
        Case(lambda: lambda x: ops.cumsum(x, axis=1), (MAX_SUMS + 1, 1), low=-1 / 64, high=1 / 64),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if layer.axis is None or layer.axis % len(args[0].shape) == 0:
            tracer.refuse(layer, "it runs over the batch")
        size = args[0].shape[layer.axis]
        if size is not None and size <= MAX_SUMS and not is_whole(args[0]):
            return tracer.expand(layer, lambda x: _sums(x, layer.axis, size), args[0])
        return tracer.emit(CumulativeSum(layer.axis, name=layer.name), args[0])

    def lower(self, node: Any, builder: Any) -> None:
        axis = builder.constant(np.array(node.layer.axis, "int32"))
        builder.add("CUMSUM", [node.input, axis], [node.output])


@keras.saving.register_keras_serializable("intact")
class Powers(FunctionLayer):
    """The values of one tensor to the powers in another."""

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`(x, exponents)`: the powers."""
        return ops.power(*inputs)

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, ...]:
        return broadcast_sizes(*map(tuple, shapes))


@register_op
class PowersOp(FloatOnly):
    """`keras.ops.power` of two tensors; where one of them is a number, it is a table."""

    keras_layers = (Powers,)
    litert = ("POW",)
    float_cases = (
        Case(lambda: lambda x, e: ops.power(x, e), [(4, 5), (4, 5)], low=0.1),
        Case(lambda: lambda x: x ** np.array([1.0, 2.0, 0.5], "float32"), (4, 3), low=0.1),
    )

    def lower(self, node: Any, builder: Any) -> None:
        builder.add("POW", node.inputs, [node.output])


@register_op
class Conv3DTranspose(FloatOnly):
    """A transposed convolution of three spatial axes."""

    keras_layers = (layers.Conv3DTranspose,)
    litert = ("CONV_3D_TRANSPOSE",)
    # There is no integer kernel; only weight-only schemes round them.
    weights = {"kernel": Weight(ScaleLayout((3,)), kernels=(), dynamic=())}
    notes = "In float only, without dilation. Channels last; spatial sizes must be known."
    float_cases = (
        Case(
            lambda: layers.Conv3DTranspose(3, 2, strides=2, padding="same", activation="relu"),
            (3, 4, 5, 2),
        ),
        Case(lambda: layers.Conv3DTranspose(3, (1, 2, 3), use_bias=False), (3, 4, 5, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if any(rate != 1 for rate in np.ravel(layer.dilation_rate)):
            tracer.refuse(layer, f"its kernel has no dilation_rate {layer.dilation_rate}")
        return tracer.emit(layer, args[0])

    def real(self, layer: Any, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        y = ops.conv_transpose(
            inputs[0],
            weights["kernel"],
            tuple(layer.strides),
            padding=layer.padding,
            output_padding=layer.output_padding,
        )
        return y if layer.bias is None else y + layer.bias

    def lower(self, node: Any, builder: Any) -> None:
        layer = node.layer
        size = builder.constant(np.array([1, *node.output.shape[1:]], "int32"))
        if node.weights:
            kernel = node.constant("kernel", axis=3)
        else:
            kernel = builder.constant(to_numpy(layer.kernel).astype("float32"))
        bias = np.zeros(layer.filters) if layer.bias is None else to_numpy(layer.bias)
        options = {
            "padding": layer.padding.upper(),
            "strideD": layer.strides[0],
            "strideH": layer.strides[1],
            "strideW": layer.strides[2],
            "dilationDFactor": 1,
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            "fusedActivationFunction": "NONE",
        }
        inputs = [size, kernel, node.input, builder.constant(bias.astype("float32"))]
        builder.add("CONV_3D_TRANSPOSE", inputs, [node.output], options)
