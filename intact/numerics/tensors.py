"""Tells symbolic, whole and trainable tensors apart, and reads values on the host."""

from typing import Any

import numpy as np
from keras import KerasTensor, Variable

from intact.numerics.light_ops import ops

Tensor = Any
"""A tensor of the active Keras backend."""


def to_numpy(x: Any) -> np.ndarray:
    """A tensor, variable or number as a numpy array."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    # numpy cannot read a variable of TensorFlow's strategies, but its tensor.
    return np.asarray(
        ops.convert_to_numpy(ops.convert_to_tensor(x) if isinstance(x, Variable) else x)
    )


def symbols(*shapes: tuple[int | None, ...]) -> list[KerasTensor]:
    """Real tensors of a graph, by their shapes."""
    return [KerasTensor(shape, "float32") for shape in shapes]


def broadcast_sizes(*shapes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The shape that shapes of the same rank broadcast to; None is an unknown size.

    Example:

    >>> broadcast_sizes((None, 1, 3), (1, 4, 1))
    (None, 4, 3)
    """
    sizes = []
    for along in zip(*shapes, strict=True):
        known = {size for size in along if size not in (1, None)}
        if len(known) > 1:
            raise ValueError(f"Shapes {shapes} do not broadcast.")
        sizes.append(next(iter(known), None if None in along else 1))
    return tuple(sizes)


def is_symbolic(value: Any) -> bool:
    """Whether a call's argument is a tensor of a graph rather than a constant."""
    return isinstance(value, KerasTensor)


def is_whole(value: Any) -> bool:
    """Whether a tensor, array or number holds whole numbers or truth values.

    Whole numbers are never quantized: they keep their type, in Keras and in the file. Only this
    function tells them from real values.

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
