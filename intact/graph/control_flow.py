"""Branches and loops in a `call`, which are unrolled while it runs on symbolic tensors."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops
from keras.src.ops import core

from intact.numerics.tensors import is_symbolic


def _chosen(pred: Any, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
    """Both branches, and a choice between them for each value."""
    if not is_symbolic(pred):
        return true_fn() if pred else false_fn()
    return keras.tree.map_structure(lambda a, b: ops.where(pred, a, b), true_fn(), false_fn())


def _repeated(loop: Any, value: Any) -> Any:
    for index in range(int(loop.lower), int(loop.upper)):
        value = loop.body_fun(index, value)
    return value


def _scanned(loop: Any, f: Callable[..., Any], init: Any, xs: Any = None, *length: Any) -> Any:
    """A function applied in turn to each part of tensors along their first axis, with a state."""
    size = keras.tree.flatten(xs)[0].shape[0] if xs is not None else loop.length
    state, outputs = init, [None] * size
    for step in range(size)[:: -1 if loop.reverse else 1]:
        part = keras.tree.map_structure(lambda x, at=step: x[at], xs)
        state, outputs[step] = f(state, part)
    return state, keras.tree.map_structure(lambda *parts: ops.stack(parts), *outputs)


def _mapped(function: Callable[..., Any], xs: Any) -> Any:
    """A function applied to each part of tensors along their first axis."""
    size = keras.tree.flatten(xs)[0].shape[0]
    parts = [keras.tree.map_structure(lambda x, at=i: x[at], xs) for i in range(size)]
    return keras.tree.map_structure(lambda *each: ops.stack(each), *map(function, parts))


def _switched(index: Any, branches: list[Callable[..., Any]], *operands: Any) -> Any:
    return branches[min(max(int(index), 0), len(branches) - 1)](*operands)


def _while(loop: Any, values: Any) -> Any:
    """The loop, step by step; its condition depends on no tensor."""
    turns = 0
    while loop.maximum_iterations is None or turns < loop.maximum_iterations:
        parts = values if isinstance(values, list | tuple) else (values,)
        if not bool(loop.cond(*parts)):
            break
        values, turns = loop.body(*parts), turns + 1
    return values


UNROLLED: dict[str, Callable[..., Any]] = {
    "Cond": lambda loop, *args: _chosen(*args),
    "ForiLoop": _repeated,
    "Map": lambda loop, *args: _mapped(*args),
    "Scan": _scanned,
    "Switch": lambda loop, *args: _switched(*args),
    "VectorizedMap": lambda loop, xs: _mapped(loop.function, xs),
    "WhileLoop": _while,
}
"""By operation class, its replacement: a function of the operation and its operands."""


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Let Keras' branches and loops run on symbolic tensors, instead of standing in a graph."""
    classes = {getattr(core, name): function for name, function in UNROLLED.items()}
    before = {cls: vars(cls).get("symbolic_call") for cls in classes}
    for cls, function in classes.items():
        cls.symbolic_call = function
    try:
        yield
    finally:
        for cls, method in before.items():
            if method is None:
                del cls.symbolic_call
            else:
                cls.symbolic_call = method
