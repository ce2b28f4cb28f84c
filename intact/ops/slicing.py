"""Parts of tensors, and their values in another order along an axis."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import FIXED_BATCH, Case, Op
from intact.ops.moves import Moved
from intact.ops.registry import register_op
from intact.ops.shape import Moving, reshaped

MAX_RUNS = 4
"""Up to this number, slices of several values side by side are faster than a gather."""


@keras.saving.register_keras_serializable("intact")
class Slice(Moved):
    """A contiguous part of each axis but the batch.

    Args:
        begin: The first index of each axis.
        end: The index behind the last of each axis; None for all to its end.
    """

    begin: tuple[int, ...]
    end: tuple[int | None, ...]

    @property
    def key(self) -> tuple[slice, ...]:
        """The part, as Python writes it."""
        return tuple(slice(*ends) for ends in zip(self.begin, self.end, strict=True))

    def call(self, x: Tensor) -> Tensor:
        """The part."""
        return x[(slice(None), *self.key)]

    def compute_output_shape(self, shape: tuple) -> tuple:
        sizes = (
            None if n is None else len(range(n)[part])
            for n, part in zip(shape[1:], self.key, strict=True)
        )
        return (shape[0], *sizes)


@register_op
class Slicing(Moving):
    """A contiguous part of each axis."""

    keras_layers = (Slice,)
    litert = ("STRIDED_SLICE",)
    cases = (
        Case(lambda: Slice([1], [4]), (6,)),
        Case(lambda: Slice([0, -2], [-1, None]), (6, 5)),
    )

    def lower(self, node: Any, builder: Any) -> None:
        begin, end = (0, *node.layer.begin), (0, *(e or 0 for e in node.layer.end))
        constants = [
            builder.constant(np.array(values, "int32")) for values in (begin, end, [1] * len(end))
        ]
        # The batch whole, and other axes to their end: by the masks.
        options = {"beginMask": 1, "endMask": sum(1 << i for i, e in enumerate(end) if e == 0)}
        builder.add("STRIDED_SLICE", [node.input, *constants], [node.output], options)


@keras.saving.register_keras_serializable("intact")
class Take(Moved):
    """Values of one axis, picked by their indices.

    Args:
        indices: What to take, in order.
        axis: Where.
    """

    indices: tuple[int, ...]
    axis: int

    def call(self, x: Tensor) -> Tensor:
        """The values."""
        index = np.array(self.indices, "int32")
        steps = set(np.diff(index).tolist())
        if len(steps) != 1 or min(steps) < 1:
            return ops.take(x, index, axis=self.axis)
        # Its gradient takes half the time.
        part = slice(int(index[0]), int(index[-1]) + 1, *steps)
        return x[(*[slice(None)] * self.axis, part)]

    def compute_output_shape(self, shape: tuple) -> tuple:
        return (*shape[: self.axis], len(self.indices), *shape[self.axis + 1 :])


@register_op
class Gather(Moving):
    """Values of one axis, picked by constant indices."""

    keras_layers = (Take,)
    litert = ("GATHER", "STRIDED_SLICE", "CONCATENATION")
    notes = "A few slices side by side, where the target's own kernels do not gather."
    cases = (
        Case(lambda: Take([2, 0, 2], 1), (4, 3)),
        Case(lambda: Take([4, 2, 0], 3), (3, 2, 5)),
        Case(lambda: Take([1, 4, 7], 2), (3, 9, 2)),
    )

    def lower(self, node: Any, builder: Any) -> None:
        x, y, axis = node.input, node.output, node.layer.axis
        index = np.array(node.layer.indices, "int32")
        if len(runs := runs_of(index)) > MAX_RUNS or builder.has_own("GATHER", x.dtype):
            builder.add("GATHER", [x, builder.constant(index)], [y], {"axis": axis})
            return
        parts = [_part(x, axis, int(run[0]), int(run[-1]) + 1, builder) for run in runs]
        options = {"axis": axis, "fusedActivationFunction": "NONE"}
        builder.add("CONCATENATION", parts, [y], options)


def _part(x: Any, axis: int, begin: int, end: int, builder: Any) -> Any:
    """A part of one axis of a tensor of the file."""
    rank = len(x.shape)
    bounds = [np.zeros(rank, "int32"), np.zeros(rank, "int32"), np.ones(rank, "int32")]
    bounds[0][axis], bounds[1][axis] = begin, end
    y = builder.like(x, (*x.shape[:axis], end - begin, *x.shape[axis + 1 :]))
    masks = {"beginMask": 1, "endMask": 2**rank - 1 - (1 << axis)}
    builder.add("STRIDED_SLICE", [x, *map(builder.constant, bounds)], [y], masks)
    return y


def sliced(tracer: Any, layer: Any, x: Any, key: Iterable[Any]) -> Any:
    """The part of a tensor that a Python index selects.

    Args:
        tracer: Makes the new graph.
        layer: The layer or operation that selects, for names and errors.
        x: A tensor of the new graph.
        key: Integers, slices, None (a new axis) and perhaps an ellipsis.

    Returns:
        The output tensor.
    """
    key = list(key)
    used = sum(k is not None and k is not Ellipsis for k in key)
    gap = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
    key[gap : gap + 1] = [slice(None)] * (len(x.shape) - used)
    if key[0] != slice(None):
        reason = f"the batch axis cannot be indexed, and must stay the first; {FIXED_BATCH}"
        tracer.refuse(layer, reason)
    cuts: list[_Cut] = []
    sizes: list[int | None] = []
    for k in key[1:]:
        if k is None:
            sizes.append(1)
            continue
        cuts.append(_cut(tracer, layer, x, len(cuts) + 1, k))
        if isinstance(k, slice):
            sizes.append(cuts[-1].size)
    begin, end = [cut.begin for cut in cuts], [cut.end for cut in cuts]
    if any(begin) or any(e is not None for e in end):
        x = tracer.emit(Slice(begin, end, name=layer.name), x)
    for axis, cut in enumerate(cuts, 1):
        if cut.picked is not None:
            x = taken(tracer, layer, x, axis, np.array(cut.picked))
    if all(isinstance(k, slice) for k in key):
        return x
    return reshaped(tracer, layer, x, sizes)


class _Cut(NamedTuple):
    """The part of an axis that an index selects: a slice, and indices that it cannot express."""

    begin: int
    end: int | None
    size: int | None
    picked: range | None = None


def _cut(tracer: Any, layer: Any, x: Any, axis: int, key: Any) -> _Cut:
    """What an integer or a slice selects from an axis."""
    size = x.shape[axis]
    part = key if isinstance(key, slice) else slice(key, key + 1 or None)
    if size is None:
        if part.step not in (None, 1):
            tracer.refuse(layer, f"it steps along axis {axis}, whose size is unknown")
        return _Cut(part.start or 0, part.stop, None)
    index = range(size)[part]
    if not index:
        tracer.refuse(layer, f"it selects nothing from axis {axis} of shape {x.shape}")
    if index.step != 1 and len(index) > 1:
        return _Cut(0, None, len(index), index)
    stop = index[-1] + 1
    return _Cut(index.start, None if stop == size else stop, len(index))


def taken(tracer: Any, layer: Any, x: Any, axis: int, index: np.ndarray) -> Any:
    """Values of one axis, by their indices, in the fastest way.

    Args:
        tracer: Makes the new graph.
        layer: The layer or operation that takes them, for names.
        x: A tensor of the new graph.
        axis: Where; not the batch.
        index: What to take, in order.

    Returns:
        The output tensor.
    """
    runs = runs_of(index)
    # Single values are gathered: two to ten times as fast as slices, and one kernel.
    if len(runs) > MAX_RUNS or len(runs) == len(index) > 1:
        return tracer.emit(Take(index.tolist(), axis, name=layer.name), x)
    lead, rest = [slice(None)] * axis, [slice(None)] * (len(x.shape) - axis - 1)
    parts = [
        sliced(tracer, layer, x, [*lead, slice(int(run[0]), int(run[-1]) + 1), *rest])
        for run in runs
    ]
    if len(parts) == 1:
        return parts[0]
    return tracer.emit_new(layers.Concatenate(axis=axis, name=layer.name), parts)


def runs_of(index: np.ndarray) -> list[np.ndarray]:
    """Indices as runs of one after the other."""
    return np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)


@register_op
class GetItem(Op):
    """Python's indexing: `x[:, 1:3, ..., -1]`."""

    operations = ("GetItem",)
    litert = ("STRIDED_SLICE", "GATHER", "RESHAPE")
    notes = "The batch axis whole; steps along axes of known size."
    cases = (
        Case(lambda: lambda x: x[:, 1:3], (4, 5)),
        Case(lambda: lambda x: x[:, 0], (6, 3)),
        Case(lambda: lambda x: x[:, -1], (6, 3)),
        Case(lambda: lambda x: x[:, 1], (6,)),
        Case(lambda: lambda x: x[:, 1:3, ..., -1], (4, 5, 3)),
        Case(lambda: lambda x: x[..., None, 2:], (4, 5)),
        Case(lambda: lambda x: x[:, ::2, 1::3], (7, 8, 2)),
        Case(lambda: lambda x: layers.Dense(3)(x[..., :-1, -2:]), (4, 3, 5)),
        Case(lambda: lambda x: x[:, 1:-1, :, 1:, :2], (4, 2, 3, 3)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, key = (*args, *kwargs.values())
        return sliced(tracer, layer, x, key if isinstance(key, list | tuple) else [key])


@register_op
class StaticSlice(Op):
    """`keras.ops.slice` with constant starts."""

    operations = ("Slice",)
    litert = ("STRIDED_SLICE",)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, start = (*args, *kwargs.values())
        if any(isinstance(s, keras.KerasTensor) for s in keras.tree.flatten(start)):
            tracer.refuse(layer, "its start is a tensor, not a constant")
        start = np.asarray(to_numpy(start)).tolist()
        key = [
            slice(s or None, None if n in (None, -1, size) else s + n)
            for s, n, size in zip(start, layer.shape, x.shape, strict=True)
        ]
        return sliced(tracer, layer, x, key)


@register_op
class Cropping(Op):
    """Edges cut off."""

    keras_layers = (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
    litert = ("STRIDED_SLICE",)
    cases = (
        Case(lambda: layers.Cropping1D((1, 2)), (6, 2)),
        Case(lambda: layers.Cropping2D(((1, 2), (0, 1))), (6, 5, 2)),
        Case(lambda: layers.Cropping2D(1), (6, 5, 2)),
        Case(lambda: layers.Cropping2D(1, data_format="channels_first"), (2, 6, 5)),
        Case(lambda: layers.Cropping3D(((1, 0), (1, 1), (0, 2))), (3, 4, 5, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        pairs = layer.cropping
        if isinstance(layer, layers.Cropping1D):
            pairs = [pairs]
        key = [slice(before, -after or None) for before, after in pairs]
        first = getattr(layer, "data_format", "") == "channels_first"
        return sliced(tracer, layer, args[0], [slice(None)] * (2 if first else 1) + key)


@register_op
class Split(Op):
    """`keras.ops.split`, `array_split` and `unstack`: the parts of an axis, each a slice."""

    operations = ("Split", "ArraySplit", "Unstack")
    litert = ("STRIDED_SLICE", "RESHAPE")
    cases = (
        Case(lambda: lambda x: layers.Multiply()(ops.split(x, 2, axis=-1)), (4, 6)),
        Case(lambda: lambda x: ops.split(x, [1, 4], axis=1)[1], (6, 3, 2)),
        Case(lambda: lambda x: layers.Dense(2)(ops.array_split(x, 3, axis=-1)[0]), (8,)),
        Case(lambda: lambda x: layers.Add()(ops.unstack(x, axis=2)), (3, 4, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x = args[0]
        axis = layer.axis % len(x.shape)
        if x.shape[axis] is None:
            tracer.refuse(layer, f"the size of axis {axis} of shape {x.shape} is unknown")
        sections = getattr(layer, "indices_or_sections", None)
        indices = np.arange(x.shape[axis])
        if sections is None:
            keys = indices.tolist()
        else:
            parts = np.array_split(indices, sections)
            keys = [slice(int(p[0]), int(p[-1]) + 1) if len(p) else slice(0, 0) for p in parts]
        return [sliced(tracer, layer, x, [*[slice(None)] * axis, key]) for key in keys]


class Rearranging(Op):
    """Base of the operations that pick values axis by axis."""

    litert = ("STRIDED_SLICE", "CONCATENATION", "GATHER")

    def moves(self, layer: Any, x: Any) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        """How the indices of each axis change.

        Args:
            layer: The operation.
            x: Its input.

        Returns:
            Per axis, a function of the axis' indices in order.
        """
        raise NotImplementedError

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x = args[0]
        for axis, move in self.moves(layer, x).items():
            axis %= len(x.shape)
            if axis == 0:
                reason = f"it changes the batch axis; give it other axes, or {FIXED_BATCH}"
                tracer.refuse(layer, reason)
            if x.shape[axis] is None:
                tracer.refuse(layer, f"the size of axis {axis} of shape {x.shape} is unknown")
            x = taken(tracer, layer, x, axis, move(np.arange(x.shape[axis])))
        return x


def axes_of(axis: Any, rank: int) -> list[int]:
    """An `axis` argument as a list of axes; None stands for all."""
    if axis is None:
        return list(range(rank))
    return [a % rank for a in (axis if isinstance(axis, list | tuple) else [axis])]


@register_op
class Flip(Rearranging):
    """The values of axes in reverse."""

    operations = ("Flip",)
    cases = (
        Case(lambda: lambda x: ops.flip(x, axis=1), (6, 3)),
        Case(lambda: lambda x: ops.flip(x, axis=(2, -1)), (3, 5, 6)),
        Case(lambda: lambda x: layers.Dense(2)(ops.flip(x, axis=-1)), (3,)),
    )

    def moves(self, layer: Any, x: Any) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        return dict.fromkeys(axes_of(layer.axis, len(x.shape)), np.flip)


@register_op
class Roll(Rearranging):
    """The values of axes shifted around."""

    operations = ("Roll",)
    cases = (
        Case(lambda: lambda x: ops.roll(x, 2, axis=1), (5, 3)),
        Case(lambda: lambda x: ops.roll(x, (-1, 3), axis=(1, 2)), (4, 4, 2)),
    )

    def moves(self, layer: Any, x: Any) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        axes = axes_of(layer.axis, len(x.shape))
        shifts = np.broadcast_to(layer.shift, len(axes)).tolist()
        return {a: partial(np.roll, shift=s) for a, s in zip(axes, shifts, strict=True)}


@register_op
class Repeat(Rearranging):
    """Each value of an axis several times."""

    keras_layers = (layers.RepeatVector,)
    operations = ("Repeat",)
    cases = (
        Case(lambda: layers.RepeatVector(5), (4,)),
        Case(lambda: lambda x: ops.repeat(x, 2, axis=1), (3, 4)),
        Case(lambda: lambda x: ops.repeat(x, 3, axis=-1), (3, 2, 2)),
        Case(lambda: lambda x: ops.repeat(x, np.array([1, 0, 4]), axis=1), (3, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, layers.RepeatVector):
            x = reshaped(tracer, layer, args[0], [1, args[0].shape[1]])
            return taken(tracer, layer, x, 1, np.zeros(layer.n, int))
        return super().trace(layer, args, kwargs, tracer)

    def moves(self, layer: Any, x: Any) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        repeats = to_numpy(layer.repeats)
        return {layer.axis or 0: partial(np.repeat, repeats=repeats)}


@register_op
class Tile(Rearranging):
    """All values of an axis several times."""

    operations = ("Tile",)
    cases = (
        Case(lambda: lambda x: ops.tile(x, (1, 2, 3)), (3, 4)),
        Case(lambda: lambda x: ops.tile(x, 2), (3, 2, 2)),
        Case(lambda: lambda x: ops.tile(x, (1, 7, 1)), (1, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if np.size(layer.repeats) > len(args[0].shape):
            tracer.refuse(layer, "new axes would come before the batch")
        return super().trace(layer, args, kwargs, tracer)

    def moves(self, layer: Any, x: Any) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        repeats = np.ravel(layer.repeats).tolist()[::-1]
        return {-1 - a: partial(np.tile, reps=n) for a, n in enumerate(repeats) if n != 1}


@register_op
class BroadcastTo(Rearranging):
    """Axes of size 1 made larger."""

    operations = ("BroadcastTo",)

    def moves(self, layer: Any, x: Any) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        new = tuple(layer.shape)
        if len(new) > len(x.shape):
            # The batch would be another axis.
            return {0: np.copy}
        return {
            a: partial(np.broadcast_to, shape=n)
            for a, n in enumerate(new)
            if n not in (None, x.shape[a])
        }
