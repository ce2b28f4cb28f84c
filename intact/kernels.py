"""What a single backend needs or does better, behind one function each."""

import contextlib

import keras


def exact_convolution() -> contextlib.AbstractContextManager:
    """A context in which convolutions of whole numbers are exact.

    Torch computes small batches with NNPACK's Winograd transform, whose intermediate
    values are not whole numbers; it is switched off inside.
    """
    if keras.backend.backend() == "torch":
        import torch

        return torch.backends.nnpack.flags(enabled=False)
    return contextlib.nullcontext()
