"""Sigmoid and tanh of 16 bits, as LiteRT's LSTM kernels compute them.

Numbers are int16 that stand for `n * 2**(bits - 15)`, with so many integer bits; results have
none. An exponential of negative values is a polynomial on the last quarter, times powers of e for
the binary digits before it; a quotient is three steps of Newton's. Every product is rounded to 16
bits: the fixed-point arithmetic of gemmlowp (Jacob et al., arXiv:1712.05877, appendix B). The
functions make tables of all 65536 inputs, once, on the host.
"""

import functools
from collections.abc import Callable

import numpy as np

LOW, HIGH = -32768, 32767
OFFSET = -LOW
"""The index of the entry for 0 in a table."""

GATE_BITS = 3
"""Integer bits of the gates' sums."""

CELL_BITS = range(7)
"""Integer bits that a cell state may have."""


def _constant(x: float) -> int:
    """A number without integer bits; kernels round it to 31 bits first."""
    return _shifted(np.array(round(x * 2.0**31)), 16).item()


def _shifted(x: np.ndarray, by: int) -> np.ndarray:
    """`x / 2**by`, rounded half away from zero."""
    half = np.where(x < 0, (1 << by >> 1) - 1, 1 << by >> 1)
    return (x + half) >> by


def _raised(x: np.ndarray, by: int) -> np.ndarray:
    """`x * 2**by`, saturated."""
    return np.clip(x << by, LOW, HIGH)


def _product(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """The product of two numbers: integer bits add up; halves up, and the rest towards zero."""
    whole = a * b
    return np.where(whole >= 0, (whole + (1 << 14)) >> 15, -((-whole + (1 << 14) - 1) >> 15))


def _exponential(x: np.ndarray, bits: int) -> np.ndarray:
    """`exp(x)` of numbers that are not positive."""
    fraction = 15 - bits
    quarter = 1 << (fraction - 2)
    last = (x & (quarter - 1)) - quarter
    # A Taylor series around -1/8.
    a = _raised(last, bits) + (1 << 12)
    square = _product(a, a)
    cube, fourth = _product(square, a), _product(square, square)
    rest = _shifted(_product(_shifted(fourth, 2) + cube, _constant(1 / 3)) + square, 1)
    center = _constant(np.exp(-1 / 8))
    y = np.clip(center + _product(a + rest, center), LOW, HIGH)
    digits = last - x
    for place in range(-2, bits):
        factor = _constant(np.exp(-(2.0**place)))
        y = np.where(digits & (1 << (fraction + place)), _product(y, factor), y)
    return np.where(x == 0, HIGH, y)


def _reciprocal(x: np.ndarray) -> np.ndarray:
    """`2 / (1 + x)` of numbers from 0 to 1; the result has 2 integer bits."""
    half = (x + HIGH + 1) >> 1
    # The line that is nearest to the inverse, in 2 integer bits.
    y = _constant(48 / 17 / 4) + _product(half, _constant(-32 / 17 / 4))
    for _ in range(3):
        y = y + _raised(_product(y, (1 << 13) - _product(half, y)), 2)
    return y


def _table(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    table = function(np.arange(LOW, HIGH + 1)).astype("int32")
    table.flags.writeable = False
    return table


@functools.cache
def sigmoid_table() -> np.ndarray:
    """The sigmoid of all numbers with `GATE_BITS` integer bits.

    Returns:
        65536 values, int32, the one of -32768 first.

    Example:

    >>> sigmoid_table()[[0, OFFSET, -1]].tolist()
    [11, 16384, 32756]
    """

    def sigmoid(x: np.ndarray) -> np.ndarray:
        positive = _raised(_reciprocal(_exponential(-np.abs(x), GATE_BITS)), 1)
        return np.where(x == 0, 1 << 14, np.where(x > 0, positive, HIGH - positive))

    return _table(sigmoid)


@functools.cache
def tanh_table(bits: int = GATE_BITS) -> np.ndarray:
    """The hyperbolic tangent of all numbers with some integer bits.

    Args:
        bits: How many.

    Returns:
        65536 values, int32, the one of -32768 first.

    Example:

    >>> tanh_table()[[0, OFFSET, OFFSET + 4096]].tolist()
    [-32767, 0, 24964]
    """

    def tanh(x: np.ndarray) -> np.ndarray:
        # The tables hold exp of twice the number: tanh is (1 - exp(-2x)) / (1 + exp(-2x)).
        size = _raised(_reciprocal(_exponential(-np.abs(x), bits + 1)) - (1 << 13), 2)
        return np.sign(x) * size

    return _table(tanh)


@functools.cache
def cell_tables() -> np.ndarray:
    """`tanh_table` for each number of `CELL_BITS`, one after another."""
    return np.concatenate([tanh_table(bits) for bits in CELL_BITS])
