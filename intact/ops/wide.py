"""The logistic function and the hyperbolic tangent as the 16-bit kernels compute them.

Both interpolate in one table of the logistic function, 24 entries for each unit of its
argument, in integers.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from keras import ops

from intact.fixed_point import mantissa
from intact.kernels import round_clip
from intact.numerics import QTensor, Tensor, straight_through
from intact.quantizers import RealArithmetic

# Entries that are not the nearest integers, but the ones above.
_ABOVE = (
    *(4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39),
    *(40, 41, 43, 44, 45, 46, 49, 50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135),
)
_TABLE = np.rint(65536 / (1 + np.exp(-np.arange(256) / 24))).astype("int32")
_TABLE[list(_ABOVE)] += 1


def _lookup(x: QTensor, bits: int) -> tuple[Tensor, Tensor]:
    """Values of the table for the sizes of the inputs, and where inputs are not negative.

    Args:
        x: The input.
        bits: Of the argument's fraction.
    """
    whole, exponent = mantissa(x.scale)
    # 24 entries for each unit; the multiplier has 15 bits.
    whole = whole * 3
    shift = 10 + ops.cast(whole >= 1 << 25, "int32")
    factor, down = ops.right_shift(whole, shift), -(shift + exponent + 12)
    half = ops.right_shift(ops.left_shift(ops.ones_like(down), down), 1)
    argument = ops.right_shift(ops.cast(x.values, "int32") * factor + half, down)
    size = ops.abs(argument)
    place = ops.right_shift(size, bits)
    inside = ops.minimum(place, 254)
    table = ops.convert_to_tensor(_TABLE)
    first, second = ops.take(table, inside, axis=0), ops.take(table, inside + 1, axis=0)
    rest = ops.bitwise_and(size, (1 << bits) - 1)
    found = ops.left_shift(first, bits) + rest * (second - first)
    return ops.where(place >= 255, 65535 << bits, found), argument >= 0


class SigmoidArithmetic(RealArithmetic):
    """The logistic function."""

    name = "sigmoid"
    function: ClassVar[Callable] = staticmethod(ops.sigmoid)

    @staticmethod
    def output_shape(pending: Any) -> tuple[int | None, ...]:
        return pending[0].shape

    @classmethod
    def real(cls, pending: Any) -> Tensor:
        x = QTensor(*pending)
        return cls.function(x.values * x.scale)

    @classmethod
    def quantize(cls, pending: Any, params: QTensor, low: Tensor, high: Tensor) -> Tensor:
        return RealArithmetic.quantize(cls.real(pending), params, low, high)

    @classmethod
    def quantize_wide(cls, pending: Any, params: QTensor, low: Tensor, high: Tensor) -> Tensor:
        exact = ops.cast(cls.kernel(QTensor(*pending)), "float32")
        smooth = cls.real(pending) * (1.0 / params.scale)
        return round_clip(straight_through(exact, smooth), low, high)

    @staticmethod
    def kernel(x: QTensor) -> Tensor:
        """What the kernel computes, in steps of 2**-15."""
        found, positive = _lookup(x, 9)
        found = ops.where(found >= 65535 << 9, 32767 << 10, found)
        return ops.right_shift(ops.where(positive, found + 512, (1 << 25) - found + 511), 10)


class TanhArithmetic(SigmoidArithmetic):
    """The hyperbolic tangent, which is that of twice the argument, stretched."""

    name = "tanh"
    function: ClassVar[Callable] = staticmethod(ops.tanh)

    @staticmethod
    def kernel(x: QTensor) -> Tensor:
        found, positive = _lookup(x, 8)
        found = found - (1 << 23)
        return ops.right_shift(ops.where(positive, found + 128, 127 - found), 8)
