"""Pooling."""

from typing import Any

import numpy as np
from keras import layers

from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import inverse
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor
from intact.ops.base import INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.conv import same_padding
from intact.ops.registry import register_op

POOL_CASES = (
    lambda layer: Case(lambda: layer(2), (8, 8, 3)),
    lambda layer: Case(lambda: layer(3, strides=2, padding="same"), (9, 8, 3)),
    lambda layer: Case(lambda: layer((2, 3), strides=1), (6, 7, 3)),
)


def _options(layer: Any) -> dict[str, Any]:
    return {
        "padding": layer.padding.upper(),
        "strideH": layer.strides[0],
        "strideW": layer.strides[1],
        "filterHeight": layer.pool_size[0],
        "filterWidth": layer.pool_size[1],
        "fusedActivationFunction": "NONE",
    }


@register_op
class MaxPooling2D(Op):
    """The largest value of each window."""

    dtypes = INTEGERS
    keras_layers = (layers.MaxPooling2D,)
    litert = ("MAX_POOL_2D",)
    output = SAME_AS_INPUT
    cases = tuple(case(layers.MaxPooling2D) for case in POOL_CASES)

    def lower(self, node: Any, builder: Any) -> None:
        builder.add("MAX_POOL_2D", [node.input], [node.output], _options(node.layer))


@register_op
class AveragePooling2D(Op):
    """The mean of each window, rounded half away from zero, as the kernel divides."""

    dtypes = INTEGERS
    keras_layers = (layers.AveragePooling2D,)
    litert = ("AVERAGE_POOL_2D",)
    output = SAME_AS_INPUT
    cases = tuple(case(layers.AveragePooling2D) for case in POOL_CASES)

    def refuse(self, layer: Any, shapes: list) -> str | None:
        if layer.padding == "same" and None in shapes[0][1:3]:
            return f"with SAME padding its spatial size must be known, received {shapes[0]}"
        return None

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        size = float(layer.pool_size[0] * layer.pool_size[1])
        pads = [(0, 0)] * 4
        if layer.padding == "same":
            sizes = x.values.shape[1:3]
            pads[1:3] = same_padding(sizes, layer.pool_size, layer.strides, (1, 1))

        def window_sums(values: Tensor) -> Tensor:
            means = ops.average_pool(
                ops.pad(values, pads), layer.pool_size, layer.strides, "valid", "channels_last"
            )
            return means * size

        # Windows that reach over the edge have fewer values.
        inside = np.ones((1, *x.values.shape[1:3], 1), "float32")
        count = ops.round(window_sums(inside)) if layer.padding == "same" else size
        share = inverse(count) if layer.padding == "same" else 1.0 / size
        total = window_sums(x.values)
        mean = total * share
        # The kernel divides the sum of the stored integers, zero points included.
        stored = ops.round(total) + x.zero_point * count
        # Half a unit more protects the floor from rounding; it changes no quotient.
        half = ops.floor(ops.convert_to_tensor(count) * 0.5) + 0.5
        quotient = ops.sign(stored) * ops.floor((ops.abs(stored) + half) * share)
        exact = ops.where(x.whole, quotient - x.zero_point, mean)
        return x._replace(values=straight_through(exact, mean))

    def lower(self, node: Any, builder: Any) -> None:
        builder.add("AVERAGE_POOL_2D", [node.input], [node.output], _options(node.layer))
