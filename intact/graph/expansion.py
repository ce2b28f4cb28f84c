"""A layer that nobody registered, as what its `call` does."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from intact.errors import IntactError
from intact.graph.masks import Masks
from intact.graph.view import output_names, set_mask, view
from intact.numerics.tensors import is_symbolic, is_whole
from intact.ops.base import activation_name
from intact.ops.table import Elementwise, make_steps

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer


def expand_call(
    tracer: "Tracer", layer: keras.layers.Layer, args: tuple, kwargs: dict, masks: Masks
) -> Any:
    """Rewrite a layer that nobody registered, by what its `call` does."""

    def call(tensors: list[Any], masks: list[Any], args: tuple, kwargs: dict) -> Any:
        for tensor, mask in zip(tensors, masks, strict=True):
            set_mask(tensor, mask)
        return layer.call(*args, **kwargs)

    layer.add_loss = lambda loss: tracer.not_kept.append(layer.name)
    flat = {id(t): t for t in keras.tree.flatten((args, kwargs)) if id(t) in masks}
    tensors = list(flat.values())
    try:
        return expand_function(
            tracer, layer, call, (tensors, [masks[i] for i in flat], args, kwargs), {}
        )
    finally:
        del layer.add_loss


def expand_function(
    tracer: "Tracer", layer: Any, function: Callable[..., Any], args: tuple, kwargs: dict
) -> Any:
    """Rewrite a layer as a function of layers and `keras.ops`.

    Args:
        tracer: Makes the new graph.
        layer: The layer, for names and errors.
        function: What it computes, of symbolic tensors.
        args: Its arguments; tensors are those of the new graph.
        kwargs: Its keyword arguments, likewise.

    Returns:
        The outputs in the new graph.
    """
    given = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    symbols = {id(t): keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in given}

    def symbol(value: Any) -> Any:
        return symbols[id(value)] if is_symbolic(value) else value

    inner_args, inner_kwargs = keras.tree.map_structure(symbol, (args, kwargs))
    try:
        outputs = function(*inner_args, **inner_kwargs)
        unchanged = next((t for t in given if symbols[id(t)] is outputs), None)
        if unchanged is not None:
            return unchanged
        inner = keras.Model(list(symbols.values()), outputs)
        tracer.output_names[id(layer)] = output_names(inner)
    except IntactError:
        raise
    except Exception as error:
        inside = isinstance(layer, keras.layers.Activation)
        name = activation_name(layer) if inside else "call"
        tracer.refuse(layer, f"its `{name}` cannot be traced with symbolic tensors ({error})")
    steps = None if any(map(is_whole, given)) else make_steps(inner)
    if steps and len(steps) > 1:
        # One table is quicker than many ops, and rounds once.
        return tracer.emit(Elementwise(steps, name=layer.name), given[0])
    tracer.kept.append(inner)
    for node in view(inner).nodes:
        if not isinstance(node.layer, keras.layers.Layer):
            # A name that does not depend on what else was made before.
            node.layer.name = f"{layer.name}_{type(node.layer).__name__.lower()}"
    unique = {id(t): t for t in given}
    with tracer.scope(layer):
        return tracer.trace_model(inner, tuple(unique.values()), {})
