"""Rounding with the gradient of the unrounded values."""

import math
from typing import Any

import numpy as np

from intact.numerics import backend_kernels
from intact.numerics.backend_kernels import holds
from intact.numerics.forward import needs_gradients
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import Tensor


def _upstream(args: tuple[Tensor, ...], upstream: Tensor | None) -> Tensor:
    # TensorFlow and torch pass the gradient positionally or by name, JAX positionally.
    return args[0] if upstream is None else upstream


@ops.custom_gradient
def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """The value itself; its gradient is multiplied by a factor.

    Args:
        x: Values.
        factor: A scalar tensor.

    Returns:
        `x`.

    Source: LSQ, section 2.2 (arXiv:1902.08153).
    """

    def grad(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
        g = _upstream(args, upstream)
        return g * factor, ops.zeros_like(factor)

    return x, grad


@ops.custom_gradient
def _reparametrized(first: Tensor, delta: Tensor, unit: Tensor) -> Tensor:
    def grad(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        g = _upstream(args, upstream)
        return ops.zeros_like(first), g / unit, ops.zeros_like(unit)

    return first + unfused(unit * delta), grad


@ops.custom_gradient
def finite_gradient(x: Tensor) -> Tensor:
    """The value itself; a gradient that is infinite or not a number becomes 0."""

    def grad(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
        g = _upstream(args, upstream)
        return ops.where(ops.isfinite(g), g, ops.zeros_like(g))

    return x, grad


def tied(w: Tensor, firsts: Tensor) -> Tensor:
    """Weights that share a value, with the mean of their gradients for each.

    Args:
        w: Weights.
        firsts: Per weight of the flattened `w`, the index of the first one of its value.

    Returns:
        The value of the first one for each: optimizers need not round all of them alike.
    """
    flat, size = ops.reshape(w, (-1,)), math.prod(w.shape)
    sums, counts = (
        ops.segment_sum(part, firsts, num_segments=size) for part in (flat, ops.ones_like(flat))
    )
    mean = ops.take(sums / ops.maximum(counts, 1.0), firsts)
    return ops.reshape(straight_through(ops.take(flat, firsts), mean), w.shape)


def straight_through(exact: Any, smooth: Any, xp: Any = ops) -> Any:
    """The value of `exact` with the gradient of `smooth`; on the host just the value.

    Args:
        exact: What the integer kernel computes.
        smooth: The same without rounding, differentiable; or a function that returns it, which
            is not called where no gradient is needed.
        xp: `keras.ops`, or `numpy_ops`.

    Returns:
        `exact`; a gradient that reaches it goes to `smooth` unchanged.

    The straight-through estimator: Bengio et al., arXiv:1308.3432.
    """
    if xp is numpy_ops or not needs_gradients():
        return exact
    return backend_kernels.straight_through(exact, smooth() if callable(smooth) else smooth)


def round_through(x: Any, xp: Any = ops) -> Any:
    """Rounded half to even, with the gradient of `x`."""
    return straight_through(xp.round(x), x, xp)


def round_where(whole: Any, x: Any, xp: Any = ops) -> Any:
    """Rounded half to even under a condition, otherwise unchanged; with the gradient of `x`."""
    if holds(whole):
        return round_through(x, xp)
    return straight_through(xp.where(whole, xp.round(x), x), x, xp)


def reparametrized(first: Any, delta: Any, xp: Any = ops, unit: Any = None) -> Any:
    """A trained number, as its first value and the distance that training has moved it.

    The distance counts in units of the first value, so that the steps of an optimizer such
    as Adam fit numbers of any size; its gradient is such that plain gradient descent moves
    the number by the learning rate times the number's own gradient. A number keeps its sign.

    Args:
        first: The first values.
        delta: The distances, which train; as many.
        xp: `keras.ops`, or `numpy_ops`.
        unit: Their units; by default, the size of the first values.

    Returns:
        `first + unit * delta`.

    Example:

    >>> reparametrized(np.float32([2.0, 4.0]), np.float32([0.5, -3.0]), numpy_ops).tolist()
    [3.0, 0.03125]
    """
    if unit is None:
        unit = xp.where(first == 0, np.float32(1), xp.abs(first))
    value = first + unit * delta if xp is numpy_ops else _reparametrized(first, delta, unit)
    floor = xp.abs(first) * np.float32(2.0**-7)
    kept = xp.where(
        first > 0, xp.maximum(value, floor), xp.where(first < 0, xp.minimum(value, -floor), value)
    )
    return straight_through(kept, value, xp)


def unfused(x: Any, xp: Any = ops) -> Any:
    """A product rounded to float32, even where a compiler would fuse it with the next operation.

    Args:
        x: The product.
        xp: `keras.ops`, or `numpy_ops`.
    """
    return np.clip(x, -3e38, 3e38) if xp is numpy_ops else backend_kernels.unfused(x)
