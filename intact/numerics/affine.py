"""Affine quantization: parameters, rounding and straight-through gradients.

Everything that trains works on *integer values held in floats*: an activation is
`scale * n` with `n = q - zero_point` a small integer, so that convolutions of such
values are exact in float32 and equal to what an integer kernel computes.

Source of the formulas: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877), and the LiteRT
8-bit specification.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor, Variable, ops

from intact.numerics.backend_kernels import inverse, no_bias, over

Tensor = Any
"""A tensor of the active Keras backend."""

MIN_SCALE = float(np.float32(2.0**-60))
"""Floor of every scale: far below any real one, far above the denormals."""

MAX_BIAS = float(np.float32(2.0**29))
"""Largest magnitude of an int32 bias: room is left for the products added to it."""


class QTensor(NamedTuple):
    """A quantized activation: `real = values * scale`, `values = q - zero_point`."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor


class WideTensor(QTensor):
    """A quantized activation of 16 bits, whose sums of products float32 cannot hold."""

    __slots__ = ()


class Accumulator(NamedTuple):
    """The sums of an op: `real = (values + bias) * input_scale * weight_scale`.

    The scales stay apart because kernels multiply them in this order; the sign of a
    batch norm's factor lives in `weight_scale` until export. `bias` is the integer bias.
    Where real values pass (`whole` is false), the bias is not rounded, and may be of any size.
    Behind a batch norm that trains, values are real already, and the rest is None. Where a file
    is written, `values` are what the weights of each channel are multiplied with, 1 or 0.
    Where 16-bit inputs make sums that float32 rounds, the exact ones are `256 * high + low`.
    """

    values: Tensor
    bias: Any
    input_scale: Any
    weight_scale: Any
    whole: Any = True
    high: Any = None
    low: Any = None

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


def unquantized(real: Tensor) -> QTensor:
    """Real values where integers are expected: the zero point 0.5 tells them apart.

    Args:
        real: The values.
    """
    one = ops.ones((), "float32")
    return QTensor(real, one, one * 0.5)


def is_integer(x: QTensor) -> Tensor:
    """Whether a triple holds integers, and not real values on their way through."""
    return x.zero_point == ops.round(x.zero_point)


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
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover a range of real values.

    The range is widened to contain 0, which then is exactly representable. A range
    that is just `{0}` gets the smallest scale, so that it is nothing beside any other
    number, and 0 in its middle, where gradients pass.

    Args:
        minimum: Smallest real value, any shape.
        maximum: Largest real value, same shape.
        bits: Width in bits.
        symmetric: Force the zero point to 0.
        power_of_two: Make the scale a power of two.
        least: The smallest scale.

    Returns:
        `(scale, zero_point)`, float32 tensors of the range's shape.

    Example:

    >>> scale, zero_point = affine_params(-1.0, 1.55)
    >>> round(float(scale), 6), int(zero_point)
    (0.01, -28)
    """
    low, high = integer_range(bits, narrow=symmetric)
    minimum = ops.minimum(ops.cast(minimum, "float32"), 0.0)
    maximum = ops.maximum(ops.cast(maximum, "float32"), 0.0)
    if symmetric:
        span = ops.maximum(-minimum, maximum)
        steps = high
    else:
        span = maximum - minimum
        steps = high - low
    scale = ops.maximum(span * np.float32(1 / steps), least)
    if power_of_two:
        scale = power_of_two_above(scale)
    if symmetric:
        return scale, ops.zeros_like(scale)
    zero_point = ops.clip(ops.round(low - minimum / scale), low, high)
    return scale, ops.where(span > 0, zero_point, 0.0)


def to_numpy(x: Any) -> np.ndarray:
    """A tensor, variable or number as a numpy array."""
    return np.asarray(ops.convert_to_numpy(x.value if isinstance(x, Variable) else x))


def is_symbolic(value: Any) -> bool:
    """Whether a call's argument is a tensor of a graph rather than a constant."""
    return isinstance(value, KerasTensor)


def is_whole(value: Any) -> bool:
    """Whether a tensor, array or number holds whole numbers or truth values.

    Whole numbers are never quantized: they keep their type, in Keras and in the file. This is the
    one place that tells them from real values.

    Example:

    >>> is_whole(np.arange(3)), is_whole(True), is_whole(2.0)
    (True, True, False)
    """
    dtype = value.dtype if is_symbolic(value) else to_numpy(value).dtype
    return not _is_real(str(dtype))


def _is_real(dtype: str) -> bool:
    return "float" in dtype or "complex" in dtype


def is_trainable(value: Any) -> bool:
    """Whether a value is a variable that trains."""
    return isinstance(value, Variable) and value.trainable


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


def _upstream(args: tuple[Tensor, ...], upstream: Tensor | None) -> Tensor:
    # TensorFlow and torch pass the gradient positionally or by name, JAX positionally.
    return args[0] if upstream is None else upstream


@ops.custom_gradient
def straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `smooth`.

    Args:
        exact: What the integer kernel computes.
        smooth: The same without rounding, differentiable.

    Returns:
        `exact`; a gradient that reaches it goes to `smooth` unchanged.

    The straight-through estimator: Bengio et al., arXiv:1308.3432.
    """

    def grad(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
        g = _upstream(args, upstream)
        return ops.zeros_like(g), g

    return exact, grad


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
def _counted(values: Tensor, kept: Tensor, ratio: Tensor) -> Tensor:
    """`values * kept` with the gradient of `values * ratio`, a ratio for each channel."""

    def grad(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        g = _upstream(args, upstream)
        shared = tuple(range(len(values.shape) - len(ratio.shape)))
        return g * ratio, ops.zeros_like(kept), ops.sum(g * values, axis=shared)

    return values * kept, grad


@ops.custom_gradient
def _moved(first: Tensor, delta: Tensor, unit: Tensor) -> Tensor:
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


def _segment_max(data: np.ndarray, ids: np.ndarray, num_segments: int) -> np.ndarray:
    top = np.full(num_segments, -np.inf, data.dtype)
    np.maximum.at(top, ids, data)
    return top


host = SimpleNamespace(
    abs=np.abs,
    cast=lambda x, dtype: np.asarray(x, dtype),
    convert_to_tensor=lambda x: to_numpy(x).astype("float32", copy=False),
    exp=np.exp,
    clip=np.clip,
    max=np.max,
    floor=np.floor,
    log=np.log,
    maximum=np.maximum,
    min=np.min,
    minimum=np.minimum,
    ones=np.ones,
    ones_like=np.ones_like,
    power=np.power,
    reshape=np.reshape,
    round=np.rint,
    sign=np.sign,
    sqrt=np.sqrt,
    tanh=np.tanh,
    segment_max=_segment_max,
    segment_sum=lambda data, ids, num_segments: np.bincount(ids, data, num_segments),
    stop_gradient=lambda x: x,
    sum=np.sum,
    where=np.where,
    zeros_like=np.zeros_like,
)
"""The part of `keras.ops` that weights and biases need, in numpy.

Passed as `xp` when a file is written: fast, and to the same bits on every backend.
"""


def through(exact: Any, smooth: Any, xp: Any = ops) -> Any:
    """`straight_through`; on the host just the value.

    Args:
        exact: The value.
        smooth: What has its gradient.
        xp: `keras.ops`, or `host`.
    """
    return exact if xp is host else straight_through(exact, smooth)


def round_through(x: Any, xp: Any = ops) -> Any:
    """Rounded half to even, with the gradient of `x`."""
    return through(xp.round(x), x, xp)


def round_where(whole: Any, x: Any, xp: Any = ops) -> Any:
    """Rounded half to even where integers are expected, else as it is; with the gradient of `x`."""
    return through(xp.where(whole, xp.round(x), x), x, xp)


def inverse_of(x: Any, xp: Any = ops) -> Any:
    """`1 / x`, rounded as IEEE 754 says; on the host, too."""
    return np.float32(1) / x if xp is host else inverse(x)


def exact_mean(x: Any, axes: tuple[int, ...], xp: Any = ops) -> Any:
    """The mean of values that are not negative, to the same bits everywhere.

    Float sums depend on their order; these are sums of whole numbers of 31 bits.

    Args:
        x: Values, not negative.
        axes: The axes to take it over, which stay with size 1.
        xp: `keras.ops`, or `host`.

    Returns:
        The mean, to a 2^-31 / count of the largest value.

    Example:

    >>> exact_mean(np.array([1.0, 2.0, 6.0], "float32"), (0,), host).tolist()
    [3.0]
    """
    count = int(np.prod([x.shape[a] for a in axes], dtype="int64"))
    # A power of two, so that the units of a single value lose nothing.
    steps = np.float32(2.0 ** min(24, 30 - (count - 1).bit_length()))
    top = xp.maximum(xp.max(x, axis=axes, keepdims=True), np.float32(MIN_SCALE))
    whole = xp.cast(xp.round(x * inverse_of(top, xp) * steps), "int32")
    total = xp.cast(xp.sum(whole, axis=axes, keepdims=True), "float32")
    return unfused(total * unfused(top * (np.float32(1 / count) / steps), xp), xp)


def moved(first: Any, delta: Any, xp: Any = ops, unit: Any = None) -> Any:
    """A trained number: what it was first, and how far training has moved it.

    The distance counts in units of the first value, so that the steps of an optimizer such
    as Adam fit numbers of any size; its gradient is such that plain gradient descent moves
    the number by the learning rate times the number's own gradient. A number keeps its sign.

    Args:
        first: The first values.
        delta: The distances, which train; as many.
        xp: `keras.ops`, or `host`.
        unit: Their units; by default, the size of the first values.

    Returns:
        `first + unit * delta`.

    Example:

    >>> moved(np.float32([2.0, 4.0]), np.float32([0.5, -3.0]), host).tolist()
    [3.0, 0.03125]
    """
    if unit is None:
        unit = xp.where(first == 0, np.float32(1), xp.abs(first))
    value = first + unit * delta if xp is host else _moved(first, delta, unit)
    floor = xp.abs(first) * np.float32(2.0**-7)
    kept = xp.where(
        first > 0, xp.maximum(value, floor), xp.where(first < 0, xp.minimum(value, -floor), value)
    )
    return through(kept, value, xp)


def power_of_two_above(x: Any, xp: Any = ops) -> Any:
    """The smallest power of two that is not smaller, with the gradient of its logarithm.

    Args:
        x: Positive values.
        xp: `keras.ops`, or `host`.

    Returns:
        Powers of two; `d y / d x` is `y / x`.

    Source: TQT (arXiv:1903.08066), section 3.

    Example:

    >>> power_of_two_above(np.array([0.75, 1.0, 1.5], "float32"), host).tolist()
    [1.0, 1.0, 2.0]
    """
    if xp is host:
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
    x = ops.convert_to_tensor(x)
    fixed = ops.stop_gradient(x)
    below = power_of_two(binary_exponent(fixed))
    above = ops.where(below < fixed, below * 2.0, below)
    return straight_through(above, x * (above / fixed))


def weight_params(
    w: Any, bits: int, axis: tuple[int, ...] | None, xp: Any = ops, symmetric: bool = True
) -> tuple[Any, Any]:
    """Scales and zero points of weights.

    Args:
        w: Float weights.
        bits: Width in bits.
        axis: The axes that keep a scale of their own (the output channels), or None
            for one scale for the whole tensor.
        xp: `keras.ops`, or `host`.
        symmetric: Zero points of 0, and a range without its smallest integer.

    Returns:
        `(scale, zero_point)`, which broadcast to `w`.
    """
    rank = len(w.shape)
    kept = () if axis is None else tuple(a % rank for a in axis)
    reduced = tuple(a for a in range(rank) if a not in kept)
    # Not differentiated: min-max scales follow the weights, as in arXiv:1712.05877.
    w = xp.stop_gradient(w)
    low, high = integer_range(bits, narrow=symmetric)
    if symmetric:
        span, steps = xp.max(xp.abs(w), axis=reduced, keepdims=True), high
    else:
        minimum = xp.minimum(xp.min(w, axis=reduced, keepdims=True), np.float32(0))
        span = xp.maximum(xp.max(w, axis=reduced, keepdims=True), np.float32(0)) - minimum
        steps = high - low
    # Weights of 0 get the smallest scale: that of a bias is then as fine as the bias needs.
    scale = xp.maximum(span * np.float32(1 / steps), np.float32(MIN_SCALE))
    if symmetric:
        return scale, xp.zeros_like(scale)
    return scale, xp.clip(xp.round(low - minimum * inverse_of(scale, xp)), low, high)


def quantize_weight(
    w: Any, bits: int, axis: tuple[int, ...] | None, xp: Any = ops, symmetric: bool = True
) -> tuple[Any, Any]:
    """Weights to whole numbers, with a straight-through gradient.

    Args:
        w: Float weights.
        bits: Width in bits.
        axis: As for `weight_params`.
        xp: `keras.ops`, or `host`.
        symmetric: As for `weight_params`.

    Returns:
        `(n, scale)`: whole numbers of the shape of `w` (the integers less their zero
        point), and one scale per channel, flat (a scalar where `axis` is None).
    """
    w = xp.cast(xp.convert_to_tensor(w), "float32")
    scale, zero_point = weight_params(w, bits, axis, xp, symmetric)
    # Times the inverse, as some compilers divide by a scale anyway.
    n = w * inverse_of(scale, xp)
    if not symmetric:
        # A rounded zero point may leave an end of the range just outside.
        low, high = integer_range(bits)
        n = xp.minimum(xp.maximum(n, low - zero_point), high - zero_point)
    return round_through(n, xp), xp.reshape(scale, () if axis is None else (-1,))


def half_precision(w: Any, xp: Any = ops) -> Any:
    """Values as float16 has them, with a straight-through gradient."""
    w = xp.cast(xp.convert_to_tensor(w), "float32")
    return through(xp.cast(xp.cast(w, "float16"), "float32"), w, xp)


def quantize_rows(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Quantize each row by its own range, as the kernels of float models do at run time.

    Args:
        x: Real values.
        axes: The axes over which a range is taken.

    Returns:
        `(n, scale)`: whole numbers, and the scales, which broadcast to them.
    """
    fixed = ops.stop_gradient(x)
    minimum = ops.minimum(ops.min(fixed, axis=axes, keepdims=True), 0.0)
    maximum = ops.maximum(ops.max(fixed, axis=axes, keepdims=True), 0.0)
    span = maximum - minimum
    factor = ops.where(span > 0, 255.0 / ops.where(span > 0, span, 1.0), 1.0)
    low, high = -128.0 - minimum * factor, 127.0 - maximum * factor
    # The end of the range that its zero point leaves with the smaller error.
    error = (-128.0 + minimum * factor) + (127.0 + maximum * factor)
    zero_point = ops.round(ops.clip(ops.where(error > 0, low, high), -128.0, 127.0))
    n = ops.round(fixed * factor)
    n = ops.minimum(ops.maximum(n, -128.0 - zero_point), 127.0 - zero_point)
    return straight_through(n, x * factor), inverse(factor)


def along(values: Any, axis: tuple[int, ...] | None, shape: tuple[int, ...], xp: Any = ops) -> Any:
    """Values per channel, shaped to broadcast along the channels' axes.

    Args:
        values: Flat values, or a scalar where `axis` is None.
        axis: The axes of the channels.
        shape: The shape to broadcast to.
        xp: `keras.ops`, or `host`.

    Returns:
        The values with as many axes as `shape`.
    """
    if axis is None:
        return values
    kept = {a % len(shape) for a in axis}
    return xp.reshape(values, [n if a in kept else 1 for a, n in enumerate(shape)])


def accumulator(
    values: Any, input_scale: Any, weight_scale: Any, xp: Any = ops, whole: Any = True
) -> Accumulator:
    """Sums without a bias yet.

    Args:
        values: The sums; None where they are yet to be filled in.
        input_scale: Scale of the input.
        weight_scale: Scale of the weights, per output channel or a scalar.
        xp: `keras.ops`, or `host`.
        whole: Whether the input is integers, and not real values on their way through.
    """
    zero = np.zeros_like(weight_scale) if xp is host else no_bias(weight_scale)
    return Accumulator(values, zero, input_scale, weight_scale, whole)


def add_bias(acc: Accumulator, bias: Any, xp: Any = ops) -> Accumulator:
    """Add real values to 32-bit sums, rounded to the sums' own units.

    A channel whose weights are so small beside its bias that the bias would not fit
    in 32 bits gets a larger weight scale; `rescaled` gives the weights that go with it. Sums that
    are there already cannot have another scale: they count as they are, or not at all where that
    is nearer. To real values on their way through, the bias is added as it is.

    Args:
        acc: The sums.
        bias: Real values per channel.
        xp: `keras.ops`, or `host`.

    Returns:
        The sums with the bias added.
    """
    bias = xp.cast(xp.convert_to_tensor(bias), "float32")
    before = acc.weight_scale
    # The sum of all biases must fit, those of before included.
    total = xp.abs(acc.bias * (acc.input_scale * before) + bias)
    needed = xp.maximum(total, xp.abs(bias)) * (np.float32(1 / MAX_BIAS) / acc.input_scale)
    if not len(before.shape):
        # One scale for all channels stays one.
        needed = xp.max(needed)
    floor = xp.maximum(xp.where(acc.whole, needed, np.float32(0)), np.float32(MIN_SCALE))
    floor = xp.stop_gradient(floor)
    enough = xp.abs(before) >= floor
    weight_scale = xp.where(enough, before, xp.where(before < 0, -floor, floor))
    units = round_where(acc.whole, bias * inverse_of(acc.input_scale * weight_scale, xp), xp)
    smaller = acc.bias * xp.stop_gradient(before * inverse_of(weight_scale, xp))
    smaller = round_where(acc.whole, smaller, xp)
    values, high, low = acc.values, acc.high, acc.low
    if values is not None:
        ratio = before * inverse_of(xp.stop_gradient(weight_scale), xp)
        ratio = xp.where(enough, xp.ones_like(ratio), ratio)
        kept = xp.cast(ratio > 0.5, "float32")
        values = values * kept if xp is host else _counted(values, kept, ratio)
        if high is not None:
            high, low = high * kept, low * kept
    bias = xp.where(enough, acc.bias, smaller) + units
    return acc._replace(values=values, bias=bias, weight_scale=weight_scale, high=high, low=low)


def rescaled(n: Any, before: Any, acc: Accumulator, axis: Any, xp: Any = ops) -> Any:
    """Whole numbers of weights for the scale that a bias has left them.

    Args:
        n: The whole numbers.
        before: Their scale, per output channel or a scalar.
        acc: What `add_bias` made of sums with that scale.
        axis: The axes of the channels; None for one scale.
        xp: `keras.ops`, or `host`.

    Returns:
        Whole numbers, with the gradient of the weights.

    Example:

    >>> scale = np.array([2.0**-40, 1.0], "float32")
    >>> acc = add_bias(accumulator(None, np.float32(1), scale, host), [2.0, 2.0], host)
    >>> rescaled(np.array([[127.0, 127.0]]), scale, acc, (-1,), host).tolist()
    [[0.0, 127.0]]
    """
    if acc.weight_scale is before:
        # There is no bias.
        return n
    ratio = before * inverse_of(xp.stop_gradient(acc.weight_scale), xp)
    ratio = xp.where(before == acc.weight_scale, xp.ones_like(ratio), ratio)
    return round_where(acc.whole, n * along(ratio, axis, n.shape, xp), xp)


def scale_channels(acc: Accumulator, factor: Any) -> Accumulator:
    """Multiply 32-bit sums by a real factor per channel, which may be negative.

    The bias counts in the sums' own units, so only the scale changes.
    """
    return acc._replace(weight_scale=acc.weight_scale * factor)


def divide(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The quotient as IEEE 754 rounds it, also where a compiler would multiply by `1 / b`.

    Args:
        a: Values, or a constant.
        b: Values, or a constant if `a` is none.

    Returns:
        `a / b`.
    """
    if isinstance(a, int | float):
        return over(a, b)
    # The maximum is `b`. It hides from compilers that `b` is a scalar or a constant.
    return a / ops.maximum(b, -ops.abs(a) - abs(b))


def unfused(x: Any, xp: Any = ops) -> Any:
    """A product as float32 rounds it, also where a compiler would make one with what follows.

    A fused multiply-add rounds once where kernels round twice, and TensorFlow moves a
    constant factor from one product to the next; the (empty) clamp between keeps them apart.
    """
    return xp.clip(x, -3e38, 3e38)


_EXPONENTS = np.arange(-126, 128)
_POWERS = (2.0**_EXPONENTS).astype("float32")


def binary_exponent(x: Tensor) -> Tensor:
    """`floor(log2(x))` of positive values, exactly.

    Args:
        x: Values of float32 or float64, from 2**-126 to below 2**128.

    Returns:
        int32, of the same shape.

    Example:

    >>> int(binary_exponent(0.75)), int(binary_exponent(4.0))
    (-1, 2)
    """
    x = ops.convert_to_tensor(x)
    powers = ops.cast(ops.convert_to_tensor(_POWERS), x.dtype)
    reached = ops.cast(powers <= ops.expand_dims(x, -1), "int32")
    return ops.cast(ops.sum(reached, axis=-1), "int32") + int(_EXPONENTS[0]) - 1


def power_of_two(exponent: Tensor) -> Tensor:
    """`2.0 ** exponent`, exactly.

    Args:
        exponent: int32, between -126 and 127.

    Returns:
        float32, of the same shape.

    Example:

    >>> float(power_of_two(ops.convert_to_tensor(-2, "int32")))
    0.25
    """
    index = ops.clip(exponent - int(_EXPONENTS[0]), 0, len(_POWERS) - 1)
    return ops.take(ops.convert_to_tensor(_POWERS), index)
