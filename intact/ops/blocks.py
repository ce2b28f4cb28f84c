"""Blocks of pixels moved to channels and back."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.errors import ExportError
from intact.numerics.tensors import Tensor
from intact.ops.base import INTEGERS, Case
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.shape import Moving


@keras.saving.register_keras_serializable("intact")
class DepthToSpace(FunctionLayer):
    """Channels become square blocks of pixels, channels last.

    Args:
        block_size: Height and width of a block.

    Example:

    >>> DepthToSpace(2).compute_output_shape((None, 3, 3, 8))
    (None, 6, 6, 2)
    """

    block_size: int

    def call(self, x: Tensor) -> Tensor:
        """The same values, in larger images of fewer channels."""
        _, height, width, channels = ops.shape(x)
        size, rest = self.block_size, channels // self.block_size**2
        x = ops.reshape(x, (-1, height, width, size, size, rest))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, height * size, width * size, rest))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = shape
        size = self.block_size
        if channels is not None and channels % size**2:
            raise ValueError(f"{channels} channels do not divide into blocks of {size} x {size}.")
        grown = (None if n is None else n * size for n in (height, width))
        return (batch, *grown, None if channels is None else channels // size**2)


@keras.saving.register_keras_serializable("intact")
class SpaceToDepth(DepthToSpace):
    """Square blocks of pixels become channels, channels last.

    Args:
        block_size: Height and width of a block.
    """

    def call(self, x: Tensor) -> Tensor:
        """The same values, in smaller images of more channels."""
        _, height, width, channels = ops.shape(x)
        size = self.block_size
        x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, height // size, width // size, size * size * channels))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, channels = shape
        size = self.block_size
        if any(n is not None and n % size for n in (height, width)):
            raise ValueError(f"{height} x {width} does not divide into blocks of {size} x {size}.")
        shrunk = (None if n is None else n // size for n in (height, width))
        return (batch, *shrunk, None if channels is None else channels * size**2)


class Blocks(Moving):
    """Base of the ops that move blocks of pixels."""

    dtypes = INTEGERS
    wide = "RESHAPE, TRANSPOSE"
    notes = "Channels last, because Keras' backends disagree about channels first."

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        kind = self.keras_layers[0]
        if isinstance(layer, kind):
            return tracer.emit(layer, args[0])
        if layer.data_format != "channels_last":
            tracer.refuse(
                layer,
                "the backends of Keras disagree about the order of its values with channels first; "
                "move the channels to the end by `ops.transpose` before it",
            )
        return tracer.emit(kind(layer.block_size, name=layer.name), args[0])

    def refuse(self, layer: Any, shapes: list) -> str | None:
        if shapes[0][-1] is None:
            return f"the number of channels must be known, received shape {shapes[0]}"
        return None

    def lower(self, node: Any, builder: Any) -> None:
        x, y, size = node.input, node.output, node.layer.block_size
        if x.dtype != "int16":
            builder.add(self.litert[0], [x], [y], {"blockSize": size})
            return
        if None in x.shape[1:]:
            raise ExportError(
                f"{type(node.layer).__name__} {node.layer.name!r} of 16 bits needs images of known "
                f"size, received shape {x.shape}: it has kernels of 8 bits alone."
            )
        # There is no kernel of 16 bits; two axes change places.
        first, second, size = self.as_axes(x.shape, size)
        moved = builder.like(y, (None, second, first, size))
        order = builder.constant(np.array([0, 2, 1, 3], "int32"))
        builder.add("TRANSPOSE", [builder.reshape(x, (None, first, second, size)), order], [moved])
        builder.reshape(moved, y.shape, y)

    def as_axes(self, shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
        """The sizes of the two axes to swap, and of the values that move as one.

        Args:
            shape: The input's shape.
            size: Height and width of a block.
        """
        raise NotImplementedError


@register_op
class DepthToSpaceOp(Blocks):
    """Channels to blocks of pixels."""

    keras_layers = (DepthToSpace,)
    operations = ("DepthToSpace",)
    litert = ("DEPTH_TO_SPACE",)
    cases = (
        Case(lambda: DepthToSpace(2), (3, 4, 8)),
        Case(lambda: lambda x: DepthToSpace(3)(layers.Conv2D(18, 1)(x)), (3, 4, 2)),
    )

    def as_axes(self, shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
        return shape[2], size, shape[3] // size


@register_op
class SpaceToDepthOp(Blocks):
    """Blocks of pixels to channels."""

    keras_layers = (SpaceToDepth,)
    operations = ("SpaceToDepth",)
    litert = ("SPACE_TO_DEPTH",)
    cases = (
        Case(lambda: SpaceToDepth(2), (4, 6, 3)),
        Case(lambda: lambda x: layers.Conv2D(4, 1)(SpaceToDepth(3)(x)), (6, 3, 2)),
    )

    def as_axes(self, shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
        return size, shape[2] // size, shape[3] * size
