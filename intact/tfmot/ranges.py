"""Ranges of a quantized model that are known beforehand."""

from typing import Any

import keras

from intact.errors import IntactError
from intact.graph.view import deep_graphs
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.kernel_graph import KernelGraph, Role, kernel_graph
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
    kernels = kernel_graph(model)
    chosen: dict[str, tuple[float, float]] = {}
    targets = [(input_min, input_max, layer) for layer in _at_inputs(kernels)]
    targets += [(output_min, output_max, layer) for layer in _at_outputs(kernels)]
    if not targets:
        raise IntactError(
            f"Model {model.name!r} has no quantized inputs or outputs. Quantize it first: "
            "`tfmot.quantization.keras.quantize_model(model)`."
        )
    for low, high, layer in targets:
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

    with deep_graphs(len(kernels.graph.nodes)):
        clone_model = keras.models.clone_model(model, clone_function=clone)
    for new, old in zip(clone_model.layers, model.layers, strict=True):
        if new.name not in chosen:
            new.set_weights(old.get_weights())
        elif new.clock:
            new.clock.set_weights(old.clock.get_weights())
    return clone_model


def _at_inputs(kernels: KernelGraph) -> list[FakeQuantize]:
    graph = kernels.graph
    readers = [kernels.of(node) for tensor in graph.inputs for node in graph.consumers(tensor)]
    return [kernel.layer for kernel in readers if kernel.role is Role.QUANTIZE]


def _at_outputs(kernels: KernelGraph) -> list[FakeQuantize]:
    ranges = [kernels.range_of(tensor) for tensor in kernels.graph.outputs]
    return [quantizer for quantizer in ranges if quantizer is not None]
