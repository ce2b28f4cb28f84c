"""What depends on sizes that are unknown until the file runs."""

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import layers

from intact.litert.builder import is_row
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, is_symbolic, is_whole
from intact.ops.base import ANY_WHOLE, INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.constant import Gather
from intact.ops.moves import Moved, Size, SizedReshape, size_of
from intact.ops.registry import register_op
from intact.ops.shape import Moving

LARGEST = 512
"""The largest size that constants are computed for which depend on an unknown one."""


def _blocks_of_pixels(x: Tensor) -> Tensor:
    """Channels as blocks of pixels, as user code has it."""
    samples, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (samples, height, width, 2, 2, channels // 4))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (samples, height * 2, width * 2, channels // 4))


def _with_positions(x: Tensor) -> Tensor:
    """Values with those of a table of positions, as user code has it."""
    table = np.linspace(-1.0, 1.0, 400, dtype="float32").reshape(100, 4)
    return x + ops.convert_to_tensor(table)[: ops.shape(x)[1]]


@register_op
class SizedReshaping(Moving):
    """A new shape of sizes that the file computes when it is resized."""

    keras_layers = (SizedReshape,)
    litert = ("SHAPE", "STRIDED_SLICE", "MUL", "FLOOR_DIV", "CONCATENATION", "RESHAPE")
    cases = (Case(lambda: layers.Lambda(_blocks_of_pixels), (None, None, 8)),)

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if is_row(y.shape, x.shape) or is_row(x.shape, y.shape):
            builder.reshape(x, y.shape, y)
        else:
            reshape_by_sizes(x, node.layer.target, builder, y)


def reshape_by_sizes(
    x: Any, target: Sequence[Size], builder: Any, y: Any = None, like: Any = None
) -> Any:
    """Add a RESHAPE to sizes that may be unknown until the file is resized.

    Args:
        x: The input, a tensor of the file.
        target: The size of each axis but the first, which takes what is over.
        builder: The file's builder.
        y: The output, if there is one already.
        like: The tensor whose axes `target` means, if it is not the input.

    Returns:
        The output.
    """
    like = like or x
    shape = (None, *(size_of(entry, like.shape) for entry in target))
    if shape.count(None) == 1:
        return builder.reshape(x, shape if y is None else y.shape, y)
    y = y or builder.like(x, shape)
    parts = [builder.constant(np.array([-1], "int32"))]
    for factor, source, divisor in target:
        if source is None:
            parts.append(builder.constant(np.array([factor], "int32")))
            continue
        size = builder.scaled(builder.sizes(like, source, source + 1), [factor])
        if divisor != 1:
            whole = builder.like(size, size.shape, "int32")
            other = builder.constant(np.array([divisor], "int32"))
            builder.add("FLOOR_DIV", [size, other], [whole])
            size = whole
        parts.append(size)
    builder.add("RESHAPE", [x, builder.joined(parts)], [y])
    return y


@keras.saving.register_keras_serializable("intact")
class FirstValues(Moved):
    """The first values of a table along some axes, as many as axes of other tensors have.

    Args:
        ends: For each such axis: the axis, which of the other tensors, and its axis.

    Example:

    >>> layer = FirstValues([(1, 0, 1)])
    >>> layer([np.zeros((1, 5, 2)), np.zeros((3, 4))]).shape[1:] == (4, 2)
    True
    """

    ends: tuple[tuple[int, int, int], ...]

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`(table, *others)`: the part of the table."""
        table, *others = inputs
        key = [slice(None)] * len(table.shape)
        for axis, other, place in self.ends:
            key[axis] = slice(0, ops.shape(others[other])[place])
        return table[tuple(key)]

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        shapes = [tensor.shape for tensor in inputs]
        return keras.KerasTensor(self.compute_output_shape(shapes), inputs[0].dtype)

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, ...]:
        table, *others = shapes
        sizes = list(table)
        for axis, other, place in self.ends:
            sizes[axis] = others[other][place]
        return tuple(sizes)


@register_op
class TableParts(Op):
    """Positions, masks and the like for the sizes that the file is resized to."""

    keras_layers = (FirstValues,)
    operations = ("TablePart",)
    litert = ("SHAPE", "STRIDED_SLICE", "CONCATENATION")
    dtypes = INTEGERS
    whole = ANY_WHOLE
    output = SAME_AS_INPUT
    plain: ClassVar[tuple[int, ...]] = tuple(range(1, 9))
    cases = (
        Case(lambda: layers.Lambda(_with_positions, output_shape=lambda shape: shape), (None, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        table, *others = args
        if isinstance(layer, FirstValues):
            table, *others = args[0]
            return tracer.emit(layer, [table, *others])
        if not is_symbolic(table):
            dtype = keras.backend.standardize_dtype(table.dtype)
            dtype = dtype if is_whole(table) else "float32"
            # Its first axis is that of the batch.
            table = tracer.constant(table, f"{layer.name}_table", layer.rank, dtype, broadcast=True)
        ends = [(axis + layer.rank, other, place) for axis, other, place in layer.ends]
        zeros = others.pop() if layer.each else None
        part = tracer.emit(FirstValues(ends, name=layer.name), [table, *others])
        if zeros is None:
            return part
        return tracer.emit(Gather(name=f"{layer.name}_rows"), [part, zeros])

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        table, *others = inputs
        return table._replace(values=layer([table.values, *others]))

    def lower(self, node: Any, builder: Any) -> None:
        table, *others = node.inputs
        rank = len(table.shape)
        ends = {axis: (others[other], place) for axis, other, place in node.layer.ends}
        parts, masked = [], 0
        for axis in range(rank):
            if axis in ends:
                tensor, place = ends[axis]
                parts.append(builder.sizes(tensor, place, place + 1))
            else:
                parts.append(builder.constant(np.array([0], "int32")))
                masked |= 1 << axis
        begin, strides = (builder.constant(np.full(rank, n, "int32")) for n in (0, 1))
        inputs = [table, begin, builder.joined(parts), strides]
        builder.add("STRIDED_SLICE", inputs, [node.output], {"endMask": masked})
