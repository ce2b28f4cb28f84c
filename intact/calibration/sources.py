"""Data of any kind as checked batches: arrays, lists, generators, data sets of each backend."""

import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt

from intact.errors import InvalidDataError

Arrays = npt.ArrayLike | Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike]
"""Samples for a model: an array, samples first; or for several inputs a list or dict of them.

A tensor of any backend counts as an array. The names in a dict are those of the inputs.
"""

Data: TypeAlias = Arrays | Iterable[Any] | Callable[[], Iterable[Any]] | keras.utils.PyDataset
"""What a model is calibrated on: arrays; or batches; or a function that returns either.

Batches come from a list, a generator, a `tf.data.Dataset`, a torch `DataLoader` or a `PyDataset`. A
batch is an array, or a list or dict of arrays for several inputs. It may be a tuple
`(inputs, targets, ...)`, as in `fit`; the targets are not used.
"""

FEW = 16
"""How many samples a `Source` keeps."""


class Source:
    """Checked batches of any kind of data, for several passes.

    After one pass, `few` holds a few samples from all parts of the data.

    Args:
        data: As for `calibrate`.
        steps: How many batches to take at most each time.
        batch_size: Samples per batch, for arrays.
        inputs: The model's inputs.
        rng: Shuffles arrays, in a new order each time.
        whole_batches: Whether the few samples are the first whole batches, as a stream needs.
        once: Whether the batches are read only once, so that none of them is kept.
    """

    def __init__(
        self,
        data: Any,
        steps: int | None,
        batch_size: int,
        inputs: list[Any],
        rng: np.random.Generator | None = None,
        whole_batches: bool = False,
        once: bool = False,
    ) -> None:
        self.steps = steps
        self.once = once
        self.whole_batches = whole_batches
        self.inputs = inputs
        self.seen = self.taken = 0
        self.few: list[np.ndarray] = []
        self._batches = batches(data, batch_size, inputs, rng)
        length = length_of(self._batches)
        if length is None and steps is None and _is_endless(data):
            raise InvalidDataError("The data never ends. Pass the number of batches: `steps=100`.")
        self._length = min((n for n in (steps, length) if n is not None), default=None)

    def total(self, passes: int) -> int | None:
        """The number of batches in all, or None if it is unknown."""
        return None if self._length is None else self._length * passes

    def __iter__(self) -> Iterator[Any]:
        if iter(self._batches) is self._batches and not self.once:
            # A generator yields its batches only once.
            self._batches = list(itertools.islice(self._batches, self.steps))
        self.seen = 0
        share = -(-FEW // (self._length or 4))
        for batch in itertools.islice(self._batches, self.steps):
            arrays = check_batch(batch, self.inputs)
            if not self.taken:
                self.few = [array[:0] for array in arrays]
            missing = min(share, FEW - len(self.few[0]))
            if self.whole_batches and missing > 0:
                missing = len(arrays[0])
            if missing > 0 and self.taken == self.seen:
                # In the first pass, some of each batch: data is often sorted.
                self.few = [
                    np.concatenate([kept, array[:missing]])
                    for kept, array in zip(self.few, arrays, strict=True)
                ]
            self.seen += 1
            self.taken += 1
            yield arrays
        if not self.seen:
            raise InvalidDataError("The data is empty. Pass about 100 samples.")


def length_of(data: Any) -> int | None:
    """The number of batches, or None if it is unknown.

    Args:
        data: What yields them.
    """
    try:
        return len(data)
    except TypeError:
        # It has no length, or it is a `tf.data.Dataset` or a `DataLoader` that cannot tell.
        return None


def _is_endless(data: Any) -> bool:
    """Whether data is a `tf.data.Dataset` that says that it never ends."""
    return hasattr(data, "cardinality") and int(data.cardinality()) == -1


def batches(
    data: Data,
    batch_size: int,
    inputs: list[keras.KerasTensor],
    rng: np.random.Generator | None = None,
) -> Any:
    """Batches of any kind of data.

    Args:
        data: As for `calibrate`.
        batch_size: Samples per batch, for arrays.
        inputs: The model's inputs.
        rng: Shuffles arrays, in a new order each time.

    Returns:
        An iterable of batches.

    Raises:
        InvalidDataError: Neither arrays nor something that yields batches.
    """
    if isinstance(data, str | bytes | os.PathLike):
        raise InvalidDataError(
            f"Expected arrays or something that yields batches. Received: the path {data!r}. "
            "Load it first: `np.load(path)`."
        )
    if callable(data) and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        # TFLite's `representative_dataset` is such a function.
        try:
            inspect.signature(data).bind()
        except TypeError as error:
            raise InvalidDataError(
                f"Expected a function without arguments that returns data. Received: {data!r}."
            ) from error
        return _Calls(data, lambda result: batches(result, batch_size, inputs, rng))
    if isinstance(data, keras.utils.PyDataset):
        return _Batches(len(data), data.__getitem__)
    if isinstance(data, list | tuple):
        data = _from_list(data, inputs)
    if isinstance(data, dict) and _is_nested(data):
        data = tuple(map(_host, keras.tree.flatten(data)))
    if isinstance(data, dict):
        data = {name: _host(_numbers(value)) for name, value in data.items()}
    if isinstance(data, dict | tuple) or _is_array(data):
        return _cut(data, batch_size, rng)
    if not hasattr(data, "__iter__"):
        raise InvalidDataError(
            "Expected arrays or something that yields batches. "
            f"Received: {data!r} of type {type(data).__name__}."
        )
    return data


def _from_list(data: Any, inputs: list[keras.KerasTensor]) -> Any:
    """A list or tuple as what it means: a tuple of arrays for the inputs, an array, or batches."""
    whole = _numbers(data)
    if len(inputs) == 1 and _is_array(whole):
        # Python numbers are all samples, or batches of samples.
        return list(whole) if whole.ndim == len(inputs[0].shape) + 1 else whole
    parts = [_numbers(part) for part in data]
    if any(isinstance(part, list | tuple | dict) for part in parts):
        if isinstance(data, tuple) and _has_targets(parts, inputs):
            return parts[0] if isinstance(parts[0], dict) else _from_list(parts[0], inputs)
        leaves = keras.tree.flatten(parts)
        is_dict = any(isinstance(part, dict) for part in parts)
        return parts if is_dict or len(leaves) != len(inputs) else tuple(map(_host, leaves))
    arrays = tuple(map(_host, parts))
    return arrays if len(inputs) > 1 else _from_arrays(arrays, inputs[0], isinstance(data, tuple))


def _from_arrays(
    arrays: tuple[np.ndarray, ...], tensor: keras.KerasTensor, is_tuple: bool
) -> np.ndarray | list[np.ndarray]:
    """Several arrays as what they mean to a model of one input: batches, or inputs and targets."""
    rank = len(tensor.shape)
    if arrays and all(array.ndim == rank - 1 for array in arrays):
        if len({array.shape for array in arrays}) == 1:
            return np.stack(arrays)
        return [array[None] for array in arrays]
    fits = [_fits(array, tensor) for array in arrays]
    is_pair = 1 < len(arrays) <= 3 and fits[0] and (is_tuple or not all(fits))
    return arrays[0] if is_pair or len(arrays) == 1 else list(arrays)


def _cut(data: Any, batch_size: int, rng: np.random.Generator | None) -> "_Batches":
    """Cut arrays of all samples into batches."""
    leaves = [_host(leaf) for leaf in keras.tree.flatten(data)]
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(sizes) > 1:
        raise InvalidDataError(
            f"All inputs need the same number of samples. Received: {sorted(sizes)}."
        )
    size = next(iter(sizes), 0)
    order = np.arange(size)

    def part(i: int) -> Any:
        if i == 0 and rng is not None:
            rng.shuffle(order)
        chosen: Any = slice(i * batch_size, (i + 1) * batch_size)
        chosen = chosen if rng is None else order[chosen]
        packed = keras.tree.pack_sequence_as(data, [leaf[chosen] for leaf in leaves])
        return list(packed) if isinstance(packed, tuple) else packed

    return _Batches(-(-size // batch_size), part)


def collect(
    data: Data, steps: int | None, batch_size: int, inputs: list[keras.KerasTensor]
) -> list[np.ndarray]:
    """All samples of any kind of data at once.

    Args:
        data: As for `calibrate`.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays.
        inputs: The model's inputs.

    Returns:
        One array per input.

    Raises:
        InvalidDataError: The data is empty, not finite, or wrongly shaped.
    """
    parts = Source(data, steps, batch_size, inputs)
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


class _Calls:
    """The batches of a function's data: it is called for each pass, so that no batch is kept."""

    def __init__(self, function: Callable[[], Any], cut: Callable[[Any], Any]) -> None:
        self._function = function
        self._cut = cut

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cut(self._function()))


class _Batches:
    """The first batches; each is made when its turn comes."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return map(self._make, range(self._count))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and (hasattr(value, "dtype") or hasattr(value, "__array__"))


def _host(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _numbers(value: Any) -> Any:
    """Lists of Python's numbers as an array; anything else as it is."""
    if not isinstance(value, list | tuple):
        return value
    leaves = keras.tree.flatten(value)
    if not leaves or any(_is_array(leaf) or isinstance(leaf, dict) for leaf in leaves):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        # The lists have different lengths, such as one list for each input.
        return value


def _is_nested(data: dict[str, Any]) -> bool:
    """Whether a dict of arrays has others in it, as the inputs of a subclassed model may have."""
    return any(isinstance(_numbers(value), dict | list | tuple) for value in data.values())


def _fits(array: np.ndarray, tensor: keras.KerasTensor) -> bool:
    """Whether an array is a batch for an input, of any number of samples.

    A model built by its first call has that call's number.
    """
    sizes = zip(tensor.shape[1:], array.shape[1:], strict=False)
    return array.ndim == len(tensor.shape) and all(want in (None, got) for want, got in sizes)


def _has_targets(parts: list[Any], inputs: list[keras.KerasTensor]) -> bool:
    """Whether the first part is the inputs, and the others are targets and weights, as in `fit`.

    Torch's loaders collate such a tuple to a list.
    """
    if not 1 <= len(parts) <= 3:
        return False
    if isinstance(parts[0], dict):
        return True
    is_nested = isinstance(parts[0], list | tuple)
    return (is_nested or len(inputs) == 1) and len(keras.tree.flatten(parts)) != len(inputs)


def _inputs_of(batch: Any, inputs: list[keras.KerasTensor]) -> list[Any]:
    """The arrays for the inputs in a batch, without targets and weights of samples."""
    if isinstance(batch, list | tuple):
        whole = _numbers(batch)
        if len(inputs) == 1 and _is_array(whole):
            return [whole]
        batch = [_numbers(part) for part in batch]
        if _has_targets(batch, inputs):
            return _inputs_of(batch[0], inputs)
    if isinstance(batch, dict) and not _is_nested(batch):
        missing = [t.name for t in inputs if t.name not in batch]
        if missing:
            raise InvalidDataError(
                f"The data has no input named {missing}. Received: {sorted(batch)}."
            )
        return [_numbers(batch[t.name]) for t in inputs]
    return keras.tree.flatten(batch)


def check_batch(batch: Any, inputs: list[keras.KerasTensor]) -> list[np.ndarray]:
    """The arrays of one batch, in the order of a model's inputs.

    Args:
        batch: An array, or a list, tuple or dict of arrays, perhaps with targets.
        inputs: The model's inputs.

    Returns:
        One array per input.

    Raises:
        InvalidDataError: A name, number, shape or value does not fit.
    """
    leaves = _inputs_of(batch, inputs)
    if len(leaves) != len(inputs):
        raise InvalidDataError(
            f"The model has {len(inputs)} inputs: {[t.name for t in inputs]}. "
            f"Received: a batch of {len(leaves)} arrays."
        )
    arrays = []
    for tensor, leaf in zip(inputs, leaves, strict=True):
        array = _host(leaf)
        if array.dtype.kind in "OSU":
            raise InvalidDataError(
                f"Input {tensor.name!r} takes numbers. Received: an array of {array.dtype}."
            )
        if not _fits(array, tensor):
            single = array.ndim and _fits(array[None], tensor)
            raise InvalidDataError(
                f"Input {tensor.name!r} takes shape {tensor.shape}. Received: {array.shape}."
                + (" For one sample, add the axis of samples: `x[None]`." if single else "")
            )
        if not len(array):
            raise InvalidDataError(f"The data for input {tensor.name!r} is empty.")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise InvalidDataError(
                f"The data for input {tensor.name!r} has {bad} values that are NaN or "
                "infinite. Clean it first."
            )
        arrays.append(array)
    return arrays
