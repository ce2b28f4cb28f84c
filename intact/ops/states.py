"""States of recurrent layers: zeros for every sample, and what is carried from step to step."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.tensors import Tensor
from intact.ops.base import INTEGERS, Case, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.shape import Moving


@keras.saving.register_keras_serializable("intact")
class Zeros(FunctionLayer):
    """The zero state before a first step that cannot omit it.

    Args:
        units: The size of its last axis; the others are the input's.
        first: Whether axis 1 of the input is the time, which the state has only one step of.
    """

    units: int
    first: bool = False

    def call(self, x: Tensor) -> Tensor:
        """The zeros."""
        x = x[:, :1] if self.first else x
        return ops.zeros_like(x[..., :1]) * ops.zeros(self.units)

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        between = (1, *shape[2:-1]) if self.first else shape[1:-1]
        return (shape[0], *between, self.units)


@register_op
class ZeroState(Op):
    """Zeros for each sample, in the range of the state that follows them."""

    keras_layers = (Zeros,)
    litert = ("STRIDED_SLICE", "MUL")
    dtypes = INTEGERS
    kernel_rounding = "real"
    cases = (Case(lambda: lambda x: layers.Dense(4)(x) + Zeros(4)(x), (2, 3)),)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return layer(inputs[0].values)

    def lower(self, node: Any, builder: Any) -> None:
        x, y, first = node.input, node.output, node.layer.first
        rank = len(x.shape)
        shape = (*y.shape[:-1], 1)

        def one() -> Any:
            """One index of each axis that is not the input's."""
            part = builder.like(x, shape)
            cut = {rank - 1, 1} if first else {rank - 1}
            masks = sum(1 << axis for axis in range(rank) if axis not in cut)
            end = [int(axis in cut) for axis in range(rank)]
            bounds = [builder.constant(np.array(v, "int32")) for v in ([0] * rank, end, [1] * rank)]
            options = {"beginMask": masks, "endMask": masks}
            builder.add("STRIDED_SLICE", [x, *bounds], [part], options)
            return part

        zeros = np.zeros((1,) * (rank - 1) + (node.layer.units,), "float32")
        if y.quantized:
            stored = zeros.astype(x.dtype)
            factor = builder.constant(stored, scale=np.float32(1), zero_point=0)
        else:
            factor = builder.constant(zeros)
        part = builder.once((x.index, "one place", first), one)
        builder.add("MUL", [part, factor], [y], {"fusedActivationFunction": "NONE"})


@keras.saving.register_keras_serializable("intact")
class Carried(FunctionLayer):
    """Passes a state from step to step unchanged.

    XLA recomputes a chain of elementwise ops for every reader, so compile time would grow with the
    square of the steps. A matrix product, even with the identity, ends such a chain.
    """

    def call(self, x: Tensor) -> Tensor:
        """The state itself."""
        if keras.backend.backend() == "torch":
            return x
        return ops.matmul(x, ops.eye(x.shape[-1]))


@register_op
class Carry(Moving):
    """A state from one step to the next: nothing in the file."""

    keras_layers = (Carried,)
    cases = (Case(lambda: lambda x: layers.Dense(3)(Carried()(x)), (2, 4)),)

    def lower(self, node: Any, builder: Any) -> None:
        node.alias(node.input)


def nothing(like: Any, tracer: Any) -> Any:
    """Zeros in place of one step's values, in the range of the values that they are chosen from."""
    return tracer.constant(np.zeros((1, *like.shape[1:]), "float32"), "nothing", len(like.shape))
