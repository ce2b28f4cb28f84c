"""Layers that change gradients, but no values."""

from typing import Any

import keras
from keras import layers, ops

from intact.numerics.tensors import Tensor
from intact.ops.base import Case
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.shape import Moving


@keras.saving.register_keras_serializable("intact")
class WithoutGradient(FunctionLayer):
    """Values that training treats as constants.

    Example:

    >>> float(WithoutGradient()(np.ones(1))[0])
    1.0
    """

    def call(self, x: Tensor) -> Tensor:
        """The same values."""
        return ops.stop_gradient(x)


@register_op
class StopGradient(Moving):
    """Nothing in inference and in the file; it stops gradients in training."""

    keras_layers = (WithoutGradient,)
    operations = ("StopGradient",)
    pointwise = True
    cases = (
        Case(lambda: lambda x: layers.Dense(3)(x) + ops.stop_gradient(layers.ReLU()(x)), (3,)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        return tracer.emit(WithoutGradient(name=layer.name), x)

    def lower(self, node: Any, builder: Any) -> None:
        node.alias(node.input)
