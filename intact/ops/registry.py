"""Which op stands for a layer, an operation or an activation."""

import contextlib
import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from intact.errors import IntactError, UnsupportedLayerError
from intact.graph.view import has_own_call
from intact.ops.base import Op
from intact.registry import is_same

REGISTRY: list[Op] = []
"""Every registered op, in order of registration."""

_by_layer: dict[type, Op] = {}
_by_operation: dict[str, Op] = {}
_by_activation: dict[str, Op] = {}


def register_op(op: type[Op] | None = None, *, replace: bool = False) -> Any:
    """Class decorator: make an op known.

    Args:
        op: The op class.
        replace: Whether it may stand for what another op stands for already.

    Returns:
        The class itself; a decorator, if there is no class.

    Raises:
        IntactError: Another op stands for the same layer, operation or activation; or the class
            has a name that looks like one of `Op`'s and is none.

    Example:

    >>> @register_op
    ... class Same(Op):
    ...     keras_layers = ()
    """
    if op is None:
        return lambda cls: register_op(cls, replace=replace)
    _check_names(op)
    tables: tuple[tuple[dict[Any, Op], tuple], ...] = (
        (_by_layer, op.keras_layers),
        (_by_operation, op.operations),
        (_by_activation, op.activations),
    )
    for known, keys in tables:
        taken: list[Any] = [key for key in keys if key in known]
        if taken and not replace and not is_same(op, type(known[taken[0]])):
            name = getattr(taken[0], "__name__", taken[0])
            raise IntactError(
                f"{op.__name__} cannot be registered: {name!r} is that of "
                f"{known[taken[0]].name} already. Pass `replace=True` to put it in its place: "
                "`@register_op(replace=True)`."
            )
    REGISTRY.append(op())
    for known, keys in tables:
        known.update(dict.fromkeys(keys, REGISTRY[-1]))
    return op


def _check_names(op: type[Op]) -> None:
    """Refuse data that no one reads, and methods whose names are nearly those of `Op`'s."""
    for kind in op.__mro__[: op.__mro__.index(Op)]:
        inherited = {name for base in kind.__mro__[1:] for name in vars(base)}
        declared = {*inherited, *inspect.get_annotations(kind)}
        for name, value in vars(kind).items():
            if name.startswith("_") or name in declared:
                continue
            is_method = callable(value) or isinstance(value, staticmethod | classmethod | property)
            alike = difflib.get_close_matches(name, inherited, 1, 0.9 if is_method else 0.6)
            if is_method and not alike:
                continue
            hint = f"Did you mean `{alike[0]}`? " if alike else ""
            raise IntactError(
                f"{op.__name__} cannot be registered: `{kind.__name__}.{name}` is not a name of "
                f"`intact.Op`, and nothing would read it. {hint}The docstring of `intact.Op` lists "
                f"its names. For one of your own, write `_{name}`, or annotate it as a ClassVar."
            )


def known_class(layer: Any) -> Any:
    """The registered class of a layer, even if the layer's own class only renames it.

    A subclass may have its own `__init__` and config. If it overrides a method that affects a call
    (`call`, `build`, ...), it is a class of its own.

    Args:
        layer: A Keras layer.

    Returns:
        The registered class, or else the layer's own.

    Example:

    >>> class Conv3x3(keras.layers.Conv2D):
    ...     def __init__(self, filters):
    ...         super().__init__(filters, 3)
    >>> known_class(Conv3x3(4)).__name__
    'Conv2D'
    """
    above: list[type] = []
    for kind in type(layer).__mro__:
        if kind in _by_layer or kind is keras.layers.Activation:
            changed = {name for other in above for name in vars(other) if hasattr(kind, name)}
            return kind if all(map(_is_idle, changed)) else type(layer)
        above.append(kind)
    return type(layer)


def _is_idle(name: str) -> bool:
    """Whether an attribute of a layer class has no effect on a call."""
    special = name.startswith("__") and name != "__call__"
    return special or name in ("get_config", "from_config")


_CODE = ("activation", "_constraint", "_initializer", "_regularizer")
"""Suffixes of the attributes that may be a user's code without a config."""


def known_config(layer: Any) -> dict[str, Any]:
    """The config of a layer for its `known_class`, without attributes that may be a user's code.

    These are its activation, initializers, regularizers and constraints. `share_code` gives the
    last two to a layer made from the config.

    Args:
        layer: A Keras layer.
    """
    kind = known_class(layer)
    code = {
        name: value
        for name, value in vars(layer).items()
        if name.endswith(_CODE) and value is not None and not isinstance(value, keras.Layer)
    }
    if kind is keras.layers.Activation:
        code.pop("activation")
    blank = {"activation": keras.activations.linear}
    try:
        for name in code:
            setattr(layer, name, blank.get(name))
        return {k: v for k, v in kind.get_config(layer).items() if not k.endswith("_initializer")}
    finally:
        for name, value in code.items():
            setattr(layer, name, value)


def share_code(layer: Any, target: Any, changes: dict[str, Any]) -> None:
    """Give a layer the regularizers, constraints and initializers of another one.

    Args:
        layer: The user's layer.
        target: A layer made from its `known_config`, not built.
        changes: Attributes that differ from the user's layer.
    """
    for name, value in vars(layer).items():
        shared = name.endswith(("_constraint", "_regularizer")) and name != "activity_regularizer"
        # Weights have values already; an initializer without a config could not be saved.
        ours = name.endswith("_initializer") and type(value).__module__.startswith("keras.")
        if (shared or ours) and name not in changes and hasattr(target, name):
            setattr(target, name, value)


@contextlib.contextmanager
def without_values(layer: Any) -> Iterator[None]:
    """In this context, a layer is built with weights of 0, because others replace them anyway.

    Random values take time, and several times the memory of a weight while they are computed.

    Args:
        layer: A layer that is not built.
    """
    code = {name: value for name, value in vars(layer).items() if name.endswith("_initializer")}
    try:
        for name in code:
            setattr(layer, name, keras.initializers.Zeros())
        yield
    finally:
        for name, value in code.items():
            setattr(layer, name, value)


def activation_name(layer: keras.layers.Activation) -> str:
    """The name of an Activation layer's function."""
    return getattr(layer.activation, "__name__", type(layer.activation).__name__)


def find_op(layer: Any) -> Op | None:
    """The op that stands for a layer or operation, or None.

    Args:
        layer: A Keras layer or operation.

    Returns:
        The registered op; none for a layer whose own `call` was replaced.
    """
    if has_own_call(layer):
        return None
    if isinstance(layer, keras.layers.Layer):
        kind = known_class(layer)
        if kind is keras.layers.Activation:
            return _by_activation.get(activation_name(layer))
        return _by_layer.get(kind)
    return _by_operation.get(type(layer).__name__)


def get_op(layer: Any) -> Op:
    """The op that stands for a canonical layer.

    Raises:
        UnsupportedLayerError: Nothing is registered for it.
    """
    op = find_op(layer)
    if op is None:
        raise UnsupportedLayerError(
            f"{type(layer).__name__} {getattr(layer, 'name', '')!r} is unknown to intact. "
            "Register an op for it with `intact.register_op`, or build it from Keras layers."
        )
    return op
