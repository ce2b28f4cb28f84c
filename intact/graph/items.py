"""Changes of symbolic tensors: items that PyTorch assigns, `x += y` there, and JAX's `x.at[...]`.

A change on PyTorch reaches every name of the tensor. A symbolic tensor itself stays as it is, for
the calls that have read it. It refers to the tensor that later calls read instead.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.graph.array_keys import by_arrays, has_arrays
from intact.graph.view import made_by
from intact.numerics.tensors import is_symbolic, to_numpy


def with_items(x: Any, key: Any, value: Any) -> Any:
    """A tensor with other values where a key selects.

    Args:
        x: A symbolic tensor whose sizes are known.
        key: What stands between the brackets.
        value: The values, which are broadcast to the part that the key selects.

    Returns:
        The tensor with these values.
    """
    key = key if isinstance(key, tuple) else (key,)
    value = ops.cast(value, x.dtype)
    block = _block(key, x.shape)
    if block is not None:
        starts, sizes, dropped = block
        part = [n for axis, n in enumerate(sizes) if axis not in dropped]
        value = ops.reshape(ops.broadcast_to(value, part), sizes)
        return ops.slice_update(x, starts, value)
    first, *others = key
    if not (first is Ellipsis or (isinstance(first, slice) and first == slice(None))):
        raise TypeError("Items may be assigned to all samples alike: begin the key with `:`.")
    others = [first, *others] if first is Ellipsis else others
    places = np.arange(np.prod(x.shape[1:])).reshape(x.shape[1:])[tuple(map(_known, others))]
    rows, count = x.shape[0], places.size
    flat = ops.reshape(x, (rows, -1))
    value = ops.reshape(ops.broadcast_to(value, (rows, *places.shape)), (rows, count))
    source = np.arange(flat.shape[1])
    source[places.ravel()] = flat.shape[1] + np.arange(count)
    joined = ops.concatenate([flat, value], axis=1)
    return ops.reshape(ops.take(joined, source, axis=1), x.shape)


def latest(values: Any) -> Any:
    """Nested values with what tensors have been changed to in the place of these tensors.

    Args:
        values: Symbolic tensors, or other values.
    """
    return keras.tree.map_structure(_latest, values)


def _latest(value: Any) -> Any:
    while (changed := getattr(value, "latest", None)) is not None:
        value = changed
    return value


def assign_items(x: Any, key: Any, value: Any) -> None:
    """Let a symbolic tensor have other values from here on, as `x[key] = value` does.

    Args:
        x: The tensor.
        key: What stands between the brackets.
        value: The values.
    """
    _change(x, with_items(_latest(x), key, value))


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method that changes a symbolic tensor, such as `x.add_(y)` or `x += y`.

    Args:
        function: Computes the new values from the old ones and the arguments.
    """

    def change(x: Any, *args: Any) -> Any:
        return _change(x, ops.cast(function(_latest(x), *args), x.dtype))

    return change


def _change(x: Any, values: Any) -> Any:
    """Let all that reads a tensor from here on read other values."""
    if tuple(values.shape) != tuple(x.shape):
        raise TypeError(f"a tensor of shape {x.shape} is changed to one of shape {values.shape}")
    _latest(x).latest = values
    _change_base(x, values)
    return x


def _change_base(view: Any, values: Any) -> None:
    """Change the tensor, too, that a tensor of PyTorch shares its memory with."""
    node = made_by(view)
    kind = type(node.layer).__name__
    if node.is_input or kind not in ("GetItem", "Reshape", "ExpandDims", "Squeeze", "Transpose"):
        return
    base = node.args[0]
    if kind == "GetItem":
        _change(base, with_items(_latest(base), node.args[1], values))
    elif kind == "Transpose":
        axes = node.layer.axes or range(len(base.shape))[::-1]
        _change(base, ops.transpose(values, np.argsort(axes).tolist()))
    else:
        _change(base, ops.reshape(values, base.shape))


class At:
    """JAX's `x.at`, of a symbolic tensor."""

    def __init__(self, x: Any, key: Any = None) -> None:
        self._x, self._key = x, key if isinstance(key, tuple) else (key,)

    def __getitem__(self, key: Any) -> "At":
        return At(self._x, key)

    def get(self) -> Any:
        """The selected values."""
        return by_arrays(self._x, self._key) if has_arrays(self._key) else self._x[self._key]

    def set(self, value: Any) -> Any:
        """The tensor with other values there."""
        return with_items(self._x, self._key, value)

    def add(self, value: Any) -> Any:
        """The tensor with these values added there."""
        return self._changed(ops.add, value)

    def multiply(self, value: Any) -> Any:
        """The tensor with the values there multiplied by others."""
        return self._changed(ops.multiply, value)

    def min(self, value: Any) -> Any:
        """The tensor with the smaller values there."""
        return self._changed(ops.minimum, value)

    def max(self, value: Any) -> Any:
        """The tensor with the larger values there."""
        return self._changed(ops.maximum, value)

    def _changed(self, function: Any, value: Any) -> Any:
        shape = self._x.shape[1:]
        places = np.arange(np.prod(shape)).reshape(shape)
        key = self._key
        chosen = places[tuple(map(_known, key[1:]))] if key[0] == slice(None) else places
        if np.unique(chosen).size < chosen.size:
            raise TypeError("An item is changed twice; add the changes before.")
        return self.set(function(self.get(), value))


def _known(part: Any) -> Any:
    """A part of a key as NumPy takes it."""
    if is_symbolic(part):
        raise TypeError("Items are assigned at indices that are not known; use `ops.where`.")
    return to_numpy(part) if ops.is_tensor(part) else part


def _block(
    key: tuple[Any, ...], shape: tuple[int, ...]
) -> tuple[list[int], list[int], set[int]] | None:
    """What a key selects, if that is a block: its first indices, its sizes, and the axes of size 1
    that the selected part lacks."""
    used = sum(part is not Ellipsis for part in key)
    at = next((i for i, part in enumerate(key) if part is Ellipsis), len(key))
    parts = [*key[:at], *[slice(None)] * (len(shape) - used), *key[at + 1 :]]
    ranges, dropped = [], set()
    for axis, (part, size) in enumerate(zip(parts, shape, strict=False)):
        if isinstance(part, int | np.integer) and not isinstance(part, bool):
            dropped.add(axis)
            part = slice(int(part), int(part) + 1 or None)
        if not isinstance(part, slice) or part.step not in (None, 1):
            return None
        ranges.append(range(size)[part])
    return [r.start for r in ranges], list(map(len, ranges)), dropped
