"""Integer arithmetic of kernels, in fewer passes where a backend computes op by op."""

from typing import Any

from intact.numerics.backend_kernels import TORCH, round_clip
from intact.numerics.forward import needs_gradients
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through

if TORCH:
    from intact.numerics import torch_integers


def shifted_sum(a: Any, factor_a: Any, b: Any, factor_b: Any, half: Any, shift: Any) -> Any:
    """`(a * factor_a + b * factor_b + half) >> shift`.

    Args:
        a: Whole numbers, held in floats.
        factor_a: Their factor, int32.
        b: Whole numbers, held in floats, that broadcast with `a`.
        factor_b: Their factor, int32.
        half: Added to the sum, int32.
        shift: The number of bits, int32.

    Returns:
        int32.
    """
    if TORCH:
        return torch_integers.shifted_sum(a, factor_a, b, factor_b, half, shift)
    whole_a, whole_b = ops.cast(a, "int32"), ops.cast(b, "int32")
    return ops.right_shift(whole_a * factor_a + whole_b * factor_b + half, shift)


def requantized(sums: Any, bias: Any, factor: Any, low: Any, high: Any) -> Any:
    """`(sums + bias) * factor`, rounded half to even and saturated, with its gradient.

    Args:
        sums: Values.
        bias: Added to them, per channel.
        factor: What the result is multiplied by, per channel.
        low: Smallest result, scalar.
        high: Largest result, scalar.
    """
    if TORCH and not needs_gradients():
        return torch_integers.requantized(sums, bias, factor, low, high)
    return round_clip((sums + bias) * factor, low, high)


def saturate(exact: Any, smooth: Any, low: Any, high: Any) -> Any:
    """A kernel's whole numbers, saturated, with the gradient of other values.

    Args:
        exact: Whole numbers.
        smooth: The values without rounding, or a function that computes them.
        low: Smallest result, scalar.
        high: Largest result, scalar.
    """
    if TORCH and not needs_gradients():
        return torch_integers.saturate(exact, low, high)
    return round_clip(straight_through(ops.cast(exact, "float32"), smooth), low, high)


def half_up(x: Any) -> Any:
    """Rounded to whole numbers, halves up.

    Args:
        x: Values without a gradient, not negative and below 2**22.
    """
    if TORCH:
        return torch_integers.half_up(x)
    whole = ops.floor(x)
    return whole + ops.cast(x - whole >= 0.5, "float32")


def sum_in_order(x: Any) -> Any:
    """The sum along the last axis, one term after the other: a float sum depends on its order.

    Args:
        x: Values without a gradient.
    """
    if TORCH:
        return torch_integers.sum_in_order(x)
    terms = ops.moveaxis(x, -1, 0)
    return ops.fori_loop(
        0,
        ops.shape(terms)[0],
        lambda i, so_far: so_far + ops.take(terms, i, axis=0),
        ops.zeros_like(x[..., 0]),
    )


def look_up(entries: Any, first: int, values: Any) -> Any:
    """The entries of a table for some whole numbers.

    Args:
        entries: The table.
        first: The number that the first entry is for.
        values: Whole numbers held in floats; those beyond the table get its ends.

    Returns:
        The entries, of the shape of the values.
    """
    if TORCH:
        return torch_integers.look_up(entries, first, values)
    last = first + entries.shape[0] - 1
    index = ops.cast(ops.clip(values, float(first), float(last)), "int32") - first
    return ops.take(entries, index)
