"""Activation functions."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from intact.keras_files.activations import hard_sigmoid_keras_2
from intact.numerics.affine import Affine, QTensor
from intact.numerics.backend_kernels import round_clip, wide_types
from intact.numerics.exact import binary_exponent, divide, power_of_two
from intact.numerics.fixed_point import multiplier, multiply
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import PER_TENSOR
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, symbols, to_numpy
from intact.numerics.weights import quantize_weight
from intact.ops.base import (
    BYTES,
    INTEGERS,
    Case,
    Fixed,
    Op,
    Weight,
    register_op,
)
from intact.ops.elementwise import Operands
from intact.ops.function_layer import FunctionLayer
from intact.ops.lookup import COST, all_values, entries, look_up
from intact.ops.masking import hide, whole_mask
from intact.ops.moves import channel_last
from intact.ops.table import Table
from intact.ops.wide import (
    LogSoftmaxRounding,
    SigmoidRounding,
    SoftmaxRounding,
    TanhRounding,
)
from intact.rounding.kernel_rounding import ConvertRounding, KernelRounding


def relu_bounds(layer: Any) -> tuple[float, float | None] | None:
    """The clamp that a plain ReLU layer is, or None if it is anything else.

    Args:
        layer: A canonical layer.

    Returns:
        `(lower, upper)`; `upper` is None for an unbounded ReLU.

    Example:

    >>> relu_bounds(layers.ReLU(6.0))
    (0.0, 6.0)
    """
    if type(layer) is layers.ReLU and not layer.negative_slope and not layer.threshold:
        return 0.0, None if layer.max_value is None else float(layer.max_value)
    return None


def _multiply_256(values: Tensor, ratio: Tensor) -> Tensor:
    """XNNPACK's product by a fixed-point factor with 8 fractional bits, rounded half up."""
    return ops.floor((values * ops.round(ratio * 256.0) + 128.0) * (1.0 / 256.0))


def _multiply_31(values: Tensor, ratio: Tensor) -> Tensor:
    """The product of the kernels that take a factor that is too small or large for XNNPACK."""
    return ops.cast(multiply(ops.cast(values, "int32"), multiplier(ratio, 1.0, 1.0)), "float32")


def _fits_256(ratio: Tensor) -> Tensor:
    """Whether XNNPACK takes a factor."""
    return ops.logical_and(ratio >= 2.0**-8, ratio <= 128.0)


class RequantizeRounding(KernelRounding):
    """From one scale to another: QUANTIZE from int8 to int8."""

    name = "requantize"
    takes: ClassVar[Any] = QTensor
    any_size = True

    @staticmethod
    def real(pending: Any) -> Tensor:
        return pending.values * pending.scale

    @staticmethod
    def quantize(pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        x = pending
        ratio = x.scale / params.scale
        exact = ops.cond(
            _fits_256(ratio),
            lambda: _multiply_256(x.values, ratio),
            lambda: _multiply_31(x.values, ratio),
        )
        return round_clip(straight_through(exact, x.values * ratio), low, high)

    @staticmethod
    def quantize_wide(pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return ConvertRounding.quantize(pending, params, low, high)


class Requantizing(Op):
    """Base of the activations that work on the input's integers."""

    max_accumulator_scale: ClassVar[float] = 2**22
    fit_accumulator_scale: ClassVar[float] = 2**21

    @classmethod
    def accumulator_scale(cls, node: Any) -> float:
        return node.input.scale

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return inputs[0]


@register_op
class ReLU(Requantizing):
    """Fuses into the op before it; alone, it is a requantization that saturates."""

    dtypes = INTEGERS
    keras_layers = (layers.ReLU,)
    operations = ("Relu", "Relu6", "ReLU")
    activations = ("relu", "relu6")
    litert = ("QUANTIZE", "RELU")
    kernel_rounding = "requantize"
    pointwise = True
    clamps_by_range = True
    notes = "With a slope and a limit, or a threshold: a table."
    cases = (
        Case(lambda: layers.ReLU(), (4, 5, 3)),
        Case(lambda: layers.ReLU(0.5), (4, 5, 3)),
        Case(lambda: layers.Activation("relu6"), (4, 5, 3), high=9.0),
        Case(lambda: layers.ReLU(negative_slope=0.2), (4, 5, 3)),
        Case(lambda: layers.ReLU(negative_slope=0.2, max_value=0.5), (4, 5, 3)),
        Case(lambda: layers.ReLU(threshold=0.25), (4, 5, 3)),
        Case(lambda: layers.ReLU(threshold=0.1, max_value=0.75, negative_slope=0.1), (7,)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if type(layer).__name__ == "ReLU":
            slope, limit, threshold = layer.negative_slope, layer.max_value, layer.threshold
            if not slope and not threshold:
                return tracer.emit(layers.ReLU(limit, name=layer.name), args[0])
            if not threshold and limit is None:
                return tracer.emit(layers.LeakyReLU(float(slope), name=layer.name), args[0])
            config = {"negative_slope": slope, "max_value": limit, "threshold": threshold}
            return Table.emit("ReLU", config, layer, args[0], tracer)
        name = getattr(layer, "activation", None)
        six = type(layer).__name__ == "Relu6" or name is keras.activations.relu6
        return tracer.emit(layers.ReLU(6.0 if six else None, name=layer.name), args[0])

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        if node.output.quantized:
            # The upper limit is where the integers end; where 0 is not where they begin, a
            # maximum follows. The kernel RELU rounds otherwise, and no better.
            builder.add("QUANTIZE", [node.input], [node.output])
            return
        upper = node.layer.max_value
        if upper in (None, 6.0):
            builder.add("RELU" if upper is None else "RELU6", [node.input], [node.output])
            return
        middle = builder.like(node.output, node.output.shape)
        limit = builder.constant(np.array(upper, "float32"))
        builder.add("RELU", [node.input], [middle])
        builder.add("MINIMUM", [middle, limit], [node.output])


class Sloped(NamedTuple):
    """The operands of a leaky ReLU: values of a scale, and the slope below 0."""

    values: Tensor
    scale: Tensor
    slope: Tensor

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "Sloped":
        """Their form in a graph."""
        return cls(*symbols(shape, (), ()))


class LeakyRounding(KernelRounding):
    """XNNPACK's leaky ReLU: one fixed-point factor with 8 fractional bits per sign."""

    name = "leaky_relu"
    takes = Sloped
    any_size = True

    @staticmethod
    def real(pending: Sloped) -> Tensor:
        values, scale, slope = pending
        return values * ops.where(values >= 0, scale, scale * slope)

    @staticmethod
    def quantize(pending: Sloped, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        values, scale, slope = pending
        ratio = scale / params.scale
        smooth = values * ops.where(values >= 0, ratio, ratio * slope)
        below = ratio * slope
        exact = ops.cond(
            ops.logical_and(_fits_256(ratio), ops.abs(below) >= 2.0**-8),
            lambda: ops.where(
                values >= 0, _multiply_256(values, ratio), _multiply_256(values, below)
            ),
            lambda: ops.where(
                values >= 0,
                _multiply_31(values, ratio),
                _multiply_31(values * ops.sign(below), ops.abs(scale * slope) / params.scale),
            ),
        )
        return round_clip(straight_through(exact, smooth), low, high)

    @classmethod
    def quantize_wide(cls, pending: Sloped, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        values, scale, slope = pending
        above, below = (ratio / params.scale for ratio in (scale, scale * slope))
        exact = ops.where(
            values >= 0,
            _multiply_31(values, above),
            _multiply_31(values * ops.sign(below), ops.abs(below)),
        )
        return cls.saturated(exact, pending, params, low, high)


@register_op
class LeakyReLU(Requantizing):
    """A slope below zero."""

    dtypes = INTEGERS
    keras_layers = (layers.LeakyReLU,)
    operations = ("LeakyRelu",)
    activations = ("leaky_relu",)
    litert = ("LEAKY_RELU",)
    kernel_rounding = "leaky_relu"
    pointwise = True
    cases = (
        Case(lambda: layers.LeakyReLU(), (4, 5, 3)),
        Case(lambda: layers.Activation("leaky_relu"), (6,)),
        Case(lambda: layers.LeakyReLU(0.003), (50, 4)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, layers.LeakyReLU):
            return tracer.emit(layer, args[0])
        # Keras' function has its slope as a default argument.
        slope = float(getattr(layer, "negative_slope", 0.2))
        return tracer.emit(layers.LeakyReLU(slope, name=layer.name), args[0])

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        slope = ops.convert_to_tensor(float(layer.negative_slope), "float32")
        return Sloped(x.values, x.scale, slope)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        options = {"alpha": float(node.layer.negative_slope)}
        builder.add("LEAKY_RELU", [node.input], [node.output], options)


class Curve(Op):
    """Base of the activations that are a function of the real value."""

    kernel_rounding = "real"

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return layer(x.values * x.scale)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add(cls.litert[0], [node.input], [node.output])


class OfIntegers(Requantizing, Curve):
    """Base of the curves whose kernels work on the input's integers."""


def _as_activation(layer: Any, x: Any, tracer: Any, function: str) -> Any:
    return tracer.emit(layers.Activation(function, name=layer.name), x)


def _along_last(layer: Any, x: Any, tracer: Any, emit: Callable[[Any], Any]) -> Any:
    """Emit what runs along the last axis for a layer that may run along another."""
    axis: Any = getattr(layer, "axis", -1)
    rank = len(x.shape)
    if isinstance(axis, list | tuple) and len(axis) == 1:
        (axis,) = axis
    if not isinstance(axis, int) or axis % rank == 0:
        tracer.refuse(layer, f"its axis is {axis}, and it runs along one axis but the batch's")
    if axis % rank == rank - 1:
        return emit(x)
    moved, back = channel_last(x, axis % rank, layer.name, tracer)
    return back(emit(moved))


@register_op
class Sigmoid(OfIntegers):
    """The logistic function."""

    dtypes = INTEGERS
    kernel_rounding = SigmoidRounding.name
    operations = ("Sigmoid",)
    activations = ("sigmoid",)
    litert = ("LOGISTIC",)
    output = Fixed(1 / 256, -128)
    pointwise = True
    cases = (Case(lambda: layers.Activation("sigmoid"), (50, 4), low=-8.0, high=8.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "sigmoid")


@register_op
class Tanh(OfIntegers):
    """The hyperbolic tangent."""

    dtypes = INTEGERS
    kernel_rounding = TanhRounding.name
    operations = ("Tanh",)
    activations = ("tanh",)
    litert = ("TANH",)
    output = Fixed(1 / 128, 0)
    pointwise = True
    cases = (Case(lambda: layers.Activation("tanh"), (50, 4), low=-4.0, high=4.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "tanh")


@register_op
class Softmax(OfIntegers):
    """Shares that sum to 1 along the last axis."""

    dtypes = INTEGERS
    kernel_rounding = SoftmaxRounding.name
    keras_layers = (layers.Softmax,)
    operations = ("Softmax",)
    activations = ("softmax",)
    litert = ("SOFTMAX",)
    output = Fixed(1 / 256, -128)
    masks = True
    notes = "One axis. Where a mask hides all, it is as if it hid none."
    cases = (
        Case(lambda: layers.Softmax(axis=(1,)), (3, 5)),
        Case(lambda: layers.Softmax(), (10,), low=-9.0, high=9.0),
        Case(lambda: layers.Activation("softmax"), (3, 5)),
        Case(lambda: layers.Dense(5, activation="softmax"), (6,)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, rank = args[0], len(args[0].shape)
        with tracer.scope(layer):
            mask = whole_mask([kwargs.get("mask")], layer, tracer, rank)
            if mask is not None:
                x = hide(x, mask, 1.0, tracer)
        softmax = layers.Softmax(name=layer.name)
        return _along_last(layer, x, tracer, lambda x: tracer.emit(softmax, x))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add("SOFTMAX", [node.input], [node.output], {"beta": 1.0})


@register_op
class LogSoftmax(OfIntegers):
    """The logarithm of softmax, not below -16."""

    dtypes = BYTES
    wide = "REDUCE_MAX, SUB, SUM and two tables"
    kernel_rounding = LogSoftmaxRounding.name
    operations = ("LogSoftmax",)
    activations = ("log_softmax",)
    litert = ("LOG_SOFTMAX",)
    output = Fixed(16 / 256, 127)
    notes = "One axis; it saturates at -16, in steps of 1/16."
    cases = (
        Case(lambda: layers.Activation("log_softmax"), (10,), low=-4.0, high=4.0),
        Case(lambda: ops.log_softmax, (3, 5), low=-7.0, high=7.0),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        activation = layers.Activation("log_softmax", name=layer.name)
        return _along_last(layer, args[0], tracer, lambda x: tracer.emit(activation, x))


@register_op
class Silu(Op):
    """`x * sigmoid(x)`, as a product."""

    operations = ("Silu",)
    activations = ("silu", "swish")
    litert = ("LOGISTIC", "MUL")
    cases = (Case(lambda: layers.Activation("silu"), (50, 4), low=-6.0, high=6.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        gate = layers.Activation("sigmoid", name=f"{layer.name}_gate")
        gated = tracer.emit(gate, args[0])
        return tracer.emit(layers.Multiply(name=layer.name), [args[0], gated])


@register_op
class HardSigmoid(Op):
    """`relu6(x + 3) / 6` and `clip(x + 1, 0, 2) / 2`, as a rescaling that saturates."""

    operations = ("HardSigmoid", "SparseSigmoid")
    activations = ("hard_sigmoid", "sparse_sigmoid", "hard_sigmoid_keras_2")
    litert = ("DEPTHWISE_CONV_2D",)
    notes = "That of Keras 2, of another slope, comes with `load_keras`."
    cases = (
        Case(lambda: layers.Activation("hard_sigmoid"), (50, 4), low=-5.0, high=5.0),
        Case(lambda: layers.Activation("sparse_sigmoid"), (50, 4), low=-2.0, high=2.0),
        Case(lambda: layers.Activation(hard_sigmoid_keras_2), (50, 4), low=-5.0, high=5.0),
    )
    slopes: ClassVar[dict[str, float]] = {
        "SparseSigmoid": 0.5,
        "hard_sigmoid_keras_2": 0.2,
        "sparse_sigmoid": 0.5,
    }

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        function = getattr(layer, "activation", None)
        slope = cls.slopes.get(getattr(function, "__name__", type(layer).__name__), 1 / 6)
        line = layers.Rescaling(slope, 0.5, name=f"{layer.name}_line")
        return tracer.emit(layers.ReLU(1.0, name=layer.name), tracer.emit(line, args[0]))


class HardSwishRounding(KernelRounding):
    """LiteRT's HARD_SWISH: 16-bit fixed point, in five roundings."""

    name = "hard_swish"
    takes = QTensor
    any_size = True

    @staticmethod
    def real(pending: QTensor) -> Tensor:
        real = pending.values * pending.scale
        return real * ops.relu6(real + 3.0) * (1.0 / 6.0)

    @classmethod
    def quantize(cls, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        x, smooth = pending, cls.real(pending) / params.scale
        fine = x.scale * np.float32(1 / 128)
        out_factor, out_exponent = _factor_15(fine / params.scale)
        in_factor, in_exponent = _factor_15(divide(fine, np.float32(3.0 / 32768)))
        high_res = ops.cast(x.values, "int32") * 128
        scaled = _doubling_high_multiply(high_res, out_factor)
        left = ops.maximum(in_exponent, 0)
        gate = _saturating_shift(high_res, ops.maximum(left - 1, 0))
        gate = _doubling_high_multiply(gate, in_factor)
        gate = ops.where(left > 0, _saturating_shift(gate, ops.minimum(left, 1)), gate)
        gate = _rounding_shift(gate, ops.maximum(-in_exponent, 0))
        gate = ops.right_shift(gate + 32768, 1)
        product = _truncated_shift_15(gate * scaled)
        product = _rounding_shift(product, ops.maximum(-out_exponent, 0))
        product = _saturating_shift(product, ops.maximum(out_exponent, 0))
        exact = ops.cast(product, "float32")
        return round_clip(straight_through(exact, smooth), low, high)

    @classmethod
    def quantize_wide(cls, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        """There is no kernel of 16 bits, but a table."""
        with wide_types():
            values, step, scale = (
                ops.cast(ops.stop_gradient(x), "float64")
                for x in (pending.values, pending.scale, params.scale)
            )
            x = values * step
            inside = ops.where(x < 3.0, x * (x + 3.0) / 6.0, x)
            y = ops.where(x > -3.0, inside, ops.zeros_like(x))
            exact = ops.cast(ops.round(divide(y, scale)), "float32")
        return cls.saturated(exact, pending, params, low, high)


def _factor_15(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """A positive factor as `m * 2**(e - 15)` with a 15-bit integer `m`."""
    exponent = binary_exponent(ratio) + 1
    factor = ops.cast(ops.floor(ratio * power_of_two(15 - exponent) + 0.5), "int32")
    return ops.minimum(factor, 32767), exponent


def _truncated_shift_15(x: Tensor) -> Tensor:
    return ops.sign(x) * ops.right_shift(ops.abs(x), 15)


def _doubling_high_multiply(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return _truncated_shift_15(product + ops.where(product >= 0, 1 << 14, 1 - (1 << 14)))


def _saturating_shift(x: Tensor, by: Tensor) -> Tensor:
    # By more than 15 bits, nothing but zeros would stay.
    return ops.clip(ops.left_shift(x, ops.minimum(by, 15)), -32768, 32767)


def _rounding_shift(x: Tensor, by: Tensor) -> Tensor:
    by = ops.minimum(by, 30)
    mask = ops.left_shift(ops.ones_like(by), by) - 1
    beyond = ops.right_shift(mask, 1) + ops.cast(x < 0, "int32")
    return ops.right_shift(x, by) + ops.cast(ops.bitwise_and(x, mask) > beyond, "int32")


@register_op
class HardSilu(Requantizing):
    """`x * relu6(x + 3) / 6`."""

    dtypes = INTEGERS
    wide = COST
    operations = ("HardSilu",)
    activations = ("hard_silu", "hard_swish")
    litert = ("HARD_SWISH",)
    kernel_rounding = "hard_swish"
    pointwise = True
    max_accumulator_scale = float("inf")
    notes = "A table instead, where the kernel would overflow: inputs beyond about 100,000."
    cases = (
        Case(lambda: layers.Activation("hard_silu"), (50, 4), low=-5.0, high=5.0),
        Case(lambda: layers.Activation("hard_silu"), (50, 4), low=-1.0, high=0.5),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "hard_silu")

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if not y.quantized:
            builder.add("HARD_SWISH", [x], [y])
            return
        table = entries(all_values(x), HardSwishRounding, y)
        # The kernel overflows where the input's scale is in the hundreds, or beyond the output's.
        look_up(x, y, table, builder, None if y.dtype == "int16" else "HARD_SWISH")


@keras.saving.register_keras_serializable("intact")
class Clamp(FunctionLayer):
    """Values between two limits.

    Args:
        lower: The lower limit, or None.
        upper: The upper limit, or None.
    """

    lower: float | None
    upper: float | None

    def call(self, x: Tensor) -> Tensor:
        """The values that are beyond a limit become the limit."""
        x = x if self.lower is None else ops.maximum(x, self.lower)
        return x if self.upper is None else ops.minimum(x, self.upper)


class Clamped(NamedTuple):
    """The operands of a clamp: values of a scale, and real limits."""

    values: Tensor
    scale: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "Clamped":
        """Their form in a graph."""
        return cls(*symbols(shape, (), (), ()))


class ClampRounding(RequantizeRounding):
    """A requantization to a range that ends where the limits are."""

    name = "clamp"
    takes = Clamped

    @staticmethod
    def real(pending: Clamped) -> Tensor:
        return ops.clip(RequantizeRounding.real(pending), pending.lower, pending.upper)


@register_op
class Clip(Requantizing):
    """Between two limits: a requantization that saturates."""

    dtypes = INTEGERS
    keras_layers = (Clamp,)
    operations = ("Clip", "HardTanh")
    activations = ("hard_tanh",)
    litert = ("QUANTIZE", "MAXIMUM", "MINIMUM")
    kernel_rounding = "clamp"
    pointwise = True
    clamps_by_range = True
    notes = (
        "Where the range ends at the limits, QUANTIZE alone. If 0 is not between the limits: a "
        "table."
    )
    cases = (
        Case(lambda: layers.Activation("hard_tanh"), (50, 4), low=-2.0, high=3.0),
        Case(lambda: ops.hard_tanh, (50, 4)),
        Case(lambda: lambda x: ops.clip(x, -0.25, 0.5), (50, 4)),
        Case(lambda: lambda x: ops.clip(x, 0.25, 0.5), (50, 4)),
        Case(lambda: lambda x: ops.clip(layers.Dense(3)(x), 0.0, 6.0), (4,), high=9.0),
        Case(lambda: Clamp(None, 0.0), (50, 4)),
        Case(lambda: lambda x: layers.Dense(4, "hard_tanh")(layers.Dense(8)(x)), (5,)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, Clamp):
            return tracer.emit(layer, args[0])
        if type(layer).__name__ != "Clip":
            return cls.emit(-1.0, 1.0, layer, args[0], tracer)
        limits = (layer.x_min, layer.x_max)
        if any(np.size(limit) != 1 for limit in limits):
            tracer.refuse(layer, "its limits are not one number each")
        lower, upper = (None if limit is None else float(limit) for limit in limits)
        return cls.emit(lower, upper, layer, args[0], tracer)

    @staticmethod
    def emit(lower: float | None, upper: float | None, layer: Any, x: Any, tracer: Any) -> Any:
        """Put a ReLU, a clamp or the table of one where a layer stands."""
        if lower == 0.0 and (upper is None or upper > 0.0):
            return tracer.emit(layers.ReLU(upper, name=layer.name), x)
        if (lower or 0.0) <= 0.0 <= (upper or 0.0):
            return tracer.emit(Clamp(lower, upper, name=layer.name), x)
        return Table.emit("Clip", {"x_min": lower, "x_max": upper}, layer, x, tracer)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        limits = zip((layer.lower, layer.upper), (-3e38, 3e38), strict=True)
        lower, upper = (
            ops.convert_to_tensor(far if limit is None else limit, "float32")
            for limit, far in limits
        )
        (x,) = inputs
        return Clamped(x.values, x.scale, lower, upper)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        if node.output.quantized:
            builder.add("QUANTIZE", [node.input], [node.output])
            return
        both = [("MAXIMUM", node.layer.lower), ("MINIMUM", node.layer.upper)]
        limits = [(name, limit) for name, limit in both if limit is not None]
        x = node.input
        for i, (name, limit) in enumerate(limits, 1):
            y = node.output if i == len(limits) else builder.like(x, x.shape)
            builder.add(name, [x, builder.constant(np.array(limit, "float32"))], [y])
            x = y


@register_op
class PReLU(Op):
    """A learned slope below zero: `relu(x) + prelu(min(x, 0))`, the latter being a product.

    It takes a tenth of the time of the kernel PRELU.
    """

    keras_layers = (layers.PReLU,)
    litert = ("QUANTIZE", "MUL", "ADD")
    dtypes = ("int8", "int16")
    kernel_rounding = "multiply"
    # No kernel multiplies by 8-bit slopes that quantizes its input at run time.
    weights = {"alpha": Weight(axis=(), dynamic=())}
    cases = (
        Case(lambda: layers.PReLU(shared_axes=[1, 2]), (4, 5, 3)),
        Case(lambda: layers.PReLU(), (4, 5, 3)),
        Case(lambda: lambda x: layers.PReLU()(layers.Dense(6)(x)), (5,)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        below = tracer.emit(Clamp(None, 0.0, name=f"{layer.name}_below"), x)
        above = tracer.emit(layers.ReLU(name=f"{layer.name}_above"), x)
        product = tracer.emit(layer, below)
        return tracer.emit(layers.Add(name=f"{layer.name}_sum"), [above, product])

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,), (alpha, scale) = inputs, weights["alpha"]
        return Operands(x, QTensor(alpha, scale, ops.zeros_like(scale), x.whole))

    @classmethod
    def real(cls, layer: Any, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        return inputs[0] * weights["alpha"]

    @classmethod
    def pending_spec(cls, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        return Operands(*map(QTensor.symbolic, (shape, tuple(layer.alpha.shape))))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        alpha, name = to_numpy(node.layer.alpha), f"{node.layer.name}/alpha"
        if node.output.quantized:
            values, scale = quantize_weight(alpha, 8, PER_TENSOR, numpy_ops)
            stored = values.astype(node.input.dtype)
            constant = builder.constant(stored, name, scale=scale)
        else:
            constant = node.constant("alpha") if node.weights else builder.constant(alpha, name)
        builder.add("MUL", [node.input, constant], [node.output])
