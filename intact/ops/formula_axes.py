"""Formulas along axes: sums, orders, scans, products and parts of tensors."""

import string
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.graph.view import listed_axes
from intact.numerics.tensors import Tensor, is_symbolic, to_numpy
from intact.ops.base import Case


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
    """A prefix scan with an associative function (Hillis and Steele, 1986)."""
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
    axes = listed_axes(layer)
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


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain reduction in place of one that skips NaN, because values are always numbers."""
    return lambda layer, x: function(x, axis=layer.axis, keepdims=layer.keepdims)


def _quantile(layer: Any, x: Tensor, q: Any = 0.5, whole: float = 1.0) -> Tensor:
    """The value below which a share of all values is, between two in their order."""
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    place = float(to_numpy(q)) / whole * (x.shape[axis] - 1)
    low, high = int(np.floor(place)), int(np.ceil(place))
    weight = _BETWEEN[getattr(layer, "method", "linear")](place)
    ordered = ops.sort(x, axis)
    y, last = (_part(ordered, axis, at, at + 1) for at in (low, high))
    if weight:
        y = last if weight == 1 else y * (1 - weight) + last * weight
    return y if layer.keepdims else ops.squeeze(y, axis)


_BETWEEN: dict[str, Callable[[float], float]] = {
    "linear": lambda place: place % 1,
    "lower": lambda place: 0.0,
    "higher": lambda place: 1.0,
    "midpoint": lambda place: 0.5 if place % 1 else 0.0,
    # Half to even.
    "nearest": lambda place: float(np.rint(place) - np.floor(place)),
}
"""The weight of the upper of two values at a place in their order, by a quantile's method."""


def _has_quantile(layer: Any, x: Tensor, q: Any = 0.5) -> bool:
    axis = layer.axis if isinstance(layer.axis, int | None) else (*layer.axis, None)[0]
    one = axis == layer.axis or len(layer.axis) == 1
    constant = not is_symbolic(q) and to_numpy(q).ndim == 0
    return axis is not None and one and constant and axis % len(x.shape) > 0 and _known(x, axis)


def _sparsemax(layer: Any, x: Tensor) -> Tensor:
    """The values above Keras' threshold, from the sum of all partial sums."""
    axis, size = layer.axis, x.shape[layer.axis]
    ordered = ops.flip(ops.sort(x, axis), axis)
    sums = ops.cumsum(ordered, axis)
    count = np.arange(1, size + 1, dtype="float32")
    count = count.reshape([size if a == axis % len(x.shape) else 1 for a in range(len(x.shape))])
    support = ordered - (sums - 1.0) * (1.0 / count) > 0.0
    total = ops.sum(ops.where(support, sums, 0.0), axis=axis, keepdims=True)
    support_size = ops.sum(ops.where(support, 1.0, 0.0), axis=axis, keepdims=True)
    return ops.relu(x - (total - 1.0) / support_size)


def _distances(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    gap = ops.expand_dims(a, -2) - ops.expand_dims(b, -3)
    return ops.sqrt(ops.sum(gap * gap, axis=-1))


def _crossed(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    def turned(x: Any, places: list[int]) -> Any:
        return ops.take(x, places, axis=-1)

    back, forth = [1, 2, 0], [2, 0, 1]
    return turned(a, back) * turned(b, forth) - turned(a, forth) * turned(b, back)


def _summed(layer: Any, a: Any, b: Any) -> tuple[list[int], list[int]]:
    """The axes of both operands that a product sums over."""
    if isinstance(layer.axes, int):
        count, rank = layer.axes, len(a.shape)
        return list(range(rank - count, rank)), list(range(count))
    first, second = (np.atleast_1d(axes).tolist() for axes in layer.axes)
    return [n % len(a.shape) for n in first], [n % len(b.shape) for n in second]


def _tensor_product(layer: Any, a: Tensor, b: Any) -> Tensor:
    first, second = _summed(layer, a, b)
    left = string.ascii_lowercase[: len(a.shape)]
    right = list(string.ascii_lowercase[len(a.shape) :][: len(b.shape)])
    for x, y in zip(first, second, strict=True):
        right[y] = left[x]
    out = [c for i, c in enumerate(left) if i not in first]
    out += [c for i, c in enumerate(right) if i not in second]
    return ops.einsum(f"{left},{''.join(right)}->{''.join(out)}", a, b)


def _area(layer: Any, y: Tensor) -> Tensor:
    axis, size = layer.axis % len(y.shape), y.shape[layer.axis]
    width = layer.dx if layer.x is None else np.diff(to_numpy(layer.x))
    if np.ndim(width):
        width = width.reshape([-1 if a == axis else 1 for a in range(len(y.shape))])
    return ops.sum((_part(y, axis, 0, size - 1) + _part(y, axis, 1, size)) * (width * 0.5), axis)


def _places(layer: Any, x: Tensor, bounds: Any, left: bool) -> Tensor:
    """How many bounds a value has reached, or passed."""
    reached = [x > b if left else x >= b for b in to_numpy(bounds).tolist()]
    return sum(ops.cast(one, "int32") for one in reached)


def _counted(layer: Any, x: Tensor) -> Tensor:
    return ops.sum(ops.cast(ops.not_equal(x, 0), "int32"), axis=layer.axis)


def _among_largest(layer: Any, targets: Any, x: Tensor) -> Tensor:
    wanted = ops.take_along_axis(x, ops.expand_dims(targets, 1), axis=1)
    return ops.sum(ops.cast(x > wanted, "int32"), axis=1) < layer.k


def _cross_entropy(layer: Any, target: Any, output: Tensor) -> Tensor:
    """Cross entropy of distributions along an axis."""
    if layer.from_logits:
        logs = ops.log_softmax(output, axis=layer.axis)
    else:
        shares = output / ops.sum(output, axis=layer.axis, keepdims=True)
        logs = ops.log(ops.clip(shares, EPSILON, 1 - EPSILON))
    return -ops.sum(target * logs, axis=layer.axis)


def _sparse_cross_entropy(layer: Any, target: Any, output: Tensor) -> Tensor:
    return _cross_entropy(layer, ops.one_hot(target, output.shape[-1]), output)


def _binary_cross_entropy(layer: Any, target: Any, output: Tensor) -> Tensor:
    if layer.from_logits:
        return ops.softplus(output) - target * output
    output = ops.clip(output, EPSILON, 1 - EPSILON)
    return -(target * ops.log(output) + (1.0 - target) * ops.log(1.0 - output))


EPSILON = 1e-7
"""The smallest probability of a loss."""


FORMULAS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("AdaptiveAveragePool", "AdaptiveMaxPool"), _pooled),
    "AssociativeScan": _scan,
    "Argpartition": lambda layer, x: ops.argsort(x, layer.axis),
    "BinaryCrossentropy": _binary_cross_entropy,
    "Bincount": lambda layer, x: ops.sum(ops.one_hot(x, layer.minlength, dtype="int32"), axis=-2),
    "CDist": _distances,
    "CategoricalCrossentropy": _cross_entropy,
    "CountNonzero": _counted,
    "Cross": _crossed,
    "Digitize": lambda layer, x, bins: _places(layer, x, bins, left=False),
    "InTopK": _among_largest,
    **dict.fromkeys(("Median", "Nanmedian", "Quantile", "Nanquantile"), _quantile),
    **dict.fromkeys(("Percentile", "Nanpercentile"), partial(_quantile, whole=100.0)),
    # In Keras, the result has the type of the numbers.
    "MultiHot": lambda layer, x: ops.max(ops.one_hot(x, layer.num_classes, dtype=x.dtype), axis=-2),
    "Nanargmax": lambda layer, x: ops.argmax(x, layer.axis, layer.keepdims),
    "Nanargmin": lambda layer, x: ops.argmin(x, layer.axis, layer.keepdims),
    "Nancumprod": lambda layer, x: ops.cumprod(x, layer.axis),
    "Nancumsum": lambda layer, x: ops.cumsum(x, layer.axis),
    "Nanmax": _reduced(ops.max),
    "Nanmean": _reduced(ops.mean),
    "Nanmin": _reduced(ops.min),
    "Nanprod": _reduced(ops.prod),
    "Nanstd": _reduced(ops.std),
    "Nansum": _reduced(ops.sum),
    "Nanvar": _reduced(ops.var),
    "Ptp": lambda layer, x: (
        ops.max(x, layer.axis, layer.keepdims) - ops.min(x, layer.axis, layer.keepdims)
    ),
    "SearchSorted": lambda layer, bounds, x: _places(layer, x, bounds, layer.side == "left"),
    "SparseCategoricalCrossentropy": _sparse_cross_entropy,
    "Sparsemax": _sparsemax,
    "Tensordot": _tensor_product,
    "Trapezoid": _area,
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
"""Per operation, its formula: a function of the operation and its operands."""


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
    **dict.fromkeys(
        ("Cumprod", "Nancumprod", "Sparsemax", "Trapezoid"),
        (_runs, "it runs along an axis of known size, not the batch"),
    ),
    **dict.fromkeys(
        ("Median", "Nanmedian", "Quantile", "Nanquantile", "Percentile", "Nanpercentile"),
        (_has_quantile, "it takes one number, along one axis of known size, not the batch"),
    ),
    "Bincount": (
        lambda layer, x: layer.weights is None and layer.minlength > 0 and len(x.shape) > 1,
        "it counts each sample's numbers, which are below `minlength`, without weights",
    ),
    "Cross": (
        lambda layer, a, b: (
            a.shape[-1] == b.shape[-1] == 3 and layer.axisa == layer.axisb == layer.axisc == -1
        ),
        "it takes vectors of three numbers along the last axis",
    ),
    "Digitize": (lambda layer, x, bins: not is_symbolic(bins), "its bins are constant"),
    "MultiHot": (
        lambda layer, x: layer.axis == -1 and len(x.shape) > 1,
        "its classes are the last axis, and its numbers stand along an axis of their own",
    ),
    "SearchSorted": (lambda layer, bounds, x: not is_symbolic(bounds), "its bounds are constant"),
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
        "it takes differences once, along an axis of known size",
    ),
    "Dot": (
        lambda layer, a, b: len(b.shape) == 2 and len(a.shape) > 1,
        "its second operand is a matrix, and its first one more than a vector",
    ),
    "Tensordot": (
        lambda layer, a, b: not is_symbolic(b) and 0 not in _summed(layer, a, b)[0],
        "its second operand is constant, and it does not sum over the batch",
    ),
    "Logsumexp": (lambda layer, x: layer.axis is not None, "its axes must be given"),
    "Norm": (
        lambda layer, x: layer.axis is not None and layer.ord in (None, 1, 2, "fro", np.inf, "inf"),
        "its axes must be given, and its order must be 1, 2 or infinite",
    ),
    **dict.fromkeys(
        ("Tril", "Triu"),
        (lambda layer, x: None not in x.shape[-2:], "the sizes of its matrices must be known"),
    ),
}
"""Limits of formulas: the condition under which one applies, and the reason otherwise."""


CASES: dict[str, Case] = {
    "argmin": Case(lambda: lambda x: ops.one_hot(ops.argmin(x, axis=1), 4) * 1.0, (4,)),
    "diff": Case(lambda: lambda x: ops.diff(x, axis=1), (4, 3)),
    "dot": Case(lambda: lambda x: ops.dot(x, np.eye(4, 3, dtype="float32")), (4,)),
    "logsumexp": Case(lambda: lambda x: ops.logsumexp(x, axis=-1), (4, 5)),
    "logsumexp of axes": Case(lambda: lambda x: ops.logsumexp(x, axis=(1, 3)), (4, 5, 3)),
    "norm": Case(lambda: lambda x: ops.norm(x, axis=(-1,), keepdims=True), (4, 5)),
    "norm abs": Case(lambda: lambda x: ops.norm(x, ord=1, axis=(-1,)), (4, 5)),
    "tril": Case(lambda: lambda x: ops.tril(x), (4, 4)),
    "moments": Case(lambda: lambda x: layers.Add()([*ops.moments(x, [1])]), (4, 5)),
    "full_like": Case(lambda: lambda x: x + ops.full_like(x, 0.5), (4,)),
    "mod": Case(lambda: lambda x: layers.Concatenate()([ops.mod(x, 0.5), ops.zeros_like(x)]), (4,)),
    "cumprod": Case(lambda: lambda x: ops.cumprod(x + 1.0, axis=1), (6, 3)),
    "associative_scan": Case(
        lambda: lambda x: ops.associative_scan(ops.maximum, x, axis=1, reverse=True), (5, 3)
    ),
    "slice_update": Case(
        lambda: lambda x: ops.slice_update(x, (0, 1, 2), x[:, :2, :1] * 0.5), (4, 4)
    ),
    "prod": Case(lambda: lambda x: ops.prod(x + 1.0, axis=1), (5, 3)),
    "adaptive_average_pool": Case(
        lambda: lambda x: ops.adaptive_average_pool(x, (2, 3)), (4, 5, 2)
    ),
    "adaptive_max_pool": Case(lambda: lambda x: ops.adaptive_max_pool(x, (2, 3)), (4, 5, 2)),
    "median quantile": Case(
        lambda: lambda x: ops.median(x, axis=(1,)) + ops.quantile(x, 0.3, axis=(1,)), (5, 3)
    ),
    "sparsemax": Case(lambda: lambda x: ops.sparsemax(x), (4, 5), low=-2.0, high=2.0),
    "cdist": Case(lambda: lambda a, b: ops.cdist(a, b), [(4, 3), (5, 3)]),
    "cross trapezoid": Case(
        lambda: lambda a, b: ops.trapezoid(ops.cross(a, b, axis=-1)), [(4, 3), (4, 3)]
    ),
    "ptp nansum": Case(lambda: lambda x: ops.ptp(x, axis=1) + ops.nansum(x, axis=1), (4, 5)),
    "binary_crossentropy": Case(
        lambda: lambda a, b: ops.binary_crossentropy(a, b), [(4, 5), (4, 5)], low=0.1, high=0.9
    ),
    "sparse_categorical_crossentropy": Case(
        lambda: (
            lambda x: ops.sparse_categorical_crossentropy(ops.argmin(x, -1), x, from_logits=True)
        ),
        (4, 5),
    ),
    "multi_hot": Case(
        lambda: lambda x: ops.multi_hot(x, 6) * 0.5, (4,), low=0, high=5, dtype="int32"
    ),
    "bincount": Case(
        lambda: lambda x: ops.cast(ops.bincount(x, minlength=6), "float32"),
        (4,),
        low=0,
        high=5,
        dtype="int32",
    ),
    "tensordot": Case(
        lambda: lambda x: ops.tensordot(x, np.eye(15, 2).reshape(3, 5, 2), [[2, 1], [1, 0]]),
        (3, 5),
    ),
    "digitize": Case(
        lambda: (
            lambda x: layers.Embedding(4, 3)(ops.digitize(x, np.array([-0.5, 0.0, 0.5], "float32")))
        ),
        (4,),
    ),
}
"""Cases, by the operations that they have; older versions of Keras lack some."""
