"""Blocks of pixels moved to channels and back."""

from typing import Any

import numpy as np
from keras import layers

from intact.ops.base import INTEGERS, Case
from intact.ops.moves import Size
from intact.ops.pixel_blocks import DepthToSpace, SpaceToDepth
from intact.ops.registry import register_op
from intact.ops.shape import Moving
from intact.ops.sized import reshape_by_sizes


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
        if x.dtype != "int16" and builder.has_own(self.litert[0], x.dtype):
            builder.add(self.litert[0], [x], [y], {"blockSize": size})
            return
        # There is no kernel of 16 bits; two axes change places.
        axes, result = self.as_axes(size, x.shape[-1])
        swapped = reshape_by_sizes(x, axes, builder)
        first, second, rest = swapped.shape[1:]
        moved = builder.like(y, (None, second, first, rest))
        order = builder.constant(np.array([0, 2, 1, 3], "int32"))
        builder.add("TRANSPOSE", [swapped, order], [moved])
        reshape_by_sizes(moved, result, builder, y, x)

    def as_axes(self, size: int, channels: int) -> tuple[list[Size], list[Size]]:
        """The axes to swap, as sizes of the input, and the output's axes, likewise.

        Args:
            size: Height and width of a block.
            channels: How many channels it has.

        Returns:
            The shape, without what comes before them, of the two axes and of the values that move
            as one; and the shape of the output without the batch.
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

    def as_axes(self, size: int, channels: int) -> tuple[list[Size], list[Size]]:
        rest = channels // size
        return [(1, 2, 1), (size, None, 1), (rest, None, 1)], [
            (size, 1, 1),
            (size, 2, 1),
            (rest // size, None, 1),
        ]


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

    def as_axes(self, size: int, channels: int) -> tuple[list[Size], list[Size]]:
        rest = channels * size
        return [(size, None, 1), (1, 2, size), (rest, None, 1)], [
            (1, 1, size),
            (1, 2, size),
            (rest * size, None, 1),
        ]
