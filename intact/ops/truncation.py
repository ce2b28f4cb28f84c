"""Real values as whole numbers."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.straight_through import unfused
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import INTEGERS, Case, NotQuantized, Op
from intact.ops.lookup import all_values, look_up
from intact.ops.registry import register_op
from intact.ops.steps import Step, lower_steps
from intact.ops.table import Elementwise

LARGEST = 2.0**30
"""The largest whole numbers that real values become."""


@keras.saving.register_keras_serializable("intact")
class Truncated(layers.Layer):
    """Real values, or a function of them, without their fractions, as whole numbers.

    Args:
        steps: The steps of the function, as for `Elementwise`; none is the value itself.

    Example:

    >>> np.asarray(Truncated()(np.array([1.7, -1.7]))).tolist()
    [1, -1]
    """

    def __init__(self, steps: Sequence[Step] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = Elementwise(list(steps)) if steps else None
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """The whole numbers."""
        y = x if self.function is None else self.function(x, extended=True)
        y = ops.where(ops.isnan(y), ops.zeros_like(y), y)
        return ops.cast(ops.trunc(ops.clip(y, -LARGEST, LARGEST)), "int32")

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, "int32")

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def get_config(self) -> dict[str, Any]:
        steps = [] if self.function is None else self.function.get_config()["steps"]
        return {**super().get_config(), "steps": steps}


@register_op
class Truncation(Op):
    """A table of whole numbers, one for each integer that a real value can be."""

    keras_layers = (Truncated,)
    litert = ("CAST", "ADD", "GATHER")
    output = NotQuantized("int32")
    dtypes = INTEGERS
    cases = (
        Case(
            lambda: lambda x: layers.Embedding(7, 3)(ops.cast(ops.relu(x) * 4.0, "int32")),
            (4,),
        ),
        Case(
            lambda: lambda x: layers.Embedding(7, 3)(ops.cast(ops.floor(x * 3.0), "int32") + 3),
            (4,),
        ),
    )

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        values = x.values
        if layer.function is None:
            # A 2 may have been rounded to 1.98; rounding moves a value by half a step at most.
            half = ops.where(x.whole, 0.5, 0.0)
            values = values + half * ops.sign(values)
        return layer(unfused(values * x.scale))

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if not x.quantized:
            if node.layer.function is not None:
                x = builder.like(x, x.shape)
                lower_steps(node.layer.function.steps, node.input, x, builder)
            builder.convert(x, y)
            return
        table = to_numpy(self.call(node.layer, [all_values(x)], {}, False)).astype("int32")
        look_up(x, y, table, builder)
