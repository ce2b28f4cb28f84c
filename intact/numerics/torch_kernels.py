"""Kernels for PyTorch, which runs op by op, with fewer passes over the data. Needs PyTorch."""

from typing import Any

import torch
import torch.distributed
from keras.src.backend.common.stateless_scope import in_stateless_scope


def replicas() -> int:
    """How many processes the default group has; 1 without one."""
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def replica() -> int:
    """The rank of this process in the default group."""
    return torch.distributed.get_rank() if replicas() > 1 else 0


def gather(x: Any) -> Any:
    """The tensors of all processes of the default group, stacked; gradients flow back.

    Args:
        x: A tensor.
    """
    return Gather.apply(x)


class Gather(torch.autograd.Function):
    """Stacks the tensors of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        """The tensors, along a new first axis.

        Args:
            ctx: Torch's.
            x: The tensor of this process.
        """
        rows = x.new_empty((replicas(), *x.shape))
        torch.distributed.all_gather(list(rows.unbind()), x.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of `x`: the sum of those that all processes have of it."""
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[replica()]


def on_host(x: Any, *scalars: Any) -> bool:
    """Whether a tensor is computed op by op on this machine, and scalars have no gradient.

    Args:
        x: The tensor.
        *scalars: Tensors or numbers.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not any(torch.is_tensor(scalar) and scalar.requires_grad for scalar in scalars)


TRUE = torch.ones((), dtype=torch.bool, device="cpu")
"""A scalar that is true; it is known without reading it."""


def is_known(x: Any) -> bool:
    """Whether a truth value is on this machine's processor, so that it can be read."""
    return not torch.is_tensor(x) or on_host(x)


def numbers(variable: Any) -> Any:
    """A numpy array on the memory of a variable that does not train.

    Args:
        variable: The variable of Keras.

    Returns:
        The array; None where the variable is elsewhere, or a scope of Keras keeps its values.
    """
    if in_stateless_scope():
        return None
    value = variable.value
    return value.detach().numpy() if on_host(value) else None


def from_number(x: float) -> Any:
    """A number as a scalar tensor of this machine's processor."""
    return torch.tensor(x, dtype=torch.float32, device="cpu")


def multiply_add(x: Any, factor: Any, offset: Any) -> Any:
    """`x * factor + offset`, in one pass."""
    return torch.addcmul(offset, x, factor)


def extremes(x: Any) -> tuple[Any, Any]:
    """The smallest and the largest value, in one pass."""
    return torch.aminmax(x.detach())


class StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, exact: Any, smooth: Any) -> Any:
        """The first one.

        Args:
            ctx: Torch's.
            exact: Values.
            smooth: Values of the same shape.
        """
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of the second one."""
        return None, *gradients


def rounded(x: Any, factor: Any, low: Any, high: Any) -> Any:
    """Scales, rounds half to even and saturates, without a gradient.

    Args:
        x: Values.
        factor: What they are multiplied by, scalar.
        low: Smallest value, scalar.
        high: Largest value, scalar.
    """
    if on_host(x):
        factor, low, high = map(float, (factor, low, high))
    unit = not torch.is_tensor(factor) and factor == 1
    return (x.round() if unit else (x * factor).round_()).clamp_(low, high)


class RoundClip(torch.autograd.Function):
    """Scales, rounds half to even and saturates; the gradient passes inside the bounds."""

    @staticmethod
    def forward(ctx: Any, x: Any, factor: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
        """Whole numbers.

        Args:
            ctx: Torch's.
            x: Values.
            factor: What they are multiplied by, scalar.
            low: Smallest value, scalar.
            high: Largest value, scalar.
            first: Where the gradient begins to pass, scalar.
            last: Where it ends to, scalar.
        """
        # Scalars as numbers halve the time; on other devices that would wait for them.
        ctx.numbers = on_host(x, factor) or not torch.is_tensor(factor)
        if ctx.numbers:
            factor, low, high, first, last = map(float, (factor, low, high, first, last))
            ctx.scalars = factor, first, last
            ctx.save_for_backward(x)
        else:
            ctx.save_for_backward(x, factor, first, last)
        return (x * factor).round_().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of `x` and the factor."""
        (g,) = gradients
        if ctx.numbers:
            (x,), (factor, first, last) = ctx.saved_tensors, ctx.scalars
            inside = torch.ops.aten.hardtanh_backward(g, x, first / factor, last / factor)
            return inside.mul_(factor), *5 * [None]
        x, factor, first, last = ctx.saved_tensors
        y = x * factor
        inside = torch.where((y > first) & (y < last), g, 0.0)
        of_factor = torch.sum(inside * x) if ctx.needs_input_grad[1] else None
        return inside * factor, of_factor, *4 * [None]


class Moments(torch.autograd.Function):
    """Mean and variance over all axes but the last."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        """The moments.

        Args:
            ctx: Torch's.
            x: Values, channels last.
        """
        first = torch.movedim(x, -1, 1)
        mean, variance = torch.batch_norm_update_stats(first, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of `x`."""
        of_mean, of_variance = gradients
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[-1]
        slope = of_variance * (2.0 / count)
        return (x * slope).add_(of_mean / count - slope * mean)


class BatchNorm(torch.autograd.Function):
    """Normalizes over all axes but the last; there is no gradient through the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, epsilon: Any, whole: Any) -> Any:
        """The values, the mean and the variance.

        Args:
            ctx: Torch's.
            x: Values, channels last.
            gamma: Factor of each channel.
            beta: Offset of each channel.
            epsilon: What is added to the variance of each channel.
            whole: From mean, variance and count of this process' values to those of all processes;
                None for a process alone.
        """
        mean, variance = torch.batch_norm_update_stats(torch.movedim(x, -1, 1), None, None, 0.0)
        ctx.total = None
        if whole is not None:
            mean, variance, ctx.total = whole(mean, variance, x.numel() // x.shape[-1])
        inverse = torch.rsqrt(variance + epsilon)
        factor = gamma * inverse
        ctx.save_for_backward(x, gamma, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(beta - mean * factor, x, factor), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of all arguments."""
        x, gamma, mean, inverse = ctx.saved_tensors
        first, of_y = (torch.movedim(t, -1, 1) for t in (x, gradients[0]))
        # Tensors that lie in memory in different orders take five times as long.
        if first.is_contiguous():
            of_y = of_y.contiguous()
        elif first.ndim == 4:
            of_y = of_y.contiguous(memory_format=torch.channels_last)
        alone = ctx.total is None
        of_x, of_gamma, of_beta = torch.ops.aten.native_batch_norm_backward(
            of_y, first, gamma, None, None, mean, inverse, True, 0.0, [alone, True, True]
        )
        if alone:
            of_x = torch.movedim(of_x, 1, -1)
        else:
            of_x = BatchNorm.of_parts(ctx, torch.movedim(of_y, 1, -1), of_gamma, of_beta)
        of_epsilon = of_gamma * gamma * inverse * inverse * -0.5
        return of_x, of_gamma, of_beta, of_epsilon, None

    @staticmethod
    def of_parts(ctx: Any, of_y: Any, of_gamma: Any, of_beta: Any) -> Any:
        """The gradient of `x`, whose moments are of the values of all processes.

        Args:
            ctx: Torch's.
            of_y: The gradient of the values, channels last.
            of_gamma: The sum over this process' values of their gradient times the normalized `x`.
            of_beta: The sum of their gradient.
        """
        x, gamma, mean, inverse = ctx.saved_tensors
        means = torch.stack([of_beta, of_gamma])
        torch.distributed.all_reduce(means)
        means /= ctx.total
        factor = gamma * inverse
        slope = -factor * inverse * means[1]
        return torch.addcmul(-factor * means[0] - slope * mean, x, slope).addcmul_(of_y, factor)


straight_through = StraightThrough.apply
round_clip = RoundClip.apply
moments = Moments.apply
batch_norm = BatchNorm.apply
