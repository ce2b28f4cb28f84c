"""Adjusts ranges of weights, rounding and biases layer by layer, from a model's own inputs."""

from typing import Any

import keras
import numpy as np
from keras import ops

from intact.calibration.walk import Walk, as_filed, in_float
from intact.graph.view import Node, view
from intact.layers.quantized import Quantized
from intact.numerics.forward import no_gradients
from intact.numerics.tensors import to_numpy
from intact.ops.base import Weighted
from intact.ops.registry import get_op
from intact.recovery.rounding import Covariance, Grid, descend, half_grid, integer_grid, shrunk

WINDOWS = 8192
"""How many patches a layer's covariance uses at most, in addition to two for each of its taps."""

WINDOWS_PER_TAP = 128
"""How many patches are enough for each tap: a depthwise convolution has few."""

MAX_TAPS = 4608
"""Layers with more taps are skipped, because the covariance would fill the memory."""


def float_pass(
    model: keras.Model, batch: list[Any], wanted: list[Any] | None = None
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The float model's mean before each bias that `adjust` may correct, and its outputs.

    Args:
        model: A quantized model; its own float weights are what it should compute.
        batch: The arrays of the inputs.
        wanted: Tensors of the graph, or `QTensor`s of them.

    Returns:
        By the name of a layer, the mean of each channel of its sums of products; and the real
        values of the wanted tensors.
    """
    graph, wanted = view(model), wanted or []
    walk = Walk(graph, [batch], keras.tree.flatten(wanted))
    sums = {}
    for node in graph.nodes:
        if node.is_input:
            continue
        if _is_once(node, walk):
            sums[node.layer.name] = _mean_sums(node, walk, node.layer.layer.kernel)
        walk.step(node, in_float)
    return sums, [to_numpy(walk.real(part)[0]) for part in wanted]


def adjust(
    model: keras.Model,
    batches: list[list[Any]],
    targets: dict[str, np.ndarray],
    weight_scales: bool,
    learned: bool,
    bias_correction: bool,
    seed: int,
    bar: Any,
) -> None:
    """Change the weights of a calibrated model, layer by layer.

    Each layer reads the outputs of the layers before it, which are changed already.

    Args:
        model: A quantized model; its own float weights are what it should compute.
        batches: Per batch, the arrays of the inputs.
        targets: The mean of the batches' sums, by `float_pass`.
        weight_scales: Search the range of each channel's weights.
        learned: Learn whether weights are rounded up or down.
        bias_correction: Undo the shift of the mean by all this.
        seed: Of the choice of patches.
        bar: Counts the calls made.
    """
    graph = view(model)
    walk = Walk(graph, batches)
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        if node.is_input:
            continue
        covariance = _covariance(node, walk, rng) if _is_once(node, walk) else None
        if covariance:
            norm = walk.kernels.of(node).norm
            chosen = _adjust(node.layer, covariance, norm, weight_scales, learned)
            if bias_correction:
                shift = targets[node.layer.name] - _mean_sums(node, walk, chosen)
                shifted = norm or node.layer.layer
                get_op(shifted).shift(shifted, shift)
                node.layer.corrected = shift
        walk.step(node, as_filed)
        bar.add(1)


def adjustable(layer: Any) -> bool:
    """Whether a layer has a kernel that is quantized by its range, and that `adjust` handles."""
    spec = layer.spec if isinstance(layer, Quantized) else None
    if spec is None or spec.rule.name != "range" or spec.power_of_two:
        return False
    op = get_op(layer.layer)
    return isinstance(op, Weighted) and "kernel" in op.weights


def _is_once(node: Node, walk: Walk) -> bool:
    """Whether a call is the only one of a layer that can be adjusted."""
    return walk.kernels.calls[id(node.layer)] == 1 and adjustable(node.layer)


def _mean_sums(node: Node, walk: Walk, kernel: Any) -> np.ndarray:
    """The mean of a layer's sums of products, per channel, with a given kernel."""
    parts = walk.real(node.args[0])
    count = sum(len(part) for part in parts)
    # Products are linear, so the mean over the samples can be taken first.
    mean = sum(to_numpy(ops.sum(part, axis=0, keepdims=True)) for part in parts) / count
    op: Any = get_op(node.layer.layer)
    with no_gradients():
        x, kernel = (ops.convert_to_tensor(a, "float32") for a in (mean, kernel))
        sums = to_numpy(op.products(node.layer.layer, x, kernel))
    return sums.mean(axis=tuple(range(sums.ndim - 1)))


def _covariance(node: Node, walk: Walk, rng: np.random.Generator) -> Covariance | None:
    layer = node.layer.layer
    op: Any = get_op(layer)
    parts = walk.real(node.args[0])
    one = op.patches(layer, to_numpy(parts[0]), np.zeros((1, 3)))
    if one is None or one.shape[1] > MAX_TAPS:
        return None
    taps = one.shape[1]
    count = -(-(min(WINDOWS, WINDOWS_PER_TAP * taps) + 2 * taps) // len(parts))
    patches = [op.patches(layer, to_numpy(part), rng.random((count, 3))) for part in parts]
    return Covariance.of(np.concatenate(patches))


def _adjust(
    quantized: Quantized, covariance: Covariance, norm: Any, weight_scales: bool, learned: bool
) -> np.ndarray:
    """Change a layer's kernel, and return its rounded values."""
    variable, spec = quantized.layer.kernel, quantized.spec
    assert spec is not None
    value = to_numpy(variable)
    groups, taps = covariance.square.shape[:2]
    kernel = value.reshape(taps, groups, -1).swapaxes(0, 1)
    grid: Grid
    if spec.kind == "float":
        factor = np.ones(1, "float32")
        if norm is not None:
            factor, _ = get_op(norm).factors(norm, kernel.shape[0] * kernel.shape[2])
        factor = np.broadcast_to(factor, (kernel.shape[0] * kernel.shape[2],))
        grid = half_grid(kernel, factor.reshape(groups, -1))
    elif weight_scales and spec.symmetric and spec.per_axis:
        grid = shrunk(covariance, kernel, spec)
    else:
        grid = integer_grid(kernel, spec)
    chosen = grid.rounded
    if learned:
        chosen = descend(covariance, kernel, chosen, grid.snap, grid.fixed)
    # If only ranges changed, or nothing, the model rounds the kernel as usual.
    written = chosen if learned else grid.kernel
    variable.assign(written.swapaxes(0, 1).reshape(value.shape))
    return chosen.swapaxes(0, 1).reshape(value.shape)
