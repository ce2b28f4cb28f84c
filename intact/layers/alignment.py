"""The points at which a quantized model, its file and its float model can be compared."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from intact.errors import IntactError
from intact.graph.canonicalize import canonicalize
from intact.graph.simplify import simplify_alike
from intact.graph.view import Node, call_again, recompute, view
from intact.layers.base import Dequantize
from intact.layers.fake_quantize import FakeQuantize, stored_params
from intact.layers.kernel_graph import Kernel, KernelGraph, Role, kernel_graph
from intact.layers.loop import QuantizedLoop
from intact.layers.quantized import Quantized
from intact.numerics.tensors import Tensor
from intact.ops.base import Fixed, SameAsInput
from intact.ops.constant import Constant


@dataclass(frozen=True, eq=False)
class Point:
    """A tensor of a model that its file has, too.

    Args:
        name: What reports call it.
        tensor: What the file calls it.
        kernel: The kernel that makes it.
        layer: The user's layer that computes it, without layers fused into it.
        quantized: The layer with the rounded weights that compute it, if there is one.
    """

    name: str
    tensor: str
    kernel: Kernel
    layer: keras.layers.Layer
    quantized: Quantized | None = None

    @property
    def node(self) -> Node:
        """The call that computes it."""
        return self.kernel.calls[-1]

    @property
    def quantizer(self) -> FakeQuantize | None:
        """What rounds the tensor; None if it stays in float."""
        return self.kernel.quantizer

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded here: the tensor, or weights."""
        return self.quantizer is not None or self.quantized is not None


def find_points(
    model: keras.Model, names: Iterable[str] | None = None, looped: Iterable[str] = ()
) -> list[Point]:
    """The tensors of a model that its file has, too, in the order of the graph.

    Args:
        model: A quantized model, or a canonical one.
        names: Names of the file's tensors; None finds what is rounded, without a file.
        looped: Names of the tensors that are inside of its loops.

    Returns:
        All tensors that are quantized, and those that float layers make, unless the file has
        them fused into others, or in a loop.

    Raises:
        IntactError: A tensor that is quantized is not in the file.

    Example:

    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> [point.name for point in find_points(intact.quantize_model(model))]
    ['x', 'y']
    """
    kernels = kernel_graph(model)
    counts = None if names is None else Counter(names)
    quantized = any(kernel.quantizer for kernel in kernels.kernels)
    points: list[Point] = []
    missing: list[str] = []
    repeated = {name.split("/")[0] for name in looped}
    for kernel in kernels.kernels:
        source = kernel
        if kernel.role is Role.QUANTIZE:
            source = kernels.source(kernel.call.inputs[0])
        weights = source.quantized if source.quantized and source.quantized.spec else None
        if isinstance(source.layer, Constant) or _vanishes(kernels, kernel):
            continue
        if kernel.quantizer is not None:
            # An integer input has the name of its layer.
            known = [kernel.name, source.layer.name][: 1 + (source.role is Role.INPUT)]
            tensor = next((name for name in known if counts is None or counts[name]), None)
            if tensor is None:
                missing += [kernel.name] if kernel.name.split("/")[0] not in repeated else []
                continue
        elif kernel.role is Role.FLOAT and "float" in str(kernel.output.dtype):
            # If a quantized tensor has that name, the float one has the longer name.
            known = [kernel.name, f"{kernel.name}_float"][:: -1 if quantized else 1]
            # A float layer that is called twice has several tensors of one name, which are
            # indistinguishable.
            tensor = next((name for name in known if counts is None or counts[name] == 1), None)
            if tensor is None or (weights is None and counts is None):
                continue
        else:
            continue
        points.append(Point(kernel.name, tensor, kernel, source.layer, weights))
    if missing:
        raise IntactError(
            f"The file has no tensors {missing}: it was not exported from this model."
        )
    return points


def _vanishes(kernels: KernelGraph, kernel: Kernel) -> bool:
    """Whether a kernel only repeats the range of its input, so that the file lacks it."""
    if kernel.role is not Role.QUANTIZE:
        return False
    source, own = kernels.range_of(kernel.call.inputs[0]), kernel.layer
    return (
        source is not None
        and not own.rule.signs
        and source.spec.activation_dtype == own.spec.activation_dtype
        and stored_params(source) == stored_params(own)
    )


def before_shares(kernels: KernelGraph, output: keras.KerasTensor) -> Any:
    """The input of a softmax or sigmoid at the end of a model; the output itself if there is none.

    Probabilities near 0 or 1 say little about the rest of a model.

    Args:
        kernels: The kernels of a quantized model.
        output: One of its outputs.

    Returns:
        A tensor of the graph, or a `QTensor` of them.
    """
    kernel = kernels.source(output)
    while kernel.op is not None:
        if isinstance(kernel.op.output, Fixed):
            return kernel.call.args[0]
        if not isinstance(kernel.op.output, SameAsInput):
            break
        # A reshape and the like.
        kernel = kernels.source(kernel.call.inputs[0])
    return output


class Reference:
    """A float model beside the quantized one that was made from it.

    Args:
        model: The quantized model.
        float_model: The float model.

    Raises:
        IntactError: They do not have the same layers.
    """

    def __init__(self, model: keras.Model, float_model: keras.Model) -> None:
        self.model = model
        self.kernels = kernel_graph(model)
        self.graph = self.kernels.graph
        names = {node.layer.name for node in self.graph.nodes}
        loops = any(isinstance(node.layer, QuantizedLoop) for node in self.graph.nodes)
        canonical = simplify_alike(canonicalize(float_model, loops=loops), names)
        self.float_graph = view(canonical)
        self.tensors = self._pair()
        # Both will be in one model, whose layers need names of their own.
        for layer in canonical.layers:
            layer.name = f"{layer.name}__float"
        start = dict(zip(map(id, self.float_graph.inputs), self.graph.inputs, strict=True))
        self.values = recompute(self.float_graph, start)

    def _pair(self) -> dict[int, keras.KerasTensor]:
        """Per tensor of the quantized model, its counterpart in the float model."""
        known = {node.layer.name for node in self.graph.nodes}
        calls: dict[str, list[Node]] = {}
        for node in self.float_graph.nodes:
            calls.setdefault(node.layer.name, []).append(node)
        pairs: dict[int, keras.KerasTensor] = {}
        for node in self.graph.nodes:
            before = {id(pairs[id(t)]) for t in node.inputs}
            kernel = self.kernels.of(node)
            rounds = node is kernel.range_call
            if rounds or kernel.role is Role.DEQUANTIZE:
                out = pairs[id(node.inputs[0])]
            else:
                same = calls.get(node.layer.name, [])
                call = next((c for c in same if {id(t) for t in c.inputs} == before), None)
                if call is None:
                    raise self._stranger(node.layer.name)
                if isinstance(node.layer, QuantizedLoop):
                    pairs.update(zip(map(id, node.outputs), _of_loop(node, call), strict=True))
                    continue
                out = self._with_fused(call.outputs[0], known)
            if rounds and out.shape != node.outputs[0].shape:
                raise self._stranger(node.layer.name)
            pairs.update((id(tensor), out) for tensor in node.outputs)
        return pairs

    def _stranger(self, name: str) -> IntactError:
        return IntactError(
            f"The float model has nothing like {name!r} of the quantized model "
            f"{self.model.name!r}. Pass the float model that it was made from."
        )

    def _with_fused(self, tensor: keras.KerasTensor, known: set[str]) -> keras.KerasTensor:
        """The tensor behind the layers that the quantized model has fused into the one before."""
        following = self.float_graph.sole_consumer(tensor)
        while following is not None and following.layer.name not in known:
            tensor = following.outputs[0]
            following = self.float_graph.sole_consumer(tensor)
        return tensor

    def of(self, point: Point) -> keras.KerasTensor:
        """The float model's tensor at a point."""
        return self.values[id(self._twin(point))]

    def alone(self, points: list[Point]) -> list[tuple[keras.KerasTensor, keras.KerasTensor]]:
        """Each point's output for the float model's tensors, beside the float model's own.

        Its inputs are rounded already, so the float model computes on the same rounded tensors.

        Args:
            points: All points of the quantized model.

        Returns:
            Per point, the float model's output and the point's output, as real tensors.
        """
        ours = dict(zip(map(id, self.graph.inputs), self.graph.inputs, strict=True))
        floats = dict(zip(map(id, self.float_graph.inputs), self.graph.inputs, strict=True))
        for point in points:
            result = self.of(point)
            if point.quantizer is not None:
                result = point.quantizer(result, slot=point.node.kwargs.get("slot", 0))
            ours.update(zip(map(id, point.node.outputs), keras.tree.flatten(result), strict=True))
            floats.setdefault(id(self._twin(point)), as_real(result))
        ours, floats = recompute(self.graph, ours), recompute(self.float_graph, floats)
        return [
            (self._expected(point, floats), as_real(call_again(point.node, ours)))
            for point in points
        ]

    def _twin(self, point: Point) -> keras.KerasTensor:
        return self.tensors[id(point.node.outputs[0])]

    def _expected(self, point: Point, floats: dict[int, keras.KerasTensor]) -> keras.KerasTensor:
        """The float model's tensor at a point, computed from replaced tensors before it."""
        producer = self.float_graph.producer(self._twin(point))
        return self.of(point) if producer.is_input else call_again(producer, floats)

    def mixed(self, replaced: dict[Point, keras.KerasTensor]) -> list[keras.KerasTensor]:
        """The float model's outputs, with other tensors at some points.

        Args:
            replaced: Per point, a real tensor.

        Returns:
            The outputs.
        """
        values = dict(zip(map(id, self.float_graph.inputs), self.graph.inputs, strict=True))
        for point, tensor in replaced.items():
            values.setdefault(id(self._twin(point)), tensor)
        values = recompute(self.float_graph, values)
        return [values[id(tensor)] for tensor in self.float_graph.outputs]


def _of_loop(node: Node, call: Node) -> list[keras.KerasTensor]:
    """For each output of a quantized loop, a part of a `QTensor` or not, that of the float one."""
    ends = zip(node.layer.ends, call.outputs, strict=True)
    return [out for end, out in ends for _ in keras.tree.flatten(end)]


def as_real(result: Any) -> keras.KerasTensor:
    """The real values of a point's output, which is a `QTensor` or a float tensor."""
    return Dequantize()(result) if isinstance(result, list | tuple) else result


class Noise(keras.layers.Layer):
    """Per sample, the sums of squares of a tensor, and of another's distance from it."""

    def call(self, inputs: Any) -> Tensor:
        """The two sums, (samples, 2).

        Args:
            inputs: The tensor, and the other.
        """
        real, other = (ops.reshape(x, (ops.shape(x)[0], -1)) for x in inputs)
        parts = [ops.sum(ops.square(x), axis=-1) for x in (real, real - other)]
        return ops.stack(parts, axis=-1)

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, int]:
        """Two sums for each sample.

        Args:
            shapes: Of the two tensors.
        """
        return (shapes[0][0], 2)
