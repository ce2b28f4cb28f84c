"""From a built model (quantized or float) to a LiteRT file.

Walks the model's graph once. An op waits until it is known what follows into it (batch
norm, activation, output range), and is then written; what was decided by the plan is
only followed here.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from intact.errors import ExportError, NotIntegerError
from intact.graph.view import Graph, Node, signature_names, view
from intact.layers.base import Dequantize
from intact.layers.fake_quantize import FakeQuantize, check_calibrated, stored_params, tensor_name
from intact.layers.quantized import Frozen, Quantized, QuantizedWeights
from intact.litert.builder import Builder, Shape, Tensor
from intact.numerics.affine import (
    accumulator,
    along,
    host,
    is_whole,
    rescaled,
    to_numpy,
    weight_params,
)
from intact.ops.activation import relu_bounds
from intact.ops.base import AllSame, Op, Plain, SameAsInput, Weighted, computes_whole, get_op
from intact.ops.table import look_up
from intact.targets.fitting import keep_to

_FUSED = {(None, None): "NONE", (0.0, None): "RELU", (0.0, 6.0): "RELU6"}


@dataclass
class Stored:
    """The values of a weight, as the file stores them.

    Args:
        values: Real values, or whole numbers: integers less their zero point.
        dtype: The type in the file.
        scale: Scale of whole numbers, per channel or one for all.
        zero_point: Their zero point, likewise.
        dynamic: The kernel takes whole numbers for its float input.
    """

    values: np.ndarray
    dtype: str = "float32"
    scale: Any = None
    zero_point: Any = 0
    dynamic: bool = False

    def scaled(self, factor: np.ndarray, axis: tuple[int, ...]) -> "Stored":
        """The weight times a real factor per channel."""
        if self.scale is None:
            values = self.values * along(factor, axis, self.values.shape, host)
            return replace(self, values=values)
        negative = factor < 0
        sign = along(np.where(negative, np.float32(-1), 1), axis, self.values.shape, host)
        # Ones' complement: the negative of the smallest integer has a place, too.
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
        quantizer: What rounds the output, if it is known.
        arithmetic: How it is rounded, likewise.
    """

    lowering: "Lowering"
    layer: Any
    op: type[Op]
    inputs: list[Tensor]
    shape: Shape
    name: str
    weights: dict[str, "Stored"] = field(default_factory=dict)
    integer: bool = False
    sums: Any = None
    real_bias: np.ndarray | None = None
    activation: str = "NONE"
    quantizer: FakeQuantize | None = None
    arithmetic: str = "real"
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
        """Let the output be another tensor: there is nothing to compute."""
        self._output = tensor

    def constant(
        self,
        weight: str,
        transpose: tuple[int, ...] | None = None,
        shape: tuple[int, ...] | None = None,
        axis: int = 0,
    ) -> Tensor:
        """A weight as a constant of the file.

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
            channels = self.op.weights[weight].axis if np.ndim(stored.zero_point) else None
            values = values + along(stored.zero_point, channels, values.shape, host)
        if transpose is not None:
            values = values.transpose(transpose)
        if shape is not None:
            values = values.reshape(shape)
        name = f"{self.layer.name}/{weight}"
        builder = self.lowering.builder
        fields = {}
        if stored.scale is not None:
            fields = {"scale": stored.scale, "zero_point": stored.zero_point, "axis": axis}
        made = builder.constant(values, name, dtype=dtype, **fields)
        if self.integer or stored.dynamic or dtype == "float32":
            return made
        real = builder.tensor(made.shape, "float32", f"{name}_float")
        builder.add("DEQUANTIZE", [made], [real])
        return real

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
        return builder.constant(acc.bias, name, dtype=dtype, scale=scale, axis=0)


def lower(
    model: keras.Model,
    input_dtype: str = "float32",
    output_dtype: str = "float32",
    integer_only: bool = False,
    target: str | None = None,
) -> bytes:
    """Write a built model as a LiteRT file.

    Args:
        model: What `intact.layers.quantized.build` returned, perhaps trained, saved and loaded.
        input_dtype: "float32", "int8", "uint8" or "int16".
        output_dtype: The same for the outputs.
        integer_only: Refuse ops that stay in float.
        target: Where the file is to run; None for LiteRT on any processor.

    Returns:
        The bytes of the file.

    Raises:
        NotCalibratedError: Ranges are missing.
        NotIntegerError: `integer_only`, and ops stay in float.
        TargetError: The target cannot run an op.
    """
    content = Lowering(model, input_dtype, output_dtype, target).run(integer_only)
    return content if target is None else keep_to(content, target)


def lower_real(
    model: keras.Model, tensors: list[keras.KerasTensor], exact: bool = False
) -> tuple[bytes, list[str]]:
    """Write a quantized model as a float file, to look at what its activations would be.

    Weights and biases are rounded as they are in the integer model, and nothing else is.

    Args:
        model: A quantized model.
        tensors: The tensors of its graph to look at: of quantized ones, the values.
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
    """Write some calls of layers as a float file, side by side, with kernels of one's own.

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
        made = LoweringNode(lowering, layer, get_op(layer), [x], shape, y.name, _output=y)
        made.weights["kernel"] = Stored(kernel)
        made.op.lower(made, builder)
        inputs.append((str(index), x))
        outputs.append((str(index), y))
    return builder.finish(inputs, outputs)


class Lowering:
    """A model on its way into a file; `written` has each node's op, by the node's id."""

    def __init__(
        self,
        model: keras.Model,
        input_dtype: str = "float32",
        output_dtype: str = "float32",
        target: str | None = None,
    ) -> None:
        self.model = model
        self.graph: Graph = view(model)
        self.dtypes = (input_dtype, output_dtype)
        self.target = target
        self.quantized = any(isinstance(layer, FakeQuantize) for layer in model.layers)
        self._begin()

    def _begin(self) -> None:
        self.builder = Builder("intact", self.target)
        self.tensors: dict[int, Tensor] = {}
        self.pending: dict[int, Any] = {}
        self.written: dict[int, LoweringNode] = {}
        self.float_ops: list[str] = []
        self.widened = False

    def run(self, integer_only: bool) -> bytes:
        """The bytes of the file."""
        check_calibrated(self.model, "exporting")
        content = self._run(integer_only)
        while self.widened:
            # Other tensors of a range that was widened have its old scale.
            self._begin()
            content = self._run(integer_only)
        return content

    def _run(self, integer_only: bool) -> bytes:
        inputs = [self._input(tensor) for tensor in self.graph.inputs]
        for node in self.graph.nodes:
            if not node.is_input:
                self._node(node)
        names = signature_names(self.model)
        outputs: list[tuple[str, Tensor]] = []
        for name, tensor in zip(names, self.graph.outputs, strict=True):
            outputs.append((name, self._output(tensor, [t for _, t in inputs + outputs])))
        if integer_only and self.float_ops:
            raise NotIntegerError(
                "These ops would stay in float, and integers only were asked for:\n  "
                + "\n  ".join(self.float_ops)
                + "\nQuantize them (see the rules of the scheme), or export without "
                "`integer_only=True`."
            )
        return self.builder.finish(inputs, outputs)

    # Boundaries -----------------------------------------------------------------------

    def _input(self, tensor: keras.KerasTensor) -> tuple[str, Tensor]:
        name = self.graph.producer(tensor).layer.name
        quantizer = self._quantizer(tensor)
        dtype = self.dtypes[0]
        unread = not self.graph.consumers(tensor) and not self.graph.is_output(tensor)
        if unread and tensor.dtype == "float32" != dtype:
            # Whatever its integers mean, nothing reads them.
            return name, self.builder.tensor(tensor.shape, dtype, name, scale=1.0, zero_point=0)
        if quantizer is None:
            made = self._unquantized(tensor, name)
            if not is_whole(tensor):
                self._refuse_integers("input", name, made.dtype, dtype)
            self.tensors[id(tensor)] = made
            return name, made
        if dtype == "float32":
            made = self.builder.tensor(tensor.shape, "float32", f"{name}_float")
            self.tensors[id(tensor)] = made
            return name, made
        stored = self._quantized(tensor.shape, name, quantizer)
        made = self._shifted(stored, dtype)
        if made is not stored:
            self.builder.add("QUANTIZE", [made], [stored])
        self.tensors[id(tensor)] = stored
        return name, made

    def _quantizer(self, tensor: keras.KerasTensor) -> FakeQuantize | None:
        for node in self.graph.consumers(tensor):
            if isinstance(node.layer, FakeQuantize):
                return node.layer
        return None

    def _output(self, tensor: keras.KerasTensor, taken: list[Tensor]) -> Tensor:
        producer = self.graph.producer(tensor)
        dtype = self.dtypes[1]
        if isinstance(producer.layer, Dequantize) and dtype != "float32":
            stored = self._tensor(producer.inputs[0])
            made = self._shifted(stored, dtype)
            if made is not stored:
                self.builder.add("QUANTIZE", [stored], [made])
        else:
            made = self._tensor(tensor)
            made = self._as_counts(made) if is_whole(tensor) else self._as_float(made)
            if not is_whole(tensor):
                self._refuse_integers("output", made.name, made.dtype, dtype)
        if any(made is other for other in taken):
            # An output needs a tensor of its own.
            made = self.builder.copy(made)
        return made

    def _refuse_integers(self, kind: str, name: str, dtype: str, wanted: str) -> None:
        """Refuse integers for a tensor that has no scale."""
        if dtype == "float32" and wanted != "float32":
            raise ExportError(
                f"The {kind} {name!r} stays in float, and {kind}_dtype={wanted!r} was asked for. "
                f"Leave out {kind}_dtype, or quantize what reads or makes the tensor: the scheme "
                "'int8' does."
            )

    def _shifted(self, stored: Tensor, dtype: str) -> Tensor:
        """A tensor of the same scale and of a given type: the tensor itself, or another."""
        if dtype == stored.dtype:
            return stored
        if "int16" in (dtype, stored.dtype):
            raise ExportError(
                f"{stored.name!r} is stored as {stored.dtype}, and {dtype} was asked for. "
                f"Pass input_dtype and output_dtype 'float32' or {stored.dtype!r}."
            )
        made = self.builder.like(stored, stored.shape)
        made.dtype, made.name = dtype, f"{stored.name}_{dtype}"
        made.zero_point += 128 if dtype == "uint8" else -128
        return made

    def _as_counts(self, tensor: Tensor) -> Tensor:
        """Whole numbers without the scale of 1 that bytes have inside the file."""
        if not tensor.quantized:
            return tensor
        made = self.builder.tensor(tensor.shape, tensor.dtype, f"{tensor.name}_counts")
        self.builder.convert(tensor, made)
        return made

    def _as_float(self, tensor: Tensor) -> Tensor:
        if not tensor.quantized:
            return tensor
        made = self.builder.tensor(tensor.shape, "float32", f"{tensor.name}_float")
        self.builder.add("DEQUANTIZE", [tensor], [made])
        return made

    # Nodes ----------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        layer = node.layer
        if isinstance(layer, FakeQuantize):
            self._quantize(node)
        elif isinstance(layer, Dequantize):
            if self.graph.consumers(node.outputs[0]):
                self.tensors[id(node.outputs[0])] = self._as_float(self._tensor(node.inputs[0]))
            else:
                self.pending[id(node.outputs[0])] = node
        elif isinstance(layer, Quantized) and not isinstance(layer, QuantizedWeights):
            self._integer(node)
        else:
            self._float(node)

    def _quantize(self, node: Node) -> None:
        quantizer, kwargs = node.layer, node.kwargs
        waiting = self.pending.get(id(node.inputs[0]))
        out = node.outputs[0]
        fused = "NONE"
        if isinstance(waiting, LoweringNode) and waiting.integer:
            bounds = (kwargs.get("lower"), kwargs.get("upper"))
            waiting.quantizer, waiting.arithmetic = quantizer, kwargs["arithmetic"]
            tensor = self._rounded(out.shape, tensor_name(quantizer, kwargs), quantizer)
            self._fit(waiting, tensor)
            if not waiting.op.clamps_by_range:
                waiting.activation = fused = _fused(bounds, tensor.scale)
            tensor = self._emit(waiting, tensor)
        else:
            source = self._tensor(node.inputs[0])
            scale, zero_point = stored_params(quantizer)
            same = (source.scale, source.zero_point, source.dtype)
            own = (scale, zero_point, quantizer.spec.activation_dtype)
            if source.quantized and same == own and not quantizer.rule.signs:
                tensor = source
            else:
                tensor = self._rounded(out.shape, tensor_name(quantizer, kwargs), quantizer)
                self.builder.add("QUANTIZE", [source], [tensor])
        self.tensors[id(out)] = self._clamped(tensor, quantizer, kwargs, fused)

    def _clamped(self, tensor: Tensor, quantizer: FakeQuantize, kwargs: dict, fused: str) -> Tensor:
        """A tensor within the bounds of its quantizer, if its kernel leaves them."""
        if quantizer.rule.signs:
            signs = self._quantized(tensor.shape, tensor.name, quantizer)
            tensor.name = f"{tensor.name}/rounded"
            look_up(tensor, signs, np.repeat(np.array([-1, 1], "int8"), 128), self.builder)
            return signs
        scale, zero_point = stored_params(quantizer)
        bounds = quantizer.bounds(quantizer.grid(), kwargs.get("lower"), kwargs.get("upper"))
        low, high = (int(to_numpy(bound)) + zero_point for bound in bounds)
        limits = np.iinfo(tensor.dtype)
        lowest = limits.min if fused == "NONE" else max(limits.min, zero_point)
        highest = limits.max
        if fused == "RELU6":
            highest = min(highest, zero_point + round(6 / float(scale)))
        for name, bound, needed in (
            ("MAXIMUM", low, low > lowest),
            ("MINIMUM", high, high < highest),
        ):
            if needed:
                clamped = self._quantized(tensor.shape, tensor.name, quantizer)
                tensor.name = f"{tensor.name}/{name.lower()}"
                fields = {"scale": tensor.scale, "zero_point": tensor.zero_point}
                limit = self.builder.constant(np.array([bound]), dtype=tensor.dtype, **fields)
                self.builder.add(name, [tensor, limit], [clamped])
                tensor = clamped
        return tensor

    def _integer(self, node: Node) -> None:
        quantized: Quantized = node.layer
        op = get_op(quantized.layer)
        out = node.outputs[0]
        if node.kwargs.get("folds"):
            waiting = self.pending[id(node.inputs[0])]
            waiting.sums = op.fold(quantized.layer, waiting.sums, False, host)
            self.pending[id(out)] = waiting
            return
        operands = [node.args[0]] if len(quantized.shapes) == 1 else node.args[0]
        tensors = [
            self._tensor(x if index in op.plain else x[0]) for index, x in enumerate(operands)
        ]
        made = LoweringNode(self, quantized.layer, op, tensors, out.shape, quantized.name)
        made.integer = True
        self.written[id(node)] = made
        if isinstance(op.output, Plain):
            self.tensors[id(out)] = self._emit(made, self._unquantized(out, quantized.name))
            return
        if isinstance(op.output, SameAsInput | AllSame):
            first = made.input
            like = {"scale": first.scale, "zero_point": first.zero_point}
            tensor = self.builder.tensor(out.shape, first.dtype, quantized.name, **like)
            self.tensors[id(out)] = self._emit(made, tensor)
            return
        _integer_weights(made, quantized)
        self.pending[id(out)] = made

    def _float(self, node: Node) -> None:
        held, out = node.layer, node.outputs[0]
        layer = held.layer if isinstance(held, QuantizedWeights) else held
        op = get_op(layer)
        before = self.pending.get(id(node.inputs[0]))
        if isinstance(before, LoweringNode) and len(self.graph.consumers(node.inputs[0])) == 1:
            is_output = self.graph.is_output(node.inputs[0])
            if not is_output and before.sums is None and _follow(before, layer):
                before.name = layer.name
                self.pending[id(out)] = before
                return
        if not computes_whole(op, node.inputs, node.outputs):
            self.float_ops.append(f"{layer.name} ({type(layer).__name__})")
        inputs = [self._tensor(tensor) for tensor in node.inputs]
        made = LoweringNode(self, layer, op, inputs, out.shape, layer.name)
        _float_weights(made, held)
        self.pending[id(out)] = made

    def _tensor(self, tensor: keras.KerasTensor) -> Tensor:
        """The file's tensor; an op that waits is written as it is, in float."""
        if id(tensor) not in self.tensors:
            waiting = self.pending[id(tensor)]
            if isinstance(waiting, Node):
                self.tensors[id(tensor)] = self._as_float(self._tensor(waiting.inputs[0]))
            else:
                real = self.quantized and not is_whole(tensor)
                name = f"{waiting.name}_float" if real else waiting.name
                self.tensors[id(tensor)] = self._emit(waiting, self._unquantized(tensor, name))
        return self.tensors[id(tensor)]

    def _unquantized(self, tensor: keras.KerasTensor, name: str) -> Tensor:
        """The file's tensor of a type that Keras has, too."""
        # Kernels for bytes expect a scale: whole numbers are in steps of 1.
        scaled = self.quantized and tensor.dtype in ("int8", "uint8")
        scale = np.float32(1) if scaled else None
        return self.builder.tensor(tensor.shape, tensor.dtype, name, scale=scale)

    def _emit(self, node: LoweringNode, output: Tensor) -> Tensor:
        node._output = output
        if node.sums is not None and node.weights:
            _settle_signs(node)
        node.op.lower(node, self.builder)
        return node.output

    def _fit(self, node: LoweringNode, output: Tensor) -> None:
        """Keep one step of an op's sums within as many of the output's as its kernel takes."""
        step, quantizer = node.op.step(node), node.quantizer
        limit = node.op.max_step * output.scale
        if step < limit:
            return
        assert quantizer is not None
        if node.sums is not None and node.arithmetic == "accumulator" and quantizer.spec.bits <= 8:
            # All sums but 0 saturate, as they do where their step is just below the limit.
            most = np.float32(0.999 * limit) / node.sums.input_scale
            scale = np.clip(node.sums.weight_scale, -most, most)
            node.sums = node.sums._replace(weight_scale=scale)
            return
        if quantizer.fixed is not None:
            raise ExportError(
                f"{type(node.layer).__name__} {node.layer.name!r} cannot be written: the range of "
                f"its output {output.name!r} is fixed, and one step of its inputs is {step:.3g}, "
                f"more than {node.op.max_step:g} of its own, {output.scale:.3g}. Let a rule of the "
                "scheme give its output a range that is observed."
            )
        quantizer.widen(step / node.op.fit_step)
        output.scale, output.zero_point = stored_params(quantizer)
        if quantizer.rule.signs:
            output.scale = self._rounded(output.shape, output.name, quantizer).scale
        self.widened = True

    def _rounded(self, shape: Shape, name: str, quantizer: FakeQuantize) -> Tensor:
        """A tensor of the integers that a kernel rounds to."""
        made = self._quantized(shape, name, quantizer)
        if quantizer.rule.signs:
            made.scale = np.float32(to_numpy(quantizer.first_grid(quantizer.grid()).scale))
        return made

    def _quantized(self, shape: Shape, name: str, quantizer: FakeQuantize) -> Tensor:
        scale, zero_point = stored_params(quantizer)
        dtype = quantizer.spec.activation_dtype
        return self.builder.tensor(shape, dtype, name, scale=scale, zero_point=zero_point)


class _RealLowering(Lowering):
    """The same walk, with float tensors wherever there are quantized ones."""

    def run_for(self, tensors: list[keras.KerasTensor]) -> tuple[bytes, list[str]]:
        inputs = [self._input(tensor) for tensor in self.graph.inputs]
        for node in self.graph.nodes:
            if not node.is_input:
                self._node(node)
        outputs: dict[int, tuple[str, Tensor]] = {}
        for tensor in tensors:
            found = self._tensor(tensor)
            made = self.builder.copy(found) if found.buffer or found in inputs else found
            outputs.setdefault(id(found), (f"output_{len(outputs)}", made))
        names = [outputs[id(self._tensor(tensor))][0] for tensor in tensors]
        return self.builder.finish(inputs, list(outputs.values())), names

    def _quantizer(self, tensor: keras.KerasTensor) -> None:
        return None

    def _quantize(self, node: Node) -> None:
        out, name = node.outputs[0], tensor_name(node.layer, node.kwargs)
        waiting = self.pending.get(id(node.inputs[0]))
        if not isinstance(waiting, LoweringNode) or not waiting.integer:
            self.tensors[id(out)] = self._tensor(node.inputs[0])
            return
        limits: dict[str, float | None] = {}
        if waiting.op.fuses:
            bounds = (node.kwargs.get("lower"), node.kwargs.get("upper"))
            waiting.activation = _fused(bounds)
            if bounds not in _FUSED:
                limits = {"MAXIMUM": bounds[0] or None, "MINIMUM": bounds[1]}
        tensor = self._emit(waiting, self.builder.tensor(out.shape, "float32", name))
        for kernel, limit in limits.items():
            if limit is not None:
                clamped = self.builder.like(tensor, tensor.shape)
                constant = self.builder.constant(np.array(limit, "float32"))
                self.builder.add(kernel, [tensor, constant], [clamped])
                tensor = clamped
        self.tensors[id(out)] = tensor

    def _integer(self, node: Node) -> None:
        super()._integer(node)
        waiting = self.pending.get(id(node.outputs[0]))
        if isinstance(waiting, LoweringNode) and not waiting.weights and node.layer.spec:
            _stored_weights(waiting, node.layer)

    def _emit(self, node: LoweringNode, output: Tensor) -> Tensor:
        if node.integer:
            for name, stored in node.weights.items():
                scale = np.asarray(stored.scale if node.sums is None else node.sums.weight_scale)
                weight = node.op.weights.get(name)
                axis = (weight.axis if weight else (-1,)) if scale.ndim else None
                values = stored.values * along(scale, axis, stored.values.shape, host)
                node.weights[name] = Stored(values.astype("float32"))
            if node.sums is not None:
                unit = node.sums.weight_scale * node.sums.input_scale
                bias = np.asarray(node.sums.bias * unit, "float32")
                node.real_bias = np.broadcast_to(bias, (node.shape[-1] or 0,))
            node.sums, node.integer = None, False
        return super()._emit(node, output)


def _fused(bounds: tuple[float | None, float | None], scale: float = np.inf) -> str:
    """The activation that a kernel fuses, by the bounds of its output and the output's scale.

    Other limits are where the integers of the range end, and so is one that is not within them.
    """
    lower, upper = bounds
    plain = "RELU" if lower == 0 else "NONE"
    within = upper is None or upper < 2.0**16 * scale
    return _FUSED.get(bounds, plain) if within else plain


class _ExactLowering(_RealLowering):
    """The same with float weights."""

    def _integer(self, node: Node) -> None:
        super()._integer(node)
        self._put_weights(node)

    def _float(self, node: Node) -> None:
        super()._float(node)
        if isinstance(node.layer, QuantizedWeights):
            self._put_weights(node)

    def _put_weights(self, node: Node) -> None:
        waiting = self.pending.get(id(node.outputs[0]))
        if not isinstance(waiting, LoweringNode) or node.layer.spec is None:
            return
        axes = node.layer.weight_axes()
        for name, stored in waiting.weights.items():
            value = node.layer.weight(name, host)
            if waiting.integer:
                # In units of the scales, which a batch norm is about to change.
                value = value / along(np.asarray(stored.scale), axes[name], value.shape, host)
                waiting.weights[name] = replace(stored, values=value)
            else:
                waiting.weights[name] = Stored(value)


def _integer_weights(node: LoweringNode, quantized: Quantized) -> None:
    """The weights of an integer op, as it computes them in Keras."""
    op = node.op
    if not issubclass(op, Weighted):
        if quantized.spec is not None:
            _stored_weights(node, quantized)
        return
    if isinstance(quantized, Frozen):
        scale, zero_point = quantized.kernel_scale, to_numpy(quantized.kernel_zero_point)
        values = to_numpy(quantized.kernel).astype("float32")
        stored = Stored(values, quantized.stored, to_numpy(scale), zero_point)
        node.weights["kernel"] = stored
        node.sums = quantized.sums(np.float32(1), node.input.scale, host)
        return
    if op.weights:
        _stored_weights(node, quantized)
    else:
        values, scale = op.unit(node.input.shape[-1] or 0)
        node.weights["kernel"] = Stored(values, "int8", scale)
    kernel, whole = node.weights["kernel"], node.input.quantized
    input_scale = node.input.scale if whole else np.float32(1)
    all_count = np.ones_like(kernel.scale)
    acc = accumulator(None if op.weights else all_count, input_scale, kernel.scale, host, whole)
    node.sums = quantized.units(acc, host)
    if op.weights:
        axis = quantized.weight_axes()["kernel"]
        kernel.values = rescaled(kernel.values, kernel.scale, node.sums, axis, host)
        node.sums = node.sums._replace(values=all_count)


def _stored_weights(node: LoweringNode, quantized: Quantized) -> None:
    """The weights of an op as its spec says."""
    spec = quantized.spec
    assert spec is not None
    if spec.wide:
        raise ExportError(
            f"{type(node.layer).__name__} {node.layer.name!r} has weights of {spec.bits} bits "
            f"that are stored as {spec.dtype}, and LiteRT has no kernel for these, but for int2, "
            "int4 and int8. The model trains and predicts in Keras; to export it, give the layer "
            "weights of 8 bits or less."
        )
    made = {} if spec.kind == "float" else quantized.quantized_weights(host)
    for name, axis in quantized.weight_axes().items():
        value = quantized.weight(name, host)
        if spec.kind == "float":
            node.weights[name] = Stored(value, spec.dtype)
            continue
        values, scale = made[name]
        stored = Stored(values, spec.dtype, scale)
        if spec.quantizer == "range" and not spec.symmetric:
            _, zero_point = weight_params(value, spec.bits, axis, host, False)
            shift = 128 if spec.kind == "uint" else 0
            stored.zero_point = zero_point.reshape(np.shape(scale)) + shift
        node.weights[name] = stored


def _settle_signs(node: LoweringNode) -> None:
    """Move the signs of the channels' scales into weights and bias, for scales are positive."""
    acc, planned = node.sums, node.weights["kernel"]
    sign = np.where(acc.weight_scale < 0, np.float32(-1), np.float32(1))
    counts = sign * acc.values
    weight = node.op.weights.get("kernel")
    values = planned.values
    if sign.ndim:
        values = values * along(counts, weight.axis if weight else (-1,), values.shape, host)
    bias = np.broadcast_to(acc.bias * sign, (node.shape[-1] or 0,))
    scale = np.abs(acc.weight_scale)
    # Where all is 0, any scale does: one that no kernel finds too small.
    kept = {a % values.ndim for a in (weight.axis if weight else (-1,)) if scale.ndim}
    idle = ~values.any(axis=tuple({*range(values.ndim)} - kept)).reshape(scale.shape)
    idle &= bias == 0 if scale.ndim else not bias.any()
    scale = np.where(idle, node.output.scale / acc.input_scale, scale).astype("float32")
    node.weights["kernel"] = replace(planned, values=values, scale=scale)
    node.sums = acc._replace(bias=bias, weight_scale=scale)


def _float_weights(node: LoweringNode, held: Any) -> None:
    """The weights of a float op, whose layer may be held by one that quantizes them."""
    op, layer = node.op, node.layer
    if isinstance(held, QuantizedWeights):
        _stored_weights(node, held)
        for stored in node.weights.values():
            stored.dynamic = held.dynamic
    if not issubclass(op, Weighted):
        return
    if not op.weights:
        factor, node.real_bias = op.factors(layer, node.input.shape[-1] or 0)
        node.weights["kernel"] = Stored(factor)
        return
    for name in op.weights:
        if name not in node.weights:
            node.weights[name] = Stored(host.convert_to_tensor(getattr(layer, name)))
    if layer.bias is not None:
        node.real_bias = host.convert_to_tensor(layer.bias)


def _follow(before: LoweringNode, layer: Any) -> bool:
    """Let a float batch norm or ReLU follow into the op before it, if it can."""
    op = get_op(layer)
    folds = before.op.folds_batch_norm and op.folds_into_weights(layer, before.shape)
    if folds and before.activation == "NONE":
        factor, offset = op.factors(layer, before.shape[-1] or 0)
        weight = before.op.weights.get("kernel")
        axis = weight.axis if weight else (-1,)
        before.weights["kernel"] = before.weights["kernel"].scaled(factor, axis)
        bias = 0.0 if before.real_bias is None else before.real_bias
        before.real_bias = bias * factor + offset
        return True
    bounds = relu_bounds(layer)
    if before.op.fuses and bounds in _FUSED and before.activation == "NONE":
        before.activation = _FUSED[bounds]
        return True
    return False
