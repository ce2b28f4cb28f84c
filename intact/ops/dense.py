"""Dense layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor
from intact.ops.base import Case, Weight, Weighted
from intact.ops.registry import register_op
from intact.plan.scheme import TensorSpec


@register_op
class Dense(Weighted):
    """A matrix product with the last axis."""

    keras_layers = (layers.Dense,)
    litert = ("FULLY_CONNECTED",)
    weights = {
        "kernel": Weight(
            kernels=("int2", "int4", "int8", "uint8"),
            dynamic=("int2", "int4", "int8", "int4 blocks"),
            alone=("int2", "int4", "int8", "int4 blocks"),
        )
    }
    input_axis = 0
    cases = (
        Case(lambda: layers.Dense(4), (8,)),
        Case(lambda: layers.Dense(4, activation="relu", use_bias=False), (8,)),
        Case(lambda: layers.Dense(4, activation="relu6"), (5, 8)),
        Case(lambda: layers.Dense(4), (3, 5, 8)),
        Case(
            lambda: lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Dense(4)(x))), (8,)
        ),
    )

    def products(self, layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(x, kernel)

    def patches(self, layer: Any, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        return rows[(positions[:, 0] * len(rows)).astype(int)][..., None]

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        # XNNPACK takes 4-bit weights two at a time.
        odd = dtype == "int4" and layer.kernel.shape[0] % 2
        return "fixed_point_vector" if odd else "double"

    def stores(self, layer: Any, spec: TensorSpec) -> bool:
        if spec.block is not None:
            # Without XNNPACK, LiteRT takes no blocks of a narrower layer, and does not say so.
            return bool(layer.kernel.shape[1] >= 4)
        # XNNPACK takes 2-bit weights four at a time, and the other kernels round otherwise.
        return spec.dtype != "int2" or (spec.per_axis and layer.kernel.shape[0] % 4 == 0)

    def rows(self, layer: Any, rank: int, dtype: str) -> tuple[int, ...]:
        return (rank - 1,)

    def lower(self, node: Any, builder: Any) -> None:
        kernel = node.constant("kernel", (1, 0), axis=0)
        y, activation = node.output, node.activation
        # LiteRT's own kernel for blocks leaves out the activation.
        apart = kernel.groups.block and activation != "NONE"
        if apart:
            y, activation = builder.like(y, y.shape), "NONE"
        options = {
            "fusedActivationFunction": activation,
            "keepNumDims": len(node.input.shape) > 2,
            # XNNPACK gives inputs a zero point at run time; LiteRT's own kernel is asked to.
            "asymmetricQuantizeInputs": kernel.quantized and not node.input.quantized,
        }
        builder.add("FULLY_CONNECTED", [node.input, kernel, node.bias()], [y], options)
        if apart:
            builder.add(node.activation, [y], [node.output])
