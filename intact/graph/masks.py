"""Keras' masks of tensors, and how calls receive them."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import keras

from intact.graph.view import Node, mask_of
from intact.numerics.tensors import is_symbolic, is_whole
from intact.ops.registry import find_op
from intact.ops.whole import truths

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer

Masks = dict[int, keras.KerasTensor]
"""Masks beside tensors, by the tensors' ids."""


def takes_masks(layer: Any) -> bool:
    """Whether a layer's output may depend on the masks of its inputs."""
    op = find_op(layer)
    return isinstance(layer, keras.layers.Layer) and (op is None or op.masks)


class RunMasks:
    """The masks that the tensors of a user's graph have when the model runs.

    Keras' `MultiHeadAttention` takes the masks off its inputs when it runs, but not when it is
    called on symbolic tensors. So the graph shows masks that later readers do not get.

    Args:
        new: Returns the tensor of the new graph for one of the user's.
        unmasked: The ids of the tensors of the new graph whose masks are taken away. Calls add to
            it.
    """

    def __init__(self, new: Callable[[Any], Any], unmasked: set[int]) -> None:
        self._new = new
        self._unmasked = unmasked
        self._changed: dict[int, Any] = {}

    def of(self, tensor: Any) -> Any:
        """The mask of a tensor of the user's graph, or None."""
        if id(tensor) in self._changed:
            return self._changed[id(tensor)]
        mask = mask_of(tensor)
        return None if mask is None or id(self._new(tensor)) in self._unmasked else mask

    def before(self, node: Node) -> Masks:
        """Note which masks a call hands on.

        Args:
            node: The call, which is to be traced next.

        Returns:
            The masks that the call may read, beside the tensors of the new graph.
        """
        self._changed.update(self._changed_outputs(node))
        if not takes_masks(node.layer):
            return {}
        masks = [(t, self.of(t)) for t in node.inputs]
        return {id(self._new(t)): self._new(mask) for t, mask in masks if mask is not None}

    def after(self, node: Node) -> None:
        """Note which masks a call has taken away."""
        if _takes_masks_away(node.layer):
            self._unmasked.update(id(self._new(t)) for t in node.inputs)

    def _changed_outputs(self, node: Node) -> dict[int, Any]:
        """The masks of a call's outputs, by id, where they are not those of the graph."""
        layer, arguments = node.layer, [*node.args, *node.kwargs.values()]
        if not isinstance(layer, keras.layers.Layer) or node.kwargs.get("mask") is not None:
            return {}
        inputs = arguments[0]
        if all(self.of(t) is mask_of(t) for t in keras.tree.flatten(inputs)):
            return {}
        masks = keras.tree.map_structure(self.of, inputs)
        handed_on = masks if _takes_masks_away(layer) else layer.compute_mask(inputs, masks)
        flat = keras.tree.flatten(handed_on) if is_any(handed_on) else [None] * len(node.outputs)
        return {id(tensor): part for tensor, part in zip(node.outputs, flat, strict=False)}


def _takes_masks_away(layer: Any) -> bool:
    return getattr(type(layer), "call", None) is keras.layers.MultiHeadAttention.call


def handed(layer: Any, args: tuple, kwargs: dict, masks: Masks) -> dict[str, Any]:
    """The masks that Keras passes to a layer's call, by argument name."""
    names = inspect.signature(layer.call).parameters
    arguments = dict(zip(names, args, strict=False)) | kwargs
    tensors = {k: v for k, v in arguments.items() if any(map(is_symbolic, keras.tree.flatten(v)))}
    handed_masks = {}
    for name, value in tensors.items():
        wanted = "mask" if len(tensors) == 1 else f"{name}_mask"
        beside = keras.tree.map_structure(lambda t: masks.get(id(t)), value)
        if wanted in names and arguments.get(wanted) is None and is_any(beside):
            handed_masks[wanted] = beside
    return handed_masks


def without_mask(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, Any]:
    """A call's arguments without its mask, and the mask."""
    if "mask" in kwargs or not isinstance(layer, keras.layers.Layer):
        return args, kwargs.pop("mask", None)
    names = list(inspect.signature(layer.call).parameters)
    place = names.index("mask") if "mask" in names else len(args)
    return args[:place], next(iter(args[place:]), None)


def is_any(mask: Any) -> bool:
    """Whether a possibly nested mask argument contains a mask."""
    return any(part is not None for part in keras.tree.flatten(mask))


def with_masks(
    tracer: "Tracer", layer: Any, args: tuple, kwargs: dict, masks: Masks, known: bool
) -> tuple[tuple, dict]:
    """A call's arguments, with its masks as keyword arguments.

    Args:
        tracer: The tracer.
        layer: The layer or operation.
        args: The arguments of its call.
        kwargs: Its keyword arguments.
        masks: The masks beside the tensors.
        known: Whether the layer's op reads masks.
    """
    if known and masks:
        kwargs = kwargs | handed(layer, args, kwargs, masks)
    args, mask = without_mask(layer, args, kwargs)
    if is_any(mask):
        if not known:
            tracer.refuse(layer, "it is called with a mask that it has no integer form for")
        kwargs["mask"] = keras.tree.map_structure(partial(_as_truths, tracer, layer), mask)
    return args, kwargs


def _as_truths(tracer: "Tracer", layer: Any, mask: Any) -> Any:
    """A mask as truth values; an array stays as it is."""
    if not is_symbolic(mask):
        return mask
    if not is_whole(mask):
        if not isinstance(layer, keras.layers.Softmax):
            tracer.refuse(layer, "its mask must be whole numbers or truth values")
        # Keras' softmax hides what is not above a half; others read real values in other ways.
        mask = tracer.expand(layer, lambda values: values > 0.5, mask)
    return truths(mask, f"{layer.name}_mask", len(mask.shape), tracer)


def by_position(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call's arguments, with the first one passed by position."""
    first = next(iter(inspect.signature(layer.call).parameters), "")
    if args or first not in kwargs:
        return args, kwargs
    return (kwargs[first],), {k: v for k, v in kwargs.items() if k != first}
