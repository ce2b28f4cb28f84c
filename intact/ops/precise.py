"""Operations of Keras on float64.

Keras computes some operations on float64 in float32, or with float32 constants; which ones depends
on the backend. Tables of 16 bits need full precision.
"""

from collections.abc import Callable
from math import pi
from typing import Any

from keras import ops

from intact.numerics.backend_kernels import native
from intact.numerics.tensors import Tensor

_NARROWED = {
    "Arccos": "arccos",
    "Arccosh": "arccosh",
    "Arcsin": "arcsin",
    "Arcsinh": "arcsinh",
    "Arctan": "arctan",
    "Arctan2": "arctan2",
    "Arctanh": "arctanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Equal": "equal",
    "Floor": "floor",
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "NotEqual": "not_equal",
    "Sin": "sin",
    "Sinh": "sinh",
    "Tan": "tan",
    "Tanh": "tanh",
}


def between(x: Tensor, lower: float | None, upper: float | None) -> Tensor:
    """Values of float64 between two limits.

    Args:
        x: The values.
        lower: The lower limit, or None.
        upper: The upper limit, or None.

    Returns:
        The values; what is beyond a limit is the limit.
    """
    for limit, kernel in ((lower, "maximum"), (upper, "minimum")):
        if limit is not None:
            x = native(kernel)(x, ops.convert_to_tensor(limit, "float64"))
    return x


def _gelu(x: Tensor, approximate: bool) -> Tensor:
    if approximate:
        return 0.5 * x * (1.0 + native("tanh")((2 / pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))


def _leaky_relu(x: Tensor, negative_slope: float) -> Tensor:
    return ops.where(x >= 0.0, x, negative_slope * x)


def _cast(x: Tensor, **_: Any) -> Tensor:
    return ops.cast(x, "float64")


PRECISE: dict[str, Callable] = {
    "Cast": _cast,
    "Clip": lambda x, x_min, x_max: between(x, x_min, x_max),
    "Gelu": _gelu,
    "LeakyRelu": _leaky_relu,
    **{name: native(function) for name, function in _NARROWED.items()},
}
"""The float64 form of operations, by the class name of the operation."""
