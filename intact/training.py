"""From a plan to a quantized Keras model: ordinary layers, on integer values.

On the edges of the quantized model run triples `(values, scale, zero_point)`; between
an op and its quantizer run the op's 32-bit sums. Everything else is an ordinary
functional Keras model.
"""

from dataclasses import asdict
from typing import Any

import keras
from keras import ops

from intact.graph import deep_graphs, structure, view
from intact.kernels import exact_convolution
from intact.numerics import (
    Accumulator,
    QTensor,
    Tensor,
    along,
    half_precision,
    host,
    quantize_rows,
    quantize_weight,
    to_numpy,
)
from intact.ops.base import AllSame, Plain, SameAsInput, get_op
from intact.plan import Plan, Site, Step
from intact.quantizers import FakeQuantize
from intact.scheme import TensorSpec


@keras.saving.register_keras_serializable("intact")
class Quantized(keras.layers.Layer):
    """A layer that computes on integer values, with quantized weights.

    It has the name of the layer that it holds. Freeze it by `trainable = False` like
    any other; a frozen batch norm uses its moving statistics.

    Args:
        layer: The Keras layer.
        spec: How its weights are quantized, if it has any.
        input_shapes: The shapes of the inputs that the layer is built with.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        spec: TensorSpec | None = None,
        input_shapes: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", layer.name)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.spec = spec
        # A list, for Keras would track and wrap a nested attribute.
        self.shapes = [tuple(shape) for shape in input_shapes]
        if not layer.built:
            layer.build(self.shapes[0] if len(self.shapes) == 1 else self.shapes)
        self.built = True

    def quantized_weights(self, xp: Any = ops) -> dict[str, tuple[Tensor, Tensor]]:
        """Per name of a quantized weight, its whole numbers and scales.

        Args:
            xp: `keras.ops`, or `intact.numerics.host`.
        """
        if self.spec is None:
            return {}
        bits, symmetric = self.spec.bits, self.spec.symmetric
        return {
            name: quantize_weight(getattr(self.layer, name), bits, axis, xp, symmetric)
            for name, axis in self.weight_axes().items()
        }

    def weight_axes(self) -> dict[str, tuple[int, ...] | None]:
        """Per name of a quantized weight, the axes that keep a scale of their own, if any."""
        per_axis = self.spec is not None and self.spec.per_axis
        weights = get_op(self.layer).weights
        return {name: weight.axis if per_axis else None for name, weight in weights.items()}

    def call(self, inputs: Any, folds: bool = False, training: bool | None = None) -> Any:
        """Compute on integer values.

        Args:
            inputs: A triple or a plain tensor, or a list of them; an accumulator for a
                folded layer.
            folds: The layer is a batch norm that follows into the weights before it; where
                it is called elsewhere too, it need not there.
            training: Whether batch norm uses the batch's statistics.

        Returns:
            What the op's `call` returns.
        """
        op = get_op(self.layer)
        training = bool(training) and self.trainable
        if folds:
            return op.fold(self.layer, Accumulator(*inputs), training)
        operands = [inputs] if len(self.shapes) == 1 else inputs
        taken = [x if index in op.plain else QTensor(*x) for index, x in enumerate(operands)]
        return op.call(self.layer, taken, self.quantized_weights(), training)

    def compute_output_spec(
        self, inputs: Any, folds: bool = False, training: bool | None = None
    ) -> Any:
        op = get_op(self.layer)
        operands = [inputs] if len(self.shapes) == 1 else inputs
        # Of this call: a layer may be called on several shapes.
        shapes = [(x if index in op.plain else x[0]).shape for index, x in enumerate(operands)]
        try:
            shape = self.layer.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes)
        except NotImplementedError:
            # A layer of the user's that leaves it to its `call`.
            symbols = [keras.KerasTensor(shape, "float32") for shape in shapes]
            given = symbols[0] if len(symbols) == 1 else symbols
            shape = self.layer.compute_output_spec(given).shape
        return op.pending_spec(self.layer, inputs, shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            layer=keras.saving.serialize_keras_object(self.layer),
            spec=None if self.spec is None else asdict(self.spec),
            input_shapes=[list(shape) for shape in self.shapes],
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantized":
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        spec = config.pop("spec")
        return cls(layer, spec=None if spec is None else TensorSpec(**spec), **config)


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

    def real_weights(self) -> dict[str, Tensor]:
        """Per name of a quantized weight, its rounded values."""
        assert self.spec is not None
        if self.spec.kind == "float":
            return {name: half_precision(getattr(self.layer, name)) for name in self.weight_axes()}
        axes = self.weight_axes()
        return {
            name: values * along(scale, axes[name], values.shape)
            for name, (values, scale) in self.quantized_weights().items()
        }

    def call(self, inputs: Any, folds: bool = False, training: bool | None = None) -> Tensor:
        """The float output of float inputs."""
        op: Any = get_op(self.layer)
        if not self.dynamic:
            operands = [inputs] if len(self.shapes) == 1 else inputs
            return op.real(self.layer, operands, self.real_weights())
        n, scale = quantize_rows(inputs, op.rows(self.layer, len(inputs.shape)))
        kernel, weight_scale = self.quantized_weights()["kernel"]
        with exact_convolution():
            sums = op.products(self.layer, n, kernel)
        y = sums * scale * weight_scale
        return y if self.layer.bias is None else y + self.layer.bias

    def compute_output_spec(
        self, inputs: Any, folds: bool = False, training: bool | None = None
    ) -> Any:
        shapes = self.shapes[0] if len(self.shapes) == 1 else self.shapes
        return keras.KerasTensor(self.layer.compute_output_shape(shapes), "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dynamic": self.dynamic}


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

    def _build_node(self, node: Any, step: Step) -> None:
        (output,) = node.outputs
        if not step.integer:

            def real(value: Any) -> Any:
                return self._as_real(value) if isinstance(value, keras.KerasTensor) else value

            args = keras.tree.map_structure(real, node.args)
            layer = self._layer(node, step) if step.weights else node.layer
            self.real[id(output)] = layer(*args, **node.kwargs)
            return
        if step.fused:
            result = self.pending[id(node.inputs[0])]
        elif step.folds:
            result = self._layer(node, step)(self.pending[id(node.inputs[0])], folds=True)
        else:
            op = get_op(node.layer)
            operands = [
                self._as_real(t) if index in op.plain else self._as_quantized(t)
                for index, t in enumerate(node.inputs)
            ]
            for index, site in step.requantize.items():
                operands[index] = self._quantize(operands[index], site)
            result = self._layer(node, step)(operands[0] if len(operands) == 1 else operands)
            if isinstance(op.output, SameAsInput | AllSame):
                self.quantized[id(output)] = result
                return
            if isinstance(op.output, Plain):
                self.real[id(output)] = result
                return
        self.pending[id(output)] = result
        if step.site:
            final = self.graph.is_output(output) and not self.graph.consumers(output)
            self.quantized[id(output)] = self._quantize(result, step.site, final)

    def _layer(self, node: Any, step: Step) -> keras.layers.Layer:
        if id(node.layer) not in self.layers:
            shapes = [t.shape for t in node.inputs]
            if step.takes_in:
                norm = self.model.get_layer(step.takes_in)
                layer = _with_norm(node.layer, norm, shapes[0])
                made = Quantized(layer, step.weights, shapes)
            elif step.integer:
                made = Quantized(node.layer, step.weights, shapes)
            else:
                assert step.weights is not None
                dynamic = step.activations is not None
                made = QuantizedWeights(node.layer, step.weights, dynamic, input_shapes=shapes)
            self.layers[id(node.layer)] = made
        return self.layers[id(node.layer)]

    def _quantize(self, pending: Any, site: Site, final: bool = False) -> Any:
        found = site.range
        if id(found) not in self.quantizers:
            self.quantizers[id(found)] = FakeQuantize(
                found.spec,
                slots=len(found.sites),
                fixed=found.fixed,
                name=self._name(found.name, "_quantizer"),
            )
        kwargs: dict[str, Any] = {"arithmetic": site.arithmetic}
        if final and found.fixed:
            kwargs["final"] = True
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
        while candidate + suffix in self.names or (n > 1 and candidate in self.names):
            candidate, n = f"{name}_{n}", n + 1
        self.names.add(candidate + suffix)
        return candidate + suffix


def _with_norm(layer: Any, norm: Any, shape: Any) -> Any:
    """A layer that does the same as another with a batch norm behind it."""
    kernel = to_numpy(layer.kernel)
    made = type(layer).from_config({**layer.get_config(), "use_bias": True})
    made.build(shape)
    factor, offset = get_op(norm).factors(norm, made.bias.shape[0])
    axis = get_op(layer).weights["kernel"].axis
    made.kernel.assign(kernel * along(factor, axis, kernel.shape, host))
    bias = 0.0 if layer.bias is None else to_numpy(layer.bias)
    made.bias.assign(bias * factor + offset)
    return made
