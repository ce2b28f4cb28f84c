"""Rules for tensors: each looks at one tensor of a file."""

from collections.abc import Iterator
from math import prod

import numpy as np

from intact.litert.dtypes import BITS, LIMITS
from intact.litert.reader import FileTensor
from intact.litert.rules.rule import ERROR, Fault, rule


@rule(
    "T101",
    ERROR,
    "tensor",
    example="a tensor of 12 int4 values with 12 bytes of data, where 6 are expected",
    remedy="Export the model again",
)
def data_of_wrong_size(t: FileTensor) -> Iterator[Fault]:
    """A constant has more or fewer bytes than its type and shape need.

    Kernels read as many bytes as shape and type imply, or refuse the file. Types of less than 8
    bits
    share bytes: the first value stands in the lowest bits, over all dimensions.
    """
    bits = BITS.get(t.dtype)
    if t.data is None or bits is None or None in t.shape:
        return
    count = prod(size or 0 for size in t.shape)
    expected = (count * bits + 7) // 8
    if len(t.data) != expected:
        what = f"{count} values of {t.dtype} take {expected} bytes, and it has {len(t.data)}"
        packing = f"Pack {8 // bits} values into a byte, the first one lowest, over all dimensions"
        yield Fault(what, t, packing if bits < 8 else "")


@rule(
    "T102",
    ERROR,
    "tensor",
    example="scale 0, or NaN",
    remedy="Calibrate on data that is finite, and export again",
)
def scale_not_positive(t: FileTensor) -> Iterator[Fault]:
    """A scale is not a positive number.

    An integer stands for scale * (integer - zero point), and kernels divide by scales. Data with
    infinite values or NaN gives a range without a scale.
    """
    bad = t.scales[~(np.isfinite(t.scales) & (t.scales > 0))]
    if len(bad):
        what = f"{len(bad)} of its {len(t.scales)} scales are no positive numbers, such as {bad[0]}"
        yield Fault(what, t)


@rule("T103", ERROR, "tensor", example="scale 1e-40", remedy="Take a larger range")
def scale_too_small(t: FileTensor) -> Iterator[Fault]:
    """A scale is smaller than the normal numbers of float32.

    Kernels refuse it: its inverse is infinite, or the processor takes it to be 0.
    """
    if (np.isfinite(t.scales) & (t.scales > 0)).all() and (
        t.scales < np.finfo("float32").tiny
    ).any():
        what = f"its scale {t.scales.min()} is smaller than normal numbers, and kernels refuse it"
        yield Fault(what, t)


@rule(
    "T104",
    ERROR,
    "tensor",
    example="3 scales and 1 zero point",
    remedy="Write one zero point for each scale",
)
def zero_points_missing(t: FileTensor) -> Iterator[Fault]:
    """A quantized tensor has another number of zero points than of scales.

    Runtimes read them in pairs, and some read beyond the end.
    """
    if t.quantized and len(t.zero_points) != len(t.scales):
        yield Fault(f"it has {len(t.scales)} scales and {len(t.zero_points)} zero points", t)


@rule(
    "T105",
    ERROR,
    "tensor",
    example="int8 with the zero point 128",
    remedy="Widen the range to hold zero, and export again",
)
def zero_point_outside_type(t: FileTensor) -> Iterator[Fault]:
    """A zero point is not a value of the tensor's type.

    The zero point is the integer that stands for 0. Padding and ReLU write it, so it must exist.
    """
    low, high = LIMITS.get(t.dtype, (-(2**63), 2**63 - 1))
    outside = t.zero_points[(t.zero_points < low) | (t.zero_points > high)]
    if t.quantized and len(outside):
        what = f"its zero point {outside[0]} is not in {low} to {high}, the values of {t.dtype}"
        yield Fault(what, t)


@rule(
    "T106",
    ERROR,
    "tensor",
    example="int16 with the zero point 5",
    remedy="Make the range symmetric",
)
def int16_zero_point(t: FileTensor) -> Iterator[Fault]:
    """An int16 tensor has a zero point other than 0.

    The kernels for int16 assume that it is 0.
    """
    if t.quantized and t.dtype == "int16" and t.zero_points.any():
        yield Fault(f"its zero point is {t.zero_points[0]}, and int16 kernels assume 0", t)


@rule(
    "T107",
    ERROR,
    "tensor",
    example="3 scales for dimension 0 of shape (2, 4)",
    remedy="Write one scale for each index of that dimension",
)
def scales_do_not_fit_dimension(t: FileTensor) -> Iterator[Fault]:
    """The number of scales is not the size of their dimension.

    A tensor has one scale, or one for each index of one dimension.
    """
    if len(t.scales) > 1 and t.groups.scales_of(t.shape) != len(t.scales):
        what = f"its {len(t.scales)} scales are for dimension {t.groups.axis} of shape {t.shape}"
        yield Fault(what, t)
