"""Tensors whose batch is not the first axis, until it is again.

Tensors of the canonical graph have the batch first. Attention that makes one matrix of queries,
keys and values moves it for a while: `(batch, n, 3, heads, d)` becomes `(3, batch, heads, n, d)`,
and takes parts of it by index. Here a tensor of the new graph, with the batch first, represents
such a tensor, together with the user's batch axis.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from keras import layers

from intact.errors import UnsupportedLayerError
from intact.graph.batch import BROADCASTING
from intact.graph.view import listed_axes, with_attributes
from intact.numerics.tensors import is_symbolic
from intact.ops.matmul import BatchMatMul, expand_ellipsis
from intact.ops.pairs import PairProducts, TurnedPairs, are_pairs
from intact.ops.registry import find_op
from intact.ops.shape import reshape

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer

TURNS = ("Transpose", "Moveaxis", "Swapaxes")
"""Operations that put axes in another order."""

NEW_AXIS = ("Stack", "ExpandDims")
"""Operations that add axes."""

BY_VALUE = BROADCASTING | {
    *("Negative", "Exp", "Relu", "Sigmoid", "Tanh", "Gelu", "Silu", "Square", "Sqrt", "Rsqrt"),
    *("Abs", "Log", "LogicalNot", "Cast", "ConvertToTensor", "Identity", "Clip"),
}
"""Operations on each value alone."""

REDUCTIONS = ("Sum", "Mean", "Max", "Min")
"""Operations along axes."""

ALONG = ("Repeat", "Flip", "Roll", "Take", "Concatenate")
"""Operations along one axis, which keep the number of axes."""


@dataclass(frozen=True)
class Displaced:
    """A tensor whose batch is another axis in the user's graph.

    Args:
        tensor: The tensor of the new graph, whose other axes have the same order.
        axis: Where the user has the batch.
    """

    tensor: keras.KerasTensor
    axis: int

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Its shape in the user's graph."""
        batch, *others = self.tensor.shape
        return (*others[: self.axis], batch, *others[self.axis :])

    @property
    def dtype(self) -> str:
        """Its type."""
        return self.tensor.dtype

    def place(self, axis: int) -> int:
        """The tensor's axis for an axis of the user's."""
        axis %= len(self.tensor.shape)
        return 0 if axis == self.axis else axis + (axis < self.axis)


def moves_batch(tracer: "Tracer", layer: Any, args: tuple, kwargs: dict) -> bool:
    """Whether the batch is not the first axis of an operation's input or output."""
    flat = keras.tree.flatten((args, kwargs))
    if any(isinstance(value, Displaced) for value in flat):
        # A layer that no op stands for is traced into.
        return not isinstance(layer, layers.Layer) or find_op(layer) is not None
    if isinstance(layer, layers.Layer) or not flat:
        return False
    if type(layer).__name__ == "Einsum":
        einsum = _Einsum(layer, args)
        return einsum.moves or einsum.pairs
    if not is_symbolic(flat[0]):
        return False
    if type(layer).__name__ in TURNS:
        return _order(layer, len(flat[0].shape))[0] != 0
    if type(layer).__name__ == "Reshape" and tracer.anchor.shape[:1] == (1,):
        shape = layer.compute_output_spec(flat[0]).shape
        return 1 in shape and shape[0] != 1
    if type(layer).__name__ == "ExpandDims" and flat[0].shape[:1] != (None,):
        # A constant, which has no batch.
        return False
    return type(layer).__name__ in NEW_AXIS and _new_axes(layer, len(flat[0].shape))[0] == 0


def trace_displaced(tracer: "Tracer", layer: Any, args: tuple, kwargs: dict) -> Any:
    """Rewrite an operation that moves the batch, or whose input has it elsewhere.

    Args:
        tracer: Makes the new graph.
        layer: The operation.
        args: Its arguments: tensors of the new graph, or `Displaced`.
        kwargs: Its keyword arguments, likewise.

    Returns:
        The outputs, of which some may be `Displaced`.
    """
    try:
        return _traced(tracer, layer, args, kwargs)
    except UnsupportedLayerError:
        batches = [x.tensor.shape[0] for x in keras.tree.flatten((args, kwargs)) if _is_moved(x)]
        if not batches or set(batches) != {1}:
            raise
        # The values of a single sample lie in the same order wherever its axis is.
        args, kwargs = keras.tree.map_structure(lambda x: joined(tracer, x), (args, kwargs))
        return tracer.trace(layer, args, kwargs)


def _is_moved(value: Any) -> bool:
    return isinstance(value, Displaced)


def joined(tracer: "Tracer", value: Any) -> Any:
    """A tensor of a single sample with the user's first axis in the place of the batch.

    Args:
        tracer: Makes the new graph.
        value: The tensor; anything else is returned as it is.
    """
    if not isinstance(value, Displaced):
        return value
    return reshape(value.tensor, value.shape[1:], f"{value.tensor.name}_joined", tracer)


def _traced(tracer: "Tracer", layer: Any, args: tuple, kwargs: dict) -> Any:
    """Rewrite an operation that moves the batch, or whose input has it elsewhere."""
    kind = type(layer).__name__
    first: Any = args[0] if args else None
    if isinstance(layer, layers.Layer) or kwargs:
        return _refuse(tracer, layer)
    if kind == "Stack":
        if any(isinstance(part, Displaced) for part in first):
            return _refuse(tracer, layer)
        return _at(tracer.trace(with_attributes(layer, axis=1), (first,), {}), 1)
    if kind in BY_VALUE:
        return _by_value(tracer, layer, args)
    if kind == "Matmul":
        return _product(tracer, layer, *args)
    if kind == "Einsum":
        return _Einsum(layer, args).trace(tracer)
    x = first if isinstance(first, Displaced) else Displaced(first, 0)
    if kind in TURNS:
        return _turned(tracer, layer, x)
    if kind == "ExpandDims":
        return _expanded(tracer, layer, x)
    if kind == "Squeeze":
        return _squeezed(tracer, layer, x)
    if kind == "Reshape":
        return _reshaped(tracer, layer, x)
    if kind == "Slice":
        return _sliced(tracer, layer, x, args[1])
    if kind in REDUCTIONS:
        return _reduced(tracer, layer, x)
    if kind == "GetItem":
        return _part(tracer, layer, x, args[1])
    if kind in ALONG and not is_symbolic(layer.axis) and layer.axis is not None:
        return _along(tracer, layer, args)
    if kind in ("Split", "Unstack") and layer.axis % len(x.tensor.shape) != x.axis:
        parts = tracer.trace(with_attributes(layer, axis=x.place(layer.axis)), (x.tensor,), {})
        gone = kind == "Unstack" and layer.axis % len(x.tensor.shape) < x.axis
        return [_at(part, x.axis - gone) for part in parts]
    return _refuse(tracer, layer)


def _refuse(tracer: "Tracer", layer: Any) -> None:
    tracer.refuse(
        layer,
        "the batch is not the first axis of its input; take parts of it by an index, or transpose "
        "it back, before",
    )


def _at(tensor: keras.KerasTensor, axis: int) -> Any:
    """A tensor whose batch stands at an axis."""
    return Displaced(tensor, axis) if axis else tensor


def _order(layer: Any, rank: int) -> tuple[int, ...]:
    """The axes of an operation's input in the order of its output."""
    # The sizes 0, 1, 2, ... come out in the order of the axes.
    return layer.compute_output_spec(keras.KerasTensor(range(rank))).shape


def _turned(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """The axes in another order."""
    order = _order(layer, len(x.tensor.shape))
    if x.axis == 0 and are_pairs(x.tensor):
        return tracer.emit(TurnedPairs(name=layer.name), x.tensor)
    others = tuple(x.place(axis) for axis in order if axis != x.axis)
    y = x.tensor
    if others != tuple(sorted(others)):
        y = tracer.trace(layers.Permute(others, name=layer.name), (y,), {})
    return _at(y, order.index(x.axis))


def _new_axes(layer: Any, rank: int) -> list[int]:
    """The axes that an operation adds, as its output has them."""
    axes = listed_axes(layer)
    return sorted(axis % (rank + len(axes)) for axis in axes)


def _expanded(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """More axes of size 1."""
    rank = len(x.tensor.shape)
    axes = _new_axes(layer, rank)
    order = [axis for axis in range(rank + len(axes)) if axis not in axes]
    place = order[x.axis]
    others = tuple(axis + 1 if axis < place else axis for axis in axes)
    return _at(tracer.trace(with_attributes(layer, axis=others), (x.tensor,), {}), place)


def _squeezed(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """Without axes of size 1, of which none is the batch's."""
    named = listed_axes(layer)
    axes = [axis % len(x.shape) for axis in named if axis is not None]
    if len(axes) < len(named) or x.axis in axes:
        return _refuse(tracer, layer)
    others = tuple(map(x.place, axes))
    y = tracer.trace(with_attributes(layer, axis=others), (x.tensor,), {})
    return _at(y, x.axis - sum(axis < x.axis for axis in axes))


def _sliced(tracer: "Tracer", layer: Any, x: Displaced, start: Any) -> Any:
    """A part of a known size, with the batch whole."""
    start, shape = list(start), list(layer.shape)
    if start.pop(x.axis) != 0 or shape.pop(x.axis) not in (None, -1, x.tensor.shape[0]):
        return _refuse(tracer, layer)
    part = with_attributes(layer, shape=(None, *shape))
    return _at(tracer.trace(part, (x.tensor, (0, *start)), {}), x.axis)


def _reshaped(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """Another shape."""
    before, count = x.tensor.shape[1 : x.axis + 1], x.axis
    shape = tuple(layer.newshape)
    place = _place_after(layer, x)
    if place is not None:
        others = layer.compute_output_spec(keras.KerasTensor(x.shape, x.dtype)).shape
        others = (*others[:place], *others[place + 1 :])
        y = tracer.trace(layers.Reshape(others, name=layer.name), (x.tensor,), {})
        return _at(y, place)
    if shape[:count] != before or x.tensor.shape[0] == 1:
        return _refuse(tracer, layer)
    # The axes before the batch go to the end for a while, so that others can join the batch.
    rank = len(x.tensor.shape)
    order = (*range(count + 1, rank), *range(1, count + 1))
    y = tracer.trace(layers.Permute(order, name=f"{layer.name}_ahead"), (x.tensor,), {})
    y = tracer.trace(with_attributes(layer, newshape=(*shape[count:], *before)), (y,), {})
    rest = len(shape) - count
    order = (*range(rest, len(shape)), *range(1, rest))
    return _at(tracer.trace(layers.Permute(order, name=f"{layer.name}_back"), (y,), {}), count)


def _place_after(layer: Any, x: Displaced) -> int | None:
    """The batch's axis behind a reshape that leaves it an axis; None where others join it."""
    if None in x.tensor.shape[1:]:
        return None
    shape = layer.compute_output_spec(keras.KerasTensor(x.shape, x.dtype)).shape
    if x.tensor.shape[0] == 1:
        # The axis of a single sample is any axis of size 1.
        same = shape[x.axis : x.axis + 1] == (1,)
        return x.axis if same else shape.index(1) if 1 in shape else None
    places = [place for place, size in enumerate(shape) if size is None]
    same = len(places) == 1 and _around(shape, places[0]) == _around(x.shape, x.axis)
    return places[0] if same else None


def _around(shape: tuple[int | None, ...], place: int) -> tuple[int, int]:
    """How many values lie before an axis and behind it; the other sizes are known."""
    before, behind = shape[:place], shape[place + 1 :]
    return math.prod(n or 1 for n in before), math.prod(n or 1 for n in behind)


def _part(tracer: "Tracer", layer: Any, x: Displaced, key: Any) -> Any:
    """A part by indices and slices."""
    key = list(key) if isinstance(key, tuple) else [key]
    rank = len(x.tensor.shape)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        count = sum(part is not None for part in key) - 1
        key[at : at + 1] = [slice(None)] * (rank - count)
    key += [slice(None)] * (rank - sum(part is not None for part in key))
    taken = [place for place, part in enumerate(key) if part is not None]
    known = all(part is None or isinstance(part, int | slice) for part in key)
    if not known or key[taken[x.axis]] != slice(None):
        return _refuse(tracer, layer)
    place = taken[x.axis]
    indexed = sum(isinstance(part, int) for part in key[:place])
    others = (part for at, part in enumerate(key) if at != place)
    y = tracer.trace(layer, (x.tensor, (slice(None), *others)), {})
    return _at(y, place - indexed)


def _reduced(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """A sum, or the like, along axes that are not the batch's."""
    rank = len(x.tensor.shape)
    named = listed_axes(layer)
    if None in named or x.axis in (axes := [axis % rank for axis in named]):
        return _refuse(tracer, layer)
    y = tracer.trace(
        with_attributes(layer, axis=tuple(x.place(axis) for axis in axes)), (x.tensor,), {}
    )
    gone = 0 if layer.keepdims else sum(axis < x.axis for axis in axes)
    return _at(y, x.axis - gone)


def _along(tracer: "Tracer", layer: Any, args: tuple) -> Any:
    """A function along an axis that is not the batch's."""
    parts: list[Any] = list(args[0]) if isinstance(args[0], list | tuple) else [args[0]]
    places = {part.axis if isinstance(part, Displaced) else None for part in parts}
    first = parts[0]
    if len(places) > 1 or not isinstance(first, Displaced):
        return _refuse(tracer, layer)
    axis = first.place(layer.axis)
    if axis == 0:
        return _refuse(tracer, layer)
    plain = [part.tensor for part in parts]
    operands = plain if isinstance(args[0], list | tuple) else plain[0]
    return _at(
        tracer.trace(with_attributes(layer, axis=axis), (operands, *args[1:]), {}), first.axis
    )


def _product(tracer: "Tracer", layer: Any, a: Any, b: Any) -> Any:
    """A matrix product: of all pairs of samples, or with the batch before the matrices."""
    if is_symbolic(a) and isinstance(b, Displaced) and len(a.shape) == len(b.shape) == 2:
        return tracer.emit(PairProducts(name=layer.name), [a, b.tensor])
    both = isinstance(a, Displaced) and isinstance(b, Displaced)
    if not both or (a.axis, len(a.shape)) != (b.axis, len(b.shape)) or a.axis >= len(a.shape) - 2:
        return _refuse(tracer, layer)
    product = tracer.emit(BatchMatMul(name=layer.name), [a.tensor, b.tensor])
    return _at(product, a.axis)


class _Einsum:
    """An einsum whose tensors may have their batch at any axis.

    Args:
        layer: The operation.
        args: Its arguments.
    """

    def __init__(self, layer: Any, args: tuple) -> None:
        operands = args[0] if args and isinstance(args[0], list | tuple) else args
        self.layer = layer
        self.operands = [x for x in operands if not isinstance(x, str)]
        ranks = [len(getattr(x, "tensor", x).shape) for x in self.operands]
        equation = expand_ellipsis(layer.subscripts, ranks)
        self.ins, self.out = equation.split("->")[0].split(","), equation.partition("->")[2]
        batches = {
            labels[getattr(x, "axis", 0)]
            for x, labels in zip(self.operands, self.ins, strict=True)
            if labels and (is_symbolic(x) or isinstance(x, Displaced))
        }
        self.batch = batches.pop() if len(batches) == 1 else ""

    @property
    def moves(self) -> bool:
        """Whether the output has the batch of its inputs behind another axis."""
        return self.out.find(self.batch) > 0

    @property
    def pairs(self) -> bool:
        """Whether it has the product of each sample of one operand with each of another."""
        plain = len(self.operands) == 2 and all(map(is_symbolic, self.operands))
        a, b = self.ins if plain else ("", "")
        return len(a) == len(b) == 2 and a[1] == b[1] and self.out in (a[0] + b[0], b[0] + a[0])

    def trace(self, tracer: "Tracer") -> Any:
        """The output: of tensors with the batch first, and with the axis where it belongs."""
        if self.pairs:
            straight = self.out[0] == self.ins[0][0]
            pair = self.operands if straight else self.operands[::-1]
            return tracer.emit(PairProducts(name=self.layer.name), pair)
        if not self.batch or self.batch not in self.out:
            return _refuse(tracer, self.layer)
        ins = [
            self._first(labels) if isinstance(x, Displaced) else labels
            for x, labels in zip(self.operands, self.ins, strict=True)
        ]
        equation = f"{','.join(ins)}->{self._first(self.out)}"
        operands = tuple(x.tensor if isinstance(x, Displaced) else x for x in self.operands)
        y = tracer.trace(with_attributes(self.layer, subscripts=equation), operands, {})
        return _at(y, self.out.index(self.batch))

    def _first(self, labels: str) -> str:
        """Labels with that of the batch first."""
        return self.batch + labels.replace(self.batch, "")


def _by_value(tracer: "Tracer", layer: Any, args: tuple) -> Any:
    """An elementwise function of tensors that have the batch at the same axis."""
    places = {(x.axis, len(x.tensor.shape)) for x in args if isinstance(x, Displaced)}
    if len(places) != 1 or any(map(is_symbolic, args)):
        return _refuse(tracer, layer)
    ((axis, rank),) = places
    plain = tuple(
        arg.tensor if isinstance(arg, Displaced) else _first_of_one(tracer, layer, arg, axis, rank)
        for arg in args
    )
    return _at(tracer.trace(layer, plain, {}), axis)


def _first_of_one(tracer: "Tracer", layer: Any, value: Any, axis: int, rank: int) -> Any:
    """A number as it is; an array or variable with the axis of the batch, of size 1, first."""
    if not hasattr(value, "shape") or not value.shape:
        return value
    shape = [1] * (rank - len(value.shape)) + list(value.shape)
    if shape.pop(axis) != 1:
        return _refuse(tracer, layer)
    return tracer.constant(value, f"{layer.name}_constant", broadcast=True, shape=(1, *shape))
