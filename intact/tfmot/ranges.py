"""Ranges of a quantized model that are known beforehand."""

from typing import Any

import keras

from intact.errors import IntactError
from intact.graph.view import Graph, deep_graphs, view
from intact.layers.base import Dequantize
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized import Quantized
from intact.ops.base import AllSame, SameAsInput, get_op
from intact.tfmot.quantizers import fixed_params


def fix_input_output_range(
    model: keras.Model,
    num_bits: int = 8,
    input_min: float = 0.0,
    input_max: float = 1.0,
    output_min: float = 0.0,
    output_max: float = 1.0,
    narrow_range: bool = False,
) -> keras.Model:
    """Fix the ranges of a quantized model's inputs and outputs.

    They are exactly these in the file, whatever data is seen. Ranges that kernels prescribe
    (of a softmax, say) stay what they are, and so do inputs and outputs that are float.

    Args:
        model: A quantized model.
        num_bits: Width of inputs and outputs, which must be what they have.
        input_min: Smallest real value of the inputs.
        input_max: Largest real value of the inputs.
        output_min: Smallest real value of the outputs.
        output_max: Largest real value of the outputs.
        narrow_range: Leave out the smallest integer.

    Returns:
        A new model, with the same weights and other ranges.

    Raises:
        IntactError: The model is not quantized, has another width, or a range lacks 0.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = fix_input_output_range(intact.quantize_model(model), input_min=-1.0)
    >>> round(255 * q.layers[1].fixed[0], 4)
    2.0
    """
    graph = view(model)
    chosen: dict[str, tuple[float, float]] = {}
    found = [(input_min, input_max, layer) for layer in _at_inputs(graph)]
    found += [(output_min, output_max, layer) for layer in _at_outputs(graph)]
    if not found:
        raise IntactError(
            f"Model {model.name!r} has no quantized inputs or outputs. Quantize it first: "
            "`tfmot.quantization.keras.quantize_model(model)`."
        )
    for low, high, layer in found:
        if layer.fixed is None:
            if layer.spec.bits != num_bits:
                raise IntactError(
                    f"The range {layer.name!r} has {layer.spec.bits} bits. Received: "
                    f"num_bits={num_bits}. Pass its width, or quantize with another scheme."
                )
            symmetric = layer.spec.symmetric
            chosen[layer.name] = fixed_params(low, high, num_bits, narrow_range, symmetric)

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in chosen:
            config["fixed"] = chosen[layer.name]
        return type(layer).from_config(config)

    with deep_graphs(len(graph.nodes)):
        made = keras.models.clone_model(model, clone_function=clone)
    for new, old in zip(made.layers, model.layers, strict=True):
        if new.name not in chosen:
            new.set_weights(old.get_weights())
        elif new.clock:
            new.clock.set_weights(old.clock.get_weights())
    return made


def _at_inputs(graph: Graph) -> list[FakeQuantize]:
    readers = [node.layer for tensor in graph.inputs for node in graph.consumers(tensor)]
    return [layer for layer in readers if isinstance(layer, FakeQuantize)]


def _at_outputs(graph: Graph) -> list[FakeQuantize]:
    found = []
    for tensor in graph.outputs:
        node = graph.producer(tensor)
        # Back through what hands its range on: reshapes, and the way out into float.
        while _hands_on(node.layer):
            node = graph.producer(node.inputs[0])
        if isinstance(node.layer, FakeQuantize):
            found.append(node.layer)
    return found


def _hands_on(layer: Any) -> bool:
    """Whether the output of a layer has its input's range, or is that input in float."""
    if isinstance(layer, Dequantize):
        return True
    return isinstance(layer, Quantized) and isinstance(
        get_op(layer.layer).output, SameAsInput | AllSame
    )
