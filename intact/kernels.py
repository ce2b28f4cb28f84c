"""What a single backend needs or does better, behind one function each."""

import contextlib
from typing import Any

import keras
from keras import ops


def exact_convolution() -> contextlib.AbstractContextManager:
    """A context in which convolutions of whole numbers are exact.

    Torch computes small batches with NNPACK's Winograd transform, whose intermediate
    values are not whole numbers; it is switched off inside.
    """
    if keras.backend.backend() == "torch":
        import torch

        return torch.backends.nnpack.flags(enabled=False)
    return contextlib.nullcontext()


def no_gradients() -> contextlib.AbstractContextManager:
    """A context in which calls remember nothing for gradients; only torch would, outside one."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.no_grad()
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
    if keras.backend.backend() == "torch":
        return ops.cast(ops.sqrt(ops.cast(x, "float64")), "float32")
    return ops.sqrt(x)
