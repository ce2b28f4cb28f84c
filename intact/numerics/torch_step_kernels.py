"""What the instructions of a step compute with on PyTorch. Needs PyTorch.

Scalars are numbers here, and nothing records gradients.
"""

from typing import Any

import torch

matmul, where = torch.mm, torch.where
sigmoid_slope = torch.ops.aten.sigmoid_backward.default
tanh_slope = torch.ops.aten.tanh_backward.default
inside = torch.ops.aten.hardtanh_backward.default


def multiply(a: Any, b: Any, out: Any = None) -> Any:
    """`a * b`."""
    return torch.mul(a, b, out=out)


def multiply_add(x: Any, factor: Any, offset: Any, out: Any = None) -> Any:
    """`x * factor + offset`."""
    return torch.addcmul(offset, x, factor, out=out)


def copied(x: Any, out: Any = None) -> Any:
    """The values themselves."""
    return x if out is None else out.copy_(x)


def sigmoid(x: Any, out: Any = None) -> Any:
    """The logistic function."""
    return torch.sigmoid(x, out=out)


def tanh(x: Any, out: Any = None) -> Any:
    """The hyperbolic tangent."""
    return torch.tanh(x, out=out)


def rounded(x: Any, limits: Any) -> Any:
    """Scales, rounds half to even and saturates."""
    # A factor that is a tensor takes half the time of a number.
    return (x * limits.factor).round_().clamp_(limits.low, limits.high)


def passing(slope: Any, x: Any, limits: Any) -> Any:
    """A derivative where gradients pass, and 0 elsewhere.

    Args:
        slope: The derivative; None for 1.
        x: Raw values.
        limits: How they are rounded.
    """
    factor = float(limits.factor)
    slope = torch.ones_like(x) if slope is None else slope
    return inside(slope, x, limits.first / factor, limits.last / factor)


def rows(x: Any) -> Any:
    """The values of all steps and samples, one below the other."""
    return x.reshape(-1, x.shape[-1])


def transposed(x: Any) -> Any:
    """The transposed matrix."""
    return x.t()


def sum_to(x: Any, like: Any) -> Any:
    """The sums of the columns of `x`, or of all of it, as `like` has columns or not."""
    return x.sum(0) if like.ndim else x.sum()


def side_by_side(parts: list[Any]) -> Any:
    """Values along the last axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def zeros(like: Any, size: int) -> Any:
    """Zeros for each sample.

    Args:
        like: Values with the same samples.
        size: How many.
    """
    return like.new_zeros((like.shape[0], size))
