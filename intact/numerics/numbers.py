"""The few numbers of a tensor, such as its range and scale: what computes and keeps them."""

from typing import Any

import numpy as np

from intact.numerics.backend_kernels import TORCH
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops

if TORCH:
    from intact.numerics import torch_kernels


def number_ops(x: Any, *scalars: Any) -> Any:
    """The operations to compute the few numbers of a tensor with, such as its range and scale.

    Torch takes longer to call an operation than numpy takes to compute it.

    Args:
        x: The tensor.
        *scalars: What the numbers are computed from.

    Returns:
        `numpy_ops` where torch computes op by op on this machine's processor, and the scalars
        have no gradient; else `keras.ops`.
    """
    return numpy_ops if TORCH and torch_kernels.on_host(x, *scalars) else ops


def from_number(x: Any) -> Any:
    """A number of `number_ops` as a scalar tensor; a tensor stays as it is."""
    if ops.is_tensor(x):
        return x
    return torch_kernels.from_number(float(x)) if TORCH else ops.convert_to_tensor(x)


def read_numbers(variable: Any, xp: Any) -> Any:
    """A copy of the values of a variable that does not train.

    Args:
        variable: The variable.
        xp: What computes with the values: `keras.ops`, or `numpy_ops`.
    """
    values = torch_kernels.numbers(variable) if TORCH and xp is numpy_ops else None
    if values is not None:
        return values.copy()
    # Torch and TensorFlow would give the variable itself, which later calls change.
    return xp.convert_to_tensor(variable) * np.float32(1)


def write_numbers(variable: Any, values: Any, xp: Any) -> None:
    """Assign values to a variable that does not train.

    Args:
        variable: The variable.
        values: Of its shape.
        xp: What computed the values: `keras.ops`, or `numpy_ops`.
    """
    stored = torch_kernels.numbers(variable) if TORCH and xp is numpy_ops else None
    if stored is None:
        variable.assign(values)
    else:
        # Keras' own way takes longer than all else that a range costs.
        stored[...] = values


def true(xp: Any = ops) -> Any:
    """A scalar that is true.

    Args:
        xp: `keras.ops`; or `numpy_ops`, of `number_ops`, for one that `holds` knows.
    """
    return torch_kernels.TRUE if TORCH and xp is numpy_ops else ops.ones((), "bool")
