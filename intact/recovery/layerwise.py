"""Layer after layer: ranges of weights, learned rounding and biases, from a model's own inputs."""

from collections import Counter
from typing import Any

import keras
import numpy as np

from intact.graph.view import Node, view
from intact.layers.alignment import folded_norm
from intact.layers.quantized import Quantized
from intact.numerics.affine import to_numpy
from intact.ops.base import Weighted, get_op
from intact.recovery.rounding import (
    Grid,
    Moments,
    descend,
    half_grid,
    integer_grid,
    shrunk,
)
from intact.recovery.walk import Walk, as_filed, in_float

WINDOWS = 8192
"""How many windows a layer's moments are taken from, beside two for each of its taps."""

MAX_TAPS = 4608
"""Layers with more taps are left alone: their moments would fill the memory."""


def adjust(
    model: keras.Model,
    batches: list[list[Any]],
    weight_scales: bool,
    learned: bool,
    bias_correction: bool,
    seed: int,
    bar: Any,
) -> None:
    """Change the weights of a calibrated model, layer by layer.

    Each layer sees what the layers before it, changed already, give it.

    Args:
        model: A quantized model; its own float weights are what it should compute.
        batches: Per batch, the arrays of the inputs.
        weight_scales: Search the range of each channel's weights.
        learned: Learn whether weights are rounded up or down.
        bias_correction: Take back what all this shifts in the mean.
        seed: Of the choice of windows.
        bar: Counts the calls made.
    """
    graph = view(model)
    real, rounded = Walk(graph, batches), Walk(graph, batches)
    rng = np.random.default_rng(seed)
    calls = Counter(id(node.layer) for node in graph.nodes)
    shifts: dict[int, np.ndarray] = {}
    for node in graph.nodes:
        if node.is_input:
            continue
        held = getattr(node.layer, "layer", node.layer)
        moments = None
        if adjustable(node.layer) and calls[id(node.layer)] == 1:
            moments = _moments(node, real, rounded, rng)
        # The float model first: its weights are those that are about to change.
        real.step(node, in_float)
        if moments:
            norm = folded_norm(node, graph)
            shift = _adjust(node.layer, moments, norm, weight_scales, learned)
            if bias_correction:
                shifts[id(norm or held)] = node.layer.corrected = shift
        if id(held) in shifts:
            get_op(held).shift(held, shifts[id(held)])
        rounded.step(node, as_filed)
        bar.add(1)


def adjustable(layer: Any) -> bool:
    """Whether a layer has a kernel that is quantized by its range, and that `adjust` may know."""
    spec = layer.spec if isinstance(layer, Quantized) else None
    if spec is None or spec.rule.name != "range" or spec.power_of_two:
        return False
    op = get_op(layer.layer)
    return issubclass(op, Weighted) and "kernel" in op.weights


def _moments(node: Node, real: Walk, rounded: Walk, rng: np.random.Generator) -> Moments | None:
    layer = node.layer.layer
    op: Any = get_op(layer)
    pairs = [*zip(real.real(node.args[0]), rounded.real(node.args[0]), strict=True)]
    one = op.windows(layer, to_numpy(pairs[0][0]), np.zeros((1, 3)))
    if one is None or one.shape[1] > MAX_TAPS:
        return None
    count = -(-(WINDOWS + 2 * one.shape[1]) // len(pairs))
    windows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for pair in pairs:
        places = rng.random((count, 3))
        for x, parts in zip(pair, windows, strict=True):
            parts.append(op.windows(layer, to_numpy(x), places))
    return Moments.of(np.concatenate(windows[1]), np.concatenate(windows[0]))


def _adjust(
    quantized: Quantized, moments: Moments, norm: Any, weight_scales: bool, learned: bool
) -> np.ndarray:
    """Change a layer's kernel; what that takes from the mean of its sums."""
    variable, spec = quantized.layer.kernel, quantized.spec
    assert spec is not None
    value = to_numpy(variable)
    groups, taps = moments.mean.shape
    kernel = value.reshape(taps, groups, -1).swapaxes(0, 1)
    grid: Grid
    if spec.kind == "float":
        factor = np.ones(1, "float32")
        if norm is not None:
            factor, _ = get_op(norm).factors(norm, kernel.shape[0] * kernel.shape[2])
        factor = np.broadcast_to(factor, (kernel.shape[0] * kernel.shape[2],))
        grid = half_grid(kernel, factor.reshape(groups, -1))
    elif weight_scales and spec.symmetric and spec.per_axis:
        grid = shrunk(moments, kernel, spec)
    else:
        grid = integer_grid(kernel, spec)
    chosen = grid.rounded
    if learned:
        chosen = descend(moments, kernel, chosen, grid.snap, grid.fixed)
    # Where only ranges changed, or nothing, the model rounds what is left as it always does.
    written = chosen if learned else grid.kernel
    variable.assign(written.swapaxes(0, 1).reshape(value.shape))
    return moments.shift(kernel, chosen).reshape(-1)
