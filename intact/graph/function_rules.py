"""What the tables of the backends' functions are made of."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.numerics.tensors import to_numpy

Function = Callable[..., Any]
"""A function of symbolic tensors, called as the backend's function is."""

Table = Mapping[str, Mapping[str, Function]]
"""By module or class of a backend, and by name: what replaces a function there."""


def refuse(name: str, settings: Any) -> Any:
    """Refuse a function with arguments that no operation of Keras has.

    Args:
        name: The backend's name of the function.
        settings: The arguments.
    """
    raise NotImplementedError(f"`{name}` has no symbolic form with {settings}")


def rule(text: str) -> Function:
    """A function of `keras.ops` with the parameters of a backend's function.

    Args:
        text: The function of Keras, and the backend's parameters in their order: `a=x` where Keras
            says x to what the backend calls a, and `-out` for one that Keras does not have.

    Returns:
        The function. It refuses other parameters, and those that Keras does not have, unless they
        are None or False.

    Example:

    >>> total = rule("sum(a=x, axis, -dtype, keepdims)")
    >>> total(keras.Input((4, 3)), 2, keepdims=True).shape
    (None, 4, 1)
    """
    name, _, listed = text.rstrip(")").partition("(")
    function = operator.attrgetter(name)(ops)
    theirs: dict[str, str | None] = {}
    for part in listed.split(","):
        old, _, new = part.strip().rpartition("=")
        theirs[old or new.removeprefix("-")] = None if new.startswith("-") else new

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(theirs):
            return refuse(name, args)
        values = dict(zip(theirs, args, strict=False)) | kwargs
        ours: dict[str, Any] = {}
        for key, value in values.items():
            ours_name = theirs.get(key)
            if ours_name is not None:
                ours[ours_name] = value
            elif key != "name" and value is not None and value is not False:
                return refuse(name, {key: value})
        return function(**ours)

    return call


def alike(names: str, parameters: int = 1) -> dict[str, Function]:
    """Functions with the same name and meaning in Keras, of tensors alone.

    Args:
        names: The names, separated by spaces; `old=new` where Keras has another name.
        parameters: How many tensors they take.
    """
    pairs = (part.rpartition("=") for part in names.split())
    return {old or new: OfTensors(getattr(ops, new), parameters) for old, _, new in pairs}


@dataclass(frozen=True)
class OfTensors:
    """A function of tensors alone, whatever the backend calls its parameters.

    Args:
        function: The function of Keras.
        parameters: How many tensors it takes.
    """

    function: Function
    parameters: int

    def __call__(self, *tensors: Any, name: str | None = None, **others: Any) -> Any:
        """The function's result."""
        tensors += tuple(others.values())
        if len(tensors) != self.parameters:
            return refuse(self.function.__name__, others)
        return self.function(*tensors)


def with_names(functions: Mapping[str, str]) -> dict[str, Function]:
    """The functions of rules, by the backend's names.

    Args:
        functions: The rules by name.
    """
    return {name: rule(text) for name, text in functions.items()}


def whole_numbers(values: Any) -> Any:
    """Sizes, axes or places that a call may pass as an array: a tuple, or a number."""
    if isinstance(values, list | tuple):
        return tuple(map(whole_numbers, values))
    if values is None or isinstance(values, int):
        return values
    array = to_numpy(values)
    return tuple(array.tolist()) if array.ndim else int(array)


def as_type(x: Any, dtype: Any) -> Any:
    """A tensor of another type, which a backend may name by an object of its own."""
    return x if dtype is None else ops.cast(x, keras.backend.standardize_dtype(dtype))


def split(x: Any, sizes: Iterable[int], axis: int) -> list[Any]:
    """Parts of given sizes.

    Args:
        x: A tensor.
        sizes: Of each part; -1 for one that has what the others leave.
        axis: Along which axis.
    """
    all_sizes = [int(size) for size in sizes]
    left = x.shape[axis] - sum(size for size in all_sizes if size >= 0)
    ends = np.cumsum([left if size < 0 else size for size in all_sizes])
    return list(ops.split(x, [int(end) for end in ends[:-1]], axis))


def unit_length(x: Any, axis: Any, least: float) -> Any:
    """Vectors divided by their Euclidean norms.

    Args:
        x: A tensor.
        axis: The axis or axes of the vectors.
        least: The smallest square of a norm to divide by.
    """
    squares = ops.sum(ops.square(x), axis=whole_numbers(axis), keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, least))


def euclidean_norm(x: Any, axis: Any, keepdims: bool) -> Any:
    """The square root of the sum of the squares along axes."""
    return ops.sqrt(ops.sum(ops.square(x), axis=whole_numbers(axis), keepdims=bool(keepdims)))


def clipped(x: Any, least: Any = None, most: Any = None) -> Any:
    """Values between two bounds, of which one may be None."""
    x = x if least is None else ops.maximum(x, least)
    return x if most is None else ops.minimum(x, most)


def product(a: Any, b: Any, turn_a: bool = False, turn_b: bool = False) -> Any:
    """A matrix product, with the matrices transposed before it where asked."""
    a = ops.swapaxes(a, -1, -2) if turn_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if turn_b else b)
