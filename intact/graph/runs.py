"""Values of a `call` that has been run several times, with known sizes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from intact.numerics.tensors import Variable, is_trainable, to_numpy

SAMPLES = (23, 29, 29)
"""Two batch sizes that are unlikely to be other sizes of a model, which would hide mistakes."""

FREE = (
    *((32, 64, 32), (32, 64, 0)),
    *((8, 16, 8), (8, 16, 0)),
    *((2, 4, 2), (2, 4, 0)),
)
"""What stands for axes of unknown size in the first two runs: the first axis in either run, and the
difference between one axis and the next. Images must be halved; masks are square; tables are small.
"""


class BatchError(Exception):
    """A value that depends on an unknown size and is not a size."""

    @property
    def reason(self) -> str:
        """Why a layer whose `call` computes it is refused."""
        return (
            f"{self} in its `call` depends on the number of samples in a batch, or on another "
            "size that is unknown; compute it without that size, or build the model with a fixed "
            "one (`batch_size` or `shape` of `keras.Input`)"
        )


class RandomError(BatchError):
    """Values that no two runs have in common."""

    @property
    def reason(self) -> str:
        """Why a layer whose `call` computes them is refused."""
        return (
            "its `call` draws random numbers in inference, which a file cannot; give the model the "
            "noise as an input, or draw it while training alone"
        )


class StateError(BatchError):
    """A weight that a `call` reads and assigns to, so that the next call differs."""

    @property
    def reason(self) -> str:
        """Why a layer whose `call` does so is refused."""
        return (
            f"its `call` reads weight {str(self)!r} and assigns to it in inference, so that the "
            "next call computes another result, which a file cannot; make it an input and an "
            "output of the model (`states` of `quantize_model`), or assign while training alone"
        )


class TrainingError(BatchError):
    """A layer that a `call` tells to train in inference."""

    @property
    def reason(self) -> str:
        """Why a layer whose `call` does so is refused."""
        return (
            f"its `call` runs {self} with `training=True` in inference, and a file has neither "
            "the statistics of a batch nor random numbers; leave the argument out"
        )


@dataclass(frozen=True)
class Runs:
    """A value that does not depend on the inputs, from each run."""

    values: tuple[Any, ...]

    @property
    def first(self) -> Any:
        """As the first run has it."""
        return self.values[0]


@dataclass(frozen=True)
class Rows:
    """A weight whose one row stands for every sample."""

    weight: Any

    def values(self, run: int) -> np.ndarray:
        """What a run has of it."""
        return np.repeat(to_numpy(self.weight), SAMPLES[run], axis=0)


@dataclass(frozen=True)
class Part:
    """A weight of which each run reads the first values along each axis.

    Args:
        weight: The weight.
        shapes: The shape that each run has.
        each: Whether each sample has a copy of the one row.
    """

    weight: Any
    shapes: tuple[tuple[int, ...], ...]
    each: bool = False

    def values(self, run: int) -> np.ndarray:
        """What a run has of it."""
        part = to_numpy(self.weight)[tuple(map(slice, self.shapes[run]))]
        return np.repeat(part, SAMPLES[run], axis=0) if self.each else part


def equal(a: Any, b: Any) -> bool:
    """Whether two attributes or arguments are the same."""
    if a is b:
        return True
    try:
        keras.tree.assert_same_structure(a, b)
    except (ValueError, TypeError):
        return False
    return all(map(_equal_parts, keras.tree.flatten(a), keras.tree.flatten(b)))


def _equal_parts(a: Any, b: Any) -> bool:
    if is_array(a) and is_array(b):
        a, b = to_numpy(a), to_numpy(b)
        return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError):
        return False


def is_array(value: Any) -> bool:
    """Whether a value is a variable, or an array of numpy or the backend."""
    return isinstance(value, Variable | np.ndarray) or keras.ops.is_tensor(value)


def mapped(values: Any, function: Callable[[Any], Any]) -> Any:
    """Nested arguments with a function applied to each part."""
    if isinstance(values, Runs) or not isinstance(values, list | tuple | dict):
        return function(values)
    if isinstance(values, dict):
        return {key: mapped(part, function) for key, part in values.items()}
    return type(values)(mapped(part, function) for part in values)


def number(value: Runs, index: np.ndarray) -> Runs:
    """The numbers 0, 1, 2, ... in the shape of a weight."""
    first = value.first
    numbers: Any = index
    if isinstance(first, Rows | Part):
        numbers = replace(first, weight=index)
    return Runs((numbers,) * len(value.values))


def leaves(values: Any) -> list[Any]:
    """The parts of nested arguments, of which `Runs` are one."""
    if isinstance(values, Runs) or not isinstance(values, list | tuple | dict):
        return [values]
    parts = values.values() if isinstance(values, dict) else values
    return [leaf for part in parts for leaf in leaves(part)]


def sources(value: Any) -> list[Any]:
    """The value itself if it is a trainable weight, else none."""
    first = value.first if isinstance(value, Runs) else None
    weight = first.weight if isinstance(first, Rows | Part) else first
    return [weight] if is_trainable(weight) else []


def pick(values: Any, run: int) -> Any:
    """Nested arguments as one run received them."""
    if isinstance(values, Runs):
        value = values.values[run]
        if isinstance(value, Rows | Part):
            return value.values(run)
        # JAX slices no variable.
        return keras.ops.convert_to_tensor(value) if isinstance(value, Variable) else value
    if isinstance(values, dict):
        return {key: pick(part, run) for key, part in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(pick(part, run) for part in values)
    return values


def fold(layer: Any, values: Any, run: int) -> Any:
    """Compute what no input reaches."""
    args, kwargs = pick(values, run)
    if type(layer).__name__ == "Take" and layer.axis is not None:
        table, indices = map(to_numpy, (*args, *kwargs.values()))
        if indices.size and indices.max() >= table.shape[layer.axis]:
            # Some backends give no error, but any value.
            raise IndexError(f"index {indices.max()} of a table of shape {table.shape}")
    return layer(*args, **kwargs)


def per_sample(arrays: list[np.ndarray]) -> list[np.ndarray] | None:
    """The rows of one sample, if arrays repeat them for as many samples as there are."""
    first = arrays[0]
    if first.ndim == 0 or len(first) % SAMPLES[0]:
        return None
    factor = len(first) // SAMPLES[0]
    parts = []
    for samples, array in zip(SAMPLES, arrays, strict=False):
        rows = array[:factor]
        tiled = np.tile(rows, (samples, *[1] * (array.ndim - 1)))
        if tiled.shape != array.shape or not np.array_equal(tiled, array):
            return None
        parts.append(rows)
    return parts


def are_parts(arrays: list[np.ndarray]) -> bool:
    """Whether arrays are the first values of the last of them, along each axis."""
    last = arrays[-1]
    return all(
        array.ndim == last.ndim and np.array_equal(array, last[tuple(map(slice, array.shape))])
        for array in arrays
    )
