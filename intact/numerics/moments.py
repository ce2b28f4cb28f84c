"""Mean and variance of channels, and normalizing by them; of all replicas' values."""

from typing import Any

from intact.numerics.backend_kernels import TENSORFLOW, TORCH, gather, replicas
from intact.numerics.light_ops import ops

if TORCH:
    from intact.numerics import torch_kernels
if TENSORFLOW:
    from intact.numerics import tensorflow_kernels


@ops.custom_gradient
def _moments(x: Any, centre: Any) -> Any:
    axes = tuple(range(len(x.shape) - 1))
    offset = x - centre
    shift = ops.mean(offset, axes)
    variance = ops.maximum(ops.mean(ops.square(offset), axes) - ops.square(shift), 0.0)

    def grad(*args: Any, upstream: Any | None = None) -> tuple[Any, Any]:
        g = args[0] if upstream is None else upstream
        of_mean, of_variance = g[0], g[1]
        share = x.shape[-1] / ops.cast(ops.size(x), "float32")
        slope = of_variance * (2.0 * share)
        return offset * slope + (of_mean * share - slope * shift), ops.zeros_like(centre)

    return ops.stack([centre + shift, variance]), grad


def moments(x: Any, centre: Any) -> tuple[Any, Any]:
    """Mean and variance over all axes but the last, and over all replicas.

    Args:
        x: Values.
        centre: About the mean, per channel: near enough for a difference of squares to be
            precise, so that one pass over the data does.

    Returns:
        `(mean, variance)`, per channel.
    """
    x = ops.convert_to_tensor(x)
    # A graph's tensor cannot be unpacked.
    both = torch_kernels.moments(x) if TORCH else _moments(x, centre)
    mean, variance = both[0], both[1]
    if replicas() == 1:
        return mean, variance
    return whole_moments(mean, variance, ops.cast(ops.size(x) / x.shape[-1], "float32"))[:2]


def whole_moments(mean: Any, variance: Any, count: Any) -> tuple[Any, Any, Any]:
    """The moments of the whole batch, from those of each replica.

    Source: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances" (1979), section 2.

    Args:
        mean: Mean of this replica's values, per channel.
        variance: Their variance, per channel.
        count: How many values each channel has, float32.

    Returns:
        `(mean, variance, count)` of all replicas' values, per channel.
    """
    parts = gather(ops.stack([mean, variance, count * ops.ones_like(mean)]))
    counts = parts[:, 2]
    # The moments of no values are not numbers.
    means, variances = (ops.where(counts > 0, parts[:, n], 0.0) for n in range(2))
    total = ops.sum(counts, axis=0)
    shares = counts / total
    mean = ops.sum(shares * means, axis=0)
    spread = variances + ops.square(means - mean)
    return mean, ops.sum(shares * spread, axis=0), total


def batch_norm(x: Any, centre: Any, gamma: Any, beta: Any, epsilon: Any) -> tuple[Any, Any, Any]:
    """Normalize by the mean and variance over all axes but the last, and over all replicas.

    Args:
        x: Values.
        centre: As for `moments`.
        gamma: Factor, per channel.
        beta: Offset, per channel.
        epsilon: What is added to the variance, per channel.

    Returns:
        `(y, mean, variance)`, with `y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`;
        there is no gradient through the last two.
    """
    tensors = [ops.convert_to_tensor(v, "float32") for v in (x, gamma, beta, epsilon)]
    alone = replicas() == 1
    if TORCH:
        return torch_kernels.batch_norm(*tensors, None if alone else whole_moments)
    if TENSORFLOW and alone and tensorflow_kernels.on_cpu():
        return tensorflow_kernels.batch_norm(*tensors)
    mean, variance = moments(x, centre)
    factor = gamma * ops.rsqrt(variance + epsilon)
    return (x - mean) * factor + beta, ops.stop_gradient(mean), ops.stop_gradient(variance)
