"""From a plan to a quantized Keras model: ordinary layers, on integer values.

On the edges of the quantized model run triples `(values, scale, zero_point)`; between
an op and its quantizer run the op's 32-bit sums. Everything else is an ordinary
functional Keras model.
"""

from typing import Any

import keras

from intact.graph import deep_graphs, structure, view
from intact.numerics import Accumulator, QTensor, Tensor, quantize_weight
from intact.ops.base import AllSame, SameAsInput, get_op
from intact.plan import Plan, Site
from intact.quantizers import FakeQuantize
from intact.scheme import TensorSpec


@keras.saving.register_keras_serializable("intact")
class Quantized(keras.layers.Layer):
    """A layer that computes on integer values, with quantized weights.

    It has the name of the layer that it holds. Freeze it by `trainable = False` like
    any other; a frozen batch norm uses its moving statistics.

    Args:
        layer: The Keras layer.
        weight_bits: Width of its quantized weights.
        per_axis: A weight scale per output channel, or one for all.
        folds: The layer is a batch norm that follows into the weights before it.
        input_shape: The shape that the layer is built with.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        weight_bits: int = 8,
        per_axis: bool = True,
        folds: bool = False,
        input_shapes: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", layer.name)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.weight_bits = weight_bits
        self.per_axis = per_axis
        self.folds = folds
        # A list, for Keras would track and wrap a nested attribute.
        self.shapes = [tuple(shape) for shape in input_shapes]
        if not layer.built:
            layer.build(self.shapes[0] if len(self.shapes) == 1 else self.shapes)
        self.built = True

    def quantized_weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Per name of a quantized weight, its whole numbers and scales."""
        return {
            name: quantize_weight(
                getattr(self.layer, name), self.weight_bits, weight.axis if self.per_axis else None
            )
            for name, weight in get_op(self.layer).weights.items()
        }

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Compute on integer values.

        Args:
            inputs: One triple or a list of triples; an accumulator for a folded layer.
            training: Whether batch norm uses the batch's statistics.

        Returns:
            What the op's `call` returns.
        """
        op = get_op(self.layer)
        training = bool(training) and self.trainable
        if self.folds:
            return op.fold(self.layer, Accumulator(*inputs), training)
        triples = [inputs] if len(self.shapes) == 1 else inputs
        quantized = [QTensor(*triple) for triple in triples]
        return op.call(self.layer, quantized, self.quantized_weights(), training)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        op = get_op(self.layer)
        shape = self.layer.compute_output_shape(
            self.shapes[0] if len(self.shapes) == 1 else self.shapes
        )
        return op.pending_spec(self.layer, inputs, shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            layer=keras.saving.serialize_keras_object(self.layer),
            weight_bits=self.weight_bits,
            per_axis=self.per_axis,
            folds=self.folds,
            input_shapes=[list(shape) for shape in self.shapes],
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantized":
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


@keras.saving.register_keras_serializable("intact")
class Dequantize(keras.layers.Layer):
    """Integer values to real ones: `values * scale`.

    Example:

    >>> import numpy as np
    >>> triple = (np.array([[3.0]], "float32"), np.float32(0.5), np.float32(0.0))
    >>> float(Dequantize()(triple)[0, 0])
    1.5
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.built = True

    def call(self, inputs: Any) -> Tensor:
        """Real values of a triple `(values, scale, zero_point)`."""
        x = QTensor(*inputs)
        return x.values * x.scale

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs[0].shape, "float32")


def build(model: keras.Model, plan: Plan) -> keras.Model:
    """Make the quantized model that a plan describes.

    Args:
        model: The canonical model; its layers are taken over.
        plan: What `make_plan` returned for it.

    Returns:
        A functional model with the same inputs and outputs.
    """
    with deep_graphs(4 * len(model.layers)):
        return _Builder(model, plan).build()


class _Builder:
    def __init__(self, model: keras.Model, plan: Plan) -> None:
        self.model = model
        self.graph = view(model)
        self.plan = plan
        self.layers: dict[int, keras.layers.Layer] = {}
        self.quantizers: dict[int, FakeQuantize] = {}
        self.real: dict[int, keras.KerasTensor] = {}
        self.pending: dict[int, Any] = {}
        self.quantized: dict[int, Any] = {}
        self.names = {layer.name for layer in model.layers}

    def build(self) -> keras.Model:
        steps = iter(self.plan.steps)
        inputs, outputs = structure(self.model)
        new_inputs = keras.tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name), inputs
        )
        for old, new in zip(self.graph.inputs, keras.tree.flatten(new_inputs), strict=True):
            self.real[id(old)] = new
        for node in self.graph.nodes:
            if not node.is_input:
                self._build_node(node, next(steps))
        new_outputs = keras.tree.map_structure(self._as_real, outputs)
        return keras.Model(new_inputs, new_outputs, name=self.model.name)

    def _build_node(self, node: Any, step: Any) -> None:
        (output,) = node.outputs
        if not step.integer:

            def real(value: Any) -> Any:
                return self._as_real(value) if isinstance(value, keras.KerasTensor) else value

            args = keras.tree.map_structure(real, node.args)
            self.real[id(output)] = node.layer(*args, **node.kwargs)
            return
        if step.fused:
            result = self.pending[id(node.inputs[0])]
        elif step.folds:
            result = self._layer(node, step)(self.pending[id(node.inputs[0])])
        else:
            triples = [self._as_quantized(t) for t in node.inputs]
            for index, site in step.requantize.items():
                triples[index] = self._quantize(triples[index], site)
            result = self._layer(node, step)(triples[0] if len(triples) == 1 else triples)
            if isinstance(get_op(node.layer).output, SameAsInput | AllSame):
                self.quantized[id(output)] = result
                return
        self.pending[id(output)] = result
        if step.site:
            self.quantized[id(output)] = self._quantize(result, step.site)

    def _layer(self, node: Any, step: Any) -> Quantized:
        if id(node.layer) not in self.layers:
            spec: TensorSpec = step.weights
            self.layers[id(node.layer)] = Quantized(
                node.layer,
                weight_bits=spec.bits,
                per_axis=spec.per_axis,
                folds=step.folds,
                input_shapes=[t.shape for t in node.inputs],
            )
        return self.layers[id(node.layer)]

    def _quantize(self, pending: Any, site: Site) -> Any:
        found = site.range
        if id(found) not in self.quantizers:
            self.quantizers[id(found)] = FakeQuantize(
                bits=found.spec.bits,
                symmetric=found.spec.symmetric,
                momentum=found.spec.momentum,
                slots=len(found.sites),
                fixed=found.fixed,
                name=self._name(found.name, "_quantizer"),
            )
        kwargs: dict[str, Any] = {"arithmetic": site.arithmetic}
        if site.slot:
            kwargs["slot"] = site.slot
        if site.lower is not None:
            kwargs["lower"] = site.lower
        if site.upper is not None:
            kwargs["upper"] = site.upper
        return self.quantizers[id(found)](pending, **kwargs)

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

    def _name(self, name: str, suffix: str) -> str:
        """A layer name that is not taken yet: a layer called twice has two ranges."""
        candidate, n = name, 1
        while candidate + suffix in self.names:
            candidate, n = f"{name}_{n}", n + 1
        self.names.add(candidate + suffix)
        return candidate + suffix
