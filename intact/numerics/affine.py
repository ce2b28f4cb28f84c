"""Affine quantization: parameters, rounding and straight-through gradients.

Everything that trains works on *integer values held in floats*: an activation is
`scale * n` with `n = q - zero_point` a small integer, so that convolutions of such
values are exact in float32 and equal to what an integer kernel computes.

Source of the formulas: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877), and the LiteRT
8-bit specification.
"""

from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor

from intact.numerics.exact import MIN_SCALE, power_of_two_above
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, symbols


class Affine(NamedTuple):
    """How integers stand for real values: `real = (q - zero_point) * scale`."""

    scale: Tensor
    zero_point: Tensor


class QTensor(NamedTuple):
    """A quantized activation: `real = values * scale`, `values = q - zero_point`.

    Before a model is calibrated, and until a schedule begins to round, the values are real: then
    `whole` is false, the scale is 1, and nothing may round them.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    whole: Tensor

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "QTensor":
        """Its form in a graph.

        Args:
            shape: The shape of the values.
        """
        values, scale, zero_point = symbols(shape, (), ())
        return cls(values, scale, zero_point, KerasTensor((), "bool"))


class WideTensor(QTensor):
    """A quantized activation of 16 bits, whose sums of products float32 cannot hold."""

    __slots__ = ()


class Scaled(NamedTuple):
    """Real values as a tensor and its unit: `values * unit`.

    Training observes and rounds them in this form, which saves a multiplication. A unit is
    positive.
    """

    values: Tensor
    unit: Any = 1.0

    def real(self) -> Tensor:
        """The real values."""
        return self.values * self.unit


def as_qtensor(parts: Any) -> Any:
    """A `QTensor` of its parts in a list or a tuple; any other tensor as it is.

    Args:
        parts: What a layer gets or returns.
    """
    return QTensor(*parts) if isinstance(parts, list | tuple) else parts


def first_part(x: Any) -> Any:
    """The values of a `QTensor`, or of its parts; any other tensor itself.

    Args:
        x: What a layer gets or returns.
    """
    return x[0] if isinstance(x, list | tuple) else x


def unquantized(real: Tensor) -> QTensor:
    """Real values in the type of quantized ones.

    Args:
        real: The values.
    """
    zero = ops.zeros((), "float32")
    return QTensor(real, ops.ones((), "float32"), zero, ops.zeros((), "bool"))


def integer_range(bits: int, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest signed integer of a width.

    Args:
        bits: Width in bits, 1 to 16.
        narrow: Leave out the smallest value, so that the range is symmetric.

    Returns:
        `(low, high)`.

    Example:

    >>> integer_range(8)
    (-128, 127)
    >>> integer_range(8, narrow=True)
    (-127, 127)
    """
    high = 2 ** (bits - 1) - 1
    return (-high if narrow else -high - 1), high


def stored_range(bits: int, symmetric: bool = False) -> tuple[int, int]:
    """Smallest and largest integer that files store for an activation of a width.

    Fewer than 8 bits are the topmost integers of int8, where kernels saturate by
    themselves; the bottom is the clamp of a fused ReLU, or an op of its own.

    Args:
        bits: Width in bits, 1 to 16.
        symmetric: Leave out the smallest of fewer than 8 bits: as many above 0 as below.

    Returns:
        `(low, high)`.

    Example:

    >>> stored_range(4)
    (112, 127)
    """
    low, high = integer_range(bits, narrow=symmetric and bits < 8)
    shift = integer_range(8)[1] - high if bits < 8 else 0
    return low + shift, high + shift


def affine_params(
    minimum: Tensor,
    maximum: Tensor,
    bits: int = 8,
    symmetric: bool = False,
    power_of_two: bool = False,
    least: float = MIN_SCALE,
    xp: Any = ops,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover a range of real values.

    The range is widened to contain 0, which then is exactly representable. The range `{0}` gets the
    smallest scale, so that it is negligible beside any other number, with 0 in its middle, where
    gradients pass.

    Args:
        minimum: Smallest real value, any shape.
        maximum: Largest real value, same shape.
        bits: Width in bits.
        symmetric: Force the zero point to 0.
        power_of_two: Make the scale a power of two.
        least: The smallest scale.
        xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.

    Returns:
        `(scale, zero_point)`, float32 tensors of the range's shape.

    Example:

    >>> scale, zero_point = affine_params(-1.0, 1.55)
    >>> round(float(scale), 6), int(zero_point)
    (0.01, -28)
    """
    low, high = integer_range(bits, narrow=symmetric)
    zero = np.float32(0)
    minimum = xp.minimum(xp.cast(minimum, "float32"), zero)
    maximum = xp.maximum(xp.cast(maximum, "float32"), zero)
    if symmetric:
        span = xp.maximum(-minimum, maximum)
        steps = high
    else:
        span = maximum - minimum
        steps = high - low
    scale = xp.maximum(span * np.float32(1 / steps), np.float32(least))
    if power_of_two:
        scale = power_of_two_above(scale, xp)
    if symmetric:
        return scale, xp.zeros_like(scale)
    zero_point = xp.clip(xp.round(low - minimum / scale), low, high)
    return scale, xp.where(span > 0, zero_point, zero)


def quantize(x: np.ndarray, scale: Any, zero_point: Any, dtype: str = "int8") -> np.ndarray:
    """Real values to integers, on the host.

    Rounds `x * (1 / scale)` half to even, as LiteRT's QUANTIZE does.

    Args:
        x: Real values.
        scale: Scale, broadcastable to `x`.
        zero_point: Zero point, broadcastable to `x`.
        dtype: Integer dtype of the result.

    Returns:
        Integers, saturated to the dtype's range.

    Example:

    >>> quantize(np.array([-1.0, 0.0, 0.26]), 0.01, -28).tolist()
    [-128, -28, -2]
    """
    info = np.iinfo(dtype)
    inverse = np.float32(1) / np.asarray(scale, "float32")
    n = np.rint(np.asarray(x, "float32") * inverse) + np.asarray(zero_point, "float32")
    return np.clip(n, info.min, info.max).astype(dtype)


def dequantize(q: np.ndarray, scale: Any, zero_point: Any) -> np.ndarray:
    """Integers to real values, on the host: `(q - zero_point) * scale`.

    Args:
        q: Integers.
        scale: Scale, broadcastable to `q`.
        zero_point: Zero point, broadcastable to `q`.

    Returns:
        float32 values.

    Example:

    >>> dequantize(np.array([-28, 72], "int8"), 0.5, -28).tolist()
    [0.0, 50.0]
    """
    n = np.asarray(q, "float32") - np.asarray(zero_point, "float32")
    return (n * np.asarray(scale, "float32")).astype("float32")
