"""Means, sums, maxima and minima: of a tensor's axes, and of several tensors."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import layers

from intact.graph.view import made_by
from intact.numerics.accumulator import exact_sums
from intact.numerics.affine import Affine, QTensor, Scaled
from intact.numerics.backend_kernels import inverse, round_clip, wide_types
from intact.numerics.exact import binary_exponent
from intact.numerics.fixed_point import Multiplier, multiplier, multiply, round_away
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import unfused
from intact.numerics.tensors import Tensor, is_symbolic, symbols, to_numpy
from intact.ops.base import ALL_SAME, COUNTS, FIXED_BATCH, INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.shape import of_one_rank
from intact.ops.table import Table
from intact.rounding.kernel_rounding import KernelRounding


class Reduction(FunctionLayer):
    """Base of the layers that reduce axes.

    Args:
        axes: Which; not the batch.
        keepdims: Whether the axes stay, with size 1.
    """

    function: ClassVar[Callable]
    axes: tuple[int, ...]
    keepdims: bool = False

    def call(self, x: Tensor) -> Tensor:
        """The values."""
        return type(self).function(x, axis=self.axes, keepdims=self.keepdims)

    def compute_output_shape(self, shape: tuple) -> tuple:
        sizes = (1 if a in self.axes else n for a, n in enumerate(shape))
        return tuple(n for a, n in enumerate(sizes) if self.keepdims or a not in self.axes)


@keras.saving.register_keras_serializable("intact")
class Mean(Reduction):
    """The mean over axes."""

    function = staticmethod(ops.mean)


@keras.saving.register_keras_serializable("intact")
class Sum(Reduction):
    """The sum over axes."""

    function = staticmethod(ops.sum)


@keras.saving.register_keras_serializable("intact")
class Max(Reduction):
    """The largest value over axes."""

    function = staticmethod(ops.max)


@keras.saving.register_keras_serializable("intact")
class Min(Reduction):
    """The smallest value over axes."""

    function = staticmethod(ops.min)


class MeanSums(NamedTuple):
    """The sums of a mean or sum: `real = total * scale * share`, of `count` values each.

    If float32 would round the sums of 16-bit inputs, the exact ones are `256 * high + low`.
    """

    total: Tensor
    count: Tensor
    share: Tensor
    scale: Tensor
    zero_point: Tensor
    high: Any = None
    low: Any = None

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "MeanSums":
        """Their form in a graph."""
        return cls(*symbols(shape, (), (), (), (), shape, shape))

    def exact(self) -> Tensor:
        """The sums as int32, from their exact digits if there are any."""
        if self.high is None:
            return ops.cast(self.total, "int32")
        return ops.cast(self.high, "int32") * 256 + ops.cast(self.low, "int32")


class MeanRounding(KernelRounding):
    """The mean or sum of stored integers, in float32, rounded half to even with the zero point."""

    name = "mean"
    takes = MeanSums
    any_size = True

    def real(self, pending: MeanSums) -> Tensor:
        return pending.total * (pending.scale * pending.share)

    def scaled(self, pending: MeanSums) -> Scaled:
        return Scaled(pending.total, pending.scale * pending.share)

    def quantize(self, pending: MeanSums, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        multiplier = (pending.scale / params.scale) * pending.share
        zeros = pending.zero_point * pending.count
        offset = params.zero_point - unfused(unfused(zeros) * multiplier)
        stored = unfused((pending.total + zeros) * multiplier) + offset
        return round_clip(stored, low + params.zero_point, high + params.zero_point) - (
            params.zero_point
        )

    def quantize_wide(self, pending: MeanSums, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        exact = self.rounded(pending.exact(), pending.count, pending.scale, params.scale)
        return self.saturated(exact, pending, params, low, high)

    def rounded(self, total: Tensor, count: Tensor, scale: Tensor, output_scale: Tensor) -> Tensor:
        """Sums in steps of the output, as the 16-bit kernel rounds them.

        Args:
            total: The sums, int32.
            count: How many values each has.
            scale: Their scale.
            output_scale: Scale of the output.
        """
        by = multiplier(scale, 1.0, output_scale)
        shift = ops.minimum(binary_exponent(count), 31 + by.exponent)
        with wide_types():
            # The mantissa is divided by the count, after as many more bits as the count has.
            raised = ops.left_shift(ops.cast(by.mantissa, "int64"), ops.cast(shift, "int64"))
            mantissa = ops.cast(ops.floor_divide(raised, ops.cast(count, "int64")), "int32")
        return multiply(total, Multiplier(mantissa, by.exponent - shift))


class SumRounding(MeanRounding):
    """The sum, which the 16-bit kernel multiplies in float32 and rounds half away from zero."""

    name = "sum"

    def rounded(self, total: Tensor, count: Tensor, scale: Tensor, output_scale: Tensor) -> Tensor:
        product = unfused(ops.cast(total, "float32") * (scale / output_scale))
        with wide_types():
            return ops.cast(round_away(ops.cast(product, "float64")), "int32")


class Reducing(Op):
    """Base of the reductions; global pooling is one of them."""

    dtypes = INTEGERS
    layer: ClassVar[type[Reduction]]

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x = args[0]
        if isinstance(layer, Reduction):
            return tracer.emit(layer, x)
        if getattr(layer, "initial", None) is not None or len(args) > 1 or kwargs:
            tracer.refuse(layer, "an initial value, and weights, have no kernel")
        axes = self.axes(layer, x, tracer)
        keepdims = getattr(layer, "keepdims", False)
        return tracer.emit_new(self.layer(axes, keepdims, name=layer.name), x)

    def axes(self, layer: Any, x: Any, tracer: Any) -> list[int]:
        """The axes that a layer or operation reduces."""
        rank = len(x.shape)
        if isinstance(layer, layers.Layer):
            first = 2 if layer.data_format == "channels_first" else 1
            return list(range(first, first + rank - 2))
        listed = range(rank) if layer.axis is None else np.ravel(layer.axis).tolist()
        axes = sorted(a % rank for a in listed)
        if 0 in axes:
            reason = f"the batch axis cannot be reduced; give it other axes, or {FIXED_BATCH}"
            tracer.refuse(layer, reason)
        return axes

    def lower(self, node: Any, builder: Any) -> None:
        axes = builder.constant(np.array(node.layer.axes, "int32"))
        options = {"keepDims": node.layer.keepdims}
        builder.add(self.litert[0], [node.input, axes], [node.output], options)


class Summing(Reducing):
    """Base of mean and sum."""

    kernel_rounding = "mean"

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs

        def summed(values: Tensor) -> Tensor:
            return ops.sum(values, axis=layer.axes, keepdims=layer.keepdims)

        total, high, low = exact_sums(summed, x)
        sizes = ops.shape(x.values)
        count = ops.ones((), "float32")
        for axis in layer.axes:
            count = count * ops.cast(sizes[axis], "float32")
        share = inverse(count) if isinstance(layer, Mean) else ops.ones((), "float32")
        return MeanSums(total, count, share, x.scale, x.zero_point, high, low)

    def accumulator_scale(self, node: Any) -> float:
        sizes = (node.input.shape[axis] or 1 for axis in node.layer.axes)
        return node.input.scale / (math.prod(sizes) if self.layer is Mean else 1)


class Extreme(Reducing):
    """Base of maximum and minimum."""

    output = SAME_AS_INPUT
    whole = COUNTS


def reduction_cases(function: Callable) -> tuple[Case, ...]:
    """Cases that every reduction has."""
    return (
        Case(lambda: lambda x: function(x, axis=-1), (7,)),
        Case(lambda: lambda x: function(x, axis=1, keepdims=True), (5, 6)),
        Case(lambda: lambda x: function(x, axis=(1, -1)), (3, 4, 6)),
        Case(lambda: lambda x: layers.Dense(3)(function(x, axis=-2)), (5, 6)),
        Case(lambda: lambda x: function(x, axis=[2, 3], keepdims=True), (3, 4, 2, 3)),
    )


@register_op
class ReduceMean(Summing):
    """The mean over axes, and global average pooling."""

    layer = Mean
    keras_layers = (Mean, layers.GlobalAveragePooling2D)
    operations = ("Mean", "Average")
    litert = ("MEAN",)
    cases = (
        *reduction_cases(ops.mean),
        Case(lambda: lambda x: ops.average(x, axis=1), (5, 6)),
        Case(lambda: layers.GlobalAveragePooling2D(), (6, 7, 5)),
        Case(lambda: layers.GlobalAveragePooling2D(keepdims=True), (4, 4, 5)),
        Case(lambda: layers.GlobalAveragePooling2D("channels_first"), (3, 4, 5)),
    )


@register_op
class ReduceSum(Summing):
    """The sum over axes."""

    layer = Sum
    keras_layers = (Sum,)
    whole = COUNTS
    operations = ("Sum",)
    litert = ("SUM",)
    kernel_rounding = SumRounding.name
    cases = reduction_cases(ops.sum)


@register_op
class ReduceMax(Extreme):
    """The largest value over axes, and global maximum pooling."""

    layer = Max
    keras_layers = (Max, layers.GlobalMaxPooling2D)
    operations = ("Max", "Amax")
    litert = ("REDUCE_MAX",)
    cases = (
        *reduction_cases(ops.max),
        Case(lambda: lambda x: ops.amax(x, axis=1), (5, 6)),
        Case(lambda: layers.GlobalMaxPooling2D(), (6, 7, 5)),
        Case(lambda: layers.GlobalMaxPooling2D(keepdims=True), (4, 4, 5)),
    )


@register_op
class ReduceMin(Extreme):
    """The smallest value over axes."""

    layer = Min
    keras_layers = (Min,)
    operations = ("Min", "Amin")
    litert = ("REDUCE_MIN",)
    cases = (*reduction_cases(ops.min), Case(lambda: lambda x: ops.amin(x, axis=1), (5, 6)))


@register_op
class Variance(Reducing):
    """The mean of the squared difference from the mean; its root is the standard deviation."""

    operations = ("Var", "Std")
    litert = ("MEAN", "SUB", "MUL")
    cases = (
        Case(lambda: lambda x: ops.var(x, axis=-1), (4, 6)),
        Case(lambda: lambda x: ops.var(x, axis=(1, 2), keepdims=True), (4, 5, 2)),
        Case(lambda: lambda x: ops.std(x, axis=-1), (4, 6)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x = args[0]
        axes = self.axes(layer, x, tracer)
        mean = tracer.emit(Mean(axes, True, name=f"{layer.name}_mean"), x)
        offset = tracer.emit_new(layers.Subtract(name=f"{layer.name}_offset"), [x, mean])
        square = tracer.emit_new(layers.Multiply(name=f"{layer.name}_square"), [offset, offset])
        variance = tracer.emit(Mean(axes, layer.keepdims, name=layer.name), square)
        if type(layer).__name__ == "Var":
            return variance
        root = made_by(ops.sqrt(keras.KerasTensor(variance.shape))).layer
        return tracer.trace(root, (variance,), {})


class Extremum(Op):
    """Base of the elementwise maximum and minimum of tensors, which share one range."""

    dtypes = INTEGERS
    output = ALL_SAME
    layer: ClassVar[type]
    function: ClassVar[Callable]

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, layers.Layer):
            tensors = of_one_rank(args[0], layer, tracer)
        else:
            tensors = [*args, *kwargs.values()]
        constants = [t for t in tensors if not is_symbolic(t)]
        if constants:
            (x,) = (t for t in tensors if is_symbolic(t))
            limit = to_numpy(constants[0])
            if limit.size > 1:
                every = x.shape[0] is None
                name = f"{layer.name}_constant"
                other = tracer.constant(constants[0], name, len(x.shape), broadcast=every)
                return tracer.emit_new(self.layer(name=layer.name), [x, other])
            if self.layer is layers.Maximum and not limit.any():
                return tracer.emit_new(layers.ReLU(name=layer.name), x)
            return Table().trace(layer, args, kwargs, tracer)
        x, *others = tensors
        for y in others:
            x = tracer.emit_new(self.layer(name=layer.name), [x, y])
        return x

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        a, b = inputs
        # In inference the scales are one and the same, and the ratio is 1.
        values = self.function(a.values * (a.scale / b.scale), b.values)
        return b._replace(values=values)

    def lower(self, node: Any, builder: Any) -> None:
        builder.add(self.litert[0], node.inputs, [node.output])


def extremum_cases(layer: type, function: Callable) -> tuple[Case, ...]:
    """Cases that both have."""
    return (
        Case(lambda: layer(), [(4, 3), (4, 3)]),
        Case(lambda: layer(), [(5,), (5,), (5,)]),
        Case(lambda: layer(), [(4, 5, 3), (5, 3)]),
        Case(lambda: lambda a, b: function(a, b), [(4, 5, 3), (1, 1, 3)]),
        Case(
            lambda: lambda a, b: layers.Dense(2)(layer()([layers.Dense(4)(a), layers.Dense(4)(b)])),
            [(6,), (5,)],
        ),
    )


@register_op
class Maximum(Extremum):
    """The larger of two tensors; of more, two at a time."""

    layer = layers.Maximum
    function = staticmethod(ops.maximum)
    keras_layers = (layers.Maximum,)
    operations = ("Maximum",)
    litert = ("MAXIMUM",)
    notes = "With a number: a ReLU or a table."
    cases = (
        *extremum_cases(layers.Maximum, ops.maximum),
        Case(lambda: lambda x: ops.maximum(x, 0.25), (6,)),
        Case(lambda: lambda x: ops.maximum(x, np.array([0.25, -0.5], "float32")), (3, 2)),
        Case(lambda: lambda x: ops.maximum(0.0, layers.Dense(4)(x)), (6,)),
    )


@register_op
class Minimum(Extremum):
    """The smaller of two tensors; of more, two at a time."""

    layer = layers.Minimum
    function = staticmethod(ops.minimum)
    keras_layers = (layers.Minimum,)
    operations = ("Minimum",)
    litert = ("MINIMUM",)
    notes = "With a number: a table."
    cases = extremum_cases(layers.Minimum, ops.minimum)


@register_op
class Average(Op):
    """The mean of several tensors: their sum, rescaled."""

    keras_layers = (layers.Average,)
    litert = ("ADD", "DEPTHWISE_CONV_2D")
    cases = (
        Case(lambda: layers.Average(), [(4, 3), (4, 3)]),
        Case(lambda: layers.Average(), [(5,), (5,), (5,)]),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        tensors = args[0]
        total = tracer.trace(layers.Add(name=f"{layer.name}_sum"), (tensors,), {})
        return tracer.emit_new(layers.Rescaling(1 / len(tensors), name=layer.name), total)
