"""Dense layers."""

from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor
from intact.ops.base import Case, Weight, Weighted
from intact.ops.registry import register_op


@register_op
class Dense(Weighted):
    """A matrix product with the last axis."""

    keras_layers = (layers.Dense,)
    litert = ("FULLY_CONNECTED",)
    weights = {
        "kernel": Weight(
            kernels=("int2", "int4", "int8", "uint8"), dynamic=("int2", "int4", "int8")
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

    def rounding(self, layer: Any, dtype: str) -> str:
        # XNNPACK takes 4-bit weights two at a time.
        odd = dtype == "int4" and layer.kernel.shape[0] % 2
        return "fixed_point_vector" if odd else "double"

    def stores(self, layer: Any, dtype: str, per_axis: bool) -> bool:
        # XNNPACK takes 2-bit weights four at a time, and the other kernels round otherwise.
        return dtype != "int2" or (per_axis and layer.kernel.shape[0] % 4 == 0)

    def rows(self, layer: Any, rank: int) -> tuple[int, ...]:
        return (rank - 1,)

    def lower(self, node: Any, builder: Any) -> None:
        kernel = node.constant("kernel", (1, 0), axis=0)
        options = {
            "fusedActivationFunction": node.activation,
            "keepNumDims": len(node.input.shape) > 2,
        }
        builder.add("FULLY_CONNECTED", [node.input, kernel, node.bias()], [node.output], options)
