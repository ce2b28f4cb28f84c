"""Measures how quantizing each layer alone changes a model's outputs."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.api import quantize_model
from intact.calibration.calibration import find_ranges
from intact.calibration.sources import Data, collect
from intact.calibration.walk import Walk, as_filed, cut, in_float, relative_error
from intact.graph.view import Node
from intact.layers.alignment import before_shares
from intact.layers.kernel_graph import Kernel, KernelGraph, Role, kernel_graph
from intact.layers.stateful import refuse_stream
from intact.names import SchemeName
from intact.numerics.affine import QTensor, unquantized
from intact.numerics.backend_kernels import round_clip
from intact.numerics.tensors import to_numpy
from intact.ops.registry import get_op
from intact.plan.scheme import Scheme
from intact.progress import Progress
from intact.tables import Report, Table


@dataclass(frozen=True)
class LayerSensitivity:
    """How quantizing a single layer changes the outputs of a model that is otherwise float.

    Args:
        name: The layer.
        kind: Its op.
        snr: Signal to noise at the outputs, in dB: the variance over samples of the float
            model's outputs beside the squared error; of what goes into a softmax at the end.
        top1: Share of samples whose largest output is in the same place; None where no
            output has rank 2.

    Example:

    >>> LayerSensitivity("head", "Dense", snr=31.5, top1=0.99).snr
    31.5
    """

    name: str
    kind: str
    snr: float
    top1: float | None = None


@dataclass(frozen=True, repr=False)
class Sensitivity(Report):
    """What `sensitivity` returns; printing it gives a table.

    Args:
        layers: One entry per layer, the most damaging first.
        scheme: Name of the scheme.
        samples: How many samples were looked at.

    Example:

    >>> print(Sensitivity((LayerSensitivity("head", "Dense", 31.5, 0.99),), "int8", samples=100))
    Each layer alone in int8, 100 samples
    layer     op      SNR  top-1 same
    head   Dense  31.5 dB     99.00 %
    """

    layers: tuple[LayerSensitivity, ...]
    scheme: str
    samples: int

    def parts(self) -> list[str | Table]:
        """The table of the layers."""
        rows: list[tuple[str, ...]] = [("layer", "op", "SNR", "top-1 same")]
        for entry in self.layers:
            top1 = "" if entry.top1 is None else f"{100 * entry.top1:.2f} %"
            rows.append((entry.name, entry.kind, f"{entry.snr:.1f} dB", top1))
        return [f"Each layer alone in {self.scheme}, {self.samples} samples", Table(rows)]


def sensitivity(
    model: keras.Model,
    data: Data,
    scheme: SchemeName | Scheme = "int8",
    steps: int | None = None,
    batch_size: int = 32,
    allow_float: bool = False,
    verbose: int = 1,
) -> Sensitivity:
    """Rank the layers of a model by the damage that quantizing each of them does.

    Each layer is quantized alone: its inputs, its weights and its output. The rest computes
    in float. The model is quantized and calibrated once, and what lies before a layer is not
    computed again.

    Args:
        model: A float Keras model.
        data: As for `calibrate`; it is what the damage is measured on, too.
        scheme: The name of a preset, or a `Scheme`.
        steps: How many batches to take at most.
        batch_size: Samples that run at once; the tensors of a whole model are held in memory
            for so many.
        allow_float: As for `quantize_model`.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The ranking; print it.

    Raises:
        InvalidDataError: The data is empty, not finite, or wrongly shaped.
        UnsupportedLayerError: A layer has no integer form.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> [entry.name for entry in sensitivity(model, x, verbose=0).layers]
    ['head']
    """
    q = quantize_model(model, scheme, allow_float)
    refuse_stream(q, "`sensitivity`")
    arrays = collect(data, steps, batch_size, q.inputs)
    data = arrays if len(arrays) > 1 else arrays[0]
    find_ranges(q, data, batch_size=batch_size, bias_correction=False)
    kernels = kernel_graph(q)
    graph = kernels.graph
    alone = [kernel for kernel in kernels.kernels if rounds(kernel)]
    wanted = [before_shares(kernels, output) for output in graph.outputs]
    batches = cut(arrays, batch_size)
    bar = Progress("Quantizing each layer alone", len(batches) * len(alone), verbose)
    per_kernel: list[list[list[np.ndarray]]] = [[] for _ in alone]
    expected = []
    for batch in batches:
        walk = Walk(graph, [batch], [t for node in graph.nodes for t in node.outputs])
        for node in graph.nodes:
            if not node.is_input:
                walk.step(node, in_float)
        expected.append(_outputs(walk, wanted))
        before = dict(walk.values[0])
        for kernel, outputs in zip(alone, per_kernel, strict=True):
            _quantize_alone(walk, kernel)
            outputs.append(_outputs(walk, wanted))
            walk.values[0] = dict(before)
            bar.add(1)
    joined = _join(expected)
    calls = Counter(kernel.layer.name for kernel in alone)
    entries: dict[str, LayerSensitivity] = {}
    for kernel, outputs in zip(alone, per_kernel, strict=True):
        entry = _damage(kernel, joined, _join(outputs))
        # If a layer is called more than once, the worst call counts.
        if calls[entry.name] == 1 or entries.get(entry.name, entry).snr >= entry.snr:
            entries[entry.name] = entry
    name = scheme if isinstance(scheme, str) else scheme.name
    ranked = sorted(entries.values(), key=lambda entry: entry.snr)
    return Sensitivity(tuple(ranked), name, len(arrays[0]))


def rounds(kernel: Kernel) -> bool:
    """Whether a kernel does any rounding of its own."""
    return kernel.quantized is not None and (kernel.role is Role.FLOAT or kernel.rounds_sums)


def _quantize_alone(walk: Walk, kernel: Kernel) -> None:
    """Run one kernel on integers, and the kernels that depend on it in float again."""
    calls = {id(node) for node in kernel.calls}
    changed: set[int] = set()
    for node in walk.graph.nodes:
        if id(node) not in calls and not any(id(t) in changed for t in node.inputs):
            continue
        changed.update(id(t) for t in node.outputs)
        if node is kernel.call and kernel.role is Role.INTEGER:
            walk.step(node, _on_integers)
        elif id(node) in calls:
            walk.step(node, as_filed)
        else:
            walk.step(node, in_float)
        if node is kernel.range_call:
            (values,) = walk.values
            x = QTensor(*(values[id(t)] for t in node.outputs))
            values.update(zip(map(id, node.outputs), unquantized(x.values * x.scale), strict=True))


def _on_integers(kernels: KernelGraph, node: Node, args: tuple[Any, ...]) -> Any:
    """Round a layer's inputs to their ranges, and call it."""
    op, layer = get_op(node.layer.layer), node.layer
    single = len(layer.shapes) == 1
    tensors, operands = ([node.args[0]], [args[0]]) if single else (node.args[0], args[0])
    rounded = [
        x if index in op.plain else _to_range(kernels, tensor, QTensor(*x))
        for index, (tensor, x) in enumerate(zip(tensors, operands, strict=True))
    ]
    return layer(rounded[0] if single else rounded)


def _to_range(kernels: KernelGraph, symbols: Any, x: QTensor) -> QTensor:
    quantizer = kernels.range_of(symbols[0])
    assert quantizer is not None
    grid = quantizer.grid()
    values = round_clip(x.values * x.scale / grid.scale, grid.low, grid.high)
    return QTensor(values, grid.scale, grid.zero_point, ops.ones((), "bool"))


def _outputs(walk: Walk, wanted: list[Any]) -> list[np.ndarray]:
    return [to_numpy(walk.real(part)[0]) for part in wanted]


def _join(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _damage(
    kernel: Kernel, expected: list[np.ndarray], actual: list[np.ndarray]
) -> LayerSensitivity:
    pairs = [*zip(expected, actual, strict=True)]
    error = float(np.mean([relative_error(a, b) for a, b in pairs]))
    shares = [float((a.argmax(1) == b.argmax(1)).mean()) for a, b in pairs if a.ndim == 2]
    snr = -10 * math.log10(max(error, 1e-12))
    op = get_op(kernel.layer)
    return LayerSensitivity(kernel.layer.name, op.name, snr, min(shares, default=None))
