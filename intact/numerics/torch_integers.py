"""Integer arithmetic for PyTorch, in place. Needs PyTorch."""

from typing import Any

import torch

from intact.numerics.torch_kernels import on_host

BELOW_HALF = 0.5 - 2.0**-25
"""The largest float32 below a half."""


def shifted_sum(a: Any, factor_a: Any, b: Any, factor_b: Any, half: Any, shift: Any) -> Any:
    """As `intact.numerics.integer_kernels.shifted_sum`."""
    if a.shape != b.shape:
        a, b = torch.broadcast_tensors(a, b)
    total = a.detach().to(torch.int32, copy=True).mul_(factor_a)
    total.add_(b.detach().to(torch.int32, copy=True).mul_(factor_b)).add_(half)
    return total.bitwise_right_shift_(shift)


def requantized(sums: Any, bias: Any, factor: Any, low: Any, high: Any) -> Any:
    """As `intact.numerics.integer_kernels.requantized`, without a gradient."""
    if on_host(sums):
        low, high = float(low), float(high)
    return (sums + bias).mul_(factor).round_().clamp_(low, high)


def saturate(exact: Any, low: Any, high: Any) -> Any:
    """As `intact.numerics.integer_kernels.saturate`, without a gradient."""
    if on_host(exact):
        low, high = float(low), float(high)
    if exact.dtype == torch.float32:
        return exact.clamp(low, high)
    return exact.to(torch.float32).clamp_(low, high)


def half_up(x: Any) -> Any:
    """As `intact.numerics.integer_kernels.half_up`, in two passes.

    A sum with the number below a half reaches the next whole number from a half on, and nowhere
    else: one with a half would, for the number below a half.
    """
    return x.add(BELOW_HALF).floor_()


def look_up(entries: Any, first: int, values: Any) -> Any:
    """As `intact.numerics.integer_kernels.look_up`."""
    index = values.detach().to(torch.int32, copy=True).sub_(first).clamp_(0, len(entries) - 1)
    return entries.index_select(0, index.reshape(-1)).reshape(values.shape)


def multiplied(values: Any, mantissa: Any, exponent: Any, half_up: Any) -> Any:
    """As `intact.numerics.fixed_point.multiply`.

    Args:
        values: int32.
        mantissa: The multiplier's, int32.
        exponent: The multiplier's, int32.
        half_up: Where halves go up.

    Returns:
        int32.
    """
    if not bool((exponent > 0).any()) and _is_small(values):
        return _multiplied_small(values, mantissa, exponent, half_up)
    x = values.to(torch.int64)
    if bool((exponent > 0).any()):
        left = exponent.clamp(0, 30).to(torch.int64)
        limit = torch.full_like(left, 2**31 - 1) >> left
        x = torch.minimum(torch.maximum(x, -limit), limit) << left
    x = (x * mantissa.to(torch.int64)).add_(2**30).bitwise_right_shift_(31)
    by = (-exponent).clamp(0, 30).to(torch.int64)
    if bool((by > 0).any()):
        # Half away from zero: one less below it, unless there is nothing to shift.
        away = (by > 0) & ~torch.as_tensor(half_up)
        if bool(away.any()):
            x.add_((x >> 63).mul_(away))
        x.add_((torch.ones_like(by) << by) >> 1)
        x.bitwise_right_shift_(by)
    return x.to(torch.int32)


def _is_small(values: Any) -> bool:
    """Whether float64 holds the products of values and 31 bits."""
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return int(low) > -(2**22) and int(high) < 2**22


def _multiplied_small(values: Any, mantissa: Any, exponent: Any, half_up: Any) -> Any:
    """The same in float64, which is exact here and takes half the time."""
    x = values.to(torch.float64).mul_(mantissa.to(torch.float64) * 2.0**-31).add_(0.5).floor_()
    if bool((exponent < 0).any()):
        right = (-exponent).clamp(0, 30).to(torch.int64)
        by = (torch.ones_like(right) << right).to(torch.float64).reciprocal()
        # A bit more moves halves away from zero, and is less than what lies between two products.
        away = by * (1 + 2.0**-30)
        x.mul_(torch.where(torch.as_tensor(half_up), by, away)).add_(0.5).floor_()
    return x.to(torch.int32)


def sum_in_order(x: Any) -> Any:
    """As `intact.numerics.integer_kernels.sum_in_order`."""
    total = torch.zeros_like(x[..., 0])
    for term in x.unbind(-1):
        total.add_(term)
    return total
