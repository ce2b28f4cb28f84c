"""Fixed-point multiplication, as LiteRT's kernels without XNNPACK requantize.

A real multiplier becomes a 31-bit integer and a power of two; the product is rounded
twice, half away from zero: "SaturatingRoundingDoublingHighMul" and
"RoundingDivideByPOT" of gemmlowp (Jacob et al., arXiv:1712.05877, section 2.2). Sums of
64 bits are multiplied by the upper 15 bits of the multiplier instead, and rounded once,
half up.
"""

import math
from typing import NamedTuple

import numpy as np

from intact.numerics.backend_kernels import TORCH, wide_types
from intact.numerics.exact import binary_exponent, divide, power_of_two
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor

if TORCH:
    from intact.numerics import torch_integers


class Multiplier(NamedTuple):
    """`mantissa / 2**31 * 2**exponent`, int32."""

    mantissa: Tensor
    exponent: Tensor


def mantissa(x: Tensor) -> tuple[Tensor, Tensor]:
    """Positive float32 values as `m * 2**e` with whole numbers `m` of 24 bits."""
    exponent = binary_exponent(x) - 23
    return ops.cast(x * power_of_two(-exponent), "int32"), exponent


def multiplier(a: Tensor, b: Tensor, c: Tensor | float) -> Multiplier:
    """The multiplier `a * b / c`, computed in float64 and rounded to 31 bits.

    Args:
        a: Positive, float32.
        b: Positive, float32; perhaps one per channel.
        c: Positive, float32; or a number of float64.

    Returns:
        The multiplier; 0 where it is below 2**-32.

    Example:

    >>> m = multiplier(0.5, 0.5, 1.0)
    >>> int(m.mantissa) == 2**30, int(m.exponent)
    (True, -1)
    """
    with wide_types():
        real = ratio(a, b, c)
        exponent = binary_exponent(real) + 1
        fraction = real * ops.cast(power_of_two(31 - exponent), "float64")
        whole = ops.cast(fraction + 0.5, "int64")
        full = ops.right_shift(whole, 31)
        whole = ops.cast(ops.right_shift(whole, full), "int32")
        exponent = exponent + ops.cast(full, "int32")
    kept = ops.cast(exponent >= -31, "int32")
    return Multiplier(whole * kept, exponent * kept)


def ratio(a: Tensor, b: Tensor, c: Tensor | float) -> Tensor:
    """`a * b / c` in float64; needs `wide_types`.

    Args:
        a: float32.
        b: float32.
        c: Positive, float32; or a number of float64.
    """
    a, b = (ops.cast(ops.convert_to_tensor(x, "float32"), "float64") for x in (a, b))
    if isinstance(c, float):
        c = ops.convert_to_tensor(np.float64(c), "float64")
    return divide(a * b, ops.cast(c, "float64"))


def multiply(values: Tensor, by: Multiplier, half_up: Tensor | bool = False) -> Tensor:
    """Whole numbers times a multiplier, rounded twice.

    Args:
        values: int32.
        by: The multiplier.
        half_up: Where halves go up rather than away from zero in the second rounding, as in
            vectorized kernels.

    Returns:
        int32; products that do not fit saturate.

    Example:

    >>> m = multiplier(0.5, 0.5, 1.0)
    >>> np.asarray(multiply(ops.convert_to_tensor([10, -10, 9]), m)).tolist()
    [3, -3, 3]
    """
    if TORCH:
        return torch_integers.multiplied(values, *by, half_up)
    with wide_types():
        left = ops.cast(ops.clip(by.exponent, 0, 30), "int64")
        limit = ops.right_shift(ops.ones_like(left) * (2**31 - 1), left)
        values = ops.left_shift(ops.clip(ops.cast(values, "int64"), -limit, limit), left)
        product = values * ops.cast(by.mantissa, "int64")
        once = ops.cast(ops.right_shift(product + 2**30, 31), "int32")
    return rounding_shift(once, ops.maximum(-by.exponent, 0), half_up)


def multiply_sums(sums: Tensor, by: Multiplier) -> Tensor:
    """64-bit sums times the upper 15 bits of a multiplier, rounded half up.

    Args:
        sums: int64, up to 2**47 in magnitude.
        by: The multiplier.

    Returns:
        int64, as the caller's `wide_types` allow.
    """
    upper = ops.minimum(ops.right_shift(ops.cast(by.mantissa, "int64") + 2**15, 16), 2**15 - 1)
    shift = ops.cast(ops.maximum(15 - by.exponent, 1), "int64")
    half = ops.left_shift(ops.ones_like(shift), shift - 1)
    return ops.right_shift(sums * upper + half, shift)


def rounding_shift(x: Tensor, by: Tensor, half_up: Tensor | bool = False) -> Tensor:
    """`x / 2**by`, rounded half away from zero.

    Args:
        x: int32.
        by: int32, not negative.
        half_up: Where halves go up rather than away from zero.

    Returns:
        int32.
    """
    by = ops.minimum(by, 30)
    mask = ops.left_shift(ops.ones_like(by), by) - 1
    away = ops.logical_and(x < 0, ops.logical_not(half_up))
    beyond = ops.right_shift(mask, 1) + ops.cast(away, "int32")
    return ops.right_shift(x, by) + ops.cast(ops.bitwise_and(x, mask) > beyond, "int32")


def round_away(x: Tensor) -> Tensor:
    """float64 values rounded to int64, halves away from zero, as C's `round` does."""
    size = ops.abs(x)
    whole = ops.cast(size, "int64")
    up = ops.cast(size - ops.cast(whole, "float64") >= 0.5, "int64")
    return (whole + up) * ops.cast(ops.sign(x), "int64")


def beyond_vectors(x: Tensor, size: int) -> Tensor | None:
    """Which values a vectorized kernel computes one by one, after the last full vector.

    Args:
        x: The values.
        size: How many make a vector.

    Returns:
        Truth values; None where no batch leaves any.
    """
    each = x.shape[1:]
    if None not in each and math.prod(each) % size == 0:
        return None
    count = ops.size(x)
    place = ops.reshape(ops.arange(count, dtype="int32"), ops.shape(x))
    return place >= count - count % size
