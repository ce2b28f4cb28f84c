"""Operations that are formulas of other operations."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor
from intact.ops.base import Case, Op, register_op


def _norm(layer: Any, x: Tensor) -> Tensor:
    axes: dict[str, Any] = {"axis": layer.axis, "keepdims": layer.keepdims}
    if layer.ord == 1:
        return ops.sum(ops.abs(x), **axes)
    if layer.ord in (np.inf, "inf"):
        return ops.max(ops.abs(x), **axes)
    return ops.sqrt(ops.sum(x * x, **axes))


def _log_sum(layer: Any, x: Tensor) -> Tensor:
    top = ops.max(x, axis=layer.axis, keepdims=True)
    total = ops.log(ops.sum(ops.exp(x - top), axis=layer.axis, keepdims=layer.keepdims))
    return total + (top if layer.keepdims else ops.squeeze(top, layer.axis))


def _difference(layer: Any, x: Tensor) -> Tensor:
    axis, size = layer.axis % len(x.shape), x.shape[layer.axis]
    return ops.take(x, range(1, size), axis) - ops.take(x, range(size - 1), axis)


def _kept(layer: Any, x: Tensor) -> Tensor:
    part = np.tril if type(layer).__name__ == "Tril" else np.triu
    return ops.where(part(np.ones(x.shape[-2:], bool), layer.k), x, 0)


def _filled(layer: Any, x: Tensor, value: Any) -> Tensor:
    y = x * 0 + value
    return y if layer.dtype is None else ops.cast(y, layer.dtype)


FORMULAS: dict[str, Callable[..., Any]] = {
    "Argmin": lambda layer, x: ops.argmax(-x, layer.axis, layer.keepdims),
    "Diff": _difference,
    "Dot": lambda layer, a, b: ops.matmul(a, b),
    "FloorDivide": lambda layer, a, b: ops.floor(a / b),
    "FullLike": _filled,
    "Logsumexp": _log_sum,
    "Mod": lambda layer, a, b: a - ops.floor(a / b) * b,
    "Moments": lambda layer, x: (
        ops.mean(x, layer.axes, layer.keepdims),
        ops.var(x, layer.axes, layer.keepdims),
    ),
    "NanToNum": lambda layer, x: x * 1.0,
    "Norm": _norm,
    "OnesLike": lambda layer, x: _filled(layer, x, 1),
    "Tril": _kept,
    "Triu": _kept,
    "ZerosLike": lambda layer, x: _filled(layer, x, 0),
}
"""Per operation, what it does, of the operation and its operands."""

LIMITS: dict[str, tuple[Callable[..., bool], str]] = {
    "Diff": (
        lambda layer, x: layer.n == 1 and x.shape[layer.axis] is not None,
        "differences are taken once, along a known number of values",
    ),
    "Dot": (lambda layer, a, b: len(a.shape) == len(b.shape) == 2, "it takes matrices"),
    "Logsumexp": (lambda layer, x: isinstance(layer.axis, int), "it runs along one axis"),
    "Norm": (
        lambda layer, x: layer.axis is not None and layer.ord in (None, 1, 2, "fro", np.inf, "inf"),
        "it runs along axes that are given, and its order is 1, 2 or infinite",
    ),
    **dict.fromkeys(
        ("Tril", "Triu"),
        (lambda layer, x: None not in x.shape[-2:], "the sizes of its matrices must be known"),
    ),
}
"""Where a formula does not hold for all of an operation: when it does, and what to say."""


@register_op
class Formula(Op):
    """Made of other operations."""

    operations = tuple(FORMULAS)
    notes = " ".join(f"`{name.lower()}`: {reason}." for name, (_, reason) in LIMITS.items())
    cases = (
        Case(lambda: lambda x: ops.one_hot(ops.argmin(x, axis=1), 4) * 1.0, (4,)),
        Case(lambda: lambda x: ops.diff(x, axis=1), (4, 3)),
        Case(lambda: lambda x: ops.dot(x, np.eye(4, 3, dtype="float32")), (4,)),
        Case(lambda: lambda x: ops.logsumexp(x, axis=-1), (4, 5)),
        Case(lambda: lambda x: ops.norm(x, axis=-1, keepdims=True), (4, 5)),
        Case(lambda: lambda x: ops.norm(x, ord=1, axis=-1), (4, 5)),
        Case(lambda: lambda x: ops.tril(x), (4, 4)),
        Case(lambda: lambda x: layers.Add()([*ops.moments(x, [1])]), (4, 5)),
        Case(lambda: lambda x: x + ops.full_like(x, 0.5), (4,)),
        Case(lambda: lambda x: layers.Concatenate()([ops.mod(x, 0.5), ops.zeros_like(x)]), (4,)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        name = type(layer).__name__
        holds, reason = LIMITS.get(name, (lambda *args, **kwargs: True, ""))
        if not holds(layer, *args, **kwargs):
            tracer.refuse(layer, reason)
        formula = FORMULAS[name]
        return tracer.expand(layer, lambda *a, **k: formula(layer, *a, **k), *args, **kwargs)
