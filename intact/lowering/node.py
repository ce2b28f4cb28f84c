"""A kernel on its way into a file, and its weights as the file stores them."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intact.errors import ExportError
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.frozen import Frozen
from intact.layers.quantized import Quantized
from intact.layers.quantized_weights import QuantizedWeights
from intact.litert.builder import Shape, Tensor
from intact.litert.quantization import Groups
from intact.numerics.accumulator import accumulator, rescaled
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import PER_CHANNEL, PER_TENSOR, ScaleLayout
from intact.numerics.tensors import to_numpy
from intact.numerics.weights import weight_params
from intact.ops.base import Op, Weighted
from intact.ops.registry import get_op
from intact.plan.scheme import NARROW

if TYPE_CHECKING:
    from intact.lowering.lowering import Lowering


@dataclass
class Stored:
    """The values of a weight, as the file stores them.

    Args:
        values: Real values, or whole numbers: integers less their zero point.
        dtype: The type in the file.
        scale: Scales of whole numbers, as `layout` has them, or one for all.
        zero_point: Their zero point, likewise.
        layout: Which values share a scale, where there is more than one.
        dynamic: Whether the kernel quantizes its float input at run time.
    """

    values: np.ndarray
    dtype: str = "float32"
    scale: Any = None
    zero_point: Any = 0
    layout: ScaleLayout = PER_CHANNEL
    dynamic: bool = False

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values per channel, or one for all, shaped to broadcast to the weight."""
        return self.layout.spread(np.asarray(values), self.values.shape, numpy_ops)

    def scaled(self, factor: np.ndarray) -> "Stored":
        """The weight times a real factor per channel."""
        if self.scale is None:
            return replace(self, values=self.values * self.spread(factor))
        negative = factor < 0
        sign = self.spread(np.where(negative, np.float32(-1), np.float32(1)))
        # The ones' complement, because the negative of the smallest integer does not exist.
        zero_point = np.where(
            negative & np.any(self.zero_point), -1 - self.zero_point, self.zero_point
        )
        scale = (self.scale * np.abs(factor)).astype("float32")
        return replace(self, values=self.values * sign, scale=scale, zero_point=zero_point)


@dataclass(eq=False)
class LoweringNode:
    """One op on its way into the file; what `Op.lower` works from.

    Args:
        layer: The canonical layer.
        op: Its op class.
        inputs: Tensors of the file.
        shape: Shape of the output.
        name: Name of the output.
        weights: Per name, the values as the op has them.
        integer: Whether it computes on integers.
        sums: Bias and scales of the integer sums, for integer ops with weights.
        real_bias: Bias of a float op.
        activation: The fused activation, by the schema's name.
        quantizer: The quantizer of the output, if there is one.
        kernel_rounding: How it is rounded, likewise.
    """

    lowering: "Lowering"
    layer: Any
    op: Op
    inputs: list[Tensor]
    shape: Shape
    name: str
    weights: dict[str, "Stored"] = field(default_factory=dict)
    integer: bool = False
    sums: Any = None
    real_bias: np.ndarray | None = None
    activation: str = "NONE"
    quantizer: FakeQuantize | None = None
    kernel_rounding: str = "real"
    _output: Tensor | None = None

    @property
    def input(self) -> Tensor:
        """The only (or first) input."""
        return self.inputs[0]

    @property
    def output(self) -> Tensor:
        """The output."""
        assert self._output is not None
        return self._output

    def alias(self, tensor: Tensor) -> None:
        """Make the output another tensor, because there is nothing to compute."""
        self._output = tensor

    def fold(self, norm: Any) -> None:
        """Fold a float batch norm into the weights and the bias."""
        factor, offset = get_op(norm).factors(norm, self.shape[-1] or 0)
        self.weights["kernel"] = self.weights["kernel"].scaled(factor)
        bias = 0.0 if self.real_bias is None else self.real_bias
        self.real_bias = bias * factor + offset

    def constant(self, weight: str, *form: Any, **options: Any) -> Tensor:
        """A weight as the kernel reads it: a constant of the file, or the real values of one.

        Args:
            weight: Its name in `Op.weights`.
            *form: As for `stored`.
            **options: Likewise.
        """
        tensor, stored = self.stored(weight, *form, **options), self.weights[weight]
        if self.integer or stored.dynamic or stored.dtype == "float32":
            return tensor
        return self.lowering.builder.dequantized(tensor)

    def stored(
        self,
        weight: str,
        transpose: tuple[int, ...] | None = None,
        shape: tuple[int, ...] | None = None,
        axis: int = 0,
    ) -> Tensor:
        """A weight as a constant of the file, as it is stored.

        Args:
            weight: Its name in `Op.weights`.
            transpose: The order of axes that the kernel wants.
            shape: Or the shape that it wants.
            axis: The axis of the output channels in that form.

        Returns:
            The constant.
        """
        stored = self.weights[weight]
        values, dtype = stored.values, stored.dtype
        if np.any(stored.zero_point):
            values = values + stored.spread(stored.zero_point)
        if transpose is not None:
            values = values.transpose(transpose)
        if shape is not None:
            values = values.reshape(shape)
        name = f"{self.layer.name}/{weight}"
        builder = self.lowering.builder
        fields = {}
        if stored.scale is not None:
            scale = stored.layout.ordered(stored.scale, stored.values.shape, transpose)
            groups = Groups.of(scale, values.shape, axis)
            fields = {"scale": scale, "zero_point": stored.zero_point, "groups": groups}
        return builder.constant(values, name, dtype=dtype, **fields)

    def bias(self) -> Tensor | None:
        """The bias as a constant of the file: int32, or float; zeros where there is none."""
        name = f"{self.layer.name}/bias"
        builder = self.lowering.builder
        if self.sums is None:
            bias = np.zeros(self.shape[-1] or 0) if self.real_bias is None else self.real_bias
            return builder.constant(bias.astype("float32"), name)
        acc = self.sums
        scale = acc.input_scale * acc.weight_scale
        dtype = "int64" if self.input.dtype == "int16" else "int32"
        return builder.constant(acc.bias, name, dtype=dtype, scale=scale)


def integer_weights(node: LoweringNode, quantized: Quantized) -> None:
    """The weights of an integer op, computed as in Keras."""
    op = node.op
    if not isinstance(op, Weighted):
        if quantized.spec is not None:
            stored_weights(node, quantized)
        return
    if isinstance(quantized, Frozen):
        scale, zero_point = quantized.kernel_scale, to_numpy(quantized.kernel_zero_point)
        values = to_numpy(quantized.kernel).astype("float32")
        layout = op.weights["kernel"].layout if op.weights else PER_CHANNEL
        stored = Stored(values, quantized.stored, to_numpy(scale), zero_point, layout)
        node.weights["kernel"] = stored
        node.sums = quantized.sums(np.float32(1), node.input.scale, numpy_ops)
        return
    if op.weights:
        stored_weights(node, quantized)
    else:
        values, scale = op.unit(node.input.shape[-1] or 0)
        node.weights["kernel"] = Stored(values, "int8", scale)
    kernel, whole = node.weights["kernel"], node.input.quantized
    input_scale = node.input.scale if whole else np.float32(1)
    all_count = np.ones_like(kernel.scale)
    acc = accumulator(
        None if op.weights else all_count, input_scale, kernel.scale, numpy_ops, whole
    )
    node.sums = quantized.accumulator(acc, numpy_ops)
    if op.weights:
        kernel.values = rescaled(kernel.values, kernel.scale, node.sums, kernel.layout, numpy_ops)
        node.sums = node.sums._replace(values=all_count)


def stored_weights(node: LoweringNode, quantized: Quantized) -> None:
    """The weights of an op, stored as its spec says."""
    spec = quantized.spec
    assert spec is not None
    if spec.wide:
        raise ExportError(
            f"{type(node.layer).__name__} {node.layer.name!r} has weights of {spec.bits} bits "
            f"that are stored as {spec.dtype}, and LiteRT has no kernel for these, but for int2, "
            "int4 and int8. The model trains and predicts in Keras; to export it, give the layer "
            "weights of 8 bits or less."
        )
    quantized_values = {} if spec.kind == "float" else quantized.quantized_weights(numpy_ops)
    for name, layout in quantized.layouts().items():
        value, channels = quantized.weight(name, numpy_ops), node.op.weights[name].layout
        if spec.kind == "float":
            node.weights[name] = Stored(value, spec.dtype, layout=channels)
            continue
        values, scale = quantized_values[name]
        stored = Stored(values, spec.dtype, scale, layout=layout if layout.axes else channels)
        if spec.quantizer == "range" and not spec.symmetric:
            _, zero_point = weight_params(value, spec.bits, layout, numpy_ops, False)
            shift = 128 if spec.kind == "uint" else 0
            stored.zero_point = zero_point.reshape(np.shape(scale)) + shift
        node.weights[name] = stored


def settle_signs(node: LoweringNode) -> None:
    """Move the signs of the channels' scales into weights and bias, because scales are positive."""
    acc, planned = node.sums, node.weights["kernel"]
    sign = np.where(acc.weight_scale < 0, np.float32(-1), np.float32(1))
    counts = sign * acc.values
    values = planned.values
    if sign.ndim:
        values = values * planned.spread(counts)
    bias = np.broadcast_to(acc.bias * sign, (node.shape[-1] or 0,))
    scale = np.abs(acc.weight_scale)
    # If all weights are 0, any scale is right; this one is not too small for any kernel.
    layout = planned.layout if scale.ndim else PER_TENSOR
    idle = ~values.any(axis=layout.shared(values.ndim)).reshape(scale.shape)
    if planned.dtype in NARROW:
        bias, scale = _fitting(bias, scale, idle)
    idle &= bias == 0 if scale.ndim else not bias.any()
    scale = np.where(idle, node.output.scale / acc.input_scale, scale).astype("float32")
    node.weights["kernel"] = replace(planned, values=values, scale=scale)
    node.sums = acc._replace(bias=bias, weight_scale=scale)


def _fitting(bias: np.ndarray, scale: np.ndarray, idle: np.ndarray) -> tuple[Any, Any]:
    """Biases and scales of which those without weights count in larger units.

    XNNPACK multiplies the biases of dense layers of 4-bit weights by 16, in 32 bits. The bits
    that go are 0, because biases are computed in float32.

    Args:
        bias: The biases.
        scale: The scales, per channel or one for all.
        idle: Where all weights are 0, likewise.
    """
    largest = np.abs(bias) if scale.ndim else np.abs(bias).max()
    shift = np.where(idle, np.maximum(np.frexp(largest)[1] - 26, 0), 0)
    return np.ldexp(bias, -shift), np.ldexp(scale, shift)


def float_weights(node: LoweringNode, holder: Any) -> None:
    """The weights of a float op, which another layer may quantize."""
    op, layer = node.op, node.layer
    if isinstance(holder, QuantizedWeights):
        stored_weights(node, holder)
        for stored in node.weights.values():
            stored.dynamic = holder.dynamic
    if not isinstance(op, Weighted):
        return
    if not op.weights:
        factor, node.real_bias = op.factors(layer, node.input.shape[-1] or 0)
        node.weights["kernel"] = Stored(factor)
        return
    for name in op.weights:
        if name not in node.weights:
            value = numpy_ops.convert_to_tensor(getattr(layer, name))
            node.weights[name] = Stored(value, layout=op.weights[name].layout)
    if layer.bias is not None:
        node.real_bias = numpy_ops.convert_to_tensor(layer.bias)
