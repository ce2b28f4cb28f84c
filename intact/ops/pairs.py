"""Products of every sample with every sample, such as the similarities of images and texts."""

from typing import Any

import keras
import numpy as np
from keras import ops

from intact.graph.view import made_by
from intact.numerics.tensors import Tensor
from intact.ops.base import Case
from intact.ops.function_layer import FunctionLayer
from intact.ops.matmul import MatrixProduct
from intact.ops.moves import Moved
from intact.ops.registry import register_op
from intact.ops.shape import Moving


@keras.saving.register_keras_serializable("intact")
class PairProducts(FunctionLayer):
    """The products of each row of one batch with each row of another.

    Example:

    >>> PairProducts()([np.ones((3, 4)), np.ones((2, 4))]).shape == (3, 2)
    True
    """

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`(a, b)`, of shapes `(n, features)` and `(m, features)`."""
        a, b = inputs
        return ops.matmul(a, ops.transpose(b))

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, ...]:
        a, b = shapes
        return a[0], b[0]


@register_op
class Pairs(MatrixProduct):
    """Products of all pairs of samples; the size of the output depends on the batch."""

    keras_layers = (PairProducts,)
    cases = (
        Case(lambda: lambda a, b: ops.matmul(a, ops.transpose(b)), [(5,), (5,)], batch=32),
        Case(lambda: lambda a, b: ops.einsum("if,jf->ij", a, b), [(5,), (5,)], batch=32),
    )

    def lower(self, node: Any, builder: Any) -> None:
        builder.add("BATCH_MATMUL", node.inputs, [node.output], {"adjX": False, "adjY": True})


@keras.saving.register_keras_serializable("intact")
class TurnedPairs(Moved):
    """Values of all pairs of samples, with the pairs' other sample first."""

    def call(self, x: Tensor) -> Tensor:
        """The transposed matrix."""
        return ops.transpose(x)

    def compute_output_shape(self, shape: tuple) -> tuple:
        return shape[::-1]


@register_op
class Turning(Moving):
    """A matrix of pairs of samples, transposed."""

    keras_layers = (TurnedPairs,)
    litert = ("TRANSPOSE",)
    cases = (
        Case(
            lambda: lambda a, b: ops.transpose(ops.matmul(a, ops.transpose(b))) * 2.0,
            [(5,), (5,)],
            batch=32,
        ),
    )

    def lower(self, node: Any, builder: Any) -> None:
        order = builder.constant(np.array([1, 0], "int32"))
        builder.add("TRANSPOSE", [node.input, order], [node.output])


def are_pairs(x: keras.KerasTensor) -> bool:
    """Whether the second axis of a tensor of the new graph is a batch, too."""
    if len(x.shape) != 2 or x.shape[0] != x.shape[1]:
        return False
    node = made_by(x)
    return isinstance(node.layer, PairProducts) or any(map(are_pairs, node.inputs))
