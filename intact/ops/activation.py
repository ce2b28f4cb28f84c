"""Activation functions."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.errors import ExportError
from intact.numerics import (
    QTensor,
    Tensor,
    binary_exponent,
    power_of_two,
    round_clip,
    straight_through,
    to_numpy,
)
from intact.ops.base import Case, Fixed, Op, register_op
from intact.quantizers import Arithmetic


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


class RequantizeArithmetic(Arithmetic):
    """From one scale to another: QUANTIZE from int8 to int8."""

    name = "requantize"

    @staticmethod
    def real(pending: Any) -> Tensor:
        x = QTensor(*pending)
        return x.values * x.scale

    @staticmethod
    def quantize(
        pending: Any, params: QTensor, low: Tensor, high: Tensor, training: bool
    ) -> Tensor:
        x = QTensor(*pending)
        ratio = x.scale / params.scale
        exact = _multiply_256(x.values, ratio)
        return round_clip(straight_through(exact, x.values * ratio), low, high)


class Requantizing(Op):
    """Base of the activations that work on the input's integers."""

    @classmethod
    def pending_spec(cls, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        return tuple(keras.KerasTensor(s, "float32") for s in (shape, (), ()))

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return inputs[0]


@register_op
class ReLU(Requantizing):
    """Fuses into the op before it; alone, it is a requantization that saturates."""

    keras_layers = (layers.ReLU,)
    operations = ("Relu", "Relu6")
    activations = ("relu", "relu6")
    litert = ("QUANTIZE",)
    arithmetic = "requantize"
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
        if isinstance(layer, layers.ReLU):
            if relu_bounds(layer) is not None:
                return tracer.emit(layer, args[0])
            if not layer.threshold and layer.max_value is None:
                slope = float(layer.negative_slope)
                return tracer.emit(layers.LeakyReLU(slope, name=layer.name), args[0])
            return tracer.emit(Elementwise(layer, name=layer.name), args[0])
        name = getattr(layer, "activation", None)
        six = type(layer).__name__ == "Relu6" or name is keras.activations.relu6
        return tracer.emit(layers.ReLU(6.0 if six else None, name=layer.name), args[0])

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        if node.output.quantized:
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


class LeakyArithmetic(Arithmetic):
    """XNNPACK's leaky ReLU: one fixed-point factor with 8 fractional bits per sign."""

    name = "leaky_relu"

    @staticmethod
    def real(pending: Any) -> Tensor:
        values, scale, slope = pending
        return values * ops.where(values >= 0, scale, scale * slope)

    @staticmethod
    def quantize(
        pending: Any, params: QTensor, low: Tensor, high: Tensor, training: bool
    ) -> Tensor:
        values, scale, slope = pending
        ratio = scale / params.scale
        smooth = values * ops.where(values >= 0, ratio, ratio * slope)
        exact = ops.where(
            values >= 0, _multiply_256(values, ratio), _multiply_256(values, ratio * slope)
        )
        return round_clip(straight_through(exact, smooth), low, high)


@register_op
class LeakyReLU(Requantizing):
    """A slope below zero."""

    keras_layers = (layers.LeakyReLU,)
    operations = ("LeakyRelu",)
    activations = ("leaky_relu",)
    litert = ("LEAKY_RELU",)
    arithmetic = "leaky_relu"
    cases = (
        Case(lambda: layers.LeakyReLU(), (4, 5, 3)),
        Case(lambda: layers.Activation("leaky_relu"), (6,)),
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
        return x.values, x.scale, ops.convert_to_tensor(float(layer.negative_slope), "float32")

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        options = {"alpha": float(node.layer.negative_slope)}
        builder.add("LEAKY_RELU", [node.input], [node.output], options)


class Curve(Op):
    """Base of the activations that are a function of the real value."""

    arithmetic = "real"

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return layer(x.values * x.scale)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add(cls.litert[0], [node.input], [node.output])


def _as_activation(layer: Any, x: Any, tracer: Any, function: str) -> Any:
    return tracer.emit(layers.Activation(function, name=layer.name), x)


@register_op
class Sigmoid(Curve):
    """The logistic function."""

    operations = ("Sigmoid",)
    activations = ("sigmoid",)
    litert = ("LOGISTIC",)
    output = Fixed(1 / 256, -128)
    cases = (Case(lambda: layers.Activation("sigmoid"), (50, 4), False, low=-8.0, high=8.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "sigmoid")


@register_op
class Tanh(Curve):
    """The hyperbolic tangent."""

    operations = ("Tanh",)
    activations = ("tanh",)
    litert = ("TANH",)
    output = Fixed(1 / 128, 0)
    cases = (Case(lambda: layers.Activation("tanh"), (50, 4), False, low=-4.0, high=4.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "tanh")


@register_op
class Softmax(Curve):
    """Shares that sum to 1 along the last axis."""

    keras_layers = (layers.Softmax,)
    operations = ("Softmax",)
    activations = ("softmax",)
    litert = ("SOFTMAX",)
    output = Fixed(1 / 256, -128)
    notes = "The last axis only; no mask."
    cases = (
        Case(lambda: layers.Softmax(), (10,), False, low=-9.0, high=9.0),
        Case(lambda: layers.Activation("softmax"), (3, 5), False),
        Case(lambda: layers.Dense(5, activation="softmax"), (6,), False),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        axis = getattr(layer, "axis", -1)
        if axis not in (-1, len(args[0].shape) - 1):
            tracer.refuse(layer, f"its axis is {axis}, and only the last axis has a kernel")
        if isinstance(layer, layers.Softmax):
            return tracer.emit(layer, args[0])
        return tracer.emit(layers.Softmax(name=layer.name), args[0])

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add("SOFTMAX", [node.input], [node.output], {"beta": 1.0})


@register_op
class Silu(Op):
    """`x * sigmoid(x)`, as a product."""

    operations = ("Silu",)
    activations = ("silu", "swish")
    litert = ("LOGISTIC", "MUL")
    cases = (Case(lambda: layers.Activation("silu"), (50, 4), False, low=-6.0, high=6.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        gate = layers.Activation("sigmoid", name=f"{layer.name}_gate")
        gated = tracer.emit(gate, args[0])
        return tracer.emit(layers.Multiply(name=layer.name), [args[0], gated])


@register_op
class HardSigmoid(Op):
    """`relu6(x + 3) / 6`, as a rescaling that saturates."""

    operations = ("HardSigmoid",)
    activations = ("hard_sigmoid",)
    litert = ("DEPTHWISE_CONV_2D",)
    cases = (Case(lambda: layers.Activation("hard_sigmoid"), (50, 4), low=-5.0, high=5.0),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        line = layers.Rescaling(1 / 6, 0.5, name=f"{layer.name}_line")
        return tracer.emit(layers.ReLU(1.0, name=layer.name), tracer.emit(line, args[0]))


class HardSwishArithmetic(Arithmetic):
    """LiteRT's HARD_SWISH: 16-bit fixed point, in five roundings."""

    name = "hard_swish"

    @staticmethod
    def real(pending: Any) -> Tensor:
        x = QTensor(*pending)
        real = x.values * x.scale
        return real * ops.relu6(real + 3.0) * (1.0 / 6.0)

    @classmethod
    def quantize(
        cls, pending: Any, params: QTensor, low: Tensor, high: Tensor, training: bool
    ) -> Tensor:
        x = QTensor(*pending)
        smooth = cls.real(pending) / params.scale
        fine = x.scale * np.float32(1 / 128)
        out_factor, out_exponent = _factor_15(fine / params.scale)
        in_factor, in_exponent = _factor_15(fine / np.float32(3.0 / 32768))
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
    return ops.clip(ops.left_shift(x, by), -32768, 32767)


def _rounding_shift(x: Tensor, by: Tensor) -> Tensor:
    mask = ops.left_shift(ops.ones_like(by), by) - 1
    beyond = ops.right_shift(mask, 1) + ops.cast(x < 0, "int32")
    return ops.right_shift(x, by) + ops.cast(ops.bitwise_and(x, mask) > beyond, "int32")


@register_op
class HardSilu(Requantizing):
    """`x * relu6(x + 3) / 6`."""

    operations = ("HardSilu",)
    activations = ("hard_silu", "hard_swish")
    litert = ("HARD_SWISH",)
    arithmetic = "hard_swish"
    cases = (
        Case(lambda: layers.Activation("hard_silu"), (50, 4), low=-5.0, high=5.0),
        Case(lambda: layers.Activation("hard_silu"), (50, 4), low=-1.0, high=0.5),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "hard_silu")

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.add("HARD_SWISH", [node.input], [node.output])


@keras.saving.register_keras_serializable("intact")
class Elementwise(keras.layers.Layer):
    """A function of each value alone, without weights, given as a layer.

    Args:
        layer: The layer that computes it.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """The function's values."""
        return self.layer(x)

    def compute_output_shape(self, shape: tuple) -> tuple:
        return shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Elementwise":
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@register_op
class Table(Curve):
    """Any function of each value alone: looked up in a table of all 256 integers."""

    keras_layers = (Elementwise,)
    litert = ("CAST", "ADD", "GATHER")
    notes = "Integer files only."
    cases = (Case(lambda: Elementwise(layers.ReLU(threshold=0.5)), (50, 4)),)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if not y.quantized:
            raise ExportError(
                f"{node.layer.name!r} cannot be exported in float: it is a table of integers. "
                "Quantize the layer, or write it as plain ReLU layers."
            )
        real = (np.arange(-128, 128) - x.zero_point).astype("float32") * x.scale
        values = to_numpy(node.layer(real))
        table = builder.quantized_constant(values, y.scale, y.zero_point)
        index = builder.like(x, x.shape, dtype="int32")
        shifted = builder.like(x, x.shape, dtype="int32")
        builder.add("CAST", [x], [index], {"inDataType": "int8", "outDataType": "int32"})
        offset = builder.constant(np.array(128, "int32"))
        builder.add("ADD", [index, offset], [shifted], {"fusedActivationFunction": "NONE"})
        builder.add("GATHER", [table, shifted], [y], {"axis": 0})
