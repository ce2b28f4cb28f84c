"""What a single backend needs or does better, behind one function each."""

import contextlib
from typing import Any

import keras
from keras import ops

TORCH = keras.backend.backend() == "torch"

if TORCH:
    from intact import torch_kernels


def exact_convolution() -> contextlib.AbstractContextManager:
    """A context in which convolutions of whole numbers are exact.

    Torch computes small batches with NNPACK's Winograd transform, whose intermediate
    values are not whole numbers; it is switched off inside.
    """
    if TORCH:
        import torch

        return torch.backends.nnpack.flags(enabled=False)
    return contextlib.nullcontext()


def inverse(x: Any) -> Any:
    """`1 / x`, rounded as IEEE 754 says.

    TensorFlow turns a division of 1 into an approximate reciprocal, off by one unit in the
    last place in a third of all cases; of this numerator it does not know that it is 1.
    """
    if keras.backend.backend() == "tensorflow":
        return ops.minimum(ops.abs(x) + 1.0, 1.0) / x
    return 1.0 / x


def sqrt(x: Any) -> Any:
    """The square root, rounded as IEEE 754 says.

    Torch's own for float32 on CPUs is off by one unit in the last place in one of six
    cases, which is enough to make a scale differ from that of the file.
    """
    if TORCH:
        return ops.cast(ops.sqrt(ops.cast(x, "float64")), "float32")
    return ops.sqrt(x)


def moments(x: Any, centre: Any) -> tuple[Any, Any]:
    """Mean and variance over all axes but the last.

    Args:
        x: Values.
        centre: About the mean, per channel: near enough for a difference of squares to be
            precise, so that one pass over the data does.

    Returns:
        `(mean, variance)`, per channel.
    """
    if TORCH:
        return torch_kernels.Moments.apply(x)
    axes = tuple(range(len(x.shape) - 1))
    centre = ops.stop_gradient(centre)
    offset = x - centre
    shift = ops.mean(offset, axes)
    return centre + shift, ops.maximum(ops.mean(ops.square(offset), axes) - ops.square(shift), 0.0)
