"""The batch of a `call` that has been run with two known numbers of samples.

Keras runs a `call` on tensors whose sizes are all known, so its code may compute with the size of
the batch. Here it has run twice, on symbolic tensors of two batch sizes. A size that differs
between the two graphs is the batch, or a known multiple of it, and is unknown in the merged graph.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.ops.node import Node as KerasNode

from intact.graph.stand_ins import StandIn
from intact.graph.view import Node, made_by, mask_of, set_mask
from intact.numerics.tensors import Variable, is_symbolic, is_trainable, to_numpy
from intact.ops.moves import BatchReshape

SIZES = (23, 29)
"""Two batch sizes that are unlikely to be other sizes of a model, which would hide mistakes."""

BROADCASTING = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"),
    *("Where", "Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"),
    *("LogicalAnd", "LogicalOr", "FloorDivide", "Mod", "SquaredDifference"),
}
"""Operations that broadcast one value to all samples."""

ARRANGING = {
    *("Reshape", "ExpandDims", "Squeeze", "Transpose", "Swapaxes", "Moveaxis", "Ravel"),
    *("ConvertToTensor", "Cast", "BroadcastTo", "Tile", "Repeat", "Take", "GetItem"),
    *("Slice", "Flip", "Roll"),
}
"""Operations that only rearrange a weight: if all values remain, the output is that weight."""


SHAPED = ("Reshape", "BroadcastTo", "Slice")
"""Operations that keep the shape of their output."""


class BatchError(Exception):
    """A value that depends on the number of samples and is not a size."""


def batch_factor(tensor: keras.KerasTensor, factors: dict[int, int]) -> int:
    """How many rows of a tensor belong to one sample of the model's input.

    Args:
        tensor: A tensor of the new graph.
        factors: The known results, by the tensors' ids.
    """
    if id(tensor) not in factors:
        node = made_by(tensor)
        inputs = [t for t in node.inputs if t.shape and t.shape[0] is None]
        factor = max((batch_factor(t, factors) for t in inputs), default=1)
        if isinstance(node.layer, BatchReshape) and None not in node.inputs[0].shape[1:]:
            before, after = (math.prod(t.shape[1:]) for t in (node.inputs[0], tensor))
            factor = max(factor * before // after, 1)
        factors[id(tensor)] = factor
    return factors[id(tensor)]


@dataclass(frozen=True)
class Pair:
    """A value that does not depend on the inputs, from both runs."""

    first: Any
    second: Any


@dataclass(frozen=True)
class Rows:
    """A weight whose one row stands for every sample."""

    weight: Any


def _equal(a: Any, b: Any) -> bool:
    """Whether two attributes or arguments are the same."""
    if a is b:
        return True
    try:
        keras.tree.assert_same_structure(a, b)
    except (ValueError, TypeError):
        return False
    return all(map(_equal_parts, keras.tree.flatten(a), keras.tree.flatten(b)))


def _equal_parts(a: Any, b: Any) -> bool:
    if _is_array(a) and _is_array(b):
        a, b = to_numpy(a), to_numpy(b)
        return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError):
        return False


def _is_array(value: Any) -> bool:
    return isinstance(value, Variable | np.ndarray) or keras.ops.is_tensor(value)


class Merger:
    """Merges two graphs of known batch sizes into one with a batch of unknown size.

    Args:
        runs: The graphs' inputs, each run's in the same order.
        inputs: The inputs of the new graph, likewise.
    """

    def __init__(self, runs: tuple[list[Any], list[Any]], inputs: list[Any]) -> None:
        self._inputs = inputs
        self._sizes = [dict(zip(map(id, run), inputs, strict=True)) for run in runs]
        self._merged: dict[int, Any] = dict(self._sizes[0])
        self._kept: list[Any] = [runs]
        self._rows: dict[int, Any] = {}
        # Weights that only a function of weights reads; its values become constants.
        self.read_by_functions: list[Any] = []

    def outputs(self, first: Any, second: Any) -> Any:
        """The outputs of the new graph; an output that no input reaches is an array or a variable.

        Args:
            first: The outputs of the first run.
            second: Those of the second.
        """
        try:
            keras.tree.assert_same_structure(first, second)
        except (ValueError, TypeError):
            raise BatchError("the structure of its outputs") from None
        return keras.tree.map_structure(lambda a, b: self._argument(a, b, False), first, second)

    def _value(self, a: Any, b: Any) -> Any:
        """A tensor of the new graph, or a `Pair`."""
        if isinstance(a, StandIn):
            return Pair(a.variable, a.variable)
        if not is_symbolic(a):
            return Pair(a, b)
        if id(a) not in self._merged:
            self._node(a, b)
        return self._merged[id(a)]

    def _node(self, a: Any, b: Any) -> None:
        """Repeat the call that made a tensor."""
        if not is_symbolic(b):
            raise BatchError("what it computes")
        nodes = x, y = made_by(a), made_by(b)
        if type(x.layer) is not type(y.layer) or len(x.outputs) != len(y.outputs):
            raise BatchError("what it computes")
        arguments = ((x.args, x.kwargs), (y.args, y.kwargs))
        try:
            keras.tree.assert_same_structure(*arguments)
        except (ValueError, TypeError):
            raise BatchError(f"the arguments of {type(x.layer).__name__}") from None
        values = keras.tree.map_structure(self._value, *arguments)
        symbolic = any(map(is_symbolic, _leaves(values)))
        outputs = self._call(nodes, arguments) if symbolic else self._folded(nodes, values)
        self._merged.update(zip(map(id, x.outputs), outputs, strict=True))
        self._kept.append(nodes)
        for m, n, output in zip(x.outputs, y.outputs, outputs, strict=True):
            mask = None if mask_of(m) is None else self._value(mask_of(m), mask_of(n))
            if is_symbolic(output) and is_symbolic(mask):
                set_mask(output, mask)

    def _call(self, nodes: tuple[Node, Node], arguments: Any) -> list[Any]:
        """The outputs of a call in the new graph."""
        x, y = nodes
        broadcasts = type(x.layer).__name__ in BROADCASTING
        args, kwargs = keras.tree.map_structure(
            lambda m, n: self._argument(m, n, broadcasts), *arguments
        )
        outputs = [_like(m, n) for m, n in zip(x.outputs, y.outputs, strict=True)]
        layer = _with_batch(x.layer, y.layer, outputs[0].shape)
        KerasNode(operation=layer, call_args=args, call_kwargs=kwargs, outputs=outputs)
        return outputs

    def _folded(self, nodes: tuple[Node, Node], values: Any) -> list[Any]:
        """The outputs, in each run, of a call that no input reaches."""
        results = [
            keras.tree.flatten(_fold(node.layer, values, run)) for run, node in enumerate(nodes)
        ]
        sources = list({id(v): v for p in _leaves(values) for v in _sources(p)}.values())
        if sources:
            weight = self._rearranged(nodes, values, sources)
            if weight is not None:
                return [weight]
            self.read_by_functions += sources
        return [Pair(*both) for both in zip(*results, strict=True)]

    @staticmethod
    def _rearranged(nodes: tuple[Node, Node], values: Any, sources: list[Any]) -> Pair | None:
        """A rearranged weight as a weight, if each of its values remains exactly once."""
        if type(nodes[0].layer).__name__ not in ARRANGING or len(sources) != 1:
            return None
        (source,) = sources
        index = np.arange(np.prod(source.shape, dtype="int64")).reshape(source.shape)
        numbered = _mapped(values, lambda leaf: _number(leaf, index) if _sources(leaf) else leaf)
        places, second = (
            to_numpy(_fold(node.layer, numbered, run)) for run, node in enumerate(nodes)
        )
        repeated = places.shape != second.shape
        if repeated:
            rows = _per_sample(places, second)
            if rows is None or len(rows) != 1:
                return None
            places = rows
        places = places.astype("int64")
        if len(np.unique(places)) < places.size:
            return None
        moved = to_numpy(source).ravel()[places]
        weight = keras.Variable(moved, trainable=True, dtype=source.dtype, name=source.name)
        weight.regularizer = source.regularizer
        return Pair(Rows(weight), Rows(weight)) if repeated else Pair(weight, weight)

    def _argument(self, a: Any, b: Any, broadcasts: bool) -> Any:
        """An argument of a call in the new graph."""
        value = self._value(a, b)
        if not isinstance(value, Pair):
            return value
        first, second = value.first, value.second
        if isinstance(first, Rows):
            return first.weight if broadcasts else self._repeated(first.weight, 1)
        if first is second or _equal(first, second):
            return first
        if _is_array(first) and _is_array(second):
            rows = _per_sample(to_numpy(first), to_numpy(second))
            if rows is not None:
                if broadcasts and len(rows) == 1:
                    return rows
                return self._repeated(rows, len(rows))
        sized = _is_array(first) and np.ndim(to_numpy(first))
        what = f"an array of shape {to_numpy(first).shape}" if sized else f"the value {first!r}"
        raise BatchError(f"{what} (random, or computed from the batch size)")

    def _repeated(self, rows: Any, factor: int) -> Any:
        """Rows that repeat for each sample, as a tensor of the new graph."""
        x = next((t for t in self._inputs if t.shape and t.shape[0] is None), None)
        if x is None or factor != 1:
            raise BatchError("a constant of several rows for each sample")
        if id(x) not in self._rows:
            # The argmax over an axis of size 1 is always 0.
            one = x[(slice(None), *(slice(0, 1) for _ in x.shape[1:]))]
            self._rows[id(x)] = ops.argmax(ops.reshape(one, (-1, 1)), axis=-1)
        return ops.take(rows, self._rows[id(x)], axis=0)


def _mapped(values: Any, function: Callable[[Any], Any]) -> Any:
    """Nested arguments with a function applied to each part."""
    if isinstance(values, Pair) or not isinstance(values, list | tuple | dict):
        return function(values)
    if isinstance(values, dict):
        return {key: _mapped(part, function) for key, part in values.items()}
    return type(values)(_mapped(part, function) for part in values)


def _number(value: Pair, index: np.ndarray) -> Pair:
    """The numbers 0, 1, 2, ... in the shape of a weight."""
    numbers = Rows(index) if isinstance(value.first, Rows) else index
    return Pair(numbers, numbers)


def _leaves(values: Any) -> list[Any]:
    """The parts of nested arguments, of which a `Pair` is one."""
    if isinstance(values, Pair) or not isinstance(values, list | tuple | dict):
        return [values]
    parts = values.values() if isinstance(values, dict) else values
    return [leaf for part in parts for leaf in _leaves(part)]


def _sources(value: Any) -> list[Any]:
    """The value itself if it is a trainable weight, else None."""
    first = value.first if isinstance(value, Pair) else None
    weight = first.weight if isinstance(first, Rows) else first
    return [weight] if is_trainable(weight) else []


def _pick(values: Any, run: int) -> Any:
    """Nested arguments as one run received them."""
    if isinstance(values, Pair):
        value = (values.first, values.second)[run]
        if isinstance(value, Rows):
            return np.repeat(to_numpy(value.weight), SIZES[run], axis=0)
        return value
    if isinstance(values, dict):
        return {key: _pick(part, run) for key, part in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_pick(part, run) for part in values)
    return values


def _fold(layer: Any, values: Any, run: int) -> Any:
    """Compute what no input reaches."""
    args, kwargs = _pick(values, run)
    return layer(*args, **kwargs)


def _per_sample(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The rows of one sample, if two arrays repeat them for as many samples as there are."""
    if a.ndim == 0 or a.ndim != b.ndim or a.shape[1:] != b.shape[1:]:
        return None
    factor, rest = divmod(len(a), SIZES[0])
    if rest or factor * SIZES[1] != len(b):
        return None
    rows = a[:factor]
    for size, array in zip(SIZES, (a, b), strict=True):
        if not np.array_equal(np.tile(rows, (size, *[1] * (a.ndim - 1))), array):
            return None
    return rows


def _like(a: Any, b: Any) -> keras.KerasTensor:
    """A symbolic tensor with the sizes that two tensors have in common."""
    if len(a.shape) != len(b.shape):
        raise BatchError("the rank of a tensor")
    shape = tuple(m if m == n else None for m, n in zip(a.shape, b.shape, strict=True))
    return keras.KerasTensor(shape, a.dtype)


def _with_batch(a: Any, b: Any, shape: tuple[int | None, ...]) -> Any:
    """An operation whose attributes do not depend on the batch size.

    Args:
        a: The operation of the first run.
        b: That of the second.
        shape: The shape of its output.
    """
    if isinstance(a, keras.layers.Layer):
        return a
    different = [
        key
        for key, value in vars(a).items()
        if not key.startswith("_") and key != "name" and not _equal(value, vars(b).get(key))
    ]
    new = copy.copy(a)
    new._inbound_nodes, new._outbound_nodes = [], []
    for key in different:
        if key not in ("newshape", "shape") or type(a).__name__ not in SHAPED:
            raise BatchError(f"`{key}` of {type(a).__name__}")
        free = -1 if type(a).__name__ == "Reshape" else None
        setattr(new, key, tuple(free if n is None else n for n in shape))
    return new
