"""Writes a quantized model as a float file, which computes its tensors without rounding."""

from dataclasses import replace

import keras
import numpy as np

from intact.graph.view import Node
from intact.layers.kernel_graph import FUSED, Kernel
from intact.litert.builder import Tensor
from intact.lowering.lowering import Lowering, fused_activation
from intact.lowering.node import LoweringNode, Stored
from intact.numerics.numpy_ops import numpy_ops
from intact.ops.registry import get_op


def lower_real(
    model: keras.Model, tensors: list[keras.KerasTensor], exact: bool = False
) -> tuple[bytes, list[str]]:
    """Write a quantized model as a float file, to look at its real activations.

    Only weights and biases are rounded, as in the integer model.

    Args:
        model: A quantized model.
        tensors: The tensors of its graph to return; for a `QTensor`, its values.
        exact: Do not round the weights, either.

    Returns:
        `(content, names)`: the bytes of the file, and of each tensor the name of the
        output that it is.

    Raises:
        IntactError: An op has no float form.
    """
    kind = _ExactLowering if exact else _RealLowering
    return kind(model, "float32", "float32").run_for(tensors)


def lower_products(model: keras.Model, nodes: list[Node], kernels: list[np.ndarray]) -> bytes:
    """Write calls of layers side by side as a float file, with the given kernels.

    Args:
        model: A quantized model.
        nodes: Calls of its layers that have a kernel.
        kernels: The kernel of each.

    Returns:
        The bytes of the file. Its inputs and outputs are named by their number alone, and
        there are no biases.
    """
    lowering = Lowering(model)
    builder, inputs, outputs = lowering.builder, [], []
    for index, (node, kernel) in enumerate(zip(nodes, kernels, strict=True)):
        layer, shape = node.layer.layer, node.outputs[0].shape
        x = builder.tensor(node.inputs[0].shape, "float32", f"x_{index}")
        y = builder.tensor(shape, "float32", f"y_{index}")
        real_node = LoweringNode(lowering, layer, get_op(layer), [x], shape, y.name, _output=y)
        real_node.weights["kernel"] = Stored(kernel)
        real_node.op.lower(real_node, builder)
        inputs.append((str(index), x))
        outputs.append((str(index), y))
    return builder.finish(inputs, outputs)


class _RealLowering(Lowering):
    """Lowers the same kernels, with float tensors in place of quantized ones."""

    def run_for(self, tensors: list[keras.KerasTensor]) -> tuple[bytes, list[str]]:
        self.rounds, self.watched = False, tensors
        inputs = [self._input(tensor) for tensor in self.graph.inputs]
        for kernel in self.kernels.kernels:
            self._kernel(kernel)
        outputs: dict[int, tuple[str, Tensor]] = {}
        for tensor in tensors:
            source = self._tensor(tensor)
            own = self.builder.copy(source) if source.buffer or source in inputs else source
            outputs.setdefault(id(source), (f"output_{len(outputs)}", own))
        names = [outputs[id(self._tensor(tensor))][0] for tensor in tensors]
        return self.builder.finish(inputs, list(outputs.values()), self.loop_graphs), names

    def _quantizer(self, tensor: keras.KerasTensor) -> None:
        return None

    def _quantize(self, kernel: Kernel) -> Tensor:
        return self._tensor(kernel.call.inputs[0])

    def _round_output(self, node: LoweringNode, kernel: Kernel) -> Tensor:
        """Write an integer op in float, with the bounds of its activation."""
        lower, upper = kernel.clamp
        if node.op.fuses:
            node.activation = fused_activation(kernel.clamp)
        output = self.builder.tensor(kernel.output.shape, "float32", kernel.name)
        tensor = self._emit(node, output)
        if not node.op.fuses or kernel.clamp in FUSED:
            return tensor
        for name, limit in (("MAXIMUM", lower or None), ("MINIMUM", upper)):
            # A lower bound of 0 is fused.
            if limit is not None:
                clamped = self.builder.like(tensor, tensor.shape)
                constant = self.builder.constant(np.array(limit, "float32"))
                self.builder.add(name, [tensor, constant], [clamped])
                tensor = clamped
        return tensor

    def _emit(self, node: LoweringNode, output: Tensor) -> Tensor:
        if node.integer:
            for name, stored in node.weights.items():
                scale = stored.scale if node.sums is None else node.sums.weight_scale
                values = stored.values * stored.spread(scale)
                node.weights[name] = Stored(values.astype("float32"), layout=stored.layout)
            if node.sums is not None:
                unit = node.sums.weight_scale * node.sums.input_scale
                bias = np.asarray(node.sums.bias * unit, "float32")
                node.real_bias = np.broadcast_to(bias, (node.shape[-1] or 0,))
            node.sums, node.integer = None, False
        return super()._emit(node, output)


class _ExactLowering(_RealLowering):
    """The same with float weights."""

    def _put_weights(self, node: LoweringNode, kernel: Kernel) -> None:
        super()._put_weights(node, kernel)
        quantized = kernel.quantized
        if quantized is None or quantized.spec is None:
            return
        for name, stored in node.weights.items():
            value = quantized.weight(name, numpy_ops)
            if node.integer:
                # In units of the current scales, before a batch norm changes them.
                value = value / stored.spread(stored.scale)
                node.weights[name] = replace(stored, values=value)
            else:
                node.weights[name] = Stored(value, layout=stored.layout)
