"""The sums of an integer kernel: their bias, their scales and their parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor

from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.backend_kernels import holds, multiply_add, no_bias
from intact.numerics.exact import MIN_SCALE, inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.straight_through import _upstream, round_through, round_where
from intact.numerics.tensors import Tensor, symbols

MAX_BIAS = float(np.float32(2.0**29))
"""Largest magnitude of an int32 bias; the products need the rest of the range."""


class Accumulator(NamedTuple):
    """The sums of an op: `real = (values + bias) * input_scale * weight_scale`.

    The scales stay apart because kernels multiply them in this order; the sign of a
    batch norm's factor lives in `weight_scale` until export. `bias` is the integer bias.
    If the sums are real values (`whole` is false), the bias is not rounded, and may have any size.
    Behind a batch norm that trains, `values` are real, and the rest is None. While a file is
    written, `values` are the factors of each channel's weights, 1 or 0. If float32 would round the
    sums of 16-bit inputs, the exact ones are `256 * high + low`.
    """

    values: Tensor
    bias: Any
    input_scale: Any
    weight_scale: Any
    whole: Any = True
    high: Any = None
    low: Any = None

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "Accumulator":
        """Its form in a graph.

        Args:
            shape: The shape of the sums.
        """
        values, bias, input_scale, weight_scale, high, low = symbols(
            shape, (None,), (), (None,), shape, shape
        )
        whole = KerasTensor((), "bool")
        return cls(values, bias, input_scale, weight_scale, whole, high, low)

    def exact(self) -> Tensor:
        """The sums with the bias and the signs of the file, int64; needs `wide_types`."""
        if self.high is None:
            sums = ops.cast(self.values, "int64")
        else:
            sums = ops.cast(self.high, "int64") * 256 + ops.cast(self.low, "int64")
        sign = ops.cast(ops.sign(self.weight_scale), "int64")
        return (sums + ops.cast(self.bias, "int64")) * sign

    def real(self) -> Tensor:
        """The real values."""
        if self.bias is None:
            return self.values
        return (self.values + self.bias) * (self.input_scale * self.weight_scale)

    def shifted(self) -> Tensor:
        """The real values to within their rounding, in one pass; there is a bias."""
        scale = self.input_scale * self.weight_scale
        return multiply_add(self.values, scale, self.bias * scale)


def digits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of 16 bits as `256 * high + low`, both of 8 bits and a sign.

    Args:
        values: Whole numbers, held in floats; others are split likewise.

    Returns:
        `(high, low)`; the gradient goes through `high`.
    """
    high = round_through(values * (1.0 / 256.0))
    return high, ops.stop_gradient(values - high * 256.0)


def exact_sums(function: Callable[[Tensor], Tensor], x: QTensor) -> tuple[Tensor, Any, Any]:
    """A linear function of a tensor's values, without rounding where they have 16 bits.

    Sums of products of 8-bit numbers are exact in float32; those of the two halves of 16-bit
    numbers are, too.

    Args:
        function: The function, such as a convolution.
        x: The tensor.

    Returns:
        `(sums, high, low)`: the sums as float32 has them and, of a `WideTensor`, the parts of
        the exact ones, `256 * high + low`; else None.
    """
    if not isinstance(x, WideTensor):
        return function(x.values), None, None
    high, low = map(function, digits(x.values))
    return high * 256.0 + low, high, low


@ops.custom_gradient
def _counted(values: Tensor, kept: Tensor, ratio: Tensor) -> Tensor:
    """`values * kept` with the gradient of `values * ratio`, a ratio for each channel."""

    def grad(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        g = _upstream(args, upstream)
        shared = tuple(range(len(values.shape) - len(ratio.shape)))
        return g * ratio, ops.zeros_like(kept), ops.sum(g * values, axis=shared)

    return values * kept, grad


def accumulator(
    values: Any, input_scale: Any, weight_scale: Any, xp: Any = ops, whole: Any = True
) -> Accumulator:
    """Sums without a bias.

    Args:
        values: The sums; None where they are yet to be filled in.
        input_scale: Scale of the input.
        weight_scale: Scale of the weights, per output channel or a scalar.
        xp: `keras.ops`, or `numpy_ops`.
        whole: Whether the input holds integers rather than real values.
    """
    zero = np.zeros_like(weight_scale) if xp is numpy_ops else no_bias(weight_scale)
    return Accumulator(values, zero, input_scale, weight_scale, whole)


def add_bias(acc: Accumulator, bias: Any, xp: Any = ops) -> Accumulator:
    """Add real values to 32-bit sums, rounded to the sums' own units.

    A channel whose weights are so small beside its bias that the bias would not fit
    in 32 bits gets a larger weight scale; `rescaled` gives the weights that go with it. Sums that
    exist already cannot change their scale: they count as they are, or not at all if that is
    nearer. A bias of real values is added as it is.

    Args:
        acc: The sums.
        bias: Real values per channel.
        xp: `keras.ops`, or `numpy_ops`.

    Returns:
        The sums with the bias added.
    """
    bias = xp.cast(xp.convert_to_tensor(bias), "float32")
    before = acc.weight_scale
    # The sum of all biases must fit, including earlier ones.
    total = xp.abs(acc.bias * (acc.input_scale * before) + bias)
    needed = xp.maximum(total, xp.abs(bias)) * (np.float32(1 / MAX_BIAS) / acc.input_scale)
    if not len(before.shape):
        # One scale for all channels stays one scale.
        needed = xp.max(needed)
    floor = xp.maximum(xp.where(acc.whole, needed, np.float32(0)), np.float32(MIN_SCALE))
    floor = xp.stop_gradient(floor)
    enough = xp.abs(before) >= floor
    if holds(enough):
        units = bias * inverse_of(acc.input_scale * before, xp)
        return acc._replace(bias=acc.bias + round_where(acc.whole, units, xp))
    weight_scale = xp.where(enough, before, xp.where(before < 0, -floor, floor))
    units = round_where(acc.whole, bias * inverse_of(acc.input_scale * weight_scale, xp), xp)
    smaller = acc.bias * xp.stop_gradient(before * inverse_of(weight_scale, xp))
    smaller = round_where(acc.whole, smaller, xp)
    values, high, low = acc.values, acc.high, acc.low
    if values is not None:
        ratio = before * inverse_of(xp.stop_gradient(weight_scale), xp)
        ratio = xp.where(enough, xp.ones_like(ratio), ratio)
        kept = xp.cast(ratio > 0.5, "float32")
        values = values * kept if xp is numpy_ops else _counted(values, kept, ratio)
        if high is not None:
            high, low = high * kept, low * kept
    bias = xp.where(enough, acc.bias, smaller) + units
    return acc._replace(values=values, bias=bias, weight_scale=weight_scale, high=high, low=low)


def rescaled(n: Any, before: Any, acc: Accumulator, layout: ScaleLayout, xp: Any = ops) -> Any:
    """Weights as whole numbers of the scale that `add_bias` chose.

    Args:
        n: The whole numbers.
        before: Their scale, per output channel or a scalar.
        acc: What `add_bias` made of sums with that scale.
        layout: Which weights share a scale.
        xp: `keras.ops`, or `numpy_ops`.

    Returns:
        Whole numbers, with the gradient of the weights.

    Example:

    >>> scale = np.array([2.0**-40, 1.0], "float32")
    >>> acc = add_bias(accumulator(None, np.float32(1), scale, numpy_ops), [2.0, 2.0], numpy_ops)
    >>> layout = ScaleLayout((-1,))
    >>> rescaled(np.array([[127.0, 127.0]]), scale, acc, layout, numpy_ops).tolist()
    [[0.0, 127.0]]
    """
    if acc.weight_scale is before:
        # There is no bias.
        return n
    ratio = before * inverse_of(xp.stop_gradient(acc.weight_scale), xp)
    ratio = xp.where(before == acc.weight_scale, xp.ones_like(ratio), ratio)
    shape = n.shape if xp is numpy_ops else ops.shape(n)
    return round_where(acc.whole, n * layout.spread(ratio, shape, xp), xp)


def scale_channels(acc: Accumulator, factor: Any) -> Accumulator:
    """Multiply 32-bit sums by a real factor per channel, which may be negative.

    The bias counts in the sums' own units, so only the scale changes.
    """
    return acc._replace(weight_scale=acc.weight_scale * factor)
