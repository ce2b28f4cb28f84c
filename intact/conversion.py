"""The context in which models are converted: Python and Keras spend less time beside the work."""

import contextlib
import functools
import gc
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
from keras.src.layers import layer as keras_layer
from keras.src.ops import operation as keras_operation
from keras.src.saving import serialization_lib
from keras.src.tree import tree_api
from keras.src.utils import naming

from intact.memory import is_large

RARE = 1000
"""How many collections of the middle generation come before a full one; Python's own is 10."""

UNTRACKED = {bool, int, float, str, type(None), types.FunctionType}
"""The types of attributes that neither Keras nor PyTorch tracks."""

TORCH_PARTS = ("_parameters", "_modules", "_buffers")
"""Where PyTorch keeps the attributes that it tracks."""

Result = TypeVar("Result")

_lock = threading.Lock()
_open: dict[str, int] = {}
_thresholds = gc.get_threshold()
_replaced: list[tuple[Any, str, Any]] = []
# By a function and the id of a model: the model, which keeps its id, and the result.
_results: dict[tuple[Any, int], tuple[Any, Any]] = {}


@contextlib.contextmanager
def conversion(model: Any) -> Iterator[None]:
    """A context for the work on a model's graphs.

    Args:
        model: The model.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with conversion(model):
    ...     keras.tree.flatten({"b": 1, "a": (2, [3])})
    [2, 3, 1]
    """
    with (
        rare_collections(model),
        quick_keras(),
        _counted("results", _results.clear, _results.clear),
    ):
        yield


def remembered(make: Callable[[Any], Result], model: Any) -> Result:
    """What a function returns for a model; within a conversion, it is called once.

    Args:
        make: The function. What it returns depends on the model's graph alone, and stays as it is.
        model: The model.
    """
    if not _open.get("results"):
        return make(model)
    key = make, id(model)
    if key not in _results:
        _results[key] = model, make(model)
    return _results[key][1]


@contextlib.contextmanager
def rare_collections(model: Any) -> Iterator[None]:
    """A context in which full collections of garbage are rare.

    A full collection walks all objects of the process: about a million, of the backends alone. The
    graphs of a conversion make Python begin several, which took a fifth of the time and found
    little. The collections of young objects stay as frequent as they are.

    Args:
        model: The model. A large one changes nothing, because its garbage takes memory.
    """
    if is_large(model):
        yield
        return
    with _counted("collections", _collect_rarely, lambda: gc.set_threshold(*_thresholds)):
        yield


@contextlib.contextmanager
def quick_keras() -> Iterator[None]:
    """A context in which Keras finds out less often what it knows, and walks nested values faster.

    Each layer asks Python for the signatures of its methods, and each tensor and operation derives
    its name from its class. Both are remembered here. On PyTorch, Keras walks nested values by
    functions of PyTorch's that are written in Python, and copy each value to sort its dicts; the
    other backends have their own in C. All of these return what they do outside of the context.
    """
    with _counted("keras", _begin_quick, _end_quick):
        yield


@contextlib.contextmanager
def _counted(name: str, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Count the contexts of a name that are open, in whatever thread; the first and last act."""
    with _lock:
        _open[name] = _open.get(name, 0) + 1
        if _open[name] == 1:
            begin()
    try:
        yield
    finally:
        with _lock:
            _open[name] -= 1
            if not _open[name]:
                end()


def _collect_rarely() -> None:
    global _thresholds
    _thresholds = gc.get_threshold()
    gc.set_threshold(_thresholds[0], _thresholds[1], RARE)


def _begin_quick() -> None:
    replacements: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (keras_operation, "inspect", _Signatures),
        (keras_layer, "inspect", _Signatures),
        (naming, "to_snake_case", functools.lru_cache(maxsize=None)),
        (serialization_lib, "tf", _IfImported),
    ]
    if keras.backend.backend() == "torch":
        replacements.append((tree_api, "tree_impl", _QuickTrees))
        replacements.append((keras.Layer, "__setattr__", _quick_setattr))
    for module, name, quick in replacements:
        # Other versions of Keras may have no such thing.
        if hasattr(module, name):
            _replaced.append((module, name, getattr(module, name)))
            setattr(module, name, quick(getattr(module, name)))


def _end_quick() -> None:
    while _replaced:
        setattr(*_replaced.pop())


class _IfImported:
    """TensorFlow for Keras' serialization, which imports it to look for its types in settings.

    Where nobody has imported TensorFlow, there are none. The import takes seconds.

    Args:
        own: Keras' module, which is imported when it is asked.
    """

    def __init__(self, own: Any) -> None:
        self.own = own

    @property
    def available(self) -> bool:
        return "tensorflow" in sys.modules and self.own.available

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def _quick_setattr(own: Callable[[Any, str, Any], None]) -> Callable[[Any, str, Any], None]:
    """Keras' way to set an attribute of a layer; plain values, which nothing tracks, are just set.

    Args:
        own: Keras' way. It asks Keras and PyTorch what they have to track, fifty times for a layer.
    """

    def set_attribute(layer: Any, name: str, value: Any) -> None:
        parts = layer.__dict__
        begun = "_tracker" in parts and "_modules" in parts
        if begun and type(value) in UNTRACKED and not any(name in parts[k] for k in TORCH_PARTS):
            object.__setattr__(layer, name, value)
        else:
            own(layer, name, value)

    return set_attribute


class _Signatures:
    """Stands in the place of the module `inspect`, and remembers the signatures of functions.

    Args:
        own: The module.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        self._known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def signature(self, function: Any) -> Any:
        return self._remembered("signature", function)

    def getfullargspec(self, function: Any) -> Any:
        return self._remembered("getfullargspec", function)

    def _remembered(self, name: str, function: Any) -> Any:
        # The methods of all instances of a class have one function.
        bound = isinstance(function, types.MethodType)
        plain = function.__func__ if bound else function
        if not isinstance(plain, types.FunctionType):
            return getattr(self.own, name)(function)
        key = name, bound, plain
        if key not in self._known:
            self._known[key] = getattr(self.own, name)(function)
        return self._known[key]


class _QuickTrees:
    """Stands in the place of Keras' module of tree functions, and returns what that does.

    Lists, tuples, dicts and named tuples are walked here; the module walks what other classes hold.

    Args:
        own: Keras' module.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        self._kinds: dict[type, type | None] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def _kind(self, value: Any) -> type | None:
        """Of a nested value, the built-in class to walk it by, or `object`; None for a leaf."""
        cls = type(value)
        if cls not in self._kinds:
            kind: type | None = cls if cls in (list, tuple, dict) else object
            if kind is object and not self.own.is_nested(value):
                kind = None
            elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
                kind = tuple
            self._kinds[cls] = kind
        return self._kinds[cls]

    def is_nested(self, structure: Any) -> bool:
        return self._kind(structure) is not None

    def flatten(self, structure: Any) -> list[Any]:
        leaves: list[Any] = []
        self._collect(structure, leaves)
        return leaves

    def _collect(self, value: Any, leaves: list[Any], ordered: bool = True) -> None:
        """Append the leaves of a value.

        Those of a dict stand in the order of its keys, and of dicts inside it in their own: so
        Keras has them on PyTorch.
        """
        kind = self._kind(value)
        if kind is None:
            leaves.append(value)
        elif kind is dict:
            for key in sorted(value) if ordered else value:
                self._collect(value[key], leaves, ordered=False)
        elif kind is not object:
            for part in value:
                self._collect(part, leaves, ordered)
        elif ordered:
            leaves += self.own.flatten(value)
        else:
            self.own.map_structure(leaves.append, value)

    def map_structure(self, func: Any, *structures: Any, none_is_leaf: bool = True) -> Any:
        if none_is_leaf and self._alike(*structures):
            return self._map(func, *structures)
        return self.own.map_structure(func, *structures, none_is_leaf=none_is_leaf)

    def _alike(self, *values: Any) -> bool:
        """Whether several values are nested alike; so is a single one."""
        if len(values) == 1 or self._kind(values[0]) is None:
            return bool(values)
        first, *others = values
        kind = self._kind(first)
        if kind is object or any(type(other) is not type(first) for other in others):
            return False
        if kind is dict:
            if any(other.keys() != first.keys() for other in others):
                return False
            return all(self._alike(*(value[key] for value in values)) for key in first)
        same = all(len(other) == len(first) for other in others)
        return same and all(map(self._alike, *values))

    def _map(self, func: Any, first: Any, *others: Any) -> Any:
        """What a function returns for the leaves of values that are nested alike."""
        kind = self._kind(first)
        if kind is None:
            return func(first, *others)
        if kind is object:
            return self.own.map_structure(func, first, *others)
        if kind is dict:
            rest = ([other[key] for other in others] for key in first)
            return {
                key: self._map(func, part, *parts)
                for (key, part), parts in zip(first.items(), rest, strict=True)
            }
        parts = list(map(functools.partial(self._map, func), first, *others))
        if kind is list:
            return parts
        return tuple(parts) if type(first) is tuple else type(first)(*parts)
