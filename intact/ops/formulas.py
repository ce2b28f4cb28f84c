"""Operations that are formulas of other operations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor, is_symbolic
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


def _part(x: Any, axis: int, start: int, stop: int) -> Any:
    return ops.take(x, np.arange(start, stop), axis)


def _scanned(axis: int, function: Callable[..., Any], values: Any) -> Any:
    """What an associative function makes of all values up to each one (Hillis and Steele, 1986)."""
    size, step = keras.tree.flatten(values)[0].shape[axis], 1
    while step < size:
        head, before, after = (
            keras.tree.map_structure(partial(_part, axis=axis, start=start, stop=stop), values)
            for start, stop in ((0, step), (0, size - step), (step, size))
        )
        values = keras.tree.map_structure(
            lambda *parts: ops.concatenate(parts, axis), head, function(before, after)
        )
        step *= 2
    return values


def _product(layer: Any, x: Tensor) -> Tensor:
    """The product along axes: half of the values times the other half, and again."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    for axis in axes:
        while (size := x.shape[axis]) > 1:
            half = size // 2
            y = _part(x, axis, 0, half) * _part(x, axis, half, 2 * half)
            rest = [_part(x, axis, size - 1, size)] if size % 2 else []
            x = ops.concatenate([y, *rest], axis) if rest else y
    return x if layer.keepdims else ops.squeeze(x, tuple(axes))


def _scan(layer: Any, function: Callable[..., Any], values: Any) -> Any:
    def turn(x: Any) -> Any:
        return ops.flip(x, layer.axis) if layer.reverse else x

    values = _scanned(layer.axis, function, keras.tree.map_structure(turn, values))
    return keras.tree.map_structure(turn, values)


def _updated(x: Any, start: Any, part: Any, axis: int = 1) -> Any:
    """A tensor with a part of it replaced, axis by axis."""
    if axis == len(x.shape):
        return part
    first, size = int(start[axis]), x.shape[axis]
    last = first + part.shape[axis]
    inner = _updated(_part(x, axis, first, last), start, part, axis + 1)
    edges = ((0, first), (last, size))
    before, after = ([_part(x, axis, a, b)] if a < b else [] for a, b in edges)
    return ops.concatenate([*before, inner, *after], axis) if before or after else inner


def _pooled(layer: Any, x: Tensor) -> Tensor:
    """Adaptive pooling: windows from the next place below to the next one above."""
    reduce = ops.mean if "Average" in type(layer).__name__ else ops.max
    first = 1 if layer.data_format == "channels_last" else 2
    for axis, count in enumerate(layer.output_size, first):
        size = x.shape[axis]
        if size % count == 0:
            shape = (*x.shape[1:axis], count, size // count, *x.shape[axis + 1 :])
            x = reduce(ops.reshape(x, (-1, *shape)), axis=axis + 1)
            continue
        windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        parts = [reduce(_part(x, axis, *ends), axis=axis, keepdims=True) for ends in windows]
        x = ops.concatenate(parts, axis)
    return x


FORMULAS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("AdaptiveAveragePool", "AdaptiveMaxPool"), _pooled),
    "AssociativeScan": _scan,
    "Argmin": lambda layer, x: ops.argmax(-x, layer.axis, layer.keepdims),
    "Cumprod": lambda layer, x: _scanned(layer.axis, lambda a, b: a * b, x),
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
    "Prod": _product,
    "SliceUpdate": lambda layer, x, start, part: _updated(x, start, part),
    "Tril": _kept,
    "Triu": _kept,
    "ZerosLike": lambda layer, x: _filled(layer, x, 0),
}
"""Per operation, what it does, of the operation and its operands."""


def _runs(layer: Any, x: Any) -> bool:
    """Whether an operation runs along an axis of known size."""
    return layer.axis is not None and layer.axis % len(x.shape) > 0 and _known(x, layer.axis)


def _known(x: Any, axis: int) -> bool:
    return x.shape[axis] is not None


LIMITS: dict[str, tuple[Callable[..., bool], str]] = {
    **dict.fromkeys(
        ("AdaptiveAveragePool", "AdaptiveMaxPool"),
        (lambda layer, x: None not in x.shape[1:], "the sizes of its images must be known"),
    ),
    "AssociativeScan": (
        lambda layer, function, values: all(_runs(layer, x) for x in keras.tree.flatten(values)),
        "it runs along an axis of known size, not the batch",
    ),
    "Cumprod": (_runs, "it runs along an axis of known size, not the batch"),
    "Prod": (
        lambda layer, x: (
            layer.axis is not None
            and all(
                axis % len(x.shape) and x.shape[axis] is not None
                for axis in np.atleast_1d(layer.axis).tolist()
            )
        ),
        "it runs along axes of known size, not the batch",
    ),
    "SliceUpdate": (
        lambda layer, x, start, part: (
            not any(map(is_symbolic, keras.tree.flatten(start)))
            and x.shape[0] == part.shape[0]
            and None not in x.shape[1:]
        ),
        "its start is constant, and its part has the whole batch",
    ),
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


ADAPTIVE = (
    (
        Case(lambda: lambda x: ops.adaptive_average_pool(x, (2, 3)), (4, 5, 2)),
        Case(lambda: lambda x: ops.adaptive_max_pool(x, (2, 3)), (4, 5, 2)),
    )
    if hasattr(ops, "adaptive_max_pool")
    else ()
)
"""Cases of what a newer Keras has."""


@register_op
class Formula(Op):
    """Made of other operations."""

    operations = tuple(FORMULAS)
    notes = " ".join(f"`{name}`: {reason}." for name, (_, reason) in LIMITS.items())
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
        Case(lambda: lambda x: ops.cumprod(x + 1.0, axis=1), (6, 3)),
        Case(lambda: lambda x: ops.associative_scan(ops.maximum, x, axis=1, reverse=True), (5, 3)),
        Case(lambda: lambda x: ops.slice_update(x, (0, 1, 2), x[:, :2, :1] * 0.5), (4, 4)),
        Case(lambda: lambda x: ops.prod(x + 1.0, axis=1), (5, 3)),
        *ADAPTIVE,
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        name = type(layer).__name__
        holds, reason = LIMITS.get(name, (lambda *args, **kwargs: True, ""))
        if not holds(layer, *args, **kwargs):
            tracer.refuse(layer, reason)
        formula = FORMULAS[name]
        return tracer.expand(layer, lambda *a, **k: formula(layer, *a, **k), *args, **kwargs)
