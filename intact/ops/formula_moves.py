"""Formulas that move values: joins, splits, rotations, diagonals and windows."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor, is_symbolic
from intact.ops.base import Case


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _turned(layer: Any, x: Tensor) -> Tensor:
    """Rotations by 90 degrees."""
    first, second = layer.axes
    turns = layer.k % 4
    if turns == 2:
        return ops.flip(ops.flip(x, first), second)
    y = ops.flip(x, second) if turns == 1 else x
    y = ops.swapaxes(y, first, second) if turns else y
    return ops.flip(y, second) if turns == 3 else y


def _diagonal(layer: Any, x: Tensor) -> Tensor:
    """The diagonal of matrices as the last axis."""
    x = ops.moveaxis(x, (layer.axis1, layer.axis2), (-2, -1))
    rows, columns = x.shape[-2:]
    places = np.diagonal(np.arange(rows * columns).reshape(rows, columns), layer.offset)
    return ops.take(ops.reshape(x, (-1, *x.shape[1:-2], rows * columns)), places, axis=-1)


def _stacked_deep(layer: Any, xs: list[Tensor]) -> Tensor:
    return ops.concatenate([x if len(x.shape) > 2 else ops.expand_dims(x, -1) for x in xs], 2)


def _inner(layer: Any, a: Tensor, b: Any) -> Tensor:
    if len(b.shape) == 1:
        return ops.squeeze(ops.matmul(a, ops.reshape(b, (-1, 1))), -1)
    return ops.matmul(a, ops.transpose(b))


def _kron(layer: Any, a: Tensor, b: Any) -> Tensor:
    rank = len(a.shape)
    b = np.reshape(b, (1,) * (rank - np.ndim(b)) + np.shape(b))
    left = [size for n in a.shape[1:] for size in (n, 1)]
    right = [size for n in b.shape[1:] for size in (1, n)]
    y = ops.reshape(a, (-1, *left)) * b.reshape(1, *right)
    return ops.reshape(y, (-1, *(m * n for m, n in zip(a.shape[1:], b.shape[1:], strict=True))))


def _groups(pattern: str) -> list[list[str]]:
    """The names of axes on one side of a pattern, those in brackets together."""
    return [part.strip("()").split() for part in re.findall(r"\w+|\(.*?\)", pattern)]


def _rearranged(layer: Any, x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """Axes split, put in another order, and joined; the first one is the batch."""
    before, after = map(_groups, pattern.split("->"))
    for names, size in list(zip(before, x.shape, strict=True))[1:]:
        known = int(np.prod([sizes[name] for name in names if name in sizes]))
        sizes.update({name: size // known for name in names if name not in sizes})
    flat = [name for names in before for name in names]
    order = [flat.index(name) for names in after for name in names]
    y = ops.reshape(x, (-1, *(sizes[name] for name in flat[1:])))
    y = ops.transpose(y, order)
    return ops.reshape(y, (-1, *(int(np.prod([sizes[n] for n in names])) for names in after[1:])))


def _keeps_batch(layer: Any, x: Tensor, pattern: str, **sizes: int) -> bool:
    before, after = map(_groups, pattern.split("->"))
    return before[0] == after[0] and len(before[0]) == 1 and None not in x.shape[1:]


def _index_parts(layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    parts, step = [], int(np.prod(layer.shape))
    for size in layer.shape:
        step //= size
        parts.append(ops.mod(ops.floor_divide(x, step), size))
    return tuple(parts)


def _windows(layer: Any, axis: int, size: int) -> np.ndarray:
    """The places along an axis, with padding, that each place of the windows takes."""
    kernel, rate, pad, stride = (
        _pair(value)[axis]
        for value in (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    )
    count = (size + 2 * pad - rate * (kernel - 1) - 1) // stride + 1
    return np.arange(kernel)[:, None] * rate + np.arange(count) * stride


def _unfolded(layer: Any, x: Tensor) -> Tensor:
    """The values of windows of images (channels first), as columns."""
    pads, channels = _pair(layer.padding), x.shape[1]
    rows, columns = (_windows(layer, axis, x.shape[axis + 2]) for axis in range(2))
    if any(pads):
        x = ops.pad(x, ((0, 0), (0, 0), *((pad, pad) for pad in pads)))
    y = ops.take(ops.take(x, rows.ravel(), axis=2), columns.ravel(), axis=3)
    y = ops.reshape(y, (-1, channels, *rows.shape, *columns.shape))
    y = ops.transpose(y, (0, 1, 2, 4, 3, 5))
    sizes = rows.shape[0] * columns.shape[0], rows.shape[1] * columns.shape[1]
    return ops.reshape(y, (-1, channels * sizes[0], sizes[1]))


def _folded(layer: Any, x: Tensor) -> Tensor:
    """Sums of windows, put back where they overlap: a matrix product for each axis."""
    places = [_windows(layer, axis, n) for axis, n in enumerate(_pair(layer.output_size))]
    matrices = []
    for at, size, pad in zip(places, _pair(layer.output_size), _pair(layer.padding), strict=True):
        matrices.append((at.reshape(-1, 1) == np.arange(size) + pad).astype("float32"))
    (kh, nh), (kw, nw) = (at.shape for at in places)
    channels = x.shape[1] // (kh * kw)
    y = ops.reshape(x, (-1, channels, kh, kw, nh, nw))
    y = ops.transpose(y, (0, 1, 3, 5, 2, 4))
    y = ops.matmul(ops.reshape(y, (-1, channels, kw * nw, kh * nh)), matrices[0])
    return ops.matmul(ops.transpose(y, (0, 1, 3, 2)), matrices[1])


def _sequences(layer: Any, x: Tensor) -> Tensor:
    size, step = layer.sequence_length, layer.sequence_stride
    starts = np.arange(0, x.shape[-1] - size + 1, step)
    return ops.take(x, starts[:, None] + np.arange(size), axis=-1)


FORMULAS: dict[str, Callable[..., Any]] = {
    "Append": lambda layer, a, b: ops.concatenate([a, b], layer.axis),
    "Diagonal": _diagonal,
    "Dsplit": lambda layer, x: ops.split(x, layer.indices_or_sections, axis=2),
    "Dstack": _stacked_deep,
    "EmptyLike": lambda layer, x: ops.zeros_like(x, layer.dtype),
    "ExtractSequences": _sequences,
    "Fliplr": lambda layer, x: ops.flip(x, axis=1),
    "Fold": _folded,
    "Hsplit": lambda layer, x: ops.split(x, layer.indices_or_sections, axis=1),
    "Hstack": lambda layer, xs: ops.concatenate(xs, axis=1),
    "Inner": _inner,
    "Kron": _kron,
    "Outer": lambda layer, a, b: ops.reshape(a, (-1, 1)) * ops.reshape(b, (1, -1)),
    "Ravel": lambda layer, x: ops.reshape(x, (-1,)),
    "Rearrange": _rearranged,
    "Rot90": _turned,
    "Trace": lambda layer, x: ops.sum(_diagonal(layer, x), axis=-1),
    "Unfold": _unfolded,
    "UnravelIndex": _index_parts,
}
"""Per operation, its formula: a function of the operation and its operands."""


def _has_sizes(layer: Any, x: Tensor) -> bool:
    return None not in x.shape[1:]


LIMITS: dict[str, tuple[Callable[..., bool], str]] = {
    "Append": (lambda layer, a, b: bool(layer.axis), "it joins along an axis, not the batch"),
    **dict.fromkeys(
        ("Diagonal", "Trace"),
        (
            lambda layer, x: (
                layer.axis1 % len(x.shape) > 0
                and layer.axis2 % len(x.shape) > 0
                and None not in x.shape[1:]
            ),
            "the sizes of its matrices must be known, and none of them is the batch",
        ),
    ),
    "ExtractSequences": (lambda layer, x: x.shape[-1] is not None, "the axis has a known size"),
    **dict.fromkeys(("Fold", "Unfold"), (_has_sizes, "the sizes of its images must be known")),
    "Inner": (
        lambda layer, a, b: not is_symbolic(b) and len(b.shape) < 3 and len(a.shape) > 1,
        "its second operand is a constant vector or matrix",
    ),
    "Kron": (
        lambda layer, a, b: (
            not is_symbolic(b)
            and np.ndim(b) <= len(a.shape)
            and (np.ndim(b) < len(a.shape) or np.shape(b)[0] == 1)
            and None not in a.shape[1:]
        ),
        "its second operand is constant, and leaves the batch alone",
    ),
    "Outer": (lambda layer, a, b: not is_symbolic(b), "its second operand is constant"),
    "Rearrange": (_keeps_batch, "the batch stays first, and all other sizes are known"),
    "Rot90": (
        lambda layer, x: all(axis % len(x.shape) for axis in layer.axes),
        "it does not turn the batch",
    ),
}
"""Limits of formulas: the condition under which one applies, and the reason otherwise."""

CASES: dict[str, Case] = {
    "rot90 fliplr diagonal": Case(
        lambda: lambda x: ops.diagonal(ops.fliplr(ops.rot90(x, axes=(1, 2))), 1, 1, 2), (4, 4)
    ),
    "trace hstack append": Case(
        lambda: lambda x: ops.append(ops.hstack([x, x * 2.0])[:, 0, 0], ops.trace(x, 0, 1, 3), 1),
        (3, 2, 3),
    ),
    "kron inner": Case(
        lambda: (
            lambda x: ops.inner(
                ops.kron(x, np.array([[[1.0, -2.0]]], "float32")), np.eye(6, dtype="float32")
            )
        ),
        (2, 3),
    ),
    "rearrange": Case(
        # Keras itself cannot do it with a batch of unknown size.
        lambda: layers.Lambda(
            lambda x: ops.rearrange(x, "b (h p) w c -> b h (w c) p", p=2), output_shape=(2, 6, 2)
        ),
        (4, 3, 2),
    ),
    "unfold": Case(lambda: lambda x: ops.unfold(x, 2, 1, 1, 2), (2, 4, 5)),
    "fold": Case(lambda: lambda x: ops.fold(x, (4, 5), (2, 3), stride=(2, 1)), (12, 6)),
    "extract_sequences": Case(lambda: lambda x: ops.extract_sequences(x, 4, 2), (10,)),
    "unravel_index": Case(
        lambda: lambda x: ops.cast(sum(ops.unravel_index(x, (3, 4))), "float32"),
        (4,),
        low=0,
        high=11,
        dtype="int32",
    ),
}
"""Cases, by the operations that they have; older versions of Keras lack some."""
