"""What the instructions of a step compute with, by `keras.ops`."""

from typing import Any

from keras import ops

matmul, where, transposed = ops.matmul, ops.where, ops.transpose


def multiply(a: Any, b: Any, out: Any = None) -> Any:
    """`a * b`."""
    return a * b


def multiply_add(x: Any, factor: Any, offset: Any, out: Any = None) -> Any:
    """`x * factor + offset`."""
    return x * factor + offset


def copied(x: Any, out: Any = None) -> Any:
    """The values themselves."""
    return x


def sigmoid(x: Any, out: Any = None) -> Any:
    """The logistic function."""
    return ops.sigmoid(x)


def tanh(x: Any, out: Any = None) -> Any:
    """The hyperbolic tangent."""
    return ops.tanh(x)


def rounded(x: Any, limits: Any) -> Any:
    """Scales, rounds half to even and saturates."""
    return ops.minimum(ops.maximum(ops.round(x * limits.factor), limits.low), limits.high)


def passing(slope: Any, x: Any, limits: Any) -> Any:
    """A derivative where gradients pass, and 0 elsewhere.

    Args:
        slope: The derivative; None for 1.
        x: Raw values.
        limits: How they are rounded.
    """
    y = x * limits.factor
    inside = ops.logical_and(y > limits.first, y < limits.last)
    return ops.where(inside, 1.0 if slope is None else slope, 0.0)


def sigmoid_slope(slope: Any, y: Any) -> Any:
    """A derivative times that of the logistic function with the values `y`."""
    return slope * (y * (1.0 - y))


def tanh_slope(slope: Any, y: Any) -> Any:
    """A derivative times that of the hyperbolic tangent with the values `y`."""
    return slope * (1.0 - y * y)


def rows(x: Any) -> Any:
    """The values of all steps and samples, one below the other."""
    return ops.reshape(x, (-1, x.shape[-1]))


def sum_to(x: Any, like: Any) -> Any:
    """The sums of the columns of `x`, or of all of it, as `like` has columns or not."""
    return ops.sum(x, axis=0) if len(like.shape) else ops.sum(x)


def side_by_side(parts: list[Any]) -> Any:
    """Values along the last axis."""
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)


def zeros(like: Any, size: int) -> Any:
    """Zeros for each sample.

    Args:
        like: Values with the same samples.
        size: How many.
    """
    return ops.zeros((ops.shape(like)[0], size))
