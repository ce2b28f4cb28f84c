"""What changes gradients and no values."""

from typing import Any

import keras
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.tensors import Tensor
from intact.ops.base import ANY_WHOLE, INTEGERS, SAME_AS_INPUT, Case, Op, register_op


@keras.saving.register_keras_serializable("intact")
class WithoutGradient(keras.layers.Layer):
    """Values that training takes for constants.

    Example:

    >>> float(WithoutGradient()(np.ones(1))[0])
    1.0
    """

    def call(self, x: Tensor) -> Tensor:
        """The same values."""
        return ops.stop_gradient(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@register_op
class StopGradient(Op):
    """Nothing in inference and in the file; training has no gradient there."""

    dtypes = INTEGERS
    whole = ANY_WHOLE
    keras_layers = (WithoutGradient,)
    operations = ("StopGradient",)
    output = SAME_AS_INPUT
    pointwise = True
    cases = (
        Case(lambda: lambda x: layers.Dense(3)(x) + ops.stop_gradient(layers.ReLU()(x)), (3,)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        return tracer.emit(WithoutGradient(name=layer.name), x)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(values=layer(x.values))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        node.alias(node.input)
