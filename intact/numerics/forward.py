"""Tells computations that need gradients from those that run forward alone."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import keras

_forward_only: ContextVar[bool] = ContextVar("forward_only", default=False)


def no_gradients() -> contextlib.AbstractContextManager:
    """A context without gradients; outside of it, only PyTorch records calls for them."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()


@contextlib.contextmanager
def forward_only() -> Iterator[None]:
    """A context in which nobody asks for gradients, so that none are prepared."""
    before = _forward_only.set(True)
    try:
        yield
    finally:
        _forward_only.reset(before)


def needs_gradients() -> bool:
    """Whether gradients may be asked for.

    Returns:
        False inside of `forward_only`, and where torch records nothing.

    Example:

    >>> with forward_only():
    ...     needs_gradients()
    False
    """
    if _forward_only.get():
        return False
    if keras.backend.backend() == "torch":
        import torch

        return torch.is_grad_enabled()
    return True
