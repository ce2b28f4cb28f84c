"""Integer arithmetic for PyTorch, in place. Needs PyTorch."""

from typing import Any

import torch

from intact.numerics.torch_kernels import on_host


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
