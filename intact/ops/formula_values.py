"""Formulas of values: functions of one tensor or two, and truths about values."""

from collections.abc import Callable
from functools import partial
from math import pi
from typing import Any

import numpy as np
from keras import ops

from intact.numerics.tensors import Tensor, is_whole
from intact.ops.base import Case

LARGEST = float(np.finfo("float32").max)

NEAR = (
    1.50140941,
    0.246640727,
    -4.17768164e-3,
    -1.25372503e-3,
    2.1858087e-4,
    -4.39150654e-6,
    -3.5233877e-6,
    3.43273939e-7,
    2.81022636e-8,
)
FAR = (
    2.83297682,
    1.00167406,
    9.43887047e-3,
    -7.6224613e-3,
    5.73950773e-3,
    -3.67342844e-3,
    1.34934322e-3,
    1.00950558e-4,
    -2.00214257e-4,
)
"""The inverse of the error function, in the middle and near the ends (Giles, 2010, table 5)."""

SMALL = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
LARGE = (
    0.39894228,
    0.01328592,
    0.00225319,
    -0.00157565,
    0.00916281,
    -0.02057706,
    0.02635537,
    -0.01647633,
    0.00392377,
)
"""The Bessel function of order 0 (Abramowitz and Stegun, 9.8.1 and 9.8.2)."""


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """The value of a polynomial, whose coefficients begin with the constant."""
    total: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _erfinv(layer: Any, x: Tensor) -> Tensor:
    w = -ops.log((1.0 - x) * (1.0 + x))
    far = _polynomial(ops.sqrt(ops.maximum(w, 5.0)) - 3.0, FAR)
    return x * ops.where(w < 5.0, _polynomial(w - 2.5, NEAR), far)


def _bessel(layer: Any, x: Tensor) -> Tensor:
    size = ops.abs(x)
    large = ops.maximum(size, 3.75)
    tail = ops.exp(size) / ops.sqrt(large) * _polynomial(3.75 / large, LARGE)
    near = ops.minimum(size, 3.75) * (1 / 3.75)
    return ops.where(size < 3.75, _polynomial(near * near, SMALL), tail)


def _sinc(layer: Any, x: Tensor) -> Tensor:
    y = ops.where(ops.abs(x) < 1e-6, 1e-6, x) * pi
    return ops.sin(y) / y


def _angle_of(layer: Any, y: Tensor, x: Tensor) -> Tensor:
    """The angle of a point: a table of the ratio of its sides, which is 1 at most."""
    height, width = ops.abs(y), ops.abs(x)
    longer = ops.maximum(ops.maximum(height, width), 1e-30)
    angle = ops.arctan(ops.minimum(height, width) / longer)
    angle = ops.where(height > width, pi / 2 - angle, angle)
    angle = ops.where(x < 0.0, pi - angle, angle)
    return ops.where(y < 0.0, -angle, angle)


def _log_added(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    return ops.maximum(a, b) + ops.softplus(-ops.abs(a - b))


def _log2_added(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    return ops.maximum(a, b) + ops.log2(ops.exp2(-ops.abs(a - b)) + 1.0)


def _divided(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    nothing = ops.equal(b, 0.0)
    return ops.where(nothing, 0.0, a / ops.where(nothing, 1.0, b))


def _step(layer: Any, x: Tensor, at_zero: Any) -> Tensor:
    return ops.where(x < 0.0, 0.0, ops.where(x > 0.0, 1.0, at_zero))


def _close(layer: Any, a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> Tensor:
    return ops.abs(a - b) <= ops.abs(b) * rtol + atol


def _same(layer: Any, x: Tensor) -> Tensor:
    """The tensor itself, because its values are real."""
    return ops.convert_to_tensor(x)


def _among(layer: Any, x: Tensor, values: Any) -> Tensor:
    matches = ops.any(ops.equal(ops.expand_dims(x, -1), ops.reshape(values, (-1,))), axis=-1)
    return ops.logical_not(matches) if layer.invert else matches


def _normalized(
    layer: Any, x: Tensor, mean: Any, variance: Any, offset: Any = None, scale: Any = None
) -> Tensor:
    """A batch norm with given statistics."""
    shape = [-1 if axis == layer.axis % len(x.shape) else 1 for axis in range(len(x.shape))]
    mean, variance, offset, scale = (
        None if part is None else ops.reshape(part, shape)
        for part in (mean, variance, offset, scale)
    )
    factor = ops.rsqrt(variance + layer.epsilon)
    y = (x - mean) * (factor if scale is None else factor * scale)
    return y if offset is None else y + offset


def _limited(layer: Any, x: Tensor) -> Tensor:
    """A cast whose values end where the type does."""
    if "float" in layer.dtype:
        return ops.cast(x, layer.dtype)
    limits = np.iinfo(layer.dtype)
    return ops.cast(ops.clip(x, int(limits.min), int(limits.max)), layer.dtype)


def _selected(layer: Any, conditions: list[Any], choices: list[Any], default: Any = 0) -> Any:
    """The first choice whose condition holds."""
    chosen = default
    for condition, choice in zip(conditions[::-1], choices[::-1], strict=True):
        chosen = ops.where(condition, choice, chosen)
    return chosen


def _beyond(*limits: Callable[[Any], Any]) -> Callable[..., Any]:
    """Whether a value is infinite; a whole number never is."""

    def check(layer: Any, x: Tensor) -> Tensor:
        real = ops.cast(x, "float32") if is_whole(x) else x
        limits_reached = [limit(real) for limit in limits]
        return limits_reached[0] if len(limits_reached) == 1 else ops.logical_or(*limits_reached)

    return check


FORMULAS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("Conjugate", "Copy", "Real"), _same),
    "Angle": lambda layer, x: ops.where(x < 0.0, pi, 0.0),
    "Arctan2": _angle_of,
    "BatchNorm": _normalized,
    "Cbrt": lambda layer, x: ops.sign(x) * ops.power(ops.abs(x), 1 / 3),
    "Deg2rad": lambda layer, x: x * (pi / 180),
    "DivideNoNan": _divided,
    "Erfc": lambda layer, x: 1.0 - ops.erf(x),
    "Erfinv": _erfinv,
    "Fmax": lambda layer, a, b: ops.maximum(a, b),
    "Fmin": lambda layer, a, b: ops.minimum(a, b),
    "Fmod": lambda layer, a, b: a - ops.trunc(a / b) * b,
    "Heaviside": _step,
    "Hypot": lambda layer, a, b: ops.sqrt(a * a + b * b),
    "I0": _bessel,
    "IsIn": _among,
    "Isclose": _close,
    "Isfinite": lambda layer, x: ops.logical_and(x >= -LARGEST, x <= LARGEST),
    "Isinf": _beyond(lambda x: x < -LARGEST, lambda x: x > LARGEST),
    "Isnan": lambda layer, x: ops.logical_not(ops.logical_or(x <= 0.0, x > 0.0)),
    "Isneginf": _beyond(lambda x: x < -LARGEST),
    "Isposinf": _beyond(lambda x: x > LARGEST),
    "Isreal": lambda layer, x: ops.logical_or(x <= 0.0, x > 0.0),
    "Ldexp": lambda layer, x, exponent: x * ops.power(2.0, exponent),
    "Logaddexp": _log_added,
    "Logaddexp2": _log2_added,
    "Rad2deg": lambda layer, x: x * (180 / pi),
    "SaturateCast": _limited,
    "Select": _selected,
    "Signbit": lambda layer, x: x < 0.0,
    "Sinc": _sinc,
}
"""Per operation, its formula: a function of the operation and its operands."""

LIMITS: dict[str, tuple[Callable[..., bool], str]] = {}
"""Limits of formulas: the condition under which one applies, and the reason otherwise."""


def _joined(*names: str) -> Any:
    return lambda x: ops.concatenate([getattr(ops, name)(x) for name in names], axis=-1)


def _chosen(*names: str) -> Any:
    """How often conditions hold."""
    return lambda x: sum(ops.where(getattr(ops, name)(x), 1.0, x * 0.1) for name in names)


CASES: dict[str, Case] = {
    "cbrt erfc sinc copy": Case(partial(_joined, "cbrt", "erfc", "sinc", "copy"), (4, 3)),
    "erfinv i0": Case(partial(_joined, "erfinv", "i0"), (4, 3), low=-0.9, high=0.9),
    "isfinite isnan isinf isreal signbit": Case(
        partial(_chosen, "isfinite", "isnan", "isinf", "isreal", "signbit"), (4, 3), low=0.1
    ),
    "arctan2": Case(lambda: lambda a, b: ops.arctan2(a, b), [(4, 5), (4, 5)]),
    "hypot logaddexp fmax fmin": Case(
        lambda: (
            lambda a, b: ops.hypot(a, b) + ops.logaddexp(a, b) + ops.fmax(a, b) + ops.fmin(a, b)
        ),
        [(4, 5), (4, 5)],
    ),
    "heaviside angle rad2deg": Case(
        lambda: (
            lambda x: (
                ops.heaviside(x, np.array(0.5, "float32")) + ops.angle(x) + ops.rad2deg(x * 0.1)
            )
        ),
        (4, 5),
    ),
    "divide_no_nan": Case(
        lambda: lambda a, b: ops.divide_no_nan(a, ops.relu(b) + 0.5), [(4, 5), (4, 5)]
    ),
    "select": Case(lambda: lambda x: ops.select([x > 0.5, x > 0.0], [x, x * 2.0], -0.5), (4, 5)),
    "isin ldexp": Case(
        lambda: lambda x: ops.where(ops.isin(x, np.array([1, 3])), 1.0, 0.0) + ops.ldexp(x, 2),
        (4,),
        low=0,
        high=4,
        dtype="int32",
    ),
}
"""Cases, by the operations that they have; older versions of Keras lack some."""
