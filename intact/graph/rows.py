"""Operations along the first axis of a model that is built for a known number of rows.

A model of a graph has the graph's nodes along its first axis, and not samples. An operation along
that axis takes all rows as one sample: `(rows, ...)` becomes `(1, rows, ...)`, and is brought back.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from intact.graph.batch import BROADCASTING
from intact.graph.view import listed_axes, with_attributes
from intact.numerics.tensors import is_symbolic
from intact.ops.moves import BatchReshape

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer

Call = tuple[Any, list[Any]]
"""An operation, and its arguments."""

ALONG = (
    *("Take", "Sum", "Mean", "Max", "Min", "Prod", "Var", "Std", "Softmax", "LogSoftmax"),
    *("Logsumexp", "Cumsum", "Cumprod", "Flip", "Roll", "Repeat", "Sort", "Argsort", "Argmax"),
    *("Argmin", "Concatenate", "Split", "Norm", "Normalize", "TakeAlongAxis", "Any", "All"),
)
"""Operations along one axis or several, which their attribute `axis` names."""


def trace_along_rows(tracer: "Tracer", layer: Any, args: tuple, kwargs: dict) -> Any:
    """Rewrite an operation along a first axis of known size.

    Args:
        tracer: Makes the new graph.
        layer: A layer or operation.
        args: Its arguments; tensors are those of the new graph.
        kwargs: Its keyword arguments, likewise.

    Returns:
        The outputs; None if it does not compute along that axis.
    """
    is_layer = isinstance(layer, keras.layers.Layer)
    call = None if is_layer else _behind(layer, args, kwargs)
    if call is None:
        return None

    def joined(x: Any) -> Any:
        if not is_symbolic(x):
            return x
        # A tensor of fewer axes is the same for all rows.
        shape = (*(1,) * (rank - len(x.shape)), *x.shape)
        return tracer.emit(BatchReshape(shape, name=f"{layer.name}_rows"), x)

    def apart(y: Any) -> Any:
        return tracer.emit(BatchReshape(y.shape[2:], name=f"{layer.name}_apart"), y)

    moved, operands = call
    rank = max(len(x.shape) for x in keras.tree.flatten(operands) if is_symbolic(x))
    outputs = tracer.trace(moved, tuple(keras.tree.map_structure(joined, operands)), {})
    return keras.tree.map_structure(apart, outputs)


def _behind(layer: Any, args: tuple, kwargs: dict) -> Call | None:
    """The call for operands with one more axis in front; None if it leaves their rows apart."""
    operands = [x for x in (*args, *kwargs.values()) if x is not None]
    tensors = [x for x in keras.tree.flatten(operands) if is_symbolic(x)]
    rows = {len(x.shape) and x.shape[0] for x in tensors}
    if not tensors or not all(rows) or None in rows:
        return None
    kind = type(layer).__name__
    move = CALLS.get(kind, _along if kind in ALONG else None)
    return move and move(layer, operands, len(tensors[0].shape))


def _along(layer: Any, operands: list[Any], rank: int) -> Call | None:
    """An operation along axes that its attribute `axis` names."""
    axes = listed_axes(layer)
    if None in axes:
        return None
    moved = [axis % rank for axis in axes]
    gone = not getattr(layer, "keepdims", True) and len(axes) == rank
    if 0 not in moved or gone:
        return None
    moved = [axis + 1 for axis in moved]
    axis = tuple(moved) if isinstance(layer.axis, list | tuple) else moved[0]
    return with_attributes(layer, axis=axis), operands


def _item(layer: Any, operands: list[Any], rank: int) -> Call | None:
    """A part by indices and slices."""
    x, key = operands
    parts = key if isinstance(key, tuple) else (key,)
    whole = isinstance(parts[0], slice) and parts[0] == slice(None)
    if whole or parts[0] is Ellipsis or parts[0] is None:
        return None
    return layer, [x, (slice(None), *parts)]


def _product(layer: Any, operands: list[Any], rank: int) -> Call | None:
    """The product of a known matrix with the rows."""
    matrix, x = operands
    if is_symbolic(matrix) or not is_symbolic(x) or rank != 2:
        return None
    return layer, operands


def _elementwise(layer: Any, operands: list[Any], rank: int) -> Call | None:
    """A function of values of which some are the same for all rows, or known for each row."""
    shapes = [tuple(getattr(x, "shape", ())) for x in operands]
    rank = max(map(len, shapes))
    tensors = [shape for x, shape in zip(operands, shapes, strict=True) if is_symbolic(x)]
    alike = {shape[0] for shape in tensors if len(shape) == rank}
    known = any(
        len(shape) == rank and shape[0] != 1 and not is_symbolic(x)
        for x, shape in zip(operands, shapes, strict=True)
    )
    if len(alike) == 1 and all(len(shape) == rank for shape in tensors) and not known:
        return None
    return layer, operands


def _padded(layer: Any, operands: list[Any], rank: int) -> Call | None:
    """More rows."""
    before = tuple(map(tuple, layer.pad_width))
    if len(before) != rank or before[0] == (0, 0):
        return None
    return with_attributes(layer, pad_width=((0, 0), *before)), operands


CALLS: dict[str, Callable[[Any, list[Any], int], Call | None]] = {
    **dict.fromkeys(BROADCASTING, _elementwise),
    "GetItem": _item,
    "Matmul": _product,
    "Pad": _padded,
}
"""Other operations that may compute along the first axis."""
