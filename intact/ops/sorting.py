"""The largest values, and the order of values."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.tensors import Tensor
from intact.ops.base import COUNTS, INTEGERS, Case, NotQuantized, Op
from intact.ops.moves import Moved
from intact.ops.registry import register_op
from intact.ops.shape import Moving


@keras.saving.register_keras_serializable("intact")
class TopValues(Moved):
    """The largest values along the last axis, in falling order.

    Args:
        k: How many.

    Example:

    >>> np.asarray(TopValues(2)(np.array([[1.0, 3.0, 2.0]]))).tolist()
    [[3.0, 2.0]]
    """

    k: int

    def call(self, x: Tensor) -> Tensor:
        """The values."""
        return ops.top_k(x, self.k)[0]

    def compute_output_shape(self, shape: tuple) -> tuple:
        return (*shape[:-1], self.k)


@keras.saving.register_keras_serializable("intact")
class TopPlaces(TopValues):
    """The indices of the largest values along the last axis, equal ones in order.

    Args:
        k: How many.

    Example:

    >>> np.asarray(TopPlaces(2)(np.array([[1.0, 3.0, 3.0]]))).tolist()
    [[1, 2]]
    """

    output_dtype = "int32"

    def call(self, x: Tensor) -> Tensor:
        """The indices."""
        return ops.cast(ops.argsort(-x, axis=-1)[..., : self.k], "int32")


@register_op
class LargestValues(Moving):
    """The largest values along the last axis."""

    dtypes = INTEGERS
    whole = COUNTS
    keras_layers = (TopValues,)
    litert = ("TOPK_V2",)
    cases = (Case(lambda: TopValues(3), (4, 7)),)

    def lower(self, node: Any, builder: Any) -> None:
        places = builder.tensor(node.output.shape, "int32", f"{node.output.name}/places")
        k = builder.constant(np.array(node.layer.k, "int32"))
        builder.add("TOPK_V2", [node.input, k], [node.output, places])


@register_op
class LargestPlaces(Op):
    """The places of the largest values along the last axis."""

    dtypes = INTEGERS
    whole = COUNTS
    keras_layers = (TopPlaces,)
    litert = ("TOPK_V2",)
    output = NotQuantized("int32")
    cases = (Case(lambda: lambda x: ops.one_hot(TopPlaces(3)(x), 7) * 2.0, (4, 7)),)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return layer(inputs[0].values)

    def lower(self, node: Any, builder: Any) -> None:
        values = builder.like(node.input, node.output.shape)
        k = builder.constant(np.array(node.layer.k, "int32"))
        builder.add("TOPK_V2", [node.input, k], [values, node.output])


@register_op
class TopK(Op):
    """The largest values along the last axis, and their places."""

    operations = ("TopK",)
    litert = ("TOPK_V2",)
    notes = "In falling order."
    cases = (
        Case(lambda: lambda x: ops.top_k(x, 3)[0], (10,)),
        Case(lambda: lambda x: layers.Embedding(10, 3)(ops.top_k(x, 2)[1]), (10,)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if len(x.shape) == 1:
            tracer.refuse(layer, "it runs over the batch")
        names = f"{layer.name}_values", f"{layer.name}_places"
        return [
            tracer.emit(kind(layer.k, name=name), x)
            for kind, name in zip((TopValues, TopPlaces), names, strict=True)
        ]


@register_op
class Sort(Op):
    """All values along an axis in order, or their places."""

    operations = ("Sort", "Argsort")
    litert = ("TOPK_V2", "GATHER")
    notes = "Along an axis of known size, not the batch."
    cases = (
        Case(lambda: lambda x: ops.sort(x), (7,)),
        Case(lambda: lambda x: layers.Dense(2)(ops.sort(x, axis=1)), (6, 3)),
        Case(lambda: lambda x: ops.one_hot(ops.argsort(x), 6) * 2.0, (6,)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if layer.axis is None or layer.axis % len(x.shape) == 0:
            tracer.refuse(layer, "it runs over the batch")
        size = x.shape[layer.axis]
        if size is None:
            tracer.refuse(layer, f"the size of axis {layer.axis} of shape {x.shape} is unknown")

        def ordered(x: Tensor) -> Tensor:
            x = ops.moveaxis(x, layer.axis, -1)
            if type(layer).__name__ == "Sort":
                y = ops.flip(ops.top_k(x, size)[0], axis=-1)
            else:
                y = ops.top_k(-x, size)[1]
            return ops.moveaxis(y, -1, layer.axis)

        return tracer.expand(layer, ordered, x)
