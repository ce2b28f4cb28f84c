"""Tensors whose batch does not stand first, on their way back.

Tensors of the canonical graph have the batch first. Attention that makes one matrix of queries,
keys and values moves it for a while: `(batch, n, 3, heads, d)` becomes `(3, batch, heads, n, d)`,
of which parts are taken by index. Here such a tensor is one of the new graph, with the batch
first, and the axis where the user has it.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from keras import layers

from intact.numerics.tensors import is_symbolic

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer

TURNS = ("Transpose", "Moveaxis", "Swapaxes")
"""Operations that put axes in another order."""

NEW_AXIS = ("Stack", "ExpandDims")
"""Operations that add axes."""

BY_VALUE = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative", "Exp", "Relu", "Sigmoid"),
    *("Tanh", "Gelu", "Silu", "Square", "Sqrt", "Cast", "ConvertToTensor", "Identity"),
}
"""Operations on each value alone."""


@dataclass(frozen=True)
class Displaced:
    """A tensor whose batch stands elsewhere in the user's graph.

    Args:
        tensor: The tensor of the new graph, whose other axes have the same order.
        axis: Where the user has the batch.
    """

    tensor: keras.KerasTensor
    axis: int

    def place(self, axis: int) -> int:
        """The axis of the tensor that is an axis of the user's."""
        axis %= len(self.tensor.shape)
        return 0 if axis == self.axis else axis + (axis < self.axis)


def moves_batch(layer: Any, args: tuple, kwargs: dict) -> bool:
    """Whether the batch does not stand first in the input or output of an operation."""
    flat = keras.tree.flatten((args, kwargs))
    if any(isinstance(value, Displaced) for value in flat):
        return True
    if isinstance(layer, layers.Layer) or not flat or not is_symbolic(flat[0]):
        return False
    if type(layer).__name__ in TURNS:
        return _order(layer, len(flat[0].shape))[0] != 0
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
    kind = type(layer).__name__
    first: Any = args[0] if args else None
    if isinstance(layer, layers.Layer) or kwargs:
        return _refuse(tracer, layer)
    if kind == "Stack":
        if any(isinstance(part, Displaced) for part in first):
            return _refuse(tracer, layer)
        return _at(tracer.trace(_with(layer, axis=1), (first,), {}), 1)
    if kind in BY_VALUE:
        return _by_value(tracer, layer, args)
    x = first if isinstance(first, Displaced) else Displaced(first, 0)
    if kind in TURNS:
        return _turned(tracer, layer, x)
    if kind == "ExpandDims":
        return _expanded(tracer, layer, x)
    if kind == "Reshape":
        return _reshaped(tracer, layer, x)
    if kind == "GetItem":
        return _part(tracer, layer, x, args[1])
    if kind in ("Split", "Unstack") and layer.axis % len(x.tensor.shape) != x.axis:
        parts = tracer.trace(_with(layer, axis=x.place(layer.axis)), (x.tensor,), {})
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


def _with(layer: Any, **attributes: Any) -> Any:
    """An operation with other attributes."""
    new = copy.copy(layer)
    vars(new).update(attributes)
    return new


def _order(layer: Any, rank: int) -> tuple[int, ...]:
    """The axes of an operation's input in the order of its output."""
    # The sizes 0, 1, 2, ... come out in the order of the axes.
    return layer.compute_output_spec(keras.KerasTensor(range(rank))).shape


def _turned(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """The axes in another order."""
    order = _order(layer, len(x.tensor.shape))
    others = tuple(x.place(axis) for axis in order if axis != x.axis)
    y = x.tensor
    if others != tuple(sorted(others)):
        y = tracer.trace(layers.Permute(others, name=layer.name), (y,), {})
    return _at(y, order.index(x.axis))


def _new_axes(layer: Any, rank: int) -> list[int]:
    """The axes that an operation adds, as its output has them."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return sorted(axis % (rank + len(axes)) for axis in axes)


def _expanded(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """More axes of size 1."""
    rank = len(x.tensor.shape)
    axes = _new_axes(layer, rank)
    order = [axis for axis in range(rank + len(axes)) if axis not in axes]
    place = order[x.axis]
    others = tuple(axis + 1 if axis < place else axis for axis in axes)
    return _at(tracer.trace(_with(layer, axis=others), (x.tensor,), {}), place)


def _reshaped(tracer: "Tracer", layer: Any, x: Displaced) -> Any:
    """Another shape, in which the axes before the batch are as they were."""
    before, count = x.tensor.shape[1 : x.axis + 1], x.axis
    shape = tuple(layer.newshape)
    if shape[:count] != before:
        return _refuse(tracer, layer)
    # The axes before the batch go to the end for a while, so that others can join the batch.
    rank = len(x.tensor.shape)
    order = (*range(count + 1, rank), *range(1, count + 1))
    y = tracer.trace(layers.Permute(order, name=f"{layer.name}_ahead"), (x.tensor,), {})
    y = tracer.trace(_with(layer, newshape=(*shape[count:], *before)), (y,), {})
    rest = len(shape) - count
    order = (*range(rest, len(shape)), *range(1, rest))
    return _at(tracer.trace(layers.Permute(order, name=f"{layer.name}_back"), (y,), {}), count)


def _part(tracer: "Tracer", layer: Any, x: Displaced, key: Any) -> Any:
    """A part by indices and slices."""
    key = list(key) if isinstance(key, tuple) else [key]
    rank = len(x.tensor.shape)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key[at : at + 1] = [slice(None)] * (rank - len(key) + 1)
    key += [slice(None)] * (rank - len(key))
    if not all(isinstance(part, int | slice) for part in key) or key[x.axis] != slice(None):
        return _refuse(tracer, layer)
    indexed = sum(isinstance(part, int) for part in key[: x.axis])
    others = (part for axis, part in enumerate(key) if axis != x.axis)
    y = tracer.trace(layer, (x.tensor, (slice(None), *others)), {})
    return _at(y, x.axis - indexed)


def _by_value(tracer: "Tracer", layer: Any, args: tuple) -> Any:
    """A function of each value alone, of tensors whose batch stands in the same place."""
    tensors = [arg for arg in args if is_symbolic(arg) or isinstance(arg, Displaced)]
    places = {(x.axis, len(x.tensor.shape)) for x in tensors if isinstance(x, Displaced)}
    numbers = all(isinstance(arg, int | float) for arg in args if arg not in tensors)
    if len(places) != 1 or any(map(is_symbolic, tensors)) or not numbers:
        return _refuse(tracer, layer)
    plain = tuple(arg.tensor if isinstance(arg, Displaced) else arg for arg in args)
    return _at(tracer.trace(layer, plain, {}), tensors[0].axis)
