"""Which values of a tensor share a scale."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through, unfused

SMALLEST, LARGEST = np.float32(2.0**-14), np.float32(65280)
"""The range of the scales of blocks: the normal numbers of float16 that have 8 digits."""


@dataclass(frozen=True)
class ScaleLayout:
    """Which values of a tensor share a scale.

    All that depends on it is here: quantizers, layers, recovery and files ask the layout. A
    tensor's scales are kept flat, in the order of the channels; one scale is a scalar.

    Args:
        axes: The axes of the channels: each of these has a scale of its own. Without any, the
            tensor has one scale.
        block: How many values of a channel share a scale, along the one other axis; None for all.

    Example:

    >>> layout = ScaleLayout((-1,))
    >>> layout.shared(3), layout.spread(np.ones(4), (2, 3, 4)).shape[-1]
    ((0, 1), 4)
    >>> blocks = ScaleLayout((-1,), block=32)
    >>> blocks.split(np.ones((64, 5))).shape == (2, 32, 5), blocks.fits((9, 5))
    (True, False)
    """

    axes: tuple[int, ...] = ()
    block: int | None = None

    @property
    def takes_factors(self) -> bool:
        """Whether a factor of each channel, such as a batch norm's, can go into the scales."""
        # Their 8 digits would not hold the product.
        return self.block is None

    def parts(self, rank: int) -> "ScaleLayout":
        """The layout of what `split` returns, where scales are shared along whole axes.

        Args:
            rank: How many axes the tensor has.
        """
        if self.block is None:
            return self
        inside = self._along(rank) + 1
        return ScaleLayout(tuple(a for a in range(rank + 1) if a != inside))

    def _along(self, rank: int) -> int:
        """The axis that blocks run along."""
        (axis,) = self.shared(rank)
        return axis

    def _with_blocks(self, shape: tuple[int, ...], *sizes: int) -> tuple[int, ...]:
        """A shape with the number of blocks, and other sizes, in place of the size along them."""
        along, block = self._along(len(shape)), self.block or 1
        return (*shape[:along], shape[along] // block, *sizes, *shape[along + 1 :])

    def split(self, values: Any, xp: Any = ops) -> Any:
        """A tensor in a shape in which values share a scale along whole axes.

        Args:
            values: The tensor.
            xp: `keras.ops`, or `numpy_ops`.
        """
        if self.block is None:
            return values
        return xp.reshape(values, self._with_blocks(values.shape, self.block))

    def merge(self, values: Any, shape: tuple[int, ...], xp: Any = ops) -> Any:
        """What `split` made of a tensor, in the tensor's shape again.

        Args:
            values: The values.
            shape: The tensor's shape.
            xp: `keras.ops`, or `numpy_ops`.
        """
        return values if self.block is None else xp.reshape(values, shape)

    def shared(self, rank: int) -> tuple[int, ...]:
        """The axes along which values share a scale; of a tensor that is `split`.

        Args:
            rank: How many axes the tensor has.
        """
        return tuple(a for a in range(rank) if a not in {axis % rank for axis in self.axes})

    def stored(self, scale: Any, xp: Any = ops) -> Any:
        """Scales as files can store them, with a straight-through gradient.

        Args:
            scale: The scales.
            xp: `keras.ops`, or `numpy_ops`.
        """
        if self.block is None:
            return scale
        # Files have float16, of which XNNPACK keeps the 8 digits of bfloat16. To round to these,
        # the digits below are pushed out (T. J. Dekker, 1971).
        near = xp.clip(scale, SMALLEST, LARGEST)
        pushed = unfused(near * np.float32(2.0**16 + 1), xp)
        return straight_through(pushed - unfused(pushed - near, xp), scale, xp)

    def flat(self, scale: Any, xp: Any = ops) -> Any:
        """Scales that broadcast to their tensor, in a row; one as a scalar.

        Args:
            scale: The scales, which broadcast to the tensor that is `split`.
            xp: `keras.ops`, or `numpy_ops`.
        """
        return xp.reshape(scale, (-1,) if self.axes else ())

    def spread(self, values: Any, shape: tuple[int, ...], xp: Any = ops) -> Any:
        """A value for each scale, shaped to broadcast to the tensor.

        Args:
            values: Flat values, or a scalar, which goes with any tensor.
            shape: The tensor's shape.
            xp: `keras.ops`, or `numpy_ops`.
        """
        if not len(values.shape):
            return values
        if self.block is not None:
            blocks = xp.reshape(values, self._with_blocks(shape, 1))
            each = xp.broadcast_to(blocks, self._with_blocks(shape, self.block))
            return self.merge(each, shape, xp)
        shared = self.shared(len(shape))
        return xp.reshape(values, [1 if a in shared else n for a, n in enumerate(shape)])

    def ordered(self, scale: Any, shape: tuple[int, ...], order: tuple[int, ...] | None) -> Any:
        """Flat scales on the host, in the order of the tensor's values.

        Args:
            scale: The scales.
            shape: The tensor's shape.
            order: The order of axes that the tensor is written in; None for its own.
        """
        if self.block is None:
            return scale
        rows = np.reshape(scale, self._with_blocks(shape))
        return rows if order is None else rows.transpose(order)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of a shape can have scales so.

        Args:
            shape: The tensor's shape.
        """
        if self.block is None:
            return True
        shared = self.shared(len(shape))
        return len(shared) == 1 and shape[shared[0]] % self.block == 0

    def summed(self, values: Any, scale: Any) -> tuple[Any, Any]:
        """What sums of products are made of, and the scale of the sums.

        Args:
            values: Whole numbers of weights.
            scale: Their scales, flat.

        Returns:
            `(values, scale)`: the same, where all products in a sum have one scale.
        """
        if self.block is None:
            return values, scale
        return values * self.spread(scale, values.shape), 1.0


PER_TENSOR = ScaleLayout()
PER_CHANNEL = ScaleLayout((-1,))
