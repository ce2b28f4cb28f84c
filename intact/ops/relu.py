"""ReLU and other clamps."""

from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import layers

from intact.numerics.affine import Affine, QTensor
from intact.numerics.backend_kernels import round_clip
from intact.numerics.fixed_point import multiplier, multiply
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import PER_TENSOR
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, symbols, to_numpy
from intact.numerics.weights import quantize_weight
from intact.ops.base import INTEGERS, Case, Op, Weight
from intact.ops.elementwise import Operands
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.table import Table
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
    """The product as computed by the kernels for factors that XNNPACK refuses."""
    return ops.cast(multiply(ops.cast(values, "int32"), multiplier(ratio, 1.0, 1.0)), "float32")


def _fits_256(ratio: Tensor) -> Tensor:
    """Whether XNNPACK takes a factor."""
    return ops.logical_and(ratio >= 2.0**-8, ratio <= 128.0)


class RequantizeRounding(ConvertRounding):
    """From one scale to another: QUANTIZE from int8 to int8, and from int16 to int16."""

    name = "requantize"
    any_size = True

    def quantize(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        x = pending
        ratio = x.scale / params.scale
        exact = ops.cond(
            _fits_256(ratio),
            lambda: _multiply_256(x.values, ratio),
            lambda: _multiply_31(x.values, ratio),
        )
        return round_clip(straight_through(exact, x.values * ratio), low, high)

    def quantize_wide(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return super().quantize(pending, params, low, high)


class Requantizing(Op):
    """Base of the activations that work on the input's integers."""

    max_accumulator_scale: ClassVar[float] = 2**22
    fit_accumulator_scale: ClassVar[float] = 2**21

    def accumulator_scale(self, node: Any) -> float:
        # The kernel shifts its input in 32 bits: values of 16 bits have 8 bits less room.
        return node.input.scale * (2**8 if node.input.dtype == "int16" else 1)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if type(layer).__name__ == "ReLU":
            slope, limit, threshold = layer.negative_slope, layer.max_value, layer.threshold
            if not slope and not threshold:
                return tracer.emit_new(layers.ReLU(limit, name=layer.name), args[0])
            if not threshold and limit is None:
                return tracer.emit_new(layers.LeakyReLU(float(slope), name=layer.name), args[0])
            config = {"negative_slope": slope, "max_value": limit, "threshold": threshold}
            return Table.emit("ReLU", config, layer, args[0], tracer)
        name = getattr(layer, "activation", None)
        six = type(layer).__name__ == "Relu6" or name is keras.activations.relu6
        return tracer.emit_new(layers.ReLU(6.0 if six else None, name=layer.name), args[0])

    def lower(self, node: Any, builder: Any) -> None:
        if node.output.quantized:
            # The integers end at the upper limit; if they do not begin at 0, a maximum follows. The
            # kernel RELU rounds differently, and no better.
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

    def real(self, pending: Sloped) -> Tensor:
        values, scale, slope = pending
        return values * ops.where(values >= 0, scale, scale * slope)

    def quantize(self, pending: Sloped, params: Affine, low: Tensor, high: Tensor) -> Tensor:
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

    def quantize_wide(self, pending: Sloped, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        values, scale, slope = pending
        above, below = (ratio / params.scale for ratio in (scale, scale * slope))
        exact = ops.where(
            values >= 0,
            _multiply_31(values, above),
            _multiply_31(values * ops.sign(below), ops.abs(below)),
        )
        return self.saturated(exact, pending, params, low, high)


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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, layers.LeakyReLU):
            return tracer.emit(layer, args[0])
        # Keras' function has its slope as a default argument.
        slope = float(getattr(layer, "negative_slope", 0.2))
        return tracer.emit_new(layers.LeakyReLU(slope, name=layer.name), args[0])

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        slope = ops.convert_to_tensor(float(layer.negative_slope), "float32")
        return Sloped(x.values, x.scale, slope)

    def lower(self, node: Any, builder: Any) -> None:
        options = {"alpha": float(node.layer.negative_slope)}
        builder.add("LEAKY_RELU", [node.input], [node.output], options)


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

    def real(self, pending: Clamped) -> Tensor:
        return ops.clip(super().real(pending), pending.lower, pending.upper)


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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, Clamp):
            return tracer.emit(layer, args[0])
        if type(layer).__name__ != "Clip":
            return self.emit(-1.0, 1.0, layer, args[0], tracer)
        limits = (layer.x_min, layer.x_max)
        if any(np.size(limit) != 1 for limit in limits):
            tracer.refuse(layer, "its limits are not one number each")
        lower, upper = (None if limit is None else float(limit) for limit in limits)
        return self.emit(lower, upper, layer, args[0], tracer)

    @staticmethod
    def emit(lower: float | None, upper: float | None, layer: Any, x: Any, tracer: Any) -> Any:
        """Replace a layer by a ReLU, a clamp or a table."""
        if lower == 0.0 and (upper is None or upper > 0.0):
            return tracer.emit_new(layers.ReLU(upper, name=layer.name), x)
        if (lower or 0.0) <= 0.0 <= (upper or 0.0):
            return tracer.emit(Clamp(lower, upper, name=layer.name), x)
        return Table.emit("Clip", {"x_min": lower, "x_max": upper}, layer, x, tracer)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        limits = zip((layer.lower, layer.upper), (-3e38, 3e38), strict=True)
        lower, upper = (
            ops.convert_to_tensor(far if limit is None else limit, "float32")
            for limit, far in limits
        )
        (x,) = inputs
        return Clamped(x.values, x.scale, lower, upper)

    def lower(self, node: Any, builder: Any) -> None:
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
    # No kernel that quantizes its input at run time multiplies by 8-bit slopes.
    weights = {"alpha": Weight(PER_TENSOR, dynamic=())}
    cases = (
        Case(lambda: layers.PReLU(shared_axes=[1, 2]), (4, 5, 3)),
        Case(lambda: layers.PReLU(), (4, 5, 3)),
        Case(lambda: lambda x: layers.PReLU()(layers.Dense(6)(x)), (5,)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        below = tracer.emit(Clamp(None, 0.0, name=f"{layer.name}_below"), x)
        above = tracer.emit_new(layers.ReLU(name=f"{layer.name}_above"), x)
        product = tracer.emit(layer, below)
        return tracer.emit_new(layers.Add(name=f"{layer.name}_sum"), [above, product])

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,), (alpha, scale) = inputs, weights["alpha"]
        return Operands(x, QTensor(alpha, scale, ops.zeros_like(scale), x.whole))

    def real(self, layer: Any, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        return inputs[0] * weights["alpha"]

    def pending_spec(self, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        return Operands(*map(QTensor.symbolic, (shape, tuple(layer.alpha.shape))))

    def lower(self, node: Any, builder: Any) -> None:
        alpha, name = to_numpy(node.layer.alpha), f"{node.layer.name}/alpha"
        if node.output.quantized:
            values, scale = quantize_weight(alpha, 8, PER_TENSOR, numpy_ops)
            stored = values.astype(node.input.dtype)
            constant = builder.constant(stored, name, scale=scale)
        else:
            constant = node.constant("alpha") if node.weights else builder.constant(alpha, name)
        builder.add("MUL", [node.input, constant], [node.output])
