"""Replaces weights by symbolic tensors while a user's `call` runs on symbolic tensors.

Keras' operations accept a variable together with a symbolic tensor. A variable's own operators do
not, and an operation on variables alone returns values whose origin is unknown. A symbolic tensor
therefore replaces each weight of a layer while the layer's `call` runs.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.layers import layer as layer_module
from keras.src.ops.node import Node as KerasNode

from intact.graph.array_keys import by_arrays, has_arrays
from intact.graph.backend_functions import symbolic_functions
from intact.graph.buffers import symbolic_zeros
from intact.graph.control_flow import unrolled
from intact.graph.items import latest
from intact.graph.runs import TrainingError
from intact.graph.view import is_graph
from intact.layers.base import QuantizedLayer
from intact.numerics.tensors import Variable, is_symbolic, to_numpy
from intact.ops.registry import find_op

BOOKKEEPING = ("_trainable_variables", "_non_trainable_variables")
"""Lists of variables that belong to Keras."""


class StandIn(keras.KerasTensor):
    """A symbolic tensor that replaces a variable, and has the variable's other attributes.

    Args:
        variable: The variable.
        assign: What an assignment does instead of changing the variable.
    """

    def __init__(self, variable: Any, assign: Callable[["StandIn", Any], Any]) -> None:
        super().__init__(variable.shape, variable.dtype, name=variable.name)
        self.variable, self.assigned = variable, False
        add_assignments(self, partial(assign, self))

    @property
    def value(self) -> "StandIn":
        """The tensor itself."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "variable":
            raise AttributeError(name)
        return getattr(self.variable, name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return to_numpy(self.variable).astype(dtype or self.dtype)

    def __int__(self) -> int:
        return int(to_numpy(self.variable))

    def __float__(self) -> float:
        return float(to_numpy(self.variable))


def add_assignments(tensor: Any, assign: Callable[[Any], Any]) -> None:
    """Give a symbolic tensor the `assign` methods of a variable.

    Args:
        tensor: The tensor.
        assign: Assigns a value.
    """
    tensor.assign = assign
    tensor.assign_add = lambda value: assign(tensor + value)
    tensor.assign_sub = lambda value: assign(tensor - value)


def handled_whole(layer: Any) -> bool:
    """Whether an op or a graph stands for a layer, so that its `call` is not run."""
    return isinstance(layer, QuantizedLayer) or find_op(layer) is not None or is_graph(layer)


class StandIns:
    """The stand-ins for the variables of a layer and of all in it."""

    def __init__(self) -> None:
        self._by_variable: dict[int, StandIn] = {}
        # What the variable of a stand-in has become by assignments in the `call`.
        self._values: dict[int, Any] = {}
        # By the id of a layer: the layer, and its attributes that hold variables, with what
        # replaces them.
        self._swapped: dict[int, tuple[Any, dict[str, tuple[Any, Any]]]] = {}

    def of(self, variable: Any) -> StandIn:
        """The one stand-in for a variable."""
        if id(variable) not in self._by_variable:
            self._by_variable[id(variable)] = StandIn(variable, self._assign)
        return self._by_variable[id(variable)]

    def _assign(self, stand_in: StandIn, value: Any) -> Any:
        """Let whatever reads a variable from here on read a value that the `call` assigns to it.

        The variable itself does not change: tracing leaves the user's model as it is.
        """
        stand_in.assigned = True
        value = value if is_symbolic(value) else stand_in * 0 + value
        value = ops.broadcast_to(ops.cast(value, stand_in.dtype), stand_in.shape)
        add_assignments(value, partial(self._assign, stand_in))
        self._values[id(stand_in)] = value
        for layer, attributes in self._swapped.values():
            vars(layer).update({k: self._replace(old) for k, (old, _) in attributes.items()})
        return value

    def is_assigned(self, value: Any) -> bool:
        """Whether a tensor is what the `call` has assigned to a variable."""
        return any(value is assigned for assigned in self._values.values())

    def overwritten(self, layer: Any) -> bool:
        """Whether the `call` that runs has given a layer other weights than its variables."""
        parts = (self._swapped.get(id(part)) for part in layer._flatten_layers())
        return any(
            vars(part)[name] is not new
            for part, attributes in filter(None, parts)
            for name, (_, new) in attributes.items()
        )

    def _replace(self, value: Any) -> Any:
        """An attribute with stand-ins for variables; the attribute itself if it has none."""
        if isinstance(value, Variable):
            stand_in = self.of(value)
            return self._values.get(id(stand_in), stand_in)
        parts = value.values() if isinstance(value, dict) else value
        if not isinstance(value, list | tuple | dict) or not any(map(_holds_variable, parts)):
            return value
        if isinstance(value, dict):
            return {key: self._replace(part) for key, part in value.items()}
        return [self._replace(part) for part in value]

    @contextlib.contextmanager
    def inside(self, layer: Any) -> Iterator[None]:
        """Replace the variables of a layer and its sublayers by their stand-ins."""
        own = [part for part in layer._flatten_layers() if id(part) not in self._swapped]
        for part in own:
            old = {k: v for k, v in vars(part).items() if k not in BOOKKEEPING}
            pairs = {k: (v, self._replace(v)) for k, v in old.items()}
            swapped = {k: pair for k, pair in pairs.items() if pair[0] is not pair[1]}
            self._swapped[id(part)] = part, swapped
            # Past Keras, which would track an attribute that is set.
            vars(part).update({k: new for k, (_, new) in swapped.items()})
        try:
            yield
        finally:
            for part in own:
                _, swapped = self._swapped.pop(id(part))
                vars(part).update({k: old for k, (old, _) in swapped.items()})

    @contextlib.contextmanager
    def outside(self, layer: Any) -> Iterator[None]:
        """Put the variables of a layer and of all in it back for a while."""
        taken = {
            id(part): self._swapped.pop(id(part))
            for part in layer._flatten_layers()
            if id(part) in self._swapped
        }
        now = {i: {k: vars(part)[k] for k in swapped} for i, (part, swapped) in taken.items()}
        for part, swapped in taken.values():
            vars(part).update({k: old for k, (old, _) in swapped.items()})
        try:
            yield
        finally:
            for i, (part, _) in taken.items():
                vars(part).update(now[i])
            self._swapped.update(taken)


def _holds_variable(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return any(map(_holds_variable, parts))
    return isinstance(value, Variable)


@contextlib.contextmanager
def symbolic_calls(stand_ins: StandIns) -> Iterator[None]:
    """Make Keras run the `call` of a layer that no op stands for, instead of guessing a shape.

    Args:
        stand_ins: The stand-ins for variables; layers that an op stands for get the variables.
    """
    cls, operation = keras.layers.Layer, keras.Operation
    call, spec, operate = cls.__call__, cls.symbolic_call, operation.symbolic_call

    def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = latest((args, kwargs))
        return _called(partial(call, layer), stand_ins, layer, args, kwargs)

    def specified(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if handled_whole(layer):
            return _in_full(layer, _spec(partial(spec, layer), layer, args, kwargs), args, kwargs)
        try:
            with stand_ins.inside(layer):
                outputs = latest(layer.call(*args, **kwargs))
            return keras.tree.map_structure(_fresh, outputs)
        except Exception:
            # Tracing the layer itself raises the error.
            with stand_ins.outside(layer):
                return spec(layer, *args, **kwargs)

    def operated(operation: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = latest((args, kwargs))
        outputs = _spec(operation.compute_output_spec, operation, args, kwargs)
        _node(outputs, operation=operation, call_args=args, call_kwargs=kwargs)
        return outputs

    cls.__call__, cls.symbolic_call, layer_module.Node = called, specified, _node
    operation.symbolic_call = operated
    try:
        with _like_arrays(), unrolled(), symbolic_functions(), symbolic_zeros():
            yield
    finally:
        cls.__call__, cls.symbolic_call, layer_module.Node = call, spec, KerasNode
        operation.symbolic_call = operate


def _called(
    call: Callable[..., Any], stand_ins: StandIns, layer: Any, args: tuple, kwargs: dict
) -> Any:
    """The outputs of a layer that a user's `call` calls.

    Args:
        call: Calls the layer as Keras does.
        stand_ins: The stand-ins for variables.
        layer: The layer.
        args: The arguments.
        kwargs: The keyword arguments.
    """
    kwargs, trains = in_inference(layer, args, kwargs)
    whole = handled_whole(layer)
    if stand_ins.overwritten(layer) or (trains and not whole):
        # Keras' record would stand for a call in inference, with the layer's own weights.
        return layer.call(*args, **kwargs)
    if trains and acts_in_training(layer):
        raise TrainingError(f"{type(layer).__name__} {layer.name!r}")
    if not whole:
        return call(*args, **kwargs)
    rows = _known_rows(stand_ins, layer, args, kwargs)
    if rows is not None:
        return rows
    with stand_ins.outside(layer):
        return call(*args, **kwargs)


def in_inference(layer: Any, args: tuple, kwargs: dict) -> tuple[dict[str, Any], bool]:
    """The keyword arguments of a layer's `call`, which does not train unless it is told to.

    Args:
        layer: The layer.
        args: The other arguments.
        kwargs: The keyword arguments.

    Returns:
        The keyword arguments, and whether an argument says that the layer trains.
    """
    if not getattr(layer, "_call_has_training_arg", False):
        return kwargs, False
    try:
        arguments = inspect.signature(layer.call).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return kwargs, False
    training = arguments.get("training")
    if training is None and ("training" in kwargs or "training" not in arguments):
        kwargs = {**kwargs, "training": False}
    return kwargs, training is True


def acts_in_training(layer: Any) -> bool:
    """Whether a layer, or one in it, computes something else while it trains."""
    kinds = keras.layers.BatchNormalization | keras.layers.SpectralNormalization
    return any(isinstance(part, kinds) or _draws(part) for part in layer._flatten_layers())


def _draws(layer: Any) -> bool:
    """Whether a layer draws random numbers while it trains."""
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout", "rate")]
    silent = any(rate is not None for rate in rates) and not any(rates)
    seeds = any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())
    return seeds and not silent


def _known_rows(stand_ins: StandIns, layer: Any, args: tuple, kwargs: dict) -> Any:
    """The rows of an embedding at known places, which are a part of its weight; else None."""
    symbolic = any(map(is_symbolic, keras.tree.flatten((args, kwargs))))
    if symbolic or not isinstance(layer, keras.layers.Embedding) or not layer.built:
        return None
    table = layer.embeddings
    table = stand_ins.of(table) if isinstance(table, Variable) else table
    return ops.take(table, args[0], axis=0)


def _node(outputs: Any, **call: Any) -> Any:
    """Keras' record of a call; of its outputs, those that are None are no tensors of the graph."""
    return KerasNode(outputs=[t for t in keras.tree.flatten(outputs) if t is not None], **call)


def _spec(formula: Callable[..., Any], operation: Any, args: tuple, kwargs: dict) -> Any:
    """The symbolic outputs by Keras' formula, or by the backend, which may take more."""
    try:
        return formula(*args, **kwargs)
    except Exception:
        with contextlib.suppress(Exception):
            return keras.Operation.compute_output_spec(operation, *args, **kwargs)
        raise


def _in_full(layer: Any, outputs: Any, args: tuple, kwargs: dict) -> Any:
    """Outputs with the sizes that Keras' shape formula leaves unknown."""
    tensors = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    if None in _sizes(tensors) or None not in _sizes(keras.tree.flatten(outputs)):
        return outputs
    return keras.Operation.compute_output_spec(layer, *args, **kwargs)


def _sizes(tensors: list[Any]) -> set[int | None]:
    return {size for tensor in tensors for size in tensor.shape}


@contextlib.contextmanager
def _like_arrays() -> Iterator[None]:
    """Let symbolic tensors take the keys and operators that tensors of the backends take."""
    cls = keras.KerasTensor
    getitem, iterate = cls.__getitem__, cls.__iter__

    def part(x: Any, key: Any) -> Any:
        key = key if isinstance(key, tuple) else (key,)
        if has_arrays(key):
            return by_arrays(x, key)
        return getitem(x, tuple(int(k) if isinstance(k, np.integer) else k for k in key))

    def parts(x: Any) -> Iterator[Any]:
        return (x[index] for index in range(x.shape[0])) if x.shape and x.shape[0] else iterate(x)

    cls.__getitem__, cls.__iter__ = part, parts
    ndim, ops.ndim = ops.ndim, lambda x: len(x.shape)
    # A NumPy or JAX array defers an operator to the symbolic tensor on its right.
    cls.__array_ufunc__, conversion = None, cls.__jax_array__
    del cls.__jax_array__
    try:
        yield
    finally:
        cls.__getitem__, cls.__iter__, cls.__jax_array__ = getitem, iterate, conversion
        ops.ndim = ndim
        del cls.__array_ufunc__


def _fresh(value: Any) -> Any:
    """A new symbolic tensor like one that another operation has made."""
    if value is None:
        return None
    return keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype))
