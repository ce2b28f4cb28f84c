"""Moves scales between layers, so that the channels of a tensor fill its range evenly.

A ReLU commutes with a positive factor. The float model stays the same if a layer's channel is
divided by a factor and the layer that reads it is multiplied by it (cross-layer equalization,
Nagel et al., arXiv:1906.04721, section 4.1). Each output channel of weights has its own scale,
which absorbs any factor. The tensor in between gains, because it has one scale for all channels.
The weights that read it may lose, because their input channels share a scale. The factors
therefore make the tensor and these weights equally uneven (Xiao et al., arXiv:2211.10438,
equation 4, with a half). If a depthwise convolution reads the tensor, they make the tensor even,
because each channel of that convolution has its own scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from intact.calibration.walk import Walk, in_float
from intact.graph.view import view
from intact.layers.kernel_graph import Kernel, KernelGraph, Role
from intact.numerics.tensors import to_numpy
from intact.ops.conv import DepthwiseConv2D
from intact.ops.registry import get_op
from intact.ops.relu import relu_bounds
from intact.recovery.layerwise import adjustable

HOMOGENEOUS = (
    layers.AveragePooling2D,
    layers.Dropout,
    layers.LeakyReLU,
    layers.MaxPooling2D,
    layers.UpSampling2D,
    layers.ZeroPadding2D,
)
"""Layers that commute with a positive factor per channel."""

HEADROOM = 1.1
"""How much larger than the largest value seen the limit of a ReLU stays."""

LARGEST = 64.0
"""The largest factor, or divisor, of a channel."""


@dataclass
class Pair:
    """Two kernels with a tensor in between whose channels can be scaled.

    Args:
        first: The kernel that makes the tensor.
        upper: Where a ReLU clamps it.
        second: The kernel that reads it.
        factors: The divisors of its channels.
    """

    first: Kernel
    upper: float | None
    second: Kernel
    factors: Any = None


def pairs(kernels: KernelGraph) -> Iterator[Pair]:
    """The pairs of kernels between which scales can be moved."""
    for first in kernels.kernels:
        if not adjustable(first.call.layer) or kernels.calls[id(first.call.layer)] > 1:
            continue
        if isinstance(first.layer, layers.Conv2DTranspose):
            continue
        if first.norm is not None and not first.norm.scale:
            continue
        upper, second = _reader(kernels, first)
        if second is None or kernels.calls[id(second.call.layer)] > 1:
            continue
        if _input_channels(second.layer) == first.call.outputs[0].shape[-1]:
            yield Pair(first, upper, second)


def _reader(kernels: KernelGraph, first: Kernel) -> tuple[float | None, Kernel | None]:
    """The kernel that reads another's output through layers that commute with a positive factor.

    Returns:
        The limit that clamps that output, and the kernel that reads it, if scales can move there.
    """
    upper, kernel = None, first
    while True:
        lower, bound = kernel.clamp
        shared = kernel.quantizer is not None and kernel.quantizer.slots > 1
        if shared or lower not in (None, 0.0):
            return upper, None
        upper = bound or upper
        following = kernels.sole_reader(kernel)
        if following is None or adjustable(following.call.layer):
            return upper, following
        kernel = following
        clamp = None if kernel.op is None else relu_bounds(kernel.layer)
        if clamp is not None:
            upper = clamp[1] or upper
        elif kernel.role is not Role.QUANTIZE and not isinstance(kernel.layer, HOMOGENEOUS):
            return upper, None


def _input_channels(layer: Any) -> int | None:
    """How many channels a layer reads, if each has its own weights along axis -2."""
    if getattr(layer, "groups", 1) > 1 or isinstance(layer, layers.Conv2DTranspose):
        return None
    return layer.kernel.shape[-2]


def equalize(model: keras.Model, batches: list[list[Any]]) -> int:
    """Move scales between the layers of a quantized model; calibrate it again afterwards.

    Args:
        model: The model; its float weights change, but not what they compute.
        batches: Per batch, the arrays of the inputs.

    Returns:
        The number of pairs of layers.
    """
    graph = view(model)
    walk = Walk(graph, batches)
    by_reader = {id(pair.second.call): pair for pair in pairs(walk.kernels)}
    for node in graph.nodes:
        if node.is_input:
            continue
        if id(node) in by_reader:
            # Read them before the call, which forgets its inputs.
            pair = by_reader[id(node)]
            peaks = [_peaks(to_numpy(x)) for x in walk.real(node.args[0])]
            pair.factors = _factors(np.max(peaks, axis=0), pair.upper, pair.second.layer)
        walk.step(node, in_float)
    for pair in by_reader.values():
        _scale(pair)
    return len(by_reader)


def _peaks(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(axis=tuple(range(x.ndim - 1)))


def _factors(peaks: np.ndarray, upper: float | None, reader: Any) -> np.ndarray:
    """The divisors of a tensor's channels.

    Args:
        peaks: The largest magnitude of each channel.
        upper: Where a ReLU clamps.
        reader: The layer that reads the tensor.
    """
    peak = peaks.max()
    kernel = np.abs(to_numpy(reader.kernel))
    kernel = kernel.reshape(-1, *kernel.shape[-2:]).max(axis=0)
    live = (peaks > peak / LARGEST**2) & (kernel.max(axis=1) > 0)
    if not live.any():
        return np.ones(len(peaks), "float32")
    even = np.where(live, peaks, peak) / peak
    if not isinstance(get_op(reader), DepthwiseConv2D):
        # Per output channel, because each has its own scale.
        share = (kernel / np.maximum(kernel.max(axis=0), 1e-30)).max(axis=1)
        even = np.sqrt(even / np.where(live, share, 1.0))
        even = even * (peaks[live] / even[live]).max() / peak
    factors = np.clip(even, 1 / LARGEST, LARGEST)
    if upper is not None:
        # Enlarge it, but not up to the limit; never shrink it, because it would no longer be
        # clamped.
        factors = np.clip(factors, np.minimum(HEADROOM * peaks / upper, 1.0), 1.0)
    return np.where(live, factors, 1.0).astype("float32")


def _scale(pair: Pair) -> None:
    """Divide the channels of a tensor, and multiply the weights that read it."""
    first, norm, factors = pair.first.layer, pair.first.norm, pair.factors
    if norm is not None:
        divided = [norm.gamma, *([norm.beta] if norm.center else [])]
    else:
        kernel = first.kernel
        depthwise = isinstance(get_op(first), DepthwiseConv2D)
        shape = [*kernel.shape[:-2], -1] if depthwise else kernel.shape
        value = to_numpy(kernel).reshape(shape) / factors
        kernel.assign(value.reshape(kernel.shape))
        divided = [] if first.bias is None else [first.bias]
    for variable in divided:
        variable.assign(to_numpy(variable) / factors)
    reader = pair.second.layer.kernel
    reader.assign(to_numpy(reader) * factors[:, None])
