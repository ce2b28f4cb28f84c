"""A layer that computes in float, with rounded weights."""

from typing import Any

import keras

from intact.layers.base import Gives
from intact.layers.quantized import Quantized
from intact.numerics.backend_kernels import exact_convolution, inverse
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor
from intact.numerics.weights import quantize_rows
from intact.ops.registry import get_op
from intact.plan.scheme import TensorSpec


@keras.saving.register_keras_serializable("intact")
class QuantizedWeights(Quantized):
    """A layer that computes in float, with quantized weights.

    Args:
        layer: The Keras layer.
        spec: How its weights are quantized.
        dynamic: Quantize the input too, by the range of each row or sample, as kernels do
            at run time.
        input_shapes: The shapes that the layer is built with.
    """

    def __init__(
        self, layer: keras.layers.Layer, spec: TensorSpec, dynamic: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(layer, spec, **kwargs)
        self.dynamic = dynamic

    @property
    def gives(self) -> Gives:
        """What a call returns."""
        return "real"

    @property
    def label(self) -> str:
        """The class of the layer that it holds, and the type of its weights."""
        assert self.spec is not None
        dynamic = ", dynamic" if self.dynamic else ""
        return f"{type(self.layer).__name__}, weights {self.spec.dtype}{dynamic}"

    def call(
        self,
        inputs: Any,
        folds: bool = False,
        again: bool = False,
        training: bool | None = None,
    ) -> Tensor:
        """The float output of float inputs."""
        op: Any = get_op(self.layer)
        now = self._tick(again, training)
        if not self.dynamic:
            operands = [inputs] if len(self.shapes) == 1 else inputs
            return op.real(self.layer, operands, self.real_weights(bool(training), now))
        assert self.spec is not None
        rows = op.rows(self.layer, len(inputs.shape), self.spec.dtype)
        n, scale = quantize_rows(inputs, rows)
        if self.clock is not None and training:
            n = ops.where(self.clock.reached("quant_delay", now), n, inputs * inverse(scale))
        kernel, weight_scale = self.layouts()["kernel"].summed(
            *self.quantized_weights(training=bool(training), now=now)["kernel"]
        )
        with exact_convolution():
            sums = op.products(self.layer, n, kernel)
        y = sums * scale * weight_scale
        return y if self.layer.bias is None else y + self.layer.bias

    def unrounded(self, *args: Any, **kwargs: Any) -> Any:
        operands = [args[0]] if len(self.shapes) == 1 else args[0]
        weights = {name: getattr(self.layer, name) for name in self.layouts()}
        return get_op(self.layer).real(self.layer, operands, weights)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shapes = self.shapes[0] if len(self.shapes) == 1 else self.shapes
        return keras.KerasTensor(self.layer.compute_output_shape(shapes), "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dynamic": self.dynamic}
