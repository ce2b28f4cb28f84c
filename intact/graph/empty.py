"""Tensors without values, such as the part behind the last row, which code may join to others."""

from typing import TYPE_CHECKING, Any

import keras

from intact.graph.view import Node

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer


def is_empty(value: Any) -> bool:
    """Whether a value is a tensor without values."""
    return isinstance(value, keras.KerasTensor) and 0 in value.shape


def without_empty(tracer: "Tracer", node: Node, args: tuple) -> tuple:
    """The arguments of a call without tensors that have no values.

    Args:
        tracer: Makes the new graph.
        node: The call; its output has values.
        args: Its arguments in the new graph.

    Returns:
        The arguments; a concatenation loses its empty parts.
    """
    if type(node.layer).__name__ == "Concatenate":
        args = ([part for part in args[0] if not is_empty(part)], *args[1:])
    empty = next(filter(is_empty, keras.tree.flatten(args)), None)
    if empty is not None:
        tracer.refuse(node.layer, f"its input of shape {empty.shape} has no values")
    return args
