"""The sizes of a `call` that has been run several times, with known sizes.

Keras runs a `call` on tensors whose sizes are all known, so its code may compute with them. Here
it has run several times, on symbolic tensors of different sizes. A size that differs between the
graphs is the batch, a multiple of it, or depends on an axis of unknown size; it is unknown in the
merged graph.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.ops.node import Node as KerasNode

from intact.graph.buffers import known_values
from intact.graph.runs import (
    SAMPLES,
    BatchError,
    Part,
    RandomError,
    Rows,
    Runs,
    StateError,
    are_parts,
    equal,
    fold,
    is_array,
    leaves,
    mapped,
    number,
    per_sample,
    sources,
)
from intact.graph.stand_ins import StandIn
from intact.graph.view import Node, made_by, mask_of, set_mask, with_attributes
from intact.numerics.tensors import is_symbolic, to_numpy
from intact.ops.moves import BatchReshape, SizedReshape

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


SHIFTS = ("Add", "Subtract", "Negative", "Cast", "ConvertToTensor")
"""Operations that do not change how optimizers move a weight, if they return as many values."""

PRODUCTS = ("Multiply", "Matmul", "Einsum", "Dot")
"""Operations whose output is 0 where an operand is."""

SHAPED = ("Reshape", "BroadcastTo", "Slice")
"""Operations that keep the shape of their output."""


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


class Merger:
    """Merges several graphs of known sizes into one of unknown sizes.

    Args:
        runs: The graphs' inputs, each run's in the same order.
        inputs: The inputs of the new graph, likewise.
    """

    def __init__(self, runs: Sequence[list[Any]], inputs: list[Any]) -> None:
        self._inputs = inputs
        self._merged: dict[int, Any] = dict(zip(map(id, runs[0]), inputs, strict=True))
        self._kept: list[Any] = [runs]
        self._rows: dict[int, Any] = {}
        # The axes of unknown size, by the sizes that the runs have.
        self._axes: dict[tuple[int, ...], tuple[Any, int]] = {}
        for position, tensor in enumerate(inputs):
            shapes = [run[position].shape for run in runs]
            for axis in range(1, len(tensor.shape)):
                sizes = tuple(shape[axis] for shape in shapes)
                if tensor.shape[axis] is None and sizes != SAMPLES[: len(sizes)]:
                    self._axes.setdefault(sizes, (tensor, axis))
        # The paths of weights that only a function of weights reads, whose values replace them.
        self.read_by_functions: list[str] = []
        # By the id of a function's values, the paths of the weights that it has read.
        self._paths: dict[int, list[str]] = {}

    def outputs(self, *outputs: Any) -> Any:
        """The outputs of the new graph; an output that no input reaches is an array or a variable.

        Args:
            *outputs: Those of each run.
        """
        _refuse_other_structure(outputs, "the structure of its outputs")
        return keras.tree.map_structure(lambda *values: self._argument(values, 0), *outputs)

    def _value(self, *values: Any) -> Any:
        """A tensor of the new graph, or `Runs`."""
        first = values[0]
        if isinstance(first, StandIn):
            if first.assigned:
                raise StateError(first.variable.path)
            return Runs((first.variable,) * len(values))
        if not is_symbolic(first):
            return Runs(values)
        if known_values(first) is not None:
            return Runs(tuple(map(known_values, values)))
        if id(first) not in self._merged:
            self._node(values)
            # A copy, or a tensor that has been written into, is an output by its record alone.
            self._merged.setdefault(id(first), self._merged[id(_output(first))])
        return self._merged[id(first)]

    def _node(self, tensors: tuple[Any, ...]) -> None:
        """Repeat the call that made a tensor."""
        if not all(map(is_symbolic, tensors)):
            raise BatchError("what it computes")
        nodes = tuple(map(made_by, tensors))
        first = nodes[0]
        for node in nodes:
            if (type(node.layer), len(node.outputs)) != (type(first.layer), len(first.outputs)):
                raise BatchError("what it computes")
        arguments = [(node.args, node.kwargs) for node in nodes]
        _refuse_other_structure(arguments, f"the arguments of {type(first.layer).__name__}")
        values = keras.tree.map_structure(self._value, *arguments)
        symbolic = any(map(is_symbolic, leaves(values)))
        outputs = self._call(nodes, arguments) if symbolic else self._folded(nodes, values)
        self._merged.update(zip(map(id, first.outputs), outputs, strict=True))
        self._kept.append(nodes)
        for *old, output in zip(*(node.outputs for node in nodes), outputs, strict=True):
            mask = None if mask_of(old[0]) is None else self._value(*map(mask_of, old))
            if is_symbolic(output) and is_symbolic(mask):
                set_mask(output, mask)

    def _call(self, nodes: tuple[Node, ...], arguments: list[Any]) -> list[Any]:
        """The outputs of a call in the new graph."""
        layer = nodes[0].layer
        outputs = [_like(*old) for old in zip(*(node.outputs for node in nodes), strict=True)]
        rank = len(outputs[0].shape) if type(layer).__name__ in BROADCASTING else 0
        args, kwargs = keras.tree.map_structure(
            lambda *values: self._argument(values, rank), *arguments
        )
        layer = _with_sizes([node.layer for node in nodes], nodes, outputs[0].shape)
        KerasNode(operation=layer, call_args=args, call_kwargs=kwargs, outputs=outputs)
        return outputs

    def _folded(self, nodes: tuple[Node, ...], values: Any) -> list[Any]:
        """The outputs, in each run, of a call that no input reaches."""
        results = [
            keras.tree.flatten(fold(node.layer, values, run)) for run, node in enumerate(nodes)
        ]
        layer = nodes[0].layer
        weights = list({id(v): v for p in leaves(values) for v in sources(p)}.values())
        outputs = [Runs(runs) for runs in zip(*results, strict=True)]
        if not weights or _vanishes(layer, values) or type(layer).__name__ == "StopGradient":
            return outputs
        weight = self._rearranged(nodes, values, weights)
        if weight is not None:
            return [weight]
        paths = [path for w in weights for path in self._paths.get(id(w), [w.path])]
        sizes = {math.prod(t.shape) for t in (*weights, *nodes[0].outputs)}
        if type(layer).__name__ not in SHIFTS or len(weights) > 1 or len(sizes) > 1:
            self.read_by_functions += paths
        return [self._weight(output, paths) for output in outputs]

    def _weight(self, output: Runs, paths: list[str]) -> Runs:
        """A function of weights as a weight; single numbers, and whole ones, are constants.

        Args:
            output: What the function returned in each run.
            paths: The paths of the weights.
        """
        arrays = list(map(to_numpy, output.values))
        form = _common_form(arrays)
        if form is None or arrays[0].size == 1 or arrays[0].dtype.kind != "f":
            return output
        values, of_runs = form
        weight = keras.Variable(values, trainable=True, name=paths[0].rpartition("/")[2])
        self._paths[id(weight)] = paths
        return of_runs(weight)

    @staticmethod
    def _rearranged(nodes: tuple[Node, ...], values: Any, weights: list[Any]) -> Runs | None:
        """A rearranged weight as a weight, if each of its values remains exactly once."""
        if type(nodes[0].layer).__name__ not in ARRANGING or len(weights) != 1:
            return None
        (source,) = weights
        index = np.arange(np.prod(source.shape, dtype="int64")).reshape(source.shape)
        numbered = mapped(values, lambda leaf: number(leaf, index) if sources(leaf) else leaf)
        places = [to_numpy(fold(node.layer, numbered, run)) for run, node in enumerate(nodes)]
        form = _common_form(places)
        if form is None:
            return None
        all_places, of_runs = form[0].astype("int64"), form[1]
        if len(np.unique(all_places)) < all_places.size:
            return None
        moved = to_numpy(source).ravel()[all_places]
        weight = keras.Variable(moved, trainable=True, dtype=source.dtype, name=source.name)
        weight.regularizer = source.regularizer
        return of_runs(weight)

    def _argument(self, values: tuple[Any, ...], rank: int) -> Any:
        """An argument of a call in the new graph.

        Args:
            values: What each run has.
            rank: The rank that it is broadcast to; 0 where it is not.
        """
        value = self._value(*values)
        if not isinstance(value, Runs):
            return value
        first = value.first
        if isinstance(first, Rows):
            return first.weight if rank else self._repeated(first.weight, 1)
        if isinstance(first, Part):
            return self._part(first.weight, first.shapes, rank, first.each and not rank)
        if all(first is other or equal(first, other) for other in value.values[1:]):
            return first
        if all(map(is_array, value.values)):
            arrays = [to_numpy(v) for v in value.values]
            rows = per_sample(arrays)
            if rows is not None and len({row.shape for row in rows}) == 1:
                return (
                    rows[0] if rank and len(rows[0]) == 1 else self._repeated(rows[0], len(rows[0]))
                )
            parts = arrays if rows is None else rows
            if are_parts(parts) and (rows is None or len(rows[0]) == 1):
                shapes = tuple(p.shape for p in parts)
                return self._part(parts[-1], shapes, rank, each=rows is not None and not rank)
            if _are_random(arrays):
                raise RandomError("random numbers")
        sized = is_array(first) and np.ndim(to_numpy(first))
        what = f"an array of shape {to_numpy(first).shape}" if sized else f"the value {first!r}"
        raise BatchError(f"{what}")

    def _part(
        self, table: Any, shapes: tuple[tuple[int, ...], ...], rank: int, each: bool = False
    ) -> Any:
        """The first values of a constant or weight, as many as axes of inputs have.

        Args:
            table: As many values as the largest sizes have.
            shapes: The shape that each run has.
            rank: The rank that it is broadcast to; 0 where it is not.
            each: Whether each sample has a copy of its first row.
        """
        ends = []
        tensors: list[Any] = []
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1:
                if sizes not in self._axes:
                    raise BatchError(f"an array of {sizes[0]} values along axis {axis}")
                tensor, place = self._axes[sizes]
                if not any(tensor is other for other in tensors):
                    tensors.append(tensor)
                index = next(i for i, other in enumerate(tensors) if other is tensor)
                ends.append((axis - len(shapes[0]), index, place))
        operation = TablePart(ends, max(rank, len(shapes[0])), each)
        tensors += [self._zeros()] if each else []
        output = operation.compute_output_spec(table, *tensors)
        KerasNode(operation, call_args=(table, *tensors), call_kwargs={}, outputs=[output])
        return output

    def _zeros(self) -> Any:
        """A zero for each sample."""
        x = next((t for t in self._inputs if t.shape and t.shape[0] is None), None)
        if x is None:
            raise BatchError("a constant for each sample")
        if id(x) not in self._rows:
            # The argmax over an axis of size 1 is always 0.
            if None in x.shape[1:]:
                one = x[(slice(None), *(0 for _ in x.shape[2:]), slice(0, 1))]
            else:
                one = x[(slice(None), *(slice(0, 1) for _ in x.shape[1:]))]
                one = ops.reshape(one, (-1, 1))
            self._rows[id(x)] = ops.argmax(one, axis=-1)
        return self._rows[id(x)]

    def _repeated(self, rows: Any, factor: int) -> Any:
        """Rows that repeat for each sample, as a tensor of the new graph."""
        if factor != 1:
            raise BatchError("a constant of several rows for each sample")
        return ops.take(rows, self._zeros(), axis=0)


def _vanishes(layer: Any, values: Any) -> bool:
    """Whether a call multiplies by zeros alone, such as the first state of a loop."""
    parts = [part for part in leaves(values) if isinstance(part, Runs) and not sources(part)]
    zeros = any(is_array(part.first) and not np.any(to_numpy(part.first)) for part in parts)
    return zeros and type(layer).__name__ in PRODUCTS


def _output(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """A tensor as the call that made it has it."""
    return made_by(tensor).outputs[tensor._keras_history.tensor_index]


class TablePart(keras.Operation):
    """The first values of a constant along some axes, as many as axes of other tensors have.

    Args:
        ends: For each such axis, counted from the last: the axis, which tensor, and its axis.
        rank: The rank of the output; axes of size 1 come first.
        each: Whether each sample has a copy of the first row. The last tensor then has a zero for
            each sample.
    """

    def __init__(self, ends: list[tuple[int, int, int]], rank: int, each: bool) -> None:
        super().__init__()
        self.ends, self.rank, self.each = ends, rank, each

    def compute_output_spec(self, table: Any, *others: Any) -> keras.KerasTensor:
        """The symbolic output of a call."""
        sizes = [*(1,) * (self.rank - len(table.shape)), *table.shape]
        for axis, other, place in self.ends:
            sizes[axis] = others[other].shape[place]
        if self.each:
            sizes[0] = others[-1].shape[0]
        return keras.KerasTensor(sizes, keras.backend.standardize_dtype(table.dtype))


def _refuse_other_structure(values: Sequence[Any], what: str) -> None:
    """Refuse what each run nests in another way."""
    for other in values[1:]:
        try:
            keras.tree.assert_same_structure(values[0], other)
        except (ValueError, TypeError):
            raise BatchError(what) from None


def _common_form(arrays: list[np.ndarray]) -> tuple[np.ndarray, Callable[[Any], Runs]] | None:
    """What the arrays of all runs are made of.

    Args:
        arrays: An array of each run.

    Returns:
        The values of a weight, and a function that makes of such a weight what each run has; None
        if the arrays are not the rows of each sample, or the first values of one array.
    """
    count = len(arrays)
    if all(np.array_equal(arrays[0], array) for array in arrays[1:]):
        return arrays[-1], lambda weight: Runs((weight,) * count)
    rows = per_sample(arrays)
    parts = arrays if rows is None else rows
    if not are_parts(parts) or (rows is not None and len(rows[0]) > 1):
        return None
    shapes = tuple(part.shape for part in parts)
    if rows is not None and len(set(shapes)) == 1:
        return parts[-1], lambda weight: Runs((Rows(weight),) * count)
    each = rows is not None
    return parts[-1], lambda weight: Runs((Part(weight, shapes, each=each),) * count)


def _are_random(arrays: list[np.ndarray]) -> bool:
    """Whether arrays of real values, of as many axes, have no value in common."""
    first, second, *_ = arrays
    if first.dtype.kind != "f" or first.ndim != second.ndim or first.ndim == 0:
        return False
    common = tuple(slice(min(sizes)) for sizes in zip(first.shape, second.shape, strict=True))
    return first.size > 1 and not np.any(first[common] == second[common])


def _like(*tensors: Any) -> keras.KerasTensor:
    """A symbolic tensor with the sizes that the tensors of all runs have in common."""
    if len({len(tensor.shape) for tensor in tensors}) > 1:
        raise BatchError("the rank of a tensor")
    sizes = zip(*(tensor.shape for tensor in tensors), strict=True)
    shape = tuple(n[0] if len(set(n)) == 1 else None for n in sizes)
    return keras.KerasTensor(shape, tensors[0].dtype)


def _with_sizes(layers: list[Any], nodes: tuple[Node, ...], shape: tuple[int | None, ...]) -> Any:
    """An operation whose attributes do not depend on sizes that are unknown.

    Args:
        layers: The operation of each run.
        nodes: The calls.
        shape: The shape of its output.
    """
    first = layers[0]
    if isinstance(first, keras.layers.Layer):
        return first
    different = [
        key
        for key, value in vars(first).items()
        if not key.startswith("_")
        and key != "name"
        and any(not equal(value, vars(other).get(key)) for other in layers[1:])
    ]
    is_reshape = type(first).__name__ == "Reshape"
    sized = _reshape(nodes, shape) if different == ["newshape"] and len(nodes) > 2 else None
    if sized is not None:
        return sized
    if is_reshape and len(nodes) > 2 and shape.count(None) > 1:
        raise BatchError(f"`newshape` of Reshape {first.name!r}")
    for key in different:
        if key not in ("newshape", "shape") or type(first).__name__ not in SHAPED:
            raise BatchError(f"`{key}` of {type(first).__name__}")
    target = tuple((-1 if is_reshape else None) if n is None else n for n in shape)
    return with_attributes(first, **dict.fromkeys(different, target))


def _reshape(nodes: tuple[Node, ...], shape: tuple[int | None, ...]) -> Any:
    """A reshape to unknown sizes that are multiples or parts of its input's; else None."""
    if None not in shape[1:]:
        return None
    before = [node.inputs[0].shape for node in nodes]
    after = [node.outputs[0].shape for node in nodes]
    same_batch = all(a[0] == b[0] for a, b in zip(before, after, strict=True))
    if same_batch and shape[1:].count(None) == 1:
        target = tuple(-1 if n is None else n for n in shape[1:])
        return keras.layers.Reshape(target, name=nodes[0].layer.name)
    entries: list[tuple[int, int | None, int]] = []
    for axis, size in enumerate(shape[1:], 1):
        if size is not None:
            entries.append((size, None, 1))
            continue
        sizes = [s[axis] for s in after]
        ratios = [
            {Fraction(n, s[a]) for n, s in zip(sizes, before, strict=True)}
            for a in range(1, len(before[0]))
        ]
        source = next((a for a, ratio in enumerate(ratios, 1) if len(ratio) == 1), None)
        if source is None:
            return None
        (ratio,) = ratios[source - 1]
        entries.append((ratio.numerator, source, ratio.denominator))
    return SizedReshape(entries, name=nodes[0].layer.name)
