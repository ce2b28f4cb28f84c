"""Which integers of a file's tensor share a scale, and how the file says so."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema


class Groups(NamedTuple):
    """Which integers of a tensor share a scale, where there is more than one scale.

    Args:
        axis: Each index of this axis has scales of its own.
        block: How many integers along the last axis share a scale; 0 for all.
    """

    axis: int = 0
    block: int = 0

    @classmethod
    def of(cls, scale: Any, shape: tuple[int, ...], axis: int) -> "Groups":
        """Which integers share a scale, told by how many scales there are along the last axis.

        Args:
            scale: The scales: a scalar, one for each index of the axis, or as many axes as the
                tensor has, with one for each block.
            shape: The tensor's shape.
            axis: The axis of the output channels.

        Example:

        >>> Groups.of(np.ones((5, 2)), (5, 64), axis=0)
        Groups(axis=0, block=32)
        """
        sizes = np.shape(scale)
        return cls(axis, shape[-1] // sizes[-1] if len(sizes) > 1 else 0)

    @property
    def dequantize(self) -> bool:
        """Whether a DEQUANTIZE takes such scales; for blocks, an EMBEDDING_LOOKUP of all rows."""
        return not self.block

    def scales_of(self, shape: tuple[int | None, ...]) -> int | None:
        """How many scales a tensor has; None if it has no such axis.

        Args:
            shape: Its shape.
        """
        if self.block:
            return prod(size or 0 for size in shape) // self.block
        return shape[self.axis] if 0 <= self.axis < len(shape) else None

    def describe(self, dtype: str) -> str:
        """A type of integers and how they share scales, in words.

        Args:
            dtype: The type.
        """
        return f"{dtype}/{self.block}" if self.block else dtype


WHOLE = Groups()
"""Of tensors with one scale."""


class Parameters(NamedTuple):
    """What is read of a tensor's quantization.

    Args:
        scales: The scales: none, one, or those of all groups, in order.
        zero_points: The same of zero points.
        groups: Which integers share one.
    """

    scales: np.ndarray
    zero_points: np.ndarray
    groups: Groups = WHOLE


def pack_quantization(
    tensor: Any, tensors: list[schema.TensorT], buffers: list[schema.BufferT]
) -> schema.QuantizationParametersT:
    """The schema's form of a tensor's quantization.

    Args:
        tensor: The `intact.litert.writing.Tensor`.
        tensors: The packed tensors of its graph, for scales that are a tensor of their own.
        buffers: The packed buffers of the file, likewise.
    """
    scales = tensor.scales
    if tensor.groups.block:
        buffers.append(schema.BufferT(scales.astype("float16").view("uint8")))
        tensors.append(
            schema.TensorT(
                shape=list(np.shape(tensor.scale)),
                type=schema.TensorType.FLOAT16,
                buffer=len(buffers) - 1,
                name=f"{tensor.name}_scales",
                hasRank=True,
            )
        )
        return schema.QuantizationParametersT(
            detailsType=schema.QuantizationDetails.BlockwiseQuantization,
            details=schema.BlockwiseQuantizationT(
                scales=len(tensors) - 1, zeroPoints=-1, blockSize=tensor.groups.block
            ),
            quantizedDimension=tensor.groups.axis,
        )
    return schema.QuantizationParametersT(
        scale=scales,
        zeroPoint=np.broadcast_to(tensor.zero_point, scales.shape).astype("int64"),
        quantizedDimension=tensor.groups.axis,
    )


def read_quantization(table: Any, constant: Callable[[int], Any]) -> Parameters:
    """A tensor's quantization, from the schema's form.

    Args:
        table: The table of the file, as `intact.litert.reader` reads it; None if there is none.
        constant: The bytes of another tensor of the graph, by its place.
    """
    if table is None:
        return Parameters(np.zeros(0), np.zeros(0))
    axis = table.scalar(6, "i")
    in_blocks = table.scalar(4, "B") == schema.QuantizationDetails.BlockwiseQuantization
    details = table.table(5) if in_blocks else None
    if details is None:
        return Parameters(table.array(2, "<f4"), table.array(3, "<i8"), Groups(axis))
    data = constant(details.scalar(0, "i")) or b""
    scales = np.frombuffer(data, "<f2", len(data) // 2).astype("<f4")
    block = max(details.scalar(2, "i"), 0)
    return Parameters(scales, np.zeros(len(scales), "<i8"), Groups(axis, block))
