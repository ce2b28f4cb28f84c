"""The kernels of a model's file: one record for each, with all that is fused into it.

A quantized model is a graph of Keras layers. Several of them become one kernel of the file: a
convolution, the batch norm that folds into its weights, the clamp of a ReLU, and the range that its
sums are rounded to. `kernel_graph` decides this for integer and float files. Only this module knows
which layers of a quantized model express it; everything else reads these records.
"""

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import keras

from intact.conversion import remembered
from intact.graph.view import Graph, Node, view
from intact.layers.base import Dequantize
from intact.layers.fake_quantize import FakeQuantize, tensor_name
from intact.layers.loop import QuantizedLoop
from intact.layers.quantized import Quantized
from intact.layers.quantized_weights import QuantizedWeights
from intact.layers.tracked_range import Clamp
from intact.ops.base import AllSame, NotQuantized, Op, SameAsInput
from intact.ops.registry import find_op, get_op
from intact.ops.relu import relu_bounds

FUSED: dict[Clamp, str] = {Clamp(): "NONE", Clamp(0.0): "RELU", Clamp(0.0, 6.0): "RELU6"}
"""The activations that LiteRT's kernels fuse."""


class Role(enum.Enum):
    """What a kernel does with its tensors."""

    INPUT = "an input of the model"
    INTEGER = "computes on integers"
    FLOAT = "computes as the float layer does, perhaps with rounded weights"
    QUANTIZE = "rounds a tensor to a range"
    DEQUANTIZE = "makes a tensor real again"
    LOOP = "repeats a step, which is a graph of its own"


@dataclass(eq=False)
class Kernel:
    """One kernel of the file.

    Args:
        role: What it does.
        call: The call of its layer in the model's graph.
        layer: The user's layer, without the one that quantizes it.
        op: The layer's op; None where there is none.
        quantized: The layer that quantizes its inputs or weights, if there is one.
        norms: The calls of the batch norms that fold into its weights.
        activation: The call of the float activation that it fuses, if there is one.
        range_call: The call of the quantizer that rounds its output, if there is one.
    """

    role: Role
    call: Node
    layer: Any
    op: Op | None = None
    quantized: Quantized | None = None
    norms: list[Node] = field(default_factory=list)
    activation: Node | None = None
    range_call: Node | None = None

    @property
    def calls(self) -> list[Node]:
        """The calls that it stands for, in the order in which the model makes them."""
        fused = (self.activation, self.range_call)
        own = [] if self.call is self.range_call else [self.call]
        return [*own, *self.norms, *(node for node in fused if node is not None)]

    @property
    def output(self) -> keras.KerasTensor:
        """Its output tensor in the model's graph; the values of a `QTensor`."""
        return self.calls[-1].outputs[0]

    @property
    def outputs(self) -> Any:
        """Its output: a tensor of the model's graph, or a `QTensor` of them."""
        outputs = self.calls[-1].outputs
        return outputs if len(outputs) > 1 else outputs[0]

    @property
    def norm(self) -> Any:
        """The first batch norm that folds into its weights, if there is one."""
        return _layer_of(self.norms[0]) if self.norms else None

    @property
    def takes_factors(self) -> bool:
        """Whether a factor of each channel can go into its weights, or into their scales."""
        layouts = () if self.quantized is None else self.quantized.layouts().values()
        return all(layout.takes_factors for layout in layouts)

    @property
    def quantizer(self) -> FakeQuantize | None:
        """The quantizer of its output; None if that is float, or has an input's range."""
        return None if self.range_call is None else self.range_call.layer

    @property
    def clamp(self) -> Clamp:
        """The bounds of the activation that is fused into it."""
        if self.range_call is not None:
            return Clamp(*(self.range_call.kwargs.get(name) for name in Clamp._fields))
        if self.activation is not None:
            return Clamp(*(relu_bounds(_layer_of(self.activation)) or ()))
        return Clamp()

    @property
    def rounding(self) -> str:
        """The name of the way in which it rounds its output."""
        return "real" if self.range_call is None else self.range_call.kwargs["kernel_rounding"]

    @property
    def name(self) -> str:
        """The name of its output in the file."""
        if self.range_call is not None:
            return tensor_name(self.range_call.layer, self.range_call.kwargs)
        return self.calls[-1].layer.name

    @property
    def hands_on_range(self) -> bool:
        """Whether its output has the scale and zero point of its first input, or is that input."""
        if self.role is Role.DEQUANTIZE:
            return True
        same = self.op is not None and isinstance(self.op.output, SameAsInput | AllSame)
        return self.role is Role.INTEGER and same

    @property
    def rounds_sums(self) -> bool:
        """Whether it computes sums on integers, which it rounds to a range of their own."""
        plain = self.op is not None and isinstance(self.op.output, NotQuantized)
        return self.role is Role.INTEGER and not plain and not self.hands_on_range


class KernelGraph:
    """The kernels of a model, in an order in which they can be computed.

    Args:
        graph: The view of a quantized or canonical model.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kernels: list[Kernel] = []
        self._by_tensor: dict[int, Kernel] = {}
        for node in graph.nodes:
            self._add(node)
        # A kernel can run once the last of its calls can.
        places = {id(node): place for place, node in enumerate(graph.nodes)}
        self.kernels.sort(key=lambda kernel: places[id(kernel.calls[-1])])
        self.calls = Counter(id(node.layer) for node in graph.nodes)

    def producer(self, tensor: keras.KerasTensor) -> Kernel:
        """The kernel that computes a tensor of the model's graph, as its output or inside."""
        return self._by_tensor[id(tensor)]

    def of(self, node: Node) -> Kernel:
        """The kernel that a call of the model's graph belongs to."""
        return self.producer(node.outputs[0])

    def sole_reader(self, kernel: Kernel) -> Kernel | None:
        """The only kernel that reads a kernel's output; None if there are other readers."""
        node = self.graph.sole_consumer(kernel.output)
        return None if node is None else self.of(node)

    def range_of(self, tensor: keras.KerasTensor) -> FakeQuantize | None:
        """The quantizer whose range a tensor has; None of a float tensor, or of sums."""
        kernel = self.producer(tensor)
        while kernel.hands_on_range:
            tensor = kernel.call.inputs[0]
            kernel = self.producer(tensor)
        return kernel.layer.range_of(tensor) if kernel.role is Role.LOOP else kernel.quantizer

    def source(self, tensor: keras.KerasTensor) -> Kernel:
        """The kernel that computes a tensor, not counting conversions."""
        kernel = self.producer(tensor)
        while kernel.role in (Role.DEQUANTIZE, Role.QUANTIZE):
            kernel = self.producer(kernel.call.inputs[0])
        return kernel

    def _add(self, node: Node) -> None:
        kernel = self._by_tensor.get(id(node.inputs[0])) if node.inputs else None
        if kernel is None or not self._fuse(kernel, node):
            kernel = _begin(node)
            self.kernels.append(kernel)
        self._by_tensor.update((id(tensor), kernel) for tensor in node.outputs)

    def _fuse(self, kernel: Kernel, node: Node) -> bool:
        """Fuse a call into the kernel that it reads, if the kernel allows it."""
        if kernel.role is Role.INTEGER:
            rounded = kernel.range_call is not None
            if isinstance(node.layer, FakeQuantize) and kernel.rounds_sums and not rounded:
                kernel.range_call = node
                return True
            if node.kwargs.get("folds"):
                kernel.norms.append(node)
                return True
        if kernel.role is not Role.FLOAT or kernel.op is None or kernel.activation is not None:
            return False
        op = find_op(node.layer)
        if op is None or self.graph.sole_consumer(node.inputs[0]) is not node:
            return False
        takes = kernel.op.folds_batch_norm and kernel.takes_factors
        if takes and op.folds_into_weights(node.layer, node.inputs[0].shape):
            kernel.norms.append(node)
            return True
        if kernel.op.fuses and relu_bounds(node.layer) in FUSED:
            kernel.activation = node
            return True
        return False


def kernel_graph(model: keras.Model) -> KernelGraph:
    """The kernels that a model's file has.

    Args:
        model: A quantized model, or a canonical one.

    Returns:
        The kernels.

    Example:

    >>> import intact
    >>> layers = [keras.Input((4,)), keras.layers.Dense(2, "relu", name="a")]
    >>> kernels = kernel_graph(intact.quantize_model(keras.Sequential(layers))).kernels
    >>> [(kernel.name, kernel.clamp) for kernel in kernels if kernel.role is Role.INTEGER]
    [('a_relu', Clamp(lower=0.0, upper=None))]
    """
    return remembered(_kernel_graph, model)


def _kernel_graph(model: keras.Model) -> KernelGraph:
    return KernelGraph(view(model))


def all_kernels(model: keras.Model) -> list[Kernel]:
    """The kernels of a model, and those of the steps of its loops.

    Args:
        model: A quantized model.
    """
    kernels = kernel_graph(model).kernels
    loops = [kernel.layer for kernel in kernels if kernel.role is Role.LOOP]
    return [*kernels, *(inner for loop in loops for inner in KernelGraph(loop.graph).kernels)]


def _begin(node: Node) -> Kernel:
    """The kernel that a call begins."""
    layer = node.layer
    if node.is_input:
        return Kernel(Role.INPUT, node, layer)
    if isinstance(layer, FakeQuantize):
        return Kernel(Role.QUANTIZE, node, layer, range_call=node)
    if isinstance(layer, Dequantize):
        return Kernel(Role.DEQUANTIZE, node, layer)
    if isinstance(layer, QuantizedLoop):
        return Kernel(Role.LOOP, node, layer)
    if isinstance(layer, Quantized):
        role = Role.FLOAT if isinstance(layer, QuantizedWeights) else Role.INTEGER
        return Kernel(role, node, layer.layer, get_op(layer.layer), layer)
    return Kernel(Role.FLOAT, node, layer, find_op(layer))


def _layer_of(node: Node) -> Any:
    """The layer that a call computes, without the one that quantizes it."""
    return node.layer.layer if isinstance(node.layer, Quantized) else node.layer
