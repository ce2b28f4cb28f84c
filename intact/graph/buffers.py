"""Tensors of zeros that a `call` makes, and then writes into.

Code that loops over steps starts from zeros, and writes each step's part into them. While the code
runs on symbolic tensors, the zeros are a symbolic tensor, too, so that Keras' loops and updates
see that their values are not known.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras.src.ops.node import Node as KerasNode

from intact.numerics.tensors import is_symbolic


class Fill(keras.Operation):
    """Makes the zeros of a `Buffer`.

    Args:
        values: The zeros.
    """

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.values = values


class Buffer(keras.KerasTensor):
    """A symbolic tensor of known values, until items are assigned.

    Args:
        values: An array of the backend.
    """

    _keras_history: Any

    def __init__(self, values: Any) -> None:
        dtype = keras.backend.standardize_dtype(values.dtype)
        super().__init__(tuple(values.shape), dtype)
        KerasNode(operation=Fill(values), call_args=(), call_kwargs={}, outputs=[self])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        operation = self._keras_history.operation
        if not isinstance(operation, Fill) or hasattr(self, "latest"):
            raise TypeError("the values of this tensor are not known while the model is traced")
        return ops.convert_to_numpy(operation.values).astype(dtype or self.dtype)


def known_values(tensor: Any) -> Any:
    """The values of a `Buffer` that nothing has been written into; None for other tensors."""
    operation = tensor._keras_history.operation if hasattr(tensor, "_keras_history") else None
    return operation.values if isinstance(operation, Fill) else None


@contextlib.contextmanager
def symbolic_zeros() -> Iterator[None]:
    """Inside a `with` block, `keras.ops.zeros` returns a symbolic tensor."""
    zeros = ops.zeros

    def buffer(shape: Any, dtype: Any = None) -> Any:
        values = zeros(shape, dtype)
        return values if is_symbolic(values) or not values.shape else Buffer(values)

    ops.zeros = buffer
    try:
        yield
    finally:
        ops.zeros = zeros
