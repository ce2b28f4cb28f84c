"""Fixed-point multiplication, as LiteRT's kernels without XNNPACK requantize.

A real multiplier becomes a 31-bit integer and a power of two; the product is rounded
twice, half away from zero: "SaturatingRoundingDoublingHighMul" and
"RoundingDivideByPOT" of gemmlowp (Jacob et al., arXiv:1712.05877, section 2.2). Backends
have no 64-bit integers everywhere, so products are computed in limbs of 12 bits.
"""

from typing import NamedTuple

from keras import ops

from intact.numerics import Tensor, binary_exponent, power_of_two


class Multiplier(NamedTuple):
    """`mantissa / 2**31 * 2**exponent`, int32."""

    mantissa: Tensor
    exponent: Tensor


def mantissa(x: Tensor) -> tuple[Tensor, Tensor]:
    """Positive float32 values as `m * 2**e` with whole numbers `m` of 24 bits."""
    exponent = binary_exponent(x) - 23
    return ops.cast(x * power_of_two(-exponent), "int32"), exponent


def multiplier(a: Tensor, b: Tensor, c: Tensor) -> Multiplier:
    """The multiplier `a * b / c`, rounded to 31 bits.

    Args:
        a: Positive.
        b: Positive, perhaps one per channel.
        c: A positive scalar.

    Returns:
        The multiplier.

    Example:

    >>> m = multiplier(0.5, 0.5, 1.0)
    >>> int(m.mantissa) == 2**30, int(m.exponent)
    (True, -1)
    """
    (ma, ea), (mb, eb), (mc, ec) = (
        mantissa(ops.convert_to_tensor(x, "float32")) for x in (a, b, c)
    )
    # The product of 48 bits in digits of 6, lowest first; then a long division.
    left, right = (
        [ops.bitwise_and(ops.right_shift(m, 6 * i), 63) for i in range(4)] for m in (ma, mb)
    )
    digits, carry = [], ops.zeros_like(ma)
    for place in range(8):
        carry = carry + sum(
            (left[i] * right[place - i] for i in range(4) if 0 <= place - i < 4), ops.zeros_like(ma)
        )
        digits.append(ops.bitwise_and(carry, 63))
        carry = ops.right_shift(carry, 6)
    whole = rest = ops.zeros_like(ma)
    for digit in reversed(digits):
        rest = rest * 64 + digit
        whole = whole * 64 + ops.floor_divide(rest, mc)
        rest = ops.mod(rest, mc)
    fraction = ops.zeros_like(ma)
    for _ in range(2):
        rest = rest * 64
        fraction = fraction * 64 + ops.floor_divide(rest, mc)
        rest = ops.mod(rest, mc)
    # The quotient has 23 to 25 bits before its point.
    bits = 23 + ops.cast(whole >= 1 << 23, "int32") + ops.cast(whole >= 1 << 24, "int32")
    shift = 31 - bits
    half = ops.left_shift(ops.ones_like(shift), 11 - shift)
    low = ops.right_shift(fraction + half, 12 - shift)
    return Multiplier(ops.left_shift(whole, shift) + low, ea + eb - ec + bits)


def multiply(values: Tensor, by: Multiplier, half_up: Tensor | bool = False) -> Tensor:
    """Whole numbers times a multiplier, rounded as the kernels do.

    Args:
        values: int32, up to 2**30 in magnitude.
        by: The multiplier.
        half_up: Where halves go up rather than away from zero, as in vectorized kernels.

    Returns:
        int32; where a multiplier above 1 makes them larger than 2**22, only their sign
        and that they are large is right.

    Example:

    >>> m = multiplier(0.5, 0.5, 1.0)
    >>> np.asarray(multiply(ops.convert_to_tensor([10, -10, 9]), m)).tolist()
    [3, -3, 3]
    """
    left = ops.maximum(by.exponent, 0)
    limit = ops.right_shift(ops.ones_like(left) * (1 << 23), left)
    limit = ops.where(left > 0, limit, 1 << 30)
    values = ops.left_shift(ops.clip(values, -limit, limit), left)
    negative = values < 0
    size = ops.abs(values)
    a0, a1 = ops.bitwise_and(size, 4095), ops.right_shift(size, 12)
    m0, m1, m2 = (
        ops.bitwise_and(ops.right_shift(by.mantissa, shift), 4095) for shift in (0, 12, 24)
    )
    # Half of 2**31 is added to a positive product, one less to the size of a negative one.
    low = a0 * m0 - ops.cast(negative, "int32")
    middle = a0 * m1 + a1 * m0 + ops.right_shift(low, 12)
    high = a0 * m2 + a1 * m1 + 64 + ops.right_shift(middle, 12)
    size = ops.right_shift(high, 7) + ops.left_shift(a1 * m2, 5)
    shift = ops.maximum(-by.exponent, 0)
    return rounding_shift(ops.where(negative, -size, size), shift, half_up)


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
