"""Rules for the weights and biases of kernels that sum products."""

from collections.abc import Iterator

import numpy as np

from intact.litert.reader import FileTensor
from intact.litert.rules.rule import ERROR, WARNING, Fault, OpContext, rule


@rule(
    "W501", ERROR, "integer op", example="int8 weights without a scale", remedy="Write their scales"
)
def weights_without_scale(context: OpContext) -> Iterator[Fault]:
    """The weights of an integer kernel have no scale.

    The kernel rescales its sums by the scales of input, weights and output.
    """
    if context.weights is not None and not context.weights.quantized:
        yield Fault("the weights have no scale", context.weights)


@rule(
    "W502", ERROR, "integer op", example="a TRANSPOSE_CONV with int4 weights", remedy="Take 8 bits"
)
def weights_too_narrow(context: OpContext) -> Iterator[Fault]:
    """The weights have fewer bits than any kernel of this op takes.

    The runtime refuses the file.
    """
    w = _quantized_weights(context)
    if w is not None and w.dtype in ("int2", "int4") and w.kind not in context.kernel.narrow:
        yield Fault(f"{context.op.name} has no kernel for {w.kind} weights", w)


@rule(
    "W503",
    ERROR,
    "integer op",
    example="int8 weights with the zero point 3",
    remedy="Quantize weights symmetrically",
)
def weights_with_zero_point(context: OpContext) -> Iterator[Fault]:
    """Signed weights have a zero point other than 0.

    Kernels assume 0, since the sums then need no correction for each output.
    """
    w = _quantized_weights(context)
    if w is None or w.dtype not in ("int8", "int4", "int2") or w.data is None:
        return
    if w.zero_points.any():
        yield Fault("the weights have a zero point, and kernels assume 0", w)


@rule(
    "W504",
    ERROR,
    "integer op",
    example="a DEPTHWISE_CONV_2D with scales for dimension 0; the kernel takes dimension 3",
    remedy="Quantize per output channel",
)
def weights_scaled_along_wrong_dimension(context: OpContext) -> Iterator[Fault]:
    """The scales of the weights are not those of output channels.

    All products in a sum must have one scale, so only the output channels may differ.
    """
    w, places = _quantized_weights(context), context.kernel.weights
    if w is None or places is None or len(w.scales) == 1:
        return
    if w.groups.axis != places.axis:
        yield Fault(
            f"the weights' scales are for dimension {w.groups.axis}, and the kernel takes them for "
            f"dimension {places.axis}",
            w,
        )


@rule(
    "W505",
    WARNING,
    "integer op",
    example="int8 weights with the value -128",
    remedy="Quantize weights to -127 to 127",
)
def weights_of_minus_128(context: OpContext) -> Iterator[Fault]:
    """Some int8 weights are -128.

    Kernels that add two products in 16 bits rely on -127 to 127, and overflow.
    """
    w = _quantized_weights(context)
    if w is None or w.dtype != "int8" or w.data is None:
        return
    if np.any(np.frombuffer(w.data, "int8") == -128):
        what = "weights of -128 are outside the symmetric range, and some runtimes overflow"
        yield Fault(what, w)


@rule(
    "W506",
    ERROR,
    "integer op",
    example="an LSTM whose input weights have 4 scales",
    remedy="Quantize each weight of a gate with one scale",
)
def gate_weights_per_channel(context: OpContext) -> Iterator[Fault]:
    """A weight of an LSTM has a scale per channel.

    The kernel takes the first scale for all channels.
    """
    if context.op.name != "UNIDIRECTIONAL_SEQUENCE_LSTM":
        return
    for w in context.op.inputs[1:9]:
        if w is not None and len(w.scales) > 1:
            yield Fault(f"it has {len(w.scales)} scales, and the kernel takes the first for all", w)


@rule(
    "B601",
    ERROR,
    "integer op",
    example="an int64 bias beside int8 activations",
    remedy="Write it as int32",
)
def bias_of_wrong_type(context: OpContext) -> Iterator[Fault]:
    """The bias does not have the type of the kernel's sums.

    Sums of int8 products are int32; those with int16 activations are int32 or int64.
    """
    bias = _bias(context)
    types = _sum_types(context)
    if bias is not None and bias.dtype not in types:
        yield Fault(f"the bias is {bias.dtype}", bias, f"Write it as {' or '.join(types)}")


@rule(
    "B602",
    ERROR,
    "integer op",
    example="a bias with the zero point 1",
    remedy="Quantize biases symmetrically",
)
def bias_with_zero_point(context: OpContext) -> Iterator[Fault]:
    """The bias has a zero point other than 0.

    The kernel adds the stored integers to its sums, as they are.
    """
    bias = _typed_bias(context)
    if bias is not None and bias.zero_points.any():
        what = f"the bias has the zero point {bias.zero_points[0]}, and kernels assume 0"
        yield Fault(what, bias)


@rule(
    "B603",
    WARNING,
    "integer op",
    example="an int32 bias without a scale",
    remedy="Write those of the sums: the input's times the weights'",
)
def bias_without_scale(context: OpContext) -> Iterator[Fault]:
    """The bias has no scale.

    LiteRT needs none, since the scales of input and weights tell it. Compilers may read it.
    """
    bias = _typed_bias(context)
    if bias is not None and not (bias.quantized and context.data[0].quantized):
        yield Fault("the bias has no scale", bias)


@rule(
    "B604",
    ERROR,
    "integer op",
    example="3 scales of the bias, 2 of the weights",
    remedy="Write one scale for each channel of the weights",
)
def bias_scales_do_not_fit_weights(context: OpContext) -> Iterator[Fault]:
    """The bias has another number of scales than the weights.

    The scale of the bias is that of the sums, of which each output channel has one.
    """
    bias, expected = _typed_bias(context), _sum_scales(context)
    if bias is not None and expected is not None and len(bias.scales) not in (1, len(expected)):
        yield Fault(
            f"the bias has {len(bias.scales)} scales, and the weights have {len(expected)}", bias
        )


@rule(
    "B605",
    ERROR,
    "integer op",
    example="input scale 0.5, weight scale 0.2, bias scale 0.2; it must be 0.1",
    remedy="Quantize the bias by that scale",
)
def bias_scale_not_of_sums(context: OpContext) -> Iterator[Fault]:
    """The scale of the bias is not the input's times the weights'.

    The kernel adds the bias to sums of products, which have that scale. A bias of zeros may have
    any scale.
    """
    bias, expected = _typed_bias(context), _sum_scales(context)
    if bias is None or expected is None or len(bias.scales) not in (1, len(expected)):
        return
    with np.errstate(all="ignore"):
        error = np.abs(bias.scales / expected - 1)
    is_zero = bias.data is not None and not any(bias.data)
    if is_zero or (error <= 1e-5).all():
        return
    channel = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    written = bias.scales[min(channel, len(bias.scales) - 1)]
    yield Fault(
        f"the bias has the scale {written:.6g} in channel {channel}, and kernels take that of "
        f"the input times that of the weights, {expected[min(channel, len(expected) - 1)]:.6g}",
        bias,
    )


def _quantized_weights(context: OpContext) -> FileTensor | None:
    w = context.weights
    return w if w is not None and w.quantized else None


def _bias(context: OpContext) -> FileTensor | None:
    """The bias beside quantized weights."""
    return context.bias if _quantized_weights(context) is not None else None


def _sum_types(context: OpContext) -> tuple[str, ...]:
    return ("int32", "int64") if context.data[0].dtype == "int16" else ("int32",)


def _typed_bias(context: OpContext) -> FileTensor | None:
    """The bias, if it has the type of sums."""
    bias = _bias(context)
    return bias if bias is not None and bias.dtype in _sum_types(context) else None


def _sum_scales(context: OpContext) -> np.ndarray | None:
    """The scales of the sums: the input's times the weights'."""
    x, w, bias = context.data[0], _quantized_weights(context), _typed_bias(context)
    if w is None or bias is None or not (bias.quantized and x.quantized):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(x.scales[0].astype("float64") * w.scales.astype("float64"))
