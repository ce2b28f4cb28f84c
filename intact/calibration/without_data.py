"""Bias correction without data: batch norms say what the layers behind them read.

Source: Nagel et al., arXiv:1906.04721, section 4.2 and appendix C. The output of a batch norm is
taken for normally distributed, with beta as its mean and gamma as its deviation. Here samples of
that distribution go through activations and sums, so any function will do.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.calibration.biases import BiasPass
from intact.calibration.walk import in_float
from intact.graph.view import Node
from intact.layers.kernel_graph import KernelGraph, kernel_graph
from intact.numerics.forward import no_gradients
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import is_symbolic, to_numpy
from intact.ops.registry import find_op

SAMPLES = 512
"""Samples of each distribution: more change no mean by more than a thousandth of its deviation."""

UNKNOWN_SIZE = 32
"""Stands for a size that the model does not know: the edges of an image count a little."""


def correct_without_data(model: keras.Model) -> None:
    """Add to biases what rounding the weights takes from the mean of the outputs.

    Layers whose inputs no batch norm tells of, and weights of float16, are left as they are.

    Args:
        model: A quantized model whose activations stay in float.

    Example:

    >>> import intact
    >>> norm, relu = keras.layers.BatchNormalization(), keras.layers.ReLU()
    >>> model = keras.Sequential([keras.Input((4,)), norm, relu, keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model, "weight_only_4")  # calls this
    >>> q.layers[-1].corrected.shape
    (2,)
    """
    biases = BiasPass(model)
    samples = channel_samples(model)
    kernels, means = [], []
    for kernel in biases.kernels:
        x, quantized = kernel.call.inputs[0], kernel.quantized
        assert quantized is not None and quantized.spec is not None
        # Weights of float16 are rounded in the file together with the batch norm's factors.
        if id(x) in samples and quantized.spec.kind != "float":
            sizes = (UNKNOWN_SIZE if size is None else size for size in x.shape[1:-1])
            mean = samples[id(x)].mean(axis=0).astype("float32")
            kernels.append(kernel)
            means.append(np.ascontiguousarray(np.broadcast_to(mean, (1, *sizes, len(mean)))))
    if kernels:
        biases.correct(kernels, means)


def channel_samples(model: keras.Model) -> dict[int, np.ndarray]:
    """What the channels of a model's tensors are like, as far as its batch norms tell.

    Args:
        model: A quantized model whose activations stay in float.

    Returns:
        By the id of a tensor, samples of shape `(SAMPLES, channels)`. Samples of one row belong
        together, as far as their tensors depend on the same batch norm.
    """
    kernels, rng = kernel_graph(model), np.random.default_rng(0)
    samples: dict[int, np.ndarray] = {}
    for node in kernels.graph.nodes:
        operands = [samples.get(id(tensor)) for tensor in node.inputs]
        result: np.ndarray | None
        if isinstance(node.layer, keras.layers.BatchNormalization):
            result = _normalized(node.layer, rng)
        elif node.is_input or any(operand is None for operand in operands):
            continue
        else:
            result = _behind(kernels, node, operands)
        if result is not None and result.shape[-1] == node.outputs[0].shape[-1]:
            samples[id(node.outputs[0])] = result
    return samples


def _normalized(layer: Any, rng: np.random.Generator) -> np.ndarray:
    """Samples of a batch norm's output: in each channel the same quantiles, in another order."""
    quantiles = [NormalDist().inv_cdf((n + 0.5) / SAMPLES) for n in range(SAMPLES)]
    channels = layer.moving_mean.shape[0]
    gamma = numpy_ops.convert_to_tensor(layer.gamma) if layer.scale else np.ones(channels)
    beta = numpy_ops.convert_to_tensor(layer.beta) if layer.center else np.zeros(channels)
    columns = np.tile(np.array(quantiles, "float32")[:, None], channels)
    return beta + gamma * rng.permuted(columns, axis=0)


def _behind(kernels: KernelGraph, node: Node, operands: Sequence[Any]) -> np.ndarray | None:
    """Samples of a layer's output; None if it is not known to treat each channel by itself."""
    op, channels = find_op(getattr(node.layer, "layer", node.layer)), node.outputs[0].shape[-1]
    name = "" if op is None else op.name
    first = operands[0]
    if name in ("AveragePooling2D", "Dropout", "Identity"):
        return first
    if name == "ReduceMean" and len(node.inputs[0].shape) - 1 not in node.layer.axes:
        return np.tile(first.mean(axis=0), (SAMPLES, 1))
    if name == "Reshape" and channels and channels % first.shape[-1] == 0:
        return np.tile(first, channels // first.shape[-1])
    if name == "Concatenate" and node.layer.axis in (-1, len(node.outputs[0].shape) - 1):
        return np.concatenate(operands, axis=-1)
    if op is None or not (op.pointwise or name == "PReLU"):
        return None
    return _called(kernels, node, operands)


def _called(kernels: KernelGraph, node: Node, operands: Sequence[Any]) -> np.ndarray:
    """Samples of the output of a layer that computes each value by itself."""
    places = iter(
        np.reshape(x, (SAMPLES, *(1,) * (len(tensor.shape) - 2), -1)).astype("float32")
        for x, tensor in zip(operands, node.inputs, strict=True)
    )
    args = keras.tree.map_structure(
        lambda a: ops.convert_to_tensor(next(places)) if is_symbolic(a) else a, node.args
    )
    with no_gradients():
        y = to_numpy(in_float(kernels, node, args))
    # Slopes may differ from place to place.
    return y.reshape(SAMPLES, -1, y.shape[-1]).mean(axis=1)
