"""Masks that Keras hands on beside tensors, and how a call is given them."""

import inspect
from typing import Any

import keras

from intact.numerics.tensors import is_symbolic
from intact.ops.base import find_op

Masks = dict[int, keras.KerasTensor]
"""Masks beside tensors, by the tensors' ids."""


def takes_masks(layer: Any) -> bool:
    """Whether what a layer computes may depend on the masks beside its inputs."""
    op = find_op(layer)
    return isinstance(layer, keras.layers.Layer) and (op is None or op.masks)


def handed(layer: Any, args: tuple, kwargs: dict, masks: Masks) -> dict[str, Any]:
    """The masks that Keras gives to a layer's call, by the names that it has for them."""
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
    """A call's arguments up to its mask, and the mask, which is taken out of them."""
    if "mask" in kwargs or not isinstance(layer, keras.layers.Layer):
        return args, kwargs.pop("mask", None)
    names = list(inspect.signature(layer.call).parameters)
    place = names.index("mask") if "mask" in names else len(args)
    return args[:place], next(iter(args[place:]), None)


def is_any(mask: Any) -> bool:
    """Whether there is a mask in what Keras gives as one, which may be nested."""
    return any(part is not None for part in keras.tree.flatten(mask))
