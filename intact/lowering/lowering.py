"""From a built model (quantized or float) to a LiteRT file.

Goes through the model's kernels once. The plan has decided what is fused and rounded, and the
kernel graph says so; this module only follows.
"""

import functools

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from intact.errors import ExportError, NotIntegerError
from intact.graph.view import Graph, signature_names
from intact.layers.fake_quantize import FakeQuantize, stored_params
from intact.layers.kernel_graph import FUSED, Kernel, Role, kernel_graph
from intact.layers.ranges import check_calibrated
from intact.layers.tracked_range import Clamp
from intact.litert.builder import Builder, Shape, Tensor
from intact.litert.rolling import roll
from intact.litert.writing import Subgraph, pack
from intact.lowering.loops import LoopLowering
from intact.lowering.node import LoweringNode, float_weights, integer_weights, settle_signs
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import is_whole, to_numpy
from intact.ops.base import NotQuantized, computes_whole
from intact.ops.lookup import look_up
from intact.ops.registry import get_op
from intact.targets.fitting import keep_to


def lower(
    model: keras.Model,
    input_dtype: str = "float32",
    output_dtype: str = "float32",
    integer_only: bool = False,
    target: str | None = None,
    loops: bool = True,
) -> bytes:
    """Write a built model as a LiteRT file.

    Args:
        model: What `intact.layers.builder.build` returned, perhaps trained, saved and loaded.
        input_dtype: "float32", "int8", "uint8" or "int16".
        output_dtype: The same for the outputs.
        integer_only: Refuse ops that stay in float.
        target: Where the file is to run; None for LiteRT on any processor.
        loops: Write steps that repeat as loops, where there is no target.

    Returns:
        The bytes of the file.

    Raises:
        NotCalibratedError: Ranges are missing.
        NotIntegerError: `integer_only`, and ops stay in float.
        TargetError: The target cannot run an op.
    """
    lowering = Lowering(model, input_dtype, output_dtype, target, loops)
    content = pack(lowering.run(integer_only), release=True)
    return content if target is None else keep_to(content, target)


class Lowering:
    """A model on its way into a file; `written` has each kernel's op, by the id of its call."""

    def __init__(
        self,
        model: keras.Model,
        input_dtype: str = "float32",
        output_dtype: str = "float32",
        target: str | None = None,
        loops: bool = True,
    ) -> None:
        self.model = model
        self.kernels = kernel_graph(model)
        self.graph: Graph = self.kernels.graph
        self.dtypes = (input_dtype, output_dtype)
        self.target = target
        self.loops = loops and target is None
        self.quantized = any(kernel.quantizer for kernel in self.kernels.kernels)
        # Whether nodes keep their weights when they are in the file.
        self.keeps_weights = False
        # Whether tensors are rounded, and those inside of loops that are to be collected.
        self.rounds = True
        self.watched: list[keras.KerasTensor] = []
        self._begin()

    def _begin(self) -> None:
        self.builder = Builder("intact", self.target)
        self.tensors: dict[int, Tensor] = {}
        self.waiting: dict[int, LoweringNode] = {}
        self.written: dict[int, LoweringNode] = {}
        self.float_ops: list[str] = []
        self.loop_graphs: list[Subgraph] = []
        self.widened = False

    def run(self, integer_only: bool = False) -> schema.ModelT:
        """The file as objects, which `pack` makes bytes of."""
        check_calibrated(self.model, "exporting")
        file = self._run(integer_only)
        while self.widened:
            # Other tensors of a widened range still have its old scale.
            self._begin()
            file = self._run(integer_only)
        return file

    def _run(self, integer_only: bool) -> schema.ModelT:
        inputs = [self._input(tensor) for tensor in self.graph.inputs]
        for kernel in self.kernels.kernels:
            self._kernel(kernel)
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
        if self.loops:
            roll(self.builder, [tensor for _, tensor in outputs], self.loop_graphs)
        return self.builder.describe(inputs, outputs, self.loop_graphs)

    # Boundaries -----------------------------------------------------------------------

    def _input(self, tensor: keras.KerasTensor) -> tuple[str, Tensor]:
        name = self.graph.producer(tensor).layer.name
        quantizer = self._quantizer(tensor)
        dtype = self.dtypes[0]
        unread = not self.graph.consumers(tensor) and not self.graph.is_output(tensor)
        if unread and tensor.dtype == "float32" != dtype:
            # Nothing reads its integers, so any scale is right.
            return name, self.builder.tensor(tensor.shape, dtype, name, scale=1.0, zero_point=0)
        if quantizer is None:
            entry = self._unquantized(tensor, name)
            if not is_whole(tensor):
                self._refuse_integers("input", name, entry.dtype, dtype)
            self.tensors[id(tensor)] = entry
            return name, entry
        if dtype == "float32":
            entry = self.builder.tensor(tensor.shape, "float32", f"{name}_float")
            self.tensors[id(tensor)] = entry
            return name, entry
        stored = self._quantized(tensor.shape, name, quantizer)
        entry = self._shifted(stored, dtype)
        if entry is not stored:
            self.builder.add("QUANTIZE", [entry], [stored])
        self.tensors[id(tensor)] = stored
        return name, entry

    def _quantizer(self, tensor: keras.KerasTensor) -> FakeQuantize | None:
        readers = (self.kernels.of(node) for node in self.graph.consumers(tensor))
        return next((k.quantizer for k in readers if k.role is Role.QUANTIZE), None)

    def _output(self, tensor: keras.KerasTensor, taken: list[Tensor]) -> Tensor:
        kernel = self.kernels.producer(tensor)
        dtype = self.dtypes[1]
        if kernel.role is Role.DEQUANTIZE and dtype != "float32":
            stored = self._tensor(kernel.call.inputs[0])
            real_input = self._shifted(stored, dtype)
            if real_input is not stored:
                self.builder.add("QUANTIZE", [stored], [real_input])
        elif kernel.role is Role.DEQUANTIZE and self._tensor(kernel.call.inputs[0]).buffer:
            # LiteRT computes a DEQUANTIZE of a constant once, and loses it when inputs are resized.
            real_input = self.builder.real(self._tensor(kernel.call.inputs[0]))
        else:
            real_input = self._tensor(tensor)
            real_input = (
                self._as_counts(real_input) if is_whole(tensor) else self._as_float(real_input)
            )
            if not is_whole(tensor):
                self._refuse_integers("output", real_input.name, real_input.dtype, dtype)
        if any(real_input is other for other in taken):
            # An output needs a tensor of its own.
            real_input = self.builder.copy(real_input)
        return real_input

    def _refuse_integers(self, kind: str, name: str, dtype: str, wanted: str) -> None:
        """Refuse integers for a tensor that has no scale."""
        if dtype == "float32" and wanted != "float32":
            raise ExportError(
                f"The {kind} {name!r} stays in float, and {kind}_dtype={wanted!r} was asked for. "
                f"Leave out {kind}_dtype, or quantize what reads or makes the tensor: the scheme "
                "'int8' does."
            )

    def _shifted(self, stored: Tensor, dtype: str) -> Tensor:
        """The tensor, or one of the same scale in the given type."""
        if dtype == stored.dtype:
            return stored
        if "int16" in (dtype, stored.dtype):
            raise ExportError(
                f"{stored.name!r} is stored as {stored.dtype}, and {dtype} was asked for. "
                f"Pass input_dtype and output_dtype 'float32' or {stored.dtype!r}."
            )
        real = self.builder.like(stored, stored.shape)
        real.dtype, real.name = dtype, f"{stored.name}_{dtype}"
        real.zero_point += 128 if dtype == "uint8" else -128
        return real

    def _as_counts(self, tensor: Tensor) -> Tensor:
        """Whole numbers without the scale of 1 that kernels for bytes expect."""
        if not tensor.quantized:
            return tensor
        counts = self.builder.tensor(tensor.shape, tensor.dtype, f"{tensor.name}_counts")
        self.builder.convert(tensor, counts)
        return counts

    def _as_float(self, tensor: Tensor) -> Tensor:
        if tensor.buffer and tensor.dtype != "float32":
            write = functools.partial(self.builder.dequantized, tensor)
            return self.builder.once(("real", tensor.index), write)
        if not tensor.quantized:
            return tensor
        real = self.builder.tensor(tensor.shape, "float32", f"{tensor.name}_float")
        self.builder.add("DEQUANTIZE", [tensor], [real])
        return real

    # Kernels --------------------------------------------------------------------------

    def _kernel(self, kernel: Kernel) -> None:
        if kernel.role is Role.INTEGER:
            self._integer(kernel)
        elif kernel.role is Role.LOOP:
            LoopLowering(self, kernel).write()
        elif kernel.role is Role.FLOAT:
            self._float(kernel)
        elif kernel.role is Role.QUANTIZE:
            self.tensors[id(kernel.output)] = self._quantize(kernel)
        elif kernel.role is Role.DEQUANTIZE and self.graph.consumers(kernel.output):
            self.tensors[id(kernel.output)] = self._dequantized(kernel)

    def _quantize(self, kernel: Kernel) -> Tensor:
        """A tensor rounded to another range, or itself if its range is the same."""
        quantizer = kernel.layer
        source = self._tensor(kernel.call.inputs[0])
        scale, zero_point = stored_params(quantizer)
        same = (source.scale, source.zero_point, source.dtype)
        own = (scale, zero_point, quantizer.spec.activation_dtype)
        if source.quantized and same == own and not quantizer.rule.signs:
            return self._clamped(source, kernel, "NONE")
        rounded = self._rounded(kernel.output.shape, kernel.name, quantizer)
        self.builder.add("QUANTIZE", [source], [rounded])
        return self._clamped(rounded, kernel, "NONE")

    def _dequantized(self, kernel: Kernel) -> Tensor:
        return self._as_float(self._tensor(kernel.call.inputs[0]))

    def _integer(self, kernel: Kernel) -> None:
        quantized, op, output = kernel.quantized, get_op(kernel.layer), kernel.output
        assert quantized is not None
        operands = kernel.call.args[0]
        operands = [operands] if len(quantized.shapes) == 1 else operands
        inputs = [
            self._tensor(x if index in op.plain else x[0]) for index, x in enumerate(operands)
        ]
        node = LoweringNode(self, kernel.layer, op, inputs, output.shape, quantized.name)
        node.integer = True
        self.written[id(kernel.call)] = node
        if isinstance(op.output, NotQuantized):
            self.tensors[id(output)] = self._emit(node, self._unquantized(output, node.name))
        elif kernel.hands_on_range:
            like = {"scale": node.input.scale, "zero_point": node.input.zero_point}
            tensor = self.builder.tensor(output.shape, node.input.dtype, node.name, **like)
            self.tensors[id(output)] = self._emit(node, tensor)
        else:
            self._put_weights(node, kernel)
            for norm in kernel.norms:
                layer = norm.layer.layer
                node.sums = get_op(layer).fold(layer, node.sums, False, numpy_ops)
            self.tensors[id(output)] = self._round_output(node, kernel)

    def _put_weights(self, node: LoweringNode, kernel: Kernel) -> None:
        """Give an op its weights, before a batch norm folds into them."""
        if kernel.role is Role.INTEGER:
            assert kernel.quantized is not None
            integer_weights(node, kernel.quantized)
        else:
            float_weights(node, kernel.quantized)

    def _round_output(self, node: LoweringNode, kernel: Kernel) -> Tensor:
        """Write an integer op, with the range that its sums are rounded to."""
        quantizer = kernel.quantizer
        assert quantizer is not None
        node.quantizer, node.kernel_rounding = quantizer, kernel.rounding
        tensor = self._rounded(kernel.output.shape, kernel.name, quantizer)
        self._fit(node, tensor)
        if not node.op.clamps_by_range:
            node.activation = fused_activation(kernel.clamp, tensor.scale)
        return self._clamped(self._emit(node, tensor), kernel, node.activation)

    def _clamped(self, tensor: Tensor, kernel: Kernel, fused: str) -> Tensor:
        """A tensor clamped to the bounds of its quantizer, if its kernel exceeds them."""
        quantizer = kernel.quantizer
        assert quantizer is not None
        if quantizer.rule.signs:
            signs = self._quantized(tensor.shape, tensor.name, quantizer)
            tensor.name = f"{tensor.name}/rounded"
            look_up(tensor, signs, np.repeat(np.array([-1, 1], "int8"), 128), self.builder)
            return signs
        scale, zero_point = stored_params(quantizer)
        bounds = quantizer.bounds(quantizer.stored_grid(), kernel.clamp, numpy_ops)
        low, high = (int(bound) + zero_point for bound in bounds)
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

    def _float(self, kernel: Kernel) -> None:
        """Prepare a float op; it is written when something reads it."""
        op, call = get_op(kernel.layer), kernel.call
        if not computes_whole(op, call.inputs, call.outputs):
            self.float_ops.append(f"{kernel.layer.name} ({type(kernel.layer).__name__})")
        inputs = [self._tensor(x) for x in call.inputs]
        inputs = [
            tensor if index in op.reads_stored or is_whole(x) else self._as_float(tensor)
            for index, (x, tensor) in enumerate(zip(call.inputs, inputs, strict=True))
        ]
        node = LoweringNode(self, kernel.layer, op, inputs, call.outputs[0].shape, kernel.name)
        self._put_weights(node, kernel)
        for norm in kernel.norms:
            node.fold(norm.layer)
        node.activation = FUSED[kernel.clamp]
        self.waiting[id(kernel)] = node

    def _tensor(self, tensor: keras.KerasTensor) -> Tensor:
        """The file's tensor."""
        if id(tensor) not in self.tensors:
            kernel = self.kernels.producer(tensor)
            if kernel.role is Role.DEQUANTIZE:
                self.tensors[id(tensor)] = self._dequantized(kernel)
            else:
                real = self.quantized and not is_whole(tensor)
                name = f"{kernel.name}_float" if real else kernel.name
                output = self._unquantized(tensor, name)
                self.tensors[id(tensor)] = self._emit(self.waiting[id(kernel)], output)
        return self.tensors[id(tensor)]

    def _unquantized(self, tensor: keras.KerasTensor, name: str) -> Tensor:
        """The file's tensor in a type that Keras has, too."""
        # Kernels for bytes expect a scale: whole numbers are in steps of 1.
        scaled = self.quantized and tensor.dtype in ("int8", "uint8")
        scale = np.float32(1) if scaled else None
        return self.builder.tensor(tensor.shape, tensor.dtype, name, scale=scale)

    def _emit(self, node: LoweringNode, output: Tensor) -> Tensor:
        node._output = output
        if node.sums is not None and node.weights:
            settle_signs(node)
        node.op.lower(node, self.builder)
        if not self.keeps_weights:
            node.weights.clear()
        return node.output

    def _fit(self, node: LoweringNode, output: Tensor) -> None:
        """Keep the ratio of accumulator scale to output scale below the kernel's limit."""
        step, quantizer = node.op.accumulator_scale(node), node.quantizer
        most = node.op.max_accumulator_scale
        limit = most * output.scale
        if step < limit:
            return
        assert quantizer is not None
        by_sums = node.sums is not None and node.kernel_rounding == "accumulator"
        if by_sums and quantizer.spec.bits <= 8:
            # All sums but 0 saturate, as they do just below the limit.
            most = np.float32(0.999 * limit) / node.sums.input_scale
            scale = np.clip(node.sums.weight_scale, -most, most)
            node.sums = node.sums._replace(weight_scale=scale)
            return
        if quantizer.fixed is not None:
            raise ExportError(
                f"{type(node.layer).__name__} {node.layer.name!r} cannot be written: the range of "
                f"its output {output.name!r} is fixed, and one step of its inputs is {step:.3g}, "
                f"more than {most:g} of its own, {output.scale:.3g}. Let a rule of the "
                "scheme give its output a range that is observed."
            )
        quantizer.widen(step / node.op.fit_accumulator_scale)
        output.scale, output.zero_point = stored_params(quantizer)
        if quantizer.rule.signs:
            output.scale = self._rounded(output.shape, output.name, quantizer).scale
        self.widened = True

    def _rounded(self, shape: Shape, name: str, quantizer: FakeQuantize) -> Tensor:
        """A tensor of the integers that a kernel rounds to."""
        output = self._quantized(shape, name, quantizer)
        if quantizer.rule.signs:
            output.scale = np.float32(to_numpy(quantizer.first_grid(quantizer.grid()).scale))
        return output

    def _quantized(self, shape: Shape, name: str, quantizer: FakeQuantize) -> Tensor:
        scale, zero_point = stored_params(quantizer)
        dtype = quantizer.spec.activation_dtype
        return self.builder.tensor(shape, dtype, name, scale=scale, zero_point=zero_point)


def fused_activation(clamp: Clamp, scale: float = np.inf) -> str:
    """The activation that a kernel fuses, by the clamp of its output and the output's scale.

    The ends of the integer range enforce other limits.
    """
    plain = "RELU" if clamp.lower == 0 else "NONE"
    within = clamp.upper is None or clamp.upper < 2.0**16 * scale
    return FUSED.get(clamp, plain) if within else plain
