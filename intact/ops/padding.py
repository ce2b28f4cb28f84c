"""Padding."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.tensors import Tensor, is_whole
from intact.ops.base import ALL_SAME, COUNTS, FIXED_BATCH, INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.shape import Moving
from intact.ops.slicing import taken


@keras.saving.register_keras_serializable("intact")
class Pad(FunctionLayer):
    """Zeros around every axis but the batch.

    Args:
        padding: How many before and after, per axis.
    """

    padding: tuple[tuple[int, int], ...]

    def call(self, x: Tensor) -> Tensor:
        """The larger tensor."""
        return ops.pad(x, ((0, 0), *self.padding))

    def compute_output_shape(self, shape: tuple) -> tuple:
        sizes = zip(shape[1:], self.padding, strict=True)
        return (shape[0], *(n if n is None else n + sum(pads) for n, pads in sizes))


@register_op
class Padding(Moving):
    """Zeros around the edges; or, as a gather, the values nearby."""

    keras_layers = (Pad,)
    operations = ("Pad",)
    litert = ("PAD", "PADV2", "GATHER")
    notes = "A number, or modes 'reflect', 'symmetric', 'edge' and 'wrap' on axes of known size."
    cases = (
        Case(lambda: Pad([(2, 0), (1, 1)]), (4, 3)),
        Case(lambda: lambda x: ops.pad(x, ((0, 0), (1, 2))), (5,)),
        Case(
            lambda: lambda x: layers.Conv2D(2, 3)(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))),
            (4, 4, 2),
        ),
        Case(lambda: lambda x: ops.pad(x, ((0, 0), (0, 1), (2, 1), (1, 0))), (4, 4, 2)),
        Case(lambda: lambda x: ops.pad(x, ((0, 0), (3, 1), (1, 1)), mode="reflect"), (5, 4)),
        Case(lambda: lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0)), mode="symmetric"), (5, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, Pad):
            return tracer.emit(layer, args[0])
        x, *value = (*args, *kwargs.values())
        rank = len(x.shape)
        pads = [tuple(pair) for pair in np.broadcast_to(layer.pad_width, (rank, 2)).tolist()]
        if pads[0] != (0, 0):
            tracer.refuse(layer, f"the batch axis cannot be padded; {FIXED_BATCH}")
        if not np.any(pads):
            return x
        if layer.mode == "constant":
            number = float(value[0]) if value else 0.0
            if number:
                return self.with_number(layer, x, pads[1:], number, tracer)
            if rank == 4 and pads[3] == (0, 0):
                # As a layer that a convolution can take over.
                return tracer.emit_new(layers.ZeroPadding2D(tuple(pads[1:3]), name=layer.name), x)
            return tracer.emit(Pad(pads[1:], name=layer.name), x)
        if layer.mode not in ("reflect", "symmetric", "edge", "wrap"):
            tracer.refuse(layer, f"the mode {layer.mode!r} is unknown")
        for axis, pair in enumerate(pads):
            if pair != (0, 0):
                if x.shape[axis] is None:
                    tracer.refuse(layer, f"the size of axis {axis} of shape {x.shape} is unknown")
                index = np.pad(np.arange(x.shape[axis]), pair, mode=layer.mode)
                x = taken(tracer, layer, x, axis, index)
        return x

    def with_number(self, layer: Any, x: Any, pads: list, number: float, tracer: Any) -> Any:
        """Pads with a number that is not 0."""
        if number == -np.inf and not is_whole(x):
            return tracer.emit(PadLowest(pads, name=layer.name), x)
        if not np.isfinite(number):
            tracer.refuse(layer, f"it pads with {number}, which has no place in a range")
        dtype = x.dtype if is_whole(x) else "float32"
        value = tracer.constant(np.array(number), f"{layer.name}_value", len(x.shape), dtype)
        return tracer.emit(PadNumber(pads, name=layer.name), [x, value])

    def lower(self, node: Any, builder: Any) -> None:
        pads = np.array([(0, 0), *node.layer.padding], "int32")
        builder.add("PAD", [node.input, builder.constant(pads)], [node.output])


@keras.saving.register_keras_serializable("intact")
class PadNumber(Pad):
    """`(x, number)`: the number around every axis of x but the batch.

    Args:
        padding: How many before and after, per axis.
    """

    def call(self, inputs: list[Tensor]) -> Tensor:
        """The larger tensor."""
        x, number = inputs
        inside = ops.pad(ops.ones_like(x[:1], "bool"), ((0, 0), *self.padding))
        return ops.where(inside, super().call(x), number)

    def compute_output_shape(self, shapes: Any) -> tuple:
        return super().compute_output_shape(tuple(shapes[0]))


@register_op
class NumberPadding(Op):
    """A number around the edges; it is in the range of the values."""

    keras_layers = (PadNumber,)
    litert = ("PADV2",)
    dtypes = INTEGERS
    whole = COUNTS
    output = ALL_SAME
    cases = (
        Case(lambda: lambda x: ops.pad(x, ((0, 0), (1, 2)), constant_values=0.75), (5,)),
        Case(
            lambda: (
                lambda x: ops.pad(
                    layers.Conv2D(3, 1)(x), ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=-4.0
                )
            ),
            (3, 4, 2),
        ),
    )

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        x, number = inputs
        # In inference the scales are one and the same, and the ratio is 1.
        values = layer([x.values, number.values * (number.scale / x.scale)])
        return x._replace(values=values)

    def lower(self, node: Any, builder: Any) -> None:
        x, number = node.inputs
        pads = builder.constant(np.array([(0, 0), *node.layer.padding], "int32"))
        builder.add("PADV2", [x, pads, number], [node.output])


@keras.saving.register_keras_serializable("intact")
class PadLowest(Pad):
    """Minus infinity around every axis but the batch, for a maximum that follows.

    Args:
        padding: How many before and after, per axis.
    """

    def call(self, x: Tensor) -> Tensor:
        """The larger tensor."""
        return ops.pad(x, ((0, 0), *self.padding), constant_values=-np.inf)


@register_op
class LowestPadding(Op):
    """The lowest integer around the edges, in place of minus infinity."""

    keras_layers = (PadLowest,)
    litert = ("PADV2",)
    dtypes = INTEGERS
    output = SAME_AS_INPUT
    cases = (
        Case(
            lambda: (
                lambda x: layers.MaxPooling2D(3, 2)(
                    ops.pad(
                        layers.Conv2D(4, 3)(x),
                        ((0, 0), (1, 1), (1, 1), (0, 0)),
                        constant_values=-np.inf,
                    )
                )
            ),
            (8, 8, 2),
        ),
    )

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        bits = 16 if isinstance(x, WideTensor) else 8
        integer = -float(2 ** (bits - 1)) - x.zero_point
        # Real values have no lowest one, so pad with the lowest that occurs.
        lowest = ops.where(x.whole, integer, ops.stop_gradient(ops.min(x.values)))
        number = ops.reshape(lowest, (1,) * len(x.values.shape))
        return x._replace(values=PadNumber(layer.padding)([x.values, number]))

    def lower(self, node: Any, builder: Any) -> None:
        x = node.input
        pads = builder.constant(np.array([(0, 0), *node.layer.padding], "int32"))
        number = np.array(-np.inf, "float32")
        value = builder.quantized_constant(number, x) if x.quantized else builder.constant(number)
        builder.add("PADV2", [x, pads, value], [node.output])
