"""NumPy's indexing by arrays, such as `x[:, [0, 2]]`, of symbolic tensors."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from intact.numerics.tensors import is_symbolic, to_numpy

WHOLE = slice(None)


def has_arrays(key: tuple) -> bool:
    """Whether a key has indices in arrays, as Keras' symbolic tensors do not take them.

    Args:
        key: The parts between the brackets.
    """
    return any(map(_is_array, key))


def by_arrays(x: Any, key: tuple) -> Any:
    """The values of a symbolic tensor that a key with arrays selects.

    The arrays, and the numbers beside them, take the place of the axes that they index.

    Args:
        x: The tensor.
        key: The parts between the brackets.

    Returns:
        The values.

    Raises:
        IndexError: The arrays do not stand side by side, or not all of them are known.
    """
    if len(key) == 1 and is_symbolic(key[0]):
        return ops.take(x, key[0], axis=0)
    parts = list(_known(key))
    used = sum(part is not None and part is not Ellipsis for part in parts)
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[at : at + 1] = [WHOLE] * (len(x.shape) - used)
    arrays = [i for i, part in enumerate(parts) if isinstance(part, np.ndarray)]
    first, count = arrays[0], len(arrays)
    if arrays != list(range(first, first + count)):
        raise IndexError("Arrays of indices must stand side by side; take from one axis at a time.")
    indices = np.broadcast_arrays(*parts[first : first + count])
    parts[first : first + count] = [WHOLE] * count
    if any(part is None or part != WHOLE for part in parts):
        x = x[tuple(parts)]
    sizes = x.shape[first : first + count]
    if count == 1:
        return ops.take(x, indices[0], axis=first)
    flat = np.ravel_multi_index([i % n for i, n in zip(indices, sizes, strict=True)], sizes)
    shape = [-1 if size is None else size for size in x.shape]
    shape[first : first + count] = [math.prod(sizes)]
    return ops.take(ops.reshape(x, shape), flat, axis=first)


def _is_array(part: Any) -> bool:
    return isinstance(part, list | np.ndarray) or is_symbolic(part) or ops.is_tensor(part)


def _known(key: tuple) -> Iterator[Any]:
    """A key's parts: arrays of whole numbers instead of lists, tensors, truth values, numbers."""
    for part in key:
        if part is None or part is Ellipsis or isinstance(part, slice):
            yield part
            continue
        if is_symbolic(part):
            raise IndexError("An index is a tensor that is not known; use `ops.take_along_axis`.")
        array = np.asarray(to_numpy(part) if ops.is_tensor(part) else part)
        yield from np.nonzero(array) if array.dtype == bool else (array,)
