"""Weights as integers and as half-precision numbers."""

from typing import Any

import numpy as np

from intact.numerics.affine import integer_range
from intact.numerics.backend_kernels import inverse, over
from intact.numerics.exact import MIN_SCALE, inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.straight_through import round_through, straight_through
from intact.numerics.tensors import Tensor


def weight_params(
    w: Any, bits: int, layout: ScaleLayout, xp: Any = ops, symmetric: bool = True
) -> tuple[Any, Any]:
    """Scales and zero points of weights.

    Args:
        w: Float weights.
        bits: Width in bits.
        layout: Which weights share a scale.
        xp: `keras.ops`, or `numpy_ops`.
        symmetric: Zero points of 0, and a range without its smallest integer.

    Returns:
        `(scale, zero_point)`, which broadcast to `w`.
    """
    reduced = layout.shared(len(w.shape))
    # Not differentiated: min-max scales follow the weights, as in arXiv:1712.05877.
    w = xp.stop_gradient(w)
    low, high = integer_range(bits, narrow=symmetric)
    if symmetric:
        span, steps = xp.max(xp.abs(w), axis=reduced, keepdims=True), high
    else:
        minimum = xp.minimum(xp.min(w, axis=reduced, keepdims=True), np.float32(0))
        span = xp.maximum(xp.max(w, axis=reduced, keepdims=True), np.float32(0)) - minimum
        steps = high - low
    # Weights of 0 get the smallest scale, so that the bias's scale is fine enough.
    scale = xp.maximum(span * np.float32(1 / steps), np.float32(MIN_SCALE))
    if symmetric:
        return scale, xp.zeros_like(scale)
    return scale, xp.clip(xp.round(low - minimum * inverse_of(scale, xp)), low, high)


def quantize_weight(
    w: Any, bits: int, layout: ScaleLayout, xp: Any = ops, symmetric: bool = True
) -> tuple[Any, Any]:
    """Weights to whole numbers, with a straight-through gradient.

    Args:
        w: Float weights.
        bits: Width in bits.
        layout: As for `weight_params`.
        xp: `keras.ops`, or `numpy_ops`.
        symmetric: As for `weight_params`.

    Returns:
        `(n, scale)`: whole numbers of the shape of `w` (the integers less their zero
        point), and the scales, flat.
    """
    w = xp.cast(xp.convert_to_tensor(w), "float32")
    scale, zero_point = weight_params(w, bits, layout, xp, symmetric)
    # Multiply by the inverse, because some compilers do so in place of a division.
    n = w * inverse_of(scale, xp)
    if not symmetric:
        # A rounded zero point may leave an end of the range just outside.
        low, high = integer_range(bits)
        n = xp.minimum(xp.maximum(n, low - zero_point), high - zero_point)
    return round_through(n, xp), layout.flat(scale, xp)


def half_precision(w: Any, xp: Any = ops) -> Any:
    """Values rounded to float16, with a straight-through gradient."""
    w = xp.cast(xp.convert_to_tensor(w), "float32")
    return straight_through(xp.cast(xp.cast(w, "float16"), "float32"), w, xp)


def quantize_rows(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Quantize each row by its own range, as the kernels of float models do at run time.

    Args:
        x: Real values.
        axes: The axes of a range.

    Returns:
        `(n, scale)`: whole numbers, and the scales, which broadcast to them.
    """
    fixed = ops.stop_gradient(x)
    minimum = ops.minimum(ops.min(fixed, axis=axes, keepdims=True), 0.0)
    maximum = ops.maximum(ops.max(fixed, axis=axes, keepdims=True), 0.0)
    span = maximum - minimum
    factor = ops.where(span > 0, over(255.0, ops.where(span > 0, span, 1.0)), 1.0)
    low, high = -128.0 - minimum * factor, 127.0 - maximum * factor
    # The end of the range that its zero point leaves with the smaller error.
    error = (-128.0 + minimum * factor) + (127.0 + maximum * factor)
    zero_point = ops.round(ops.clip(ops.where(error > 0, low, high), -128.0, 127.0))
    n = ops.round(fixed * factor)
    n = ops.minimum(ops.maximum(n, -128.0 - zero_point), 127.0 - zero_point)
    return straight_through(n, x * factor), inverse(factor)
