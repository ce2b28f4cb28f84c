"""Sums, differences and products of tensors, and of tensors and constants."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import layers

from intact.numerics.accumulator import Accumulator, accumulator
from intact.numerics.affine import Affine, QTensor, Scaled
from intact.numerics.backend_kernels import holds, inverse, multiply_add, round_clip, shared
from intact.numerics.exact import binary_exponent, power_of_two
from intact.numerics.fixed_point import Multiplier, beyond_vectors, multiplier, multiply
from intact.numerics.integer_kernels import saturate, shifted_sum
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through, unfused
from intact.numerics.tensors import Tensor, is_symbolic, is_trainable, to_numpy
from intact.ops.base import INTEGERS, Case, Op
from intact.ops.norm import channel_scale
from intact.ops.registry import register_op
from intact.ops.shape import of_one_rank
from intact.ops.table import Table
from intact.rounding.curves import of_integers
from intact.rounding.kernel_rounding import AccumulatorRounding, KernelRounding


def broadcast_shape(a: tuple, b: tuple) -> tuple[int | None, ...]:
    """The shape that two shapes broadcast to; unknown sizes are assumed to fit."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    return tuple(
        y if x == 1 or (x is None and y not in (1, None)) else x for x, y in zip(a, b, strict=True)
    )


class Operands(NamedTuple):
    """The two operands of a sum, difference or product."""

    a: QTensor
    b: QTensor


class AddRounding(KernelRounding):
    """XNNPACK's sum: 20-bit fixed-point multipliers, and a shift that rounds half up.

    If an operand's scale is much smaller or larger than the output's, another kernel rounds twice.
    """

    name = "add"
    takes = Operands
    any_size = True
    sign: ClassVar[int] = 1

    def typed(self, pending: Any) -> Operands:
        return Operands(*(QTensor(*operand) for operand in pending))

    def output_shape(self, pending: Operands) -> tuple[int | None, ...]:
        return broadcast_shape(*(x.values.shape for x in pending))

    def real(self, pending: Operands) -> Tensor:
        a, b = pending
        return a.values * a.scale + b.values * (b.scale * float(self.sign))

    def scaled(self, pending: Operands) -> Scaled:
        a, b = pending
        ratio = b.scale / a.scale * float(self.sign)
        return Scaled(multiply_add(b.values, ratio, a.values), a.scale)

    def quantize(self, pending: Operands, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        a, b = pending
        ratio_a, ratio_b = a.scale / params.scale, b.scale / params.scale

        def smooth() -> Tensor:
            return a.values * ratio_a + b.values * (ratio_b * float(self.sign))

        shift = 20 - binary_exponent(ops.maximum(ratio_a, ratio_b))
        power = power_of_two(shift)
        factor_a = ops.cast(ops.round(ratio_a * power), "int32")
        factor_b = ops.cast(ops.round(ratio_b * power), "int32") * self.sign
        half = ops.left_shift(ops.ones_like(shift), shift - 1)

        def twice() -> Tensor:
            # A separate graph, which TensorFlow prepares only if it runs.
            whole_a, whole_b = (ops.cast(x.values, "int32") for x in (a, b))
            scales = whole_a, a.scale, whole_b, b.scale, params.scale
            return shared(self.twice, self.twice, *scales)[0]

        exact = ops.cond(
            ops.logical_and(
                ops.minimum(ratio_a, ratio_b) >= 2.0**-10, ops.maximum(ratio_a, ratio_b) < 2.0**8
            ),
            lambda: shifted_sum(a.values, factor_a, b.values, factor_b, half, shift),
            twice,
        )
        return saturate(exact, smooth, low, high)

    def twice(
        self, a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, scale: Tensor
    ) -> tuple[Tensor]:
        """The sum as rounded by the kernel for scales that XNNPACK refuses.

        Args:
            a: Whole numbers, int32.
            scale_a: Their scale.
            b: Whole numbers, int32.
            scale_b: Their scale.
            scale: The scale of the sum.

        Returns:
            The sum in steps of its scale, int32.
        """
        top = 2.0 * ops.maximum(scale_a, scale_b)
        factors = multiplier(
            ops.stack([scale_a, scale_b, top]), [1.0, 1.0, 2.0**-20], ops.stack([top, top, scale])
        )
        by_a, by_b, by_sum = (
            Multiplier(factors.mantissa[i], factors.exponent[i]) for i in range(3)
        )
        part_a, part_b = (
            multiply(ops.left_shift(a, 20), by_a),
            multiply(ops.left_shift(b, 20), by_b),
        )
        return (multiply(part_a + part_b * self.sign, by_sum),)

    def quantize_wide(self, pending: Operands, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        a, b = pending
        top = 2.0 * ops.maximum(a.scale, b.scale)
        in_vectors = self.in_vectors(a.values, b.values)
        part_a, part_b = (
            _raised(x.values, multiplier(x.scale, 1.0, top), in_vectors) for x in (a, b)
        )
        total = part_a + part_b * self.sign
        exact = multiply(total, multiplier(top, 2.0**-15, params.scale))
        return self.saturated(exact, pending, params, low, high)

    def in_vectors(self, a: Tensor, b: Tensor) -> Any:
        """Which sums the 16-bit kernel computes in vectors: those of equal shapes, 16 at a time."""
        if a.shape[1:] != b.shape[1:]:
            return False
        rest = beyond_vectors(a, 16)
        same = ops.equal(ops.size(a), ops.size(b))
        return same if rest is None else ops.logical_and(same, ops.logical_not(rest))


def _raised(values: Tensor, by: Multiplier, in_vectors: Any) -> Tensor:
    """An operand of a sum of 16 bits, with 15 more bits; vectors round it once, others twice."""
    shift = ops.where(in_vectors, 15 + by.exponent, 15)
    raised = ops.left_shift(ops.cast(values, "int32"), ops.maximum(shift, 0))
    raised = ops.right_shift(raised, ops.maximum(-shift, 0))
    return multiply(raised, Multiplier(by.mantissa, ops.where(in_vectors, 0, by.exponent)))


class SubtractRounding(AddRounding):
    """The difference, as the sum with a negative multiplier."""

    name = "subtract"
    sign = -1

    def in_vectors(self, a: Tensor, b: Tensor) -> Any:
        return False


class MultiplyRounding(AddRounding):
    """The product: rounded as other sums of 8 bits, and in fixed point of 16 bits."""

    name = "multiply"

    def sums(self, pending: Operands) -> Accumulator:
        """The products of whole numbers."""
        a, b = pending
        return accumulator(a.values * b.values, a.scale, b.scale, whole=a.whole)

    def real(self, pending: Operands) -> Tensor:
        return self.sums(pending).real()

    def scaled(self, pending: Operands) -> Scaled:
        a, b = pending
        return Scaled(a.values * b.values, a.scale * b.scale)

    def quantize(self, pending: Operands, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return AccumulatorRounding().quantize(self.sums(pending), params, low, high)

    def quantize_wide(self, pending: Operands, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        a, b = pending
        whole_a, whole_b = (ops.cast(x.values, "int32") for x in (a, b))
        factor = a.scale * b.scale / params.scale
        exact = multiply(whole_a * whole_b, multiplier(factor, 1.0, 1.0))
        smooth = a.values * b.values * factor
        return saturate(exact, smooth, low, high)


class SquareRounding(MultiplyRounding):
    """The product of a tensor with itself, which XNNPACK takes from a table.

    It computes the table in float32, and rounds when the zero point is added.
    """

    name = "square"

    def quantize(self, pending: Operands, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        def steps(real: Tensor) -> Tensor:
            return unfused(unfused(real * real) * inverse(params.scale))

        def stored(real: Tensor) -> Tensor:
            return ops.round(steps(real) + params.zero_point) - params.zero_point

        x = pending.a
        exact = of_integers(stored, x) if holds(x.whole) else stored(x.values * x.scale)
        smooth = straight_through(exact, lambda: steps(x.values * x.scale))
        return round_clip(smooth, low, high)


# The 16-bit kernel for powers of two takes only few scales.
ANY_SCALE = {"potScaleInt16": False}


class Binary(Op):
    """Base of the ops of two tensors; with a constant they become a `Rescaling`."""

    dtypes = INTEGERS
    fuses = True
    pointwise = True
    # An output far below the scale of its inputs is 0, so that their rounding adds no noise.
    max_accumulator_scale, fit_accumulator_scale = 2**13, 0.25
    layer: ClassVar[type]
    wide_options: ClassVar[dict[str, Any]] = {}

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, layers.Layer):
            return self._by_pairs(layer, of_one_rank(args[0], layer, tracer), tracer)
        a, b = (*args, *kwargs.values())
        if is_symbolic(a) and is_symbolic(b):
            return tracer.emit_new(self.layer(name=layer.name), [a, b])
        x, constant, reverse = (a, b, False) if is_symbolic(a) else (b, a, True)
        values = np.asarray(to_numpy(constant), "float32")
        channels = values.reshape(-1)
        by_channel = values.size == (values.shape[-1] if values.shape else 1)
        if by_channel and values.size in (1, x.shape[-1]) and x.shape[-1] is not None:
            turns = reverse and self.layer not in (layers.Add, layers.Multiply)
            if turns and is_trainable(constant):
                # The weight keeps training.
                return tracer.expand(layer, lambda x: ops.add(-x, constant), x)
            if isinstance(constant, keras.Variable) and not turns:
                scaled = self.variable_scale(layer, constant, x.shape[-1], tracer)
                if scaled is not None:
                    return tracer.emit(scaled, x)
        else:
            rank = len(x.shape)
            if values.ndim > rank or (values.ndim == rank and values.shape[0] != 1):
                tracer.refuse(
                    layer,
                    f"its constant has shape {values.shape}, which does not leave the batch of "
                    f"{x.shape} alone",
                )
            free = x.shape[0] is None
            other = tracer.constant(constant, f"{layer.name}_constant", rank, broadcast=free)
            pair = [other, x] if reverse else [x, other]
            return tracer.emit_new(self.layer(name=layer.name), pair)
        scale, offset = self.rescaling(channels, reverse)
        wide = max(np.size(scale), np.size(offset))
        rescaling = layers.Rescaling(
            *(
                np.broadcast_to(v, wide).tolist() if wide > 1 else float(np.ravel(v)[0])
                for v in (scale, offset)
            ),
            name=layer.name,
        )
        return tracer.emit(rescaling, x)

    def _by_pairs(self, layer: Any, tensors: list[Any], tracer: Any) -> Any:
        """A layer of many tensors as layers of two."""
        if len(tensors) <= 2:
            return tracer.emit(layer, tensors)
        x, last = tensors[0], len(tensors) - 1
        for i, y in enumerate(tensors[1:], 1):
            x = tracer.emit(
                self.layer(name=layer.name if i == last else f"{layer.name}_{i}"), [x, y]
            )
        return x

    def rescaling(self, constant: np.ndarray, reverse: bool) -> tuple[Any, Any]:
        """Factor and offset that do the same as the op with a constant.

        Args:
            constant: The constant, flat.
            reverse: Whether the constant is the first operand.
        """
        raise NotImplementedError

    def variable_scale(self, layer: Any, variable: Any, channels: int, tracer: Any) -> Any:
        """A `ChannelScale` that does the same as the op with a variable, if there is one."""
        return None

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return Operands(*inputs)

    def pending_spec(self, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        return Operands(*(QTensor.symbolic(x[0].shape) for x in inputs))

    def accumulator_scale(self, node: Any) -> float:
        return max(x.scale for x in node.inputs)

    def lower(self, node: Any, builder: Any) -> None:
        options = {"fusedActivationFunction": node.activation}
        if node.output.dtype == "int16":
            options |= self.wide_options
        builder.add(self.litert[0], node.inputs, [node.output], options)


def binary_cases(layer: type, **extra: Any) -> tuple[Case, ...]:
    """Cases that every op of two tensors has."""
    return (
        Case(lambda: layer(), [(5, 6, 3), (5, 6, 3)], **extra),
        Case(lambda: lambda a, b: layers.ReLU()(layer()([a, b])), [(7,), (7,)], **extra),
        Case(lambda: lambda a, b: layer()([a, b]), [(4, 5, 3), (1, 1, 3)], **extra),
        Case(
            lambda: lambda a, b: layer()([layers.Dense(4)(a), layers.Dense(4, "relu")(b)]),
            [(6,), (5,)],
            **extra,
        ),
    )


@register_op
class Add(Binary):
    """The sum of two tensors; of more, two at a time."""

    layer = layers.Add
    keras_layers = (layers.Add,)
    operations = ("Add",)
    litert = ("ADD",)
    kernel_rounding = "add"
    wide_options = ANY_SCALE
    cases = (
        *binary_cases(layers.Add),
        Case(lambda: layers.Add(), [(4,), (4,), (4,)]),
        Case(lambda: layers.Add(), [(4, 5, 3), (5, 3), (3,)]),
        Case(lambda: lambda a, b: a + b + 0.5, [(4,), (4,)]),
        Case(lambda: lambda a, b: a + b * 1e-3, [(50,), (50,)]),
    )

    def rescaling(self, constant: np.ndarray, reverse: bool) -> tuple[Any, Any]:
        return 1.0, constant

    def variable_scale(self, layer: Any, variable: Any, channels: int, tracer: Any) -> Any:
        return channel_scale(layer.name, channels, tracer, beta=variable)


@register_op
class Subtract(Binary):
    """The difference of two tensors."""

    layer = layers.Subtract
    keras_layers = (layers.Subtract,)
    operations = ("Subtract",)
    litert = ("SUB",)
    kernel_rounding = "subtract"
    wide_options = ANY_SCALE
    cases = (
        *binary_cases(layers.Subtract),
        Case(lambda: lambda a, b: 2.0 - (a - b), [(4,), (4,)]),
    )

    def rescaling(self, constant: np.ndarray, reverse: bool) -> tuple[Any, Any]:
        return (-1.0, constant) if reverse else (1.0, -constant)


@register_op
class Multiply(Binary):
    """The product of two tensors; of more, two at a time. A square is a product, too."""

    layer = layers.Multiply
    keras_layers = (layers.Multiply,)
    operations = ("Multiply", "Square")
    litert = ("MUL",)
    max_accumulator_scale, fit_accumulator_scale = 256, 128
    kernel_rounding = MultiplyRounding.name
    cases = (
        *binary_cases(layers.Multiply),
        Case(lambda: layers.Multiply(), [(4,), (4,), (4,)]),
        Case(lambda: lambda a, b: a * b * 2.0, [(4,), (4,)]),
        Case(lambda: ops.square, (50, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if type(layer).__name__ == "Square":
            args, kwargs = (args[0], args[0]), {}
        return super().trace(layer, args, kwargs, tracer)

    def rescaling(self, constant: np.ndarray, reverse: bool) -> tuple[Any, Any]:
        return constant, 0.0

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        square = len(inputs) == 2 and inputs[0] is inputs[1]
        return SquareRounding.name if square else self.kernel_rounding

    def variable_scale(self, layer: Any, variable: Any, channels: int, tracer: Any) -> Any:
        return channel_scale(layer.name, channels, tracer, gamma=variable)

    def accumulator_scale(self, node: Any) -> float:
        a, b = node.inputs
        return a.scale * b.scale


@register_op
class Divide(Op):
    """Division by or of a constant; otherwise a product with a table of inverses."""

    operations = ("TrueDivide", "Divide")
    cases = (
        Case(lambda: lambda x: x / 4.0, (6,)),
        Case(lambda: lambda a, b: a / b, [(4, 6), (4, 6)], low=0.5),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        a, b = (*args, *kwargs.values())
        if not is_symbolic(a):
            return Table().trace(layer, args, kwargs, tracer)
        if is_symbolic(b):
            return tracer.expand(layer, lambda a, b: a * (1.0 / b), a, b)
        inverse = 1.0 / np.asarray(to_numpy(b), "float32")
        return Multiply().trace(layer, (a, inverse), {}, tracer)


@register_op
class Negative(Op):
    """The negative."""

    operations = ("Negative",)
    cases = (Case(lambda: lambda x: -x, (6,)),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return Multiply().trace(layer, (args[0], -1.0), {}, tracer)


@register_op
class Glu(Op):
    """One half of the channels, gated by the sigmoid of the other (arXiv:1612.08083)."""

    operations = ("Glu",)
    activations = ("glu",)
    litert = ("STRIDED_SLICE", "LOGISTIC", "MUL")
    cases = (Case(lambda: layers.Activation("glu"), (3, 8)),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        axis = getattr(layer, "axis", -1)

        def gated(x: Any) -> Any:
            values, gate = ops.split(x, 2, axis)
            return values * ops.sigmoid(gate)

        return tracer.expand(layer, gated, args[0])
