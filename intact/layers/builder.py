"""From a plan to a quantized Keras model."""

from typing import Any

import keras

from intact.graph.canonicalize import canonicalize
from intact.graph.view import (
    Node,
    deep_graphs,
    forget_calls,
    in_float32,
    output_names,
    structure,
    view,
)
from intact.layers.base import Dequantize, StepModel
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.loop import QuantizedLoop
from intact.layers.quantized import Quantized
from intact.layers.quantized_model import QuantizedModel, class_like, is_quantized
from intact.layers.quantized_weights import QuantizedWeights
from intact.layers.schedule import Schedule
from intact.layers.stateful import StatefulQuantize
from intact.numerics.affine import QTensor, as_qtensor
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.ops.base import AllSame, NotQuantized, SameAsInput
from intact.ops.loop import Loop, Opening, opened
from intact.ops.registry import get_op, known_config, share_code
from intact.plan.plan import Plan, Site, Step
from intact.rounding.kernel_rounding import KernelRounding
from intact.rounding.lstm import LSTMRounding


def flat(model: keras.Model) -> keras.Model:
    """A model in the form that is lowered and compared: flat, with known layers only.

    Args:
        model: Any model.

    Returns:
        The model itself if it is a quantized one; else a flat one, in which layers that are
        quantized are the same, and others copies.
    """
    itself = isinstance(model, QuantizedModel) and is_quantized(model)
    return model if itself else canonicalize(model)


def build(
    model: keras.Model,
    plan: Plan,
    schedule: Schedule | None = None,
    float_model: keras.Model | None = None,
) -> keras.Model:
    """Make the quantized model that a plan describes.

    Args:
        model: The canonical model, whose layers are reused.
        plan: What `make_plan` returned for it.
        schedule: When quantization begins in training, and what freezes when.
        float_model: The user's model, whose class is kept if possible.

    Returns:
        A functional model with the same inputs, outputs and names of outputs.
    """
    kind = class_like(float_model or model, output_names(model))
    with deep_graphs(4 * len(model.layers)), in_float32():
        return _Builder(model, plan, schedule).build(kind)


class _Builder:
    def __init__(self, model: keras.Model, plan: Plan, schedule: Schedule | None) -> None:
        self.model = model
        self.schedule = schedule
        self.graph = opened(view(model))
        self.plan = plan
        # Of the loop that is being built: its inputs, those of its step, and its first states.
        self.loop: tuple[list[Any], list[Any], list[Any]] = [], [], []
        nodes = [node for node in self.graph.nodes if not node.is_input]
        self.steps = {id(node): step for node, step in zip(nodes, plan.steps, strict=True)}
        self.built: set[int] = set()
        self.layers: dict[int, keras.layers.Layer] = {}
        self.quantizers: dict[int, FakeQuantize] = {}
        self.real: dict[int, keras.KerasTensor] = {}
        self.pending: dict[int, Any] = {}
        self.quantized: dict[int, Any] = {}
        self.names = {layer.name for layer in model.layers}
        for node in self.graph.nodes:
            forget_calls(node.layer)

    def build(self, kind: type[keras.Model]) -> keras.Model:
        inputs, outputs = structure(self.model)
        new_inputs = keras.tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name), inputs
        )
        for old, new in zip(self.graph.inputs, keras.tree.flatten(new_inputs), strict=True):
            self.real[id(old)] = new
        for node in self.graph.nodes:
            self._build_with_sources(node)
        new_outputs = keras.tree.map_structure(self._as_output, outputs)
        return kind(new_inputs, new_outputs, name=self.model.name)

    def _build_with_sources(self, node: Node) -> None:
        """Build a node, after its inputs and the partners that its range needs."""
        if node.is_input or id(node) in self.built:
            return
        self.built.add(id(node))
        step = self.steps[id(node)]
        partners = [product.partner for product in step.site.products] if step.site else []
        for tensor in (*node.inputs, *partners):
            self._build_with_sources(self.graph.producer(tensor))
        self._build_node(node, step)

    def _build_node(self, node: Any, step: Step) -> None:
        if isinstance(node.layer, Opening):
            self._open_loop(node, step)
            return
        if isinstance(node.layer, Loop):
            self._close_loop(node, step)
            return
        (output,) = node.outputs
        if not step.integer:
            self.real[id(output)] = self._float(node, step)
            return
        if step.fused:
            result = self.pending[id(node.inputs[0])]
        elif step.folds:
            again = self._again(node)
            sums = self.pending[id(node.inputs[0])]
            result = self._layer(node, step)(sums, folds=True, **again)
        else:
            result, kind = self._integer(node, step), get_op(node.layer).output
            if isinstance(kind, SameAsInput | AllSame):
                self.quantized[id(output)] = result
                return
            if isinstance(kind, NotQuantized):
                self.real[id(output)] = result
                return
        self.pending[id(output)] = result
        if step.site:
            final = self.graph.is_output(output) and not self.graph.consumers(output)
            self.quantized[id(output)] = self._quantize(result, step.site, final)
            activity = getattr(node.layer, "activity", None)
            if activity is not None:
                self.quantizers[id(step.site.range)].activity[step.site.slot] = activity

    def _open_loop(self, node: Node, step: Step) -> None:
        """Make the inputs of the model of a loop's step."""
        form, outer, inner, first = node.layer.form, [], [], []
        for index, (tensor, part) in enumerate(zip(node.inputs, node.outputs, strict=False)):
            whole = step.quantized[index]
            outer.append(self._as_quantized(tensor) if whole else self._as_real(tensor))
            if index >= form.sequences:
                symbol = _symbol(tensor, whole, f"{part.name}_given")
                if index in step.requantize:
                    symbol_q = self._quantize(as_qtensor(symbol), step.requantize[index])
                    first.append((symbol, symbol_q))
                else:
                    first.append((symbol, as_qtensor(symbol)))
        for tensor, whole in zip(node.outputs, step.quantized, strict=True):
            inner.append(_symbol(tensor, whole, tensor.name))
            kind = self.quantized if whole else self.real
            kind[id(tensor)] = as_qtensor(inner[-1])
        self.loop = outer, inner, first

    def _close_loop(self, node: Node, step: Step) -> None:
        """Make the model of a loop's step, and call the loop."""
        outer, inner, first = self.loop
        ends = []
        for index, (tensor, whole) in enumerate(zip(node.inputs, step.quantized, strict=True)):
            site = step.requantize.get(index)
            end = self._as_quantized(tensor) if whole and site is None else None
            if end is None and (site is None or site.kernel_rounding == "real"):
                end = self._as_real(tensor)
            end = self._as_quantized(tensor) if end is None else end
            ends.append(end if site is None else self._quantize(end, site))
        inputs = [*inner, *(symbol for symbol, _ in first)]
        outputs = [_as_list(x) for x in (*ends, *(start for _, start in first))]
        body = StepModel(inputs, outputs, name=f"{node.layer.name}_step")
        loop = QuantizedLoop(body, node.layer.form, name=node.layer.name)
        for tensor, whole, result in zip(node.outputs, step.quantized, loop(outer), strict=True):
            kind = self.quantized if whole else self.real
            kind[id(tensor)] = as_qtensor(result)

    def _float(self, node: Any, step: Step) -> Any:
        """Call a layer that computes in float, perhaps with rounded weights."""

        def real(value: Any) -> Any:
            return self._as_real(value) if isinstance(value, keras.KerasTensor) else value

        args = keras.tree.map_structure(real, node.args)
        if step.weights:
            again = self._again(node)
            return self._layer(node, step)(*args, **node.kwargs, **again)
        self._regularize(node.layer, node, step)
        return node.layer(*args, **node.kwargs)

    def _integer(self, node: Any, step: Step) -> Any:
        """Call a layer that computes on integers."""
        op = get_op(node.layer)
        operands = [
            self._as_real(t) if index in op.plain else self._as_quantized(t)
            for index, t in enumerate(node.inputs)
        ]
        for index, site in step.requantize.items():
            operands[index] = self._quantize(operands[index], site)
        again = self._again(node)
        return self._layer(node, step)(operands[0] if len(operands) == 1 else operands, **again)

    def _again(self, node: Any) -> dict[str, bool]:
        """The argument that tells a layer with a schedule that this call is not its first."""
        return {"again": True} if self.schedule and id(node.layer) in self.layers else {}

    def _layer(self, node: Any, step: Step) -> keras.layers.Layer:
        fields: dict[str, Any] = {"schedule": self.schedule}
        if id(node.layer) not in self.layers:
            shapes = [t.shape for t in node.inputs]
            if step.integer:
                fields["wide"] = step.wide
            if step.takes_in:
                norm = self.model.get_layer(step.takes_in)
                layer = node.layer if step.keeps_norm else _with_norm(node.layer, norm, shapes[0])
                kept = norm if step.keeps_norm else None
                quantized = Quantized(layer, step.weights, shapes, norm=kept, **fields)
            elif step.integer:
                quantized = Quantized(node.layer, step.weights, shapes, **fields)
            else:
                assert step.weights is not None
                dynamic = step.activations is not None
                quantized = QuantizedWeights(
                    node.layer, step.weights, dynamic, input_shapes=shapes, **fields
                )
            self.layers[id(node.layer)] = quantized
            self._regularize(quantized, node, step)
        return self.layers[id(node.layer)]

    def _regularize(self, quantized: Any, node: Any, step: Step) -> None:
        """Let a layer regularize its output if the user's layer does and no quantizer does it."""
        activity = getattr(node.layer, "activity", None)
        if activity is not None and not step.integer:
            quantized.activity_regularizer = activity
        elif step.site is None:
            quantized.activity = activity

    def _quantize(self, pending: Any, site: Site, final: bool = False) -> Any:
        range_plan = site.range
        if id(range_plan) not in self.quantizers:
            fields: dict[str, Any] = {
                "slots": len(range_plan.sites),
                "fixed": range_plan.fixed,
                "schedule": self.schedule,
                "name": self._name(range_plan.name, "_quantizer"),
            }
            quantizer: FakeQuantize
            rounding = KernelRounding.registry.find(site.kernel_rounding)
            if isinstance(rounding, LSTMRounding):
                batch, _, units = rounding.output_shape(rounding.typed(pending))
                quantizer = StatefulQuantize(range_plan.spec, state=(batch, units), **fields)
            else:
                quantizer = FakeQuantize(range_plan.spec, **fields)
            self.quantizers[id(range_plan)] = quantizer
        kwargs: dict[str, Any] = {"kernel_rounding": site.kernel_rounding}
        if final and range_plan.fixed:
            kwargs["final"] = True
        if site.slot:
            kwargs["slot"] = site.slot
        if site.lower is not None:
            kwargs["lower"] = site.lower
        if site.upper is not None:
            kwargs["upper"] = site.upper
        if not site.products:
            return self.quantizers[id(range_plan)](pending, **kwargs)
        kwargs["shapes"] = [product.shape for product in site.products]
        partners = [self._as_quantized(product.partner) for product in site.products]
        return self.quantizers[id(range_plan)](pending, partners, **kwargs)

    def _as_quantized(self, tensor: keras.KerasTensor) -> Any:
        if id(tensor) not in self.quantized:
            site = self.plan.entries[id(tensor)]
            self.quantized[id(tensor)] = self._quantize(self.real[id(tensor)], site)
        return self.quantized[id(tensor)]

    def _as_real(self, tensor: keras.KerasTensor) -> Any:
        if id(tensor) not in self.real:
            name = self.graph.producer(tensor).layer.name
            self.real[id(tensor)] = Dequantize(name=self._name(name, "_dequantize"))(
                self.quantized[id(tensor)]
            )
        return self.real[id(tensor)]

    def _as_output(self, tensor: keras.KerasTensor) -> Any:
        """A model's output; an input that is also an output is quantized, as in the file."""
        if id(tensor) in self.plan.exits:
            site = self.plan.exits[id(tensor)]
            state = self._quantize(self._as_quantized(tensor), site)
            return Dequantize(name=self._name(site.range.name, "_output_dequantize"))(state)
        producer = self.graph.producer(tensor)
        if producer.is_input and id(tensor) in self.plan.entries:
            name = self._name(producer.layer.name, "_dequantize")
            return Dequantize(name=name)(self._as_quantized(tensor))
        return self._as_real(tensor)

    def _name(self, name: str, suffix: str) -> str:
        """A layer name that is not taken yet, because a layer called twice has two ranges."""
        candidate, n = name, 1
        while candidate + suffix in self.names or (n > 1 and candidate in self.names):
            candidate, n = f"{name}_{n}", n + 1
        self.names.add(candidate + suffix)
        return candidate + suffix


def _symbol(tensor: keras.KerasTensor, whole: bool, name: str) -> Any:
    """An input of the model of a step; the parts of a `QTensor` as a list."""
    if not whole:
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
    fields = zip(QTensor._fields, QTensor.symbolic(tensor.shape), strict=True)
    return [
        keras.Input(batch_shape=part.shape, dtype=part.dtype, name=f"{name}_{field}")
        for field, part in fields
    ]


def _as_list(x: Any) -> Any:
    """The parts of a `QTensor` as a list; any other tensor as it is."""
    return list(x) if isinstance(x, list | tuple) else x


def _with_norm(layer: Any, norm: Any, shape: Any) -> Any:
    """A copy of a layer that takes in the batch norm behind it."""
    kernel = to_numpy(layer.kernel)
    with_bias = type(layer).from_config({**known_config(layer), "use_bias": True})
    share_code(layer, with_bias, {})
    with_bias.build(shape)
    factor, offset = get_op(norm).factors(norm, with_bias.bias.shape[0])
    layout = get_op(layer).weights["kernel"].layout
    with_bias.kernel.assign(kernel * layout.spread(factor, kernel.shape, numpy_ops))
    bias = 0.0 if layer.bias is None else to_numpy(layer.bias)
    with_bias.bias.assign(bias * factor + offset)
    return with_bias
