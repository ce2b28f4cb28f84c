"""Activation functions of the real value."""

from collections.abc import Callable
from typing import Any, ClassVar

from keras import layers

from intact.keras_files.activations import hard_sigmoid_keras_2
from intact.numerics.affine import QTensor
from intact.numerics.light_ops import ops
from intact.ops.base import BYTES, INTEGERS, Case, Fixed, Op
from intact.ops.lookup import COST, all_values, entries, look_up
from intact.ops.masking import hide, whole_mask
from intact.ops.moves import channel_last
from intact.ops.registry import register_op
from intact.ops.relu import Requantizing
from intact.rounding.curves import (
    LogSoftmaxRounding,
    SigmoidRounding,
    SoftmaxRounding,
    TanhRounding,
)
from intact.rounding.hard_swish import HardSwishRounding


class Curve(Op):
    """Base of the activations that are a function of the real value."""

    kernel_rounding = "real"

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return layer(x.values * x.scale)

    def lower(self, node: Any, builder: Any) -> None:
        builder.add(self.litert[0], [node.input], [node.output])


class OfIntegers(Requantizing, Curve):
    """Base of the curves whose kernels work on the input's integers."""


def _as_activation(layer: Any, x: Any, tracer: Any, function: str) -> Any:
    return tracer.emit_new(layers.Activation(function, name=layer.name), x)


def _along_last(layer: Any, x: Any, tracer: Any, emit: Callable[[Any], Any]) -> Any:
    """Emit a function of the last axis for a layer that may use another axis."""
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, rank = args[0], len(args[0].shape)
        with tracer.scope(layer):
            mask = whole_mask([kwargs.get("mask")], layer, tracer, rank)
            if mask is not None:
                x = hide(x, mask, 1.0, tracer)
        softmax = layers.Softmax(name=layer.name)
        return _along_last(layer, x, tracer, lambda x: tracer.emit(softmax, x))

    def lower(self, node: Any, builder: Any) -> None:
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        activation = layers.Activation("log_softmax", name=layer.name)
        return _along_last(layer, args[0], tracer, lambda x: tracer.emit(activation, x))


@register_op
class Silu(Op):
    """`x * sigmoid(x)`, as a product."""

    operations = ("Silu",)
    activations = ("silu", "swish")
    litert = ("LOGISTIC", "MUL")
    cases = (Case(lambda: layers.Activation("silu"), (50, 4), low=-6.0, high=6.0),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        gate = layers.Activation("sigmoid", name=f"{layer.name}_gate")
        gated = tracer.emit(gate, args[0])
        return tracer.emit_new(layers.Multiply(name=layer.name), [args[0], gated])


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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        function = getattr(layer, "activation", None)
        slope = self.slopes.get(getattr(function, "__name__", type(layer).__name__), 1 / 6)
        line = layers.Rescaling(slope, 0.5, name=f"{layer.name}_line")
        return tracer.emit_new(layers.ReLU(1.0, name=layer.name), tracer.emit(line, args[0]))


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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return _as_activation(layer, args[0], tracer, "hard_silu")

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if not y.quantized:
            builder.add("HARD_SWISH", [x], [y])
            return
        table = entries(all_values(x), HardSwishRounding(), y)
        # The kernel overflows where the input's scale is in the hundreds, or beyond the output's.
        look_up(x, y, table, builder, None if y.dtype == "int16" else "HARD_SWISH")
