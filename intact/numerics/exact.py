"""Arithmetic with the same bits on every backend."""

from typing import Any

import numpy as np
from keras import backend

from intact.numerics.backend_kernels import lowered, native, over
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.straight_through import straight_through, unfused
from intact.numerics.tensors import Tensor

MIN_SCALE = float(np.float32(2.0**-60))
"""Floor of every scale: far below any real one, far above the denormals."""


def inverse_of(x: Any, xp: Any = ops) -> Any:
    """`1 / x`, rounded as IEEE 754 says; on the host, too."""
    return over(1.0, x, xp)


def exact_mean(x: Any, axes: tuple[int, ...], xp: Any = ops) -> Any:
    """The mean of values that are not negative, with the same bits everywhere.

    Float sums depend on their order; these are sums of whole numbers of 31 bits.

    Args:
        x: Values, not negative.
        axes: The axes of the mean, which keep size 1.
        xp: `keras.ops`, or `numpy_ops`.

    Returns:
        The mean, to a 2^-31 / count of the largest value.

    Example:

    >>> exact_mean(np.array([1.0, 2.0, 6.0], "float32"), (0,), numpy_ops).tolist()
    [3.0]
    """
    count = int(np.prod([x.shape[a] for a in axes], dtype="int64"))
    # A power of two, so that the units of a single value lose nothing.
    steps = np.float32(2.0 ** min(24, 30 - (count - 1).bit_length()))
    top = xp.maximum(xp.max(x, axis=axes, keepdims=True), np.float32(MIN_SCALE))
    whole = xp.cast(xp.round(x * inverse_of(top, xp) * steps), "int32")
    total = xp.cast(xp.sum(whole, axis=axes, keepdims=True), "float32")
    return unfused(total * unfused(top * (np.float32(1 / count) / steps), xp), xp)


def power_of_two_above(x: Any, xp: Any = ops) -> Any:
    """The smallest power of two that is not smaller, with the gradient of its logarithm.

    Args:
        x: Positive values.
        xp: `keras.ops`, or `numpy_ops`.

    Returns:
        Powers of two; `d y / d x` is `y / x`.

    Source: TQT (arXiv:1903.08066), section 3.

    Example:

    >>> power_of_two_above(np.array([0.75, 1.0, 1.5], "float32"), numpy_ops).tolist()
    [1.0, 1.0, 2.0]
    """
    if xp is numpy_ops:
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
    x = ops.convert_to_tensor(x)
    fixed = ops.stop_gradient(x)
    below = power_of_two(binary_exponent(fixed))
    above = ops.where(below < fixed, below * 2.0, below)
    return straight_through(above, x * (above / fixed))


def divide(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The quotient as IEEE 754 rounds it, also where a compiler would multiply by `1 / b`.

    Args:
        a: Values, or a constant.
        b: Values, or a constant if `a` is none.

    Returns:
        `a / b`.
    """
    if isinstance(a, int | float):
        return over(a, b)
    # The maximum is `b`. It hides from compilers that `b` is a scalar or a constant.
    bound = lowered(-ops.abs(a) - abs(b))
    if backend.standardize_dtype(bound.dtype) != "float64":
        return a / ops.maximum(b, bound)
    return a / native("maximum")(ops.cast(b, "float64"), bound)


_EXPONENTS = np.arange(-126, 128)


_POWERS = (2.0**_EXPONENTS).astype("float32")


def binary_exponent(x: Tensor) -> Tensor:
    """`floor(log2(x))` of positive values, exactly.

    Args:
        x: Values of float32 or float64, from 2**-126 to below 2**128.

    Returns:
        int32, of the same shape.

    Example:

    >>> int(binary_exponent(0.75)), int(binary_exponent(4.0))
    (-1, 2)
    """
    x = ops.convert_to_tensor(x)
    powers = ops.cast(ops.convert_to_tensor(_POWERS), x.dtype)
    reached = ops.cast(powers <= ops.expand_dims(x, -1), "int32")
    return ops.cast(ops.sum(reached, axis=-1), "int32") + int(_EXPONENTS[0]) - 1


def power_of_two(exponent: Tensor) -> Tensor:
    """`2.0 ** exponent`, exactly.

    Args:
        exponent: int32, between -126 and 127.

    Returns:
        float32, of the same shape.

    Example:

    >>> float(power_of_two(ops.convert_to_tensor(-2, "int32")))
    0.25
    """
    index = ops.clip(exponent - int(_EXPONENTS[0]), 0, len(_POWERS) - 1)
    return ops.take(ops.convert_to_tensor(_POWERS), index)
