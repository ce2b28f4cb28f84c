"""A plain model with the layers' names, kinds and shapes, for people to look at."""

import math
from collections import Counter
from typing import Any

import keras

from intact.graph.view import Functional, Node, view


class Outline(Functional):
    """A model that only shows another one: its layers have no weights, and compute nothing."""

    @property
    def trainable_weights(self) -> list[Any]:
        """The weights of the model that is shown, so that their number is told."""
        return list(self.__dict__["shown"].trainable_weights)

    @property
    def non_trainable_weights(self) -> list[Any]:
        """Its other weights."""
        return list(self.__dict__["shown"].non_trainable_weights)


class StandIn(keras.layers.Layer):
    """A layer of an outline; the name of its class says what it stands for.

    Args:
        shape: The shape of its output.
        parameters: How many numbers the layer has that it stands for.
    """

    def __init__(self, shape: tuple[int | None, ...], parameters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.parameters, self.built = shape, parameters, True

    def call(self, inputs: Any) -> Any:
        """Refuse to compute anything.

        Args:
            inputs: Tensors.
        """
        raise NotImplementedError("An outline is there to be looked at. Call the model itself.")

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        """The output.

        Args:
            inputs: Symbolic tensors.
        """
        return keras.KerasTensor(self.shape, "float32")

    def count_params(self) -> int:
        """How many numbers the layer has that it stands for."""
        return self.parameters


def outline(model: keras.Model) -> keras.Model:
    """A model for `summary` and `keras.utils.plot_model`, in which each layer is called what it is.

    Args:
        model: A quantized model.

    Returns:
        A model with the same names and connections. A layer's class is called after its `label`,
        such as "Conv2D, int8", and has one output.

    Example:

    >>> import intact
    >>> layers = [keras.Input((4,)), keras.layers.Dense(2, name="head")]
    >>> shown = outline(intact.quantize_model(keras.Sequential(layers)))
    >>> type(shown.get_layer("head")).__name__, shown.get_layer("head").count_params()
    ('Dense, int8', 10)
    """
    graph = view(model)
    tensors: dict[int, Any] = {}
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        sources = {id(tensors[id(t)]): tensors[id(t)] for t in node.inputs}
        new = _call(node, list(sources.values()), seen)
        tensors.update((id(tensor), new) for tensor in node.outputs)
    inputs, outputs = ([tensors[id(t)] for t in side] for side in (graph.inputs, graph.outputs))
    shown = Outline(inputs, outputs, name=model.name)
    # Keras would track the layers of an attribute.
    object.__setattr__(shown, "shown", model)
    return shown


def _call(node: Node, inputs: list[Any], seen: Counter[str]) -> keras.KerasTensor:
    """What stands for a call."""
    first, layer = node.outputs[0], node.layer
    if node.is_input:
        return keras.Input(batch_shape=first.shape, dtype=first.dtype, name=layer.name)
    kind = type(getattr(layer, "label", type(layer).__name__), (StandIn,), {})
    # A layer that is called several times is shown for each call, and counts once.
    weights = [] if seen[layer.name] else getattr(layer, "weights", [])
    name = f"{layer.name}_{seen[layer.name]}" if seen[layer.name] else layer.name
    seen[layer.name] += 1
    count = sum(math.prod(weight.shape) for weight in weights)
    return kind(first.shape, count, name=name)(inputs[0] if len(inputs) == 1 else inputs)
