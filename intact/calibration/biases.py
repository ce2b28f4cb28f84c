"""Bias correction: biases undo the shift of a layer's mean by rounded weights.

Source: Nagel et al., arXiv:1906.04721, section 4.2.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from intact.calibration.capture import Watch, products
from intact.layers.kernel_graph import Kernel, all_kernels
from intact.layers.quantized import Quantized
from intact.memory import separate_pages
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.numerics.weights import half_precision
from intact.ops.base import Weighted
from intact.ops.registry import get_op
from intact.quantizers.means import Mean

TOGETHER = 2**26
"""The size in bytes of the float kernels whose products are computed together."""


class BiasPass:
    """The pass over the data that corrects biases, by the mean of each layer's input.

    Args:
        model: A quantized model. Earlier corrections are taken back.
    """

    def __init__(self, model: keras.Model) -> None:
        take_back_corrections(model)
        self.model = model
        self.kernels = [kernel for kernel in all_kernels(model) if _has_kernel(kernel)]
        self.watches: list[Watch] = [(kernel.call.inputs[0], Mean()) for kernel in self.kernels]

    def apply(self, states: list[Any]) -> None:
        """Add to biases what rounding the weights takes from the mean of the outputs.

        Args:
            states: What each observer of `watches` saw of all the data.
        """
        # Products are linear: the mean over the samples may be taken first.
        means = [np.asarray(seen.total / seen.count, "float32")[None] for seen in states]
        self.correct(self.kernels, means)

    def correct(self, kernels: list[Kernel], means: list[np.ndarray]) -> None:
        """The same for some kernels.

        Args:
            kernels: Some of `kernels`.
            means: The mean of each one's input, a batch of one.
        """
        with separate_pages(self.model):
            lost = [gap for part in _parts(kernels, means) for gap in self._lost(*part)]
        per_layer: dict[int, list[Any]] = {}
        for kernel, gap in zip(kernels, lost, strict=True):
            shift = gap.mean(axis=tuple(range(gap.ndim - 1)))
            per_layer.setdefault(id(kernel.layer), [kernel]).append(shift)
        for kernel, *shifts in per_layer.values():
            kernel.quantized.corrected = np.mean(shifts, axis=0)
            _shift(kernel, kernel.quantized.corrected)

    def _lost(self, kernels: Sequence[Kernel], means: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What rounding the weights takes from each layer's output."""
        nodes = [kernel.call for kernel in kernels]
        return products(self.model, nodes, [_rounding(kernel) for kernel in kernels], [*means])


def _parts(
    kernels: list[Kernel], means: list[np.ndarray]
) -> Iterator[tuple[Sequence[Kernel], Sequence[np.ndarray]]]:
    """Some kernels with their inputs at a time, so that few are copied at once."""
    part: list[tuple[Kernel, np.ndarray]] = []
    size = 0
    for kernel, mean in zip(kernels, means, strict=True):
        more = 4 * math.prod(kernel.layer.kernel.shape)
        if part and size + more > TOGETHER:
            yield tuple(zip(*part, strict=True))
            part, size = [], 0
        part.append((kernel, mean))
        size += more
    if part:
        yield tuple(zip(*part, strict=True))


def take_back_corrections(model: keras.Model) -> None:
    """Undo the bias correction of a model.

    Args:
        model: A quantized model.
    """
    for kernel in all_kernels(model):
        if _corrected(kernel):
            quantized: Any = kernel.quantized
            _shift(kernel, -quantized.corrected)
            quantized.corrected = None


@contextlib.contextmanager
def without_corrections(model: keras.Model) -> Iterator[None]:
    """Undo the bias correction of a model inside a `with` block.

    Args:
        model: A quantized model.
    """
    corrected = [kernel for kernel in all_kernels(model) if _corrected(kernel)]
    variables = {id(v): v for kernel in corrected for v in _shifted(kernel).variables}
    state = State(model, weights=False, variables=variables.values())
    try:
        take_back_corrections(model)
        yield
    finally:
        state.restore()


class State:
    """A copy of all that calibration and recovery may change in a model.

    Args:
        model: A quantized model.
        weights: Whether to copy quantized weights, too, which only recovery changes.
        variables: The variables that may change; None: all of the model's.
    """

    def __init__(
        self,
        model: keras.Model,
        weights: bool = True,
        variables: Iterable[keras.Variable] | None = None,
    ) -> None:
        self.layers = [layer for layer in model.layers if isinstance(layer, Quantized)]
        self.corrected = [layer.corrected for layer in self.layers]
        kernels = {id(getattr(q.layer, name)) for q in self.layers for name in q.layouts()}
        variables = model.variables if variables is None else variables
        copied = (v for v in variables if weights or id(v) not in kernels)
        self.values = [(variable, np.array(to_numpy(variable))) for variable in copied]

    def restore(self) -> None:
        """Restore the copy."""
        for variable, value in self.values:
            variable.assign(value)
        for layer, corrected in zip(self.layers, self.corrected, strict=True):
            layer.corrected = corrected


def _shift(kernel: Kernel, amount: np.ndarray) -> None:
    """Add to the bias of a layer, or to the batch norm that folds into its weights."""
    layer = _shifted(kernel)
    get_op(layer).shift(layer, amount)


def _shifted(kernel: Kernel) -> Any:
    """The layer whose weights a correction changes."""
    return kernel.norm or kernel.layer


def _corrected(kernel: Kernel) -> bool:
    """Whether the biases of a kernel's layer are corrected."""
    return kernel.quantized is not None and kernel.quantized.corrected is not None


def _has_kernel(kernel: Kernel) -> bool:
    """Whether a kernel sums products with weights that are rounded."""
    quantized, op = kernel.quantized, kernel.op
    if quantized is None or quantized.spec is None or quantized.norm is not None:
        return False
    return op is not None and isinstance(op, Weighted) and "kernel" in op.weights


def _rounding(kernel: Kernel) -> np.ndarray:
    """The rounding error of a layer's weights."""
    quantized: Any = kernel.quantized
    exact, layout = to_numpy(kernel.layer.kernel), quantized.layouts()["kernel"]
    if quantized.spec.kind == "float":
        return exact - half_precision(exact, numpy_ops)
    values, scale = quantized.quantized_weights(numpy_ops)["kernel"]
    return exact - values * layout.spread(scale, exact.shape, numpy_ops)
