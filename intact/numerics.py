"""Affine quantization: parameters, rounding and straight-through gradients.

Everything that trains works on *integer values held in floats*: an activation is
`scale * n` with `n = q - zero_point` a small integer, so that convolutions of such
values are exact in float32 and equal to what an integer kernel computes.

Source of the formulas: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877), and the LiteRT
8-bit specification.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor, Variable, ops

from intact.kernels import inverse

Tensor = Any
"""A tensor of the active Keras backend."""

MIN_SCALE = float(np.float32(2.0**-60))
"""Floor of every scale: far below any real one, far above the denormals."""

MAX_BIAS = float(np.float32(2.0**30))
"""Largest magnitude of an int32 bias: room is left for the products added to it."""


class QTensor(NamedTuple):
    """A quantized activation: `real = values * scale`, `values = q - zero_point`."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor


class Accumulator(NamedTuple):
    """The 32-bit sums of an op: `real = (values + bias) * input_scale * weight_scale`.

    The scales stay apart because kernels multiply them in this order; the sign of a
    batch norm's factor lives in `weight_scale` until export. `bias` is the int32 bias.
    """

    values: Tensor
    bias: Tensor
    input_scale: Tensor
    weight_scale: Tensor


def unquantized(real: Tensor) -> QTensor:
    """Real values where integers are expected: the zero point 0.5 tells them apart."""
    one = ops.ones((), "float32")
    return QTensor(real, one, one * 0.5)


def is_integer(x: QTensor) -> Tensor:
    """Whether a triple holds integers, and not real values on their way through."""
    return x.zero_point == ops.round(x.zero_point)


def integer_range(bits: int, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest signed integer of a width.

    Args:
        bits: Width in bits, 2 to 16.
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


def affine_params(
    minimum: Tensor, maximum: Tensor, bits: int = 8, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover a range of real values.

    The range is widened to contain 0, which then is exactly representable. A range
    that is just `{0}` gets scale 1.

    Args:
        minimum: Smallest real value, any shape.
        maximum: Largest real value, same shape.
        bits: Width in bits.
        symmetric: Force the zero point to 0.

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
    scale = ops.where(span > 0, ops.maximum(span * np.float32(1 / steps), MIN_SCALE), 1.0)
    if symmetric:
        return scale, ops.zeros_like(scale)
    zero_point = ops.clip(ops.round(low - minimum / scale), low, high)
    return scale, zero_point


def to_numpy(x: Any) -> np.ndarray:
    """A tensor, variable or number as a numpy array."""
    return np.asarray(ops.convert_to_numpy(x.value if isinstance(x, Variable) else x))


def is_symbolic(value: Any) -> bool:
    """Whether a call's argument is a tensor of a graph rather than a constant."""
    return isinstance(value, KerasTensor)


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
def finite_gradient(x: Tensor) -> Tensor:
    """The value itself; a gradient that is infinite or not a number becomes 0."""

    def grad(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
        g = _upstream(args, upstream)
        return ops.where(ops.isfinite(g), g, ops.zeros_like(g))

    return x, grad


host = SimpleNamespace(
    abs=np.abs,
    cast=lambda x, dtype: np.asarray(x, dtype),
    convert_to_tensor=lambda x: to_numpy(x).astype("float32", copy=False),
    clip=np.clip,
    max=np.max,
    floor=np.floor,
    maximum=np.maximum,
    min=np.min,
    minimum=np.minimum,
    ones=np.ones,
    ones_like=np.ones_like,
    power=np.power,
    reshape=np.reshape,
    round=np.rint,
    segment_sum=lambda data, ids, num_segments: np.bincount(ids, data, num_segments),
    stop_gradient=lambda x: x,
    sum=np.sum,
    where=np.where,
    zeros_like=np.zeros_like,
)
"""The part of `keras.ops` that weights and biases need, in numpy.

Passed as `xp` when a file is written: fast, and to the same bits on every backend.
"""


def _round(x: Any, xp: Any) -> Any:
    return xp.round(x) if xp is host else straight_through(xp.round(x), x)


def _inverse(x: Any, xp: Any) -> Any:
    return np.float32(1) / x if xp is host else inverse(x)


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
    scale = xp.where(
        span > 0, xp.maximum(span * np.float32(1 / steps), np.float32(MIN_SCALE)), np.float32(1)
    )
    if symmetric:
        return scale, xp.zeros_like(scale)
    return scale, xp.clip(xp.round(low - minimum * _inverse(scale, xp)), low, high)


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
    n = w * _inverse(scale, xp)
    if not symmetric:
        # A rounded zero point may leave an end of the range just outside.
        low, high = integer_range(bits)
        n = xp.minimum(xp.maximum(n, low - zero_point), high - zero_point)
    return _round(n, xp), xp.reshape(scale, () if axis is None else (-1,))


def half_precision(w: Any, xp: Any = ops) -> Any:
    """Values as float16 has them, with a straight-through gradient."""
    w = xp.cast(xp.convert_to_tensor(w), "float32")
    half = xp.cast(xp.cast(w, "float16"), "float32")
    return half if xp is host else straight_through(half, w)


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


def accumulator(values: Any, input_scale: Any, weight_scale: Any, xp: Any = ops) -> Accumulator:
    """Sums without a bias yet."""
    return Accumulator(values, xp.zeros_like(weight_scale), input_scale, weight_scale)


def add_bias(acc: Accumulator, bias: Any, xp: Any = ops) -> Accumulator:
    """Add real values to 32-bit sums, rounded to the sums' own units.

    A channel whose weights are so small beside its bias that the bias would not fit
    in 32 bits gets a larger weight scale; its weights hardly count, then as before.

    Args:
        acc: The sums.
        bias: Real values per channel.
        xp: `keras.ops`, or `host`.

    Returns:
        The sums with the bias added.
    """
    bias = xp.cast(xp.convert_to_tensor(bias), "float32")
    floor = xp.abs(bias) * (np.float32(1 / MAX_BIAS) / acc.input_scale)
    floor = xp.stop_gradient(xp.maximum(floor, np.float32(MIN_SCALE)))
    weight_scale = xp.where(
        xp.abs(acc.weight_scale) >= floor,
        acc.weight_scale,
        xp.where(acc.weight_scale < 0, -floor, floor),
    )
    units = _round(bias * _inverse(acc.input_scale * weight_scale, xp), xp)
    return acc._replace(bias=acc.bias + units, weight_scale=weight_scale)


def scale_channels(acc: Accumulator, factor: Any) -> Accumulator:
    """Multiply 32-bit sums by a real factor per channel, which may be negative.

    The bias counts in the sums' own units, so only the scale changes.
    """
    return acc._replace(weight_scale=acc.weight_scale * factor)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """The quotient as IEEE 754 rounds it, also where a compiler would multiply by `1 / b`.

    Args:
        a: Values.
        b: A positive scalar.

    Returns:
        `a / b`.
    """
    # The maximum is `b`; that it is no scalar any more keeps the compiler from it.
    return a / ops.maximum(b, -ops.abs(a))


def unfused(x: Tensor) -> Tensor:
    """A product as float32 rounds it, also where a compiler would fuse a sum to it.

    A fused multiply-add rounds once where kernels round twice; the (empty) clamp
    between the two keeps them apart.
    """
    return ops.clip(x, -3e38, 3e38)


_EXPONENTS = np.arange(-126, 128)
_POWERS = (2.0**_EXPONENTS).astype("float32")


def binary_exponent(x: Tensor) -> Tensor:
    """`floor(log2(x))` of positive values, exactly.

    Args:
        x: Values of float32, no denormal ones.

    Returns:
        int32, of the same shape.

    Example:

    >>> int(binary_exponent(0.75)), int(binary_exponent(4.0))
    (-1, 2)
    """
    powers = ops.convert_to_tensor(_POWERS)
    reached = ops.cast(powers <= ops.expand_dims(x, -1), "int32")
    return ops.sum(reached, axis=-1) + int(_EXPONENTS[0]) - 1


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
