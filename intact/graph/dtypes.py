"""The types of tensors that a layer of the canonical graph reads."""

from typing import TYPE_CHECKING, Any

import keras

from intact.numerics.tensors import is_whole
from intact.ops.registry import get_op
from intact.ops.whole import NARROW, common_type

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer


def in_one_type(tracer: "Tracer", layer: Any, inputs: Any) -> tuple[Any, str]:
    """The inputs of a layer in the type that it computes in, and that type.

    Whole numbers stay whole for layers whose kernels take them, and become real values for all
    others. Only this function decides it.
    """
    op = get_op(layer)
    flat = keras.tree.flatten(inputs)
    read = [index for index in range(len(flat)) if index not in op.plain]
    if not read:
        own = layer.compute_dtype
        return inputs, "float32" if "float" in own else own
    dtype = "float32"
    if op.whole and all(is_whole(flat[index]) for index in read):
        dtype = common_type(flat[index] for index in read)
        if dtype not in op.whole and dtype in ("bool", *NARROW):
            dtype = "int32"
        if dtype not in op.whole:
            tracer.refuse(
                layer, f"its kernel takes {', '.join(op.whole)}, and its values are {dtype}"
            )
    for index in read:
        if is_whole(flat[index]):
            flat[index] = tracer.convert(flat[index], dtype)
    return keras.tree.pack_sequence_as(inputs, flat), dtype
