"""From a quantized model to a plain inference model: the content of the file, in Keras."""

from typing import Any

import keras

from intact.errors import IntactError
from intact.graph.view import deep_graphs, structure
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.frozen import Frozen
from intact.layers.quantized import Quantized
from intact.layers.quantized_model import like
from intact.layers.ranges import refuse_nested
from intact.lowering.lowering import Lowering


def freeze(model: keras.Model) -> keras.Model:
    """Make the inference model of a quantized one.

    Weights are the integers of the file, batch norms are folded into them, ranges are fixed.
    Nothing trains or observes any more. The outputs and the exported file stay the same, and the
    given model is not changed.

    Args:
        model: A quantized model whose ranges have seen data.

    Returns:
        A functional model with the same inputs, outputs and names.

    Raises:
        NotCalibratedError: Ranges are missing.
        IntactError: The model is not quantized.
        ExportError: A layer cannot be written.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> q = intact.calibrate(q, np.random.default_rng(0).normal(size=(100, 4)), verbose=0)
    >>> frozen = freeze(q)
    >>> len(frozen.trainable_variables), intact.export(frozen) == intact.export(q)
    (0, True)
    """
    refuse_nested(model, "freezing")
    if not any(isinstance(layer, FakeQuantize | Quantized) for layer in model.layers):
        raise IntactError(
            f"Model {model.name!r} is not quantized. Freeze what `intact.quantize_model` made."
        )
    with deep_graphs(4 * len(model.layers)):
        return _Freezer(model).model()


class _Freezer:
    def __init__(self, model: keras.Model) -> None:
        self.source = model
        self.lowering = Lowering(model)
        self.lowering.keeps_weights = True
        self.lowering.run(False)
        self.graph = self.lowering.graph
        self.layers: dict[int, keras.layers.Layer] = {}
        self.tensors: dict[int, keras.KerasTensor] = {}
        self.names: set[str] = set()

    def model(self) -> keras.Model:
        inputs, outputs = structure(self.source)
        new_inputs = keras.tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name), inputs
        )
        for old, new in zip(self.graph.inputs, keras.tree.flatten(new_inputs), strict=True):
            self.tensors[id(old)] = new
        for node in self.graph.nodes:
            if not node.is_input:
                self._node(node)
        new_outputs = keras.tree.map_structure(self._new, outputs)
        frozen_model = like(self.source, new_inputs, new_outputs)
        frozen_model.trainable = False
        return frozen_model

    def _new(self, value: Any) -> Any:
        return self.tensors[id(value)] if isinstance(value, keras.KerasTensor) else value

    def _node(self, node: Any) -> None:
        args, kwargs = keras.tree.map_structure(self._new, (node.args, dict(node.kwargs)))
        if kwargs.pop("folds", False):
            # The weights of the layer before contain it.
            outputs = args[0]
        else:
            kwargs.pop("again", None)
            if isinstance(node.layer, FakeQuantize):
                # Fixed ranges need no products.
                args, _ = args[:1], kwargs.pop("shapes", None)
            outputs = self._layer(node)(*args, **kwargs)
        for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
            self.tensors[id(old)] = new

    def _layer(self, node: Any) -> keras.layers.Layer:
        layer, written = node.layer, self.lowering.written.get(id(node))
        if written is not None and written.sums is not None:
            # One per call: each input has a scale of its own.
            return Frozen.of(written, layer.shapes, self._name(layer.name))
        if id(layer) not in self.layers:
            self.layers[id(layer)] = self._copy(layer)
        return self.layers[id(layer)]

    def _copy(self, layer: Any) -> keras.layers.Layer:
        if isinstance(layer, FakeQuantize):
            return layer.settled()
        copy = type(layer).from_config(layer.get_config())
        if layer.built and not copy.built:
            copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
        self.names.add(layer.name)
        return copy

    def _name(self, name: str) -> str:
        unique, n = name, 1
        while unique in self.names:
            n += 1
            unique = f"{name}_call_{n}"
        self.names.add(unique)
        return unique
