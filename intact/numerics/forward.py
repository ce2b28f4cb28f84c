"""Tells computations that need gradients from those that run forward alone."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

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


def infer(model: keras.Model, inputs: Any) -> Any:
    """The outputs of a model in inference, for a single batch.

    JAX compiles each operation that it runs alone, so it gets the whole model at once.

    Args:
        model: Any model.
        inputs: Tensors, nested as the model takes them.

    Returns:
        The outputs, nested as the model returns them.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
    >>> y = infer(model, keras.ops.convert_to_tensor([[-1.0, 2.0]]))
    >>> keras.ops.convert_to_numpy(y).tolist()
    [[0.0, 2.0]]
    """
    if keras.backend.backend() == "jax":
        import jax

        values = [[v.value for v in model.trainable_variables]]
        values.append([v.value for v in model.non_trainable_variables])
        run = jax.jit(lambda *args: model.stateless_call(*args, training=False)[0])
        # A `call` that branches by values cannot be compiled.
        with contextlib.suppress(jax.errors.JAXTypeError):
            return run(*values, inputs)
    return model(inputs, training=False)
