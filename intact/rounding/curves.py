"""The logistic function, the hyperbolic tangent and softmax as the kernels compute them.

With 8 bits, the first two are tables of 256 entries (XNNPACK's `init_lut_op_with_config`), and
softmax is a float formula on a table of powers (LiteRT's `optimized_ops::Softmax`).

With 16 bits, the first two interpolate in one table of the logistic function, 24 entries for
each unit of its argument; softmax in one of the exponential function and one of the reciprocal.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from intact.numerics.affine import Affine, QTensor
from intact.numerics.backend_kernels import either, holds, inverse, precisely, round_clip
from intact.numerics.exact import binary_exponent
from intact.numerics.fixed_point import mantissa, multiplier, multiply
from intact.numerics.integer_kernels import half_up, look_up, sum_in_order
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through, unfused
from intact.numerics.tensors import Tensor
from intact.rounding.int16_tables import OFFSET, sigmoid_table, tanh_table
from intact.rounding.kernel_rounding import RealRounding

# Entries that are not the nearest integers, but the ones above.
_ABOVE = (
    *(4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39),
    *(40, 41, 43, 44, 45, 46, 49, 50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135),
    255,
)
_TABLE = np.rint(65536 / (1 + np.exp(-np.arange(256) / 24))).astype("int32")
_TABLE[list(_ABOVE)] += 1

NEAR = 2.0**1e-3
"""Kernels treat a scale within this factor of a power of two as that power."""


def _argument(x: QTensor) -> Tensor:
    """The input in steps of 1 / 12288, computed with a 15-bit multiplier."""
    whole, exponent = mantissa(x.scale)
    whole = whole * 3
    drop = 10 + ops.cast(whole >= 1 << 25, "int32")
    # More doublings follow as long as the multiplier is at most 32767 / 2.
    drop = drop + ops.cast(whole > ops.left_shift(ops.ones_like(drop) * 32767, drop), "int32")
    down = ops.clip(-(exponent + 12) - drop, 0, 31)
    drop = -(exponent + 12) - down
    factor = ops.right_shift(whole, ops.clip(drop, 0, 31))
    factor = ops.left_shift(factor, ops.clip(-drop, 0, 31))
    half = ops.left_shift(ops.minimum(down, 1), ops.maximum(down - 1, 0))
    return ops.right_shift(ops.cast(x.values, "int32") * factor + half, down)


def _lookup(argument: Tensor, bits: int) -> Tensor:
    """Values of the table for the sizes of arguments, 24 entries for each unit.

    Args:
        argument: The arguments.
        bits: Of the argument's fraction.
    """
    size = ops.abs(argument)
    place = ops.right_shift(size, bits)
    inside = ops.minimum(place, 254)
    table = ops.convert_to_tensor(_TABLE)
    first, second = ops.take(table, inside, axis=0), ops.take(table, inside + 1, axis=0)
    rest = ops.bitwise_and(size, (1 << bits) - 1)
    values = ops.left_shift(first, bits) + rest * (second - first)
    return ops.where(place >= 255, 65535 << bits, values)


def of_integers(function: Callable[[Tensor], Tensor], x: QTensor) -> Tensor:
    """An elementwise function, computed once for each integer and looked up.

    Args:
        function: The function of real values.
        x: Values of 8 bits.

    Returns:
        The function's values, of the shape of `x`.
    """
    # One more than there are: the last values of an odd number are not computed in vectors.
    differences = ops.convert_to_tensor(np.arange(-256, 256), "float32")
    entries = function(ops.stop_gradient(x.scale) * differences)
    return look_up(entries, -256, x.values)


def _where_whole(x: QTensor, exact: Tensor, smooth: Callable[[], Tensor]) -> Tensor:
    """A kernel's values, or those of a function where the input is not integers yet."""
    if holds(x.whole):
        return exact
    return ops.where(x.whole, exact, smooth())


class SigmoidRounding(RealRounding):
    """The logistic function."""

    name = "sigmoid"
    takes = QTensor
    function: ClassVar[Callable] = staticmethod(ops.sigmoid)

    def precise(self, x: Tensor) -> Tensor:
        """The function in float64."""
        return inverse(1.0 + ops.exp(-x))

    def real(self, pending: QTensor) -> Tensor:
        return self.function(pending.values * pending.scale)

    def quantize(self, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        def smooth() -> Tensor:
            return self.real(pending)

        entries = of_integers(lambda real: precisely(self.precise, real), pending)
        exact = _where_whole(pending, entries, smooth)
        # XNNPACK adds the zero point before it rounds. The product is exact.
        stored = straight_through(exact, smooth) * inverse(params.scale) + params.zero_point
        return round_clip(stored, low + params.zero_point, high + params.zero_point) - (
            params.zero_point
        )

    def quantize_wide(self, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return self.saturated(self.kernel(pending), pending, params, low, high)

    def kernel(self, x: QTensor) -> Tensor:
        """What the kernel computes, in steps of 2**-15."""
        (exact,) = either(
            ops.any(ops.stack([_near(x.scale, exponent) for exponent in self.exponents])),
            lambda: (self.by_power(x),),
            lambda: (self.interpolated(_argument(x)),),
        )
        return exact

    exponents: ClassVar[tuple[int, ...]] = (-12,)
    table: ClassVar[staticmethod] = staticmethod(sigmoid_table)

    def by_power(self, x: QTensor) -> Tensor:
        """The same for scales of 2**-12, and of 2**-11 if there is a kernel for it."""
        shift = ops.cast(x.scale > 2.0**-12 * NEAR, "int32")
        place = ops.left_shift(ops.cast(x.values, "int32"), shift)
        place = ops.clip(place, -OFFSET, OFFSET - 1) + OFFSET
        return ops.take(ops.convert_to_tensor(self.table()), place, axis=0)

    def interpolated(self, argument: Tensor) -> Tensor:
        """The same for other scales, by linear interpolation in the table.

        Args:
            argument: The argument in steps of 1 / 12288.
        """
        values = _lookup(argument, 9)
        values = ops.where(values >= 65535 << 9, 32767 << 10, values)
        values = ops.where(argument >= 0, values + 512, (1 << 25) - values + 511)
        return ops.right_shift(values, 10)


def _near(scale: Tensor, exponent: int) -> Tensor:
    power = 2.0**exponent
    return ops.logical_and(scale > power / NEAR, scale < power * NEAR)


class TanhRounding(SigmoidRounding):
    """The hyperbolic tangent: the logistic function of twice the argument, rescaled."""

    name = "tanh"
    function: ClassVar[Callable] = staticmethod(ops.tanh)
    precise: ClassVar[Callable] = staticmethod(ops.tanh)
    exponents = (-12, -11)
    table: ClassVar[staticmethod] = staticmethod(tanh_table)

    def interpolated(self, argument: Tensor) -> Tensor:
        values = _lookup(argument, 8) - (1 << 23)
        return ops.right_shift(ops.where(argument >= 0, values + 128, 127 - values), 8)


def _interpolated(function: Callable, low: float, high: float) -> np.ndarray:
    """A table of LiteRT's (`LUTPopulate`): 512 steps, each shifted by half the error midway."""

    def rounded(x: Any) -> np.ndarray:
        return np.trunc(x + np.copysign(0.5, x))

    step = (high - low) / 512
    place = low + np.arange(513) * step
    # In units of 2 / 65535, of which there are 65536.
    unit = 65536 / (2 / 65535 * 65535)
    value = rounded(function(place) * unit)
    middle = rounded(function(place[:-1] + step / 2) * unit)
    between = rounded((function(place[1:]) * unit + value[:-1]) / 2)
    value[:-1] -= rounded((between - middle) / 2)
    return np.clip(value, -32768, 32767).astype("int32")


_EXP = _interpolated(np.exp, -10.0, 0.0)
_RECIPROCAL = _interpolated(lambda x: 1 / (1 + x), 0.0, 1.0)


def _look_up(table: np.ndarray, index: Tensor) -> Tensor:
    """A table's value for an index of 16 bits, of which 7 are the fraction."""
    index = ops.clip(index, -32768, 32767)
    place = ops.right_shift(index, 7) + 256
    entries = ops.convert_to_tensor(table)
    first, second = ops.take(entries, place, axis=0), ops.take(entries, place + 1, axis=0)
    rest = (second - first) * ops.bitwise_and(index, 127)
    return first + ops.right_shift(rest + 64, 7)


def _powers(x: QTensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of softmax, their sum along the last axis, and the largest value there."""
    values = ops.stop_gradient(x.values)
    top = ops.max(values, axis=-1, keepdims=True)
    below = x._replace(values=values - top)
    powers = of_integers(lambda real: precisely(ops.exp, real), below)
    return powers, ops.expand_dims(sum_in_order(powers), -1), top


class SoftmaxRounding(SigmoidRounding):
    """Shares that sum to 1 along the last axis."""

    name = "softmax"
    function: ClassVar[Callable] = staticmethod(ops.softmax)

    def quantize(self, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        def smooth() -> Tensor:
            return self.real(pending) * inverse(params.scale)

        powers, total, _ = _powers(pending)
        exact = half_up(powers * inverse(total * params.scale))
        exact = _where_whole(pending, exact, smooth)
        return round_clip(straight_through(exact, smooth), low, high)

    def kernel(self, x: QTensor) -> Tensor:
        below = ops.cast(x.values - ops.max(x.values, axis=-1, keepdims=True), "int32")
        # 65535 steps are 10.
        scaled = multiply(below, multiplier(x.scale, 1.0, 10.0 / 65535.0))
        powers = _look_up(_EXP, scaled + 32767)
        total = ops.sum(powers, axis=-1, keepdims=True)
        # The sum as a number of 31 bits, whose upper 17 are 1 to 2.
        bits = binary_exponent(ops.cast(total, "float32"))
        bits = bits - ops.cast(ops.left_shift(ops.ones_like(total), bits) > total, "int32")
        shifted = ops.left_shift(total, 30 - bits)
        upper = ops.right_shift(ops.minimum(shifted, (1 << 31) - 1 - (1 << 13)) + (1 << 13), 14)
        inverse = _look_up(_RECIPROCAL, upper - 3 * (1 << 15))
        half = ops.right_shift(ops.left_shift(ops.ones_like(bits), bits), 1)
        return ops.clip(ops.right_shift(powers * inverse + half, bits), 0, 32767)


class LogSoftmaxRounding(SoftmaxRounding):
    """The logarithm of softmax, from the stored integers."""

    name = "log_softmax"
    function: ClassVar[Callable] = staticmethod(ops.log_softmax)

    def quantize(self, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        x, steps = pending, inverse(params.scale)

        def smooth() -> Tensor:
            return self.real(pending) * steps

        _, total, top = _powers(x)
        largest = unfused((top + x.zero_point) * x.scale)
        offset = (largest + precisely(ops.log, total)) * steps
        exact = unfused((x.values + x.zero_point) * (x.scale * steps)) - offset
        exact = _where_whole(x, exact, smooth)
        return round_clip(straight_through(exact, smooth), low, high)
