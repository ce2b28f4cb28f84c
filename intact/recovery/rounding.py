"""Rounds weights so that the sums of products change least, not the weights themselves.

For a layer with weights `w` and inputs `x`, the weights `q` on the grid are sought that minimise
the mean of `(w x - q x)**2`, a quadratic form of `q`: the objective of AdaRound (Nagel et al.,
arXiv:2004.10568, equation 13). It is solved exactly for one weight of every output channel at a
time, in turns (coordinate descent: Behdin et al., arXiv:2309.01885). The inputs are those of the
quantized model; a bias corrects its mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intact.numerics.affine import integer_range
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.weights import half_precision, weight_params
from intact.plan.scheme import TensorSpec

SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""The shares of a channel's range that are tried as its new range."""

SWEEPS = 4
"""How many times `descend` goes through all taps at most."""

BLOCK = 64
"""Taps whose steps change the slope of all others at once, in one product of matrices."""


@dataclass
class Covariance:
    """The covariance of the patches that a layer's weights are multiplied with, in groups.

    Args:
        square: Covariance of the taps in the quantized model, `(groups, taps, taps)`.
    """

    square: np.ndarray

    @classmethod
    def of(cls, patches: np.ndarray, damping: float = 0.01) -> "Covariance":
        """Covariance of patches.

        Args:
            patches: `(patches, taps, groups)`, of the quantized model.
            damping: A share of the mean variance that is added to all variances, for unseen
                patches.
        """
        count, _, groups = patches.shape
        centred = patches - patches.mean(axis=0)
        if groups == 1:
            # Without copies in another order, and BLAS computes half of a symmetric product.
            flat = centred[:, :, 0]
            square = (flat.T @ flat)[None] / count
        else:
            taps = np.ascontiguousarray(centred.transpose(2, 1, 0))
            square = taps @ taps.swapaxes(1, 2) / count
        ridge = damping * np.einsum("gkk->g", square) / square.shape[1] + 1e-12
        square += ridge[:, None, None] * np.eye(square.shape[1], dtype="float32")
        return cls(square)

    def error(self, kernel: np.ndarray, rounded: np.ndarray) -> np.ndarray:
        """The variance of the error of the sums, per group and channel.

        Args:
            kernel: `(groups, taps, channels)`.
            rounded: The same, rounded.
        """
        gap = kernel - rounded
        return np.sum(gap * (self.square @ gap), axis=1)


def descend(
    covariance: Covariance,
    kernel: np.ndarray,
    rounded: np.ndarray,
    snap: Callable[[np.ndarray, int], np.ndarray],
    fixed: np.ndarray,
) -> np.ndarray:
    """Round weights, each given the others, until none changes.

    Args:
        covariance: Of the layer's patches.
        kernel: Float weights, `(groups, taps, channels)`.
        rounded: Where to start.
        snap: `(values, tap) -> the nearest ones on the grid`; values are those of one tap.
        fixed: Which weights stay.

    Returns:
        The rounded weights.
    """
    square, rounded = covariance.square, rounded.copy()
    # Half the slope of the error, kept up to date.
    slope = square @ (rounded - kernel)
    for _ in range(SWEEPS):
        before = rounded.copy()
        for start in range(0, kernel.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            steps = np.zeros_like(rounded[:, block])
            inside = slope[:, block].copy()
            for k in range(steps.shape[1]):
                tap = start + k
                best = rounded[:, tap] - inside[:, k] / square[:, tap, tap, None]
                change = np.where(fixed[:, tap], 0.0, snap(best, tap) - rounded[:, tap])
                steps[:, k] = change
                inside += square[:, block, tap, None] * steps[:, None, k]
            rounded[:, block] += steps
            slope += square[:, :, block] @ steps
        if np.array_equal(before, rounded):
            break
    return rounded


@dataclass
class Grid:
    """The values that a layer's kernel may have, in the form `(groups, taps, channels)`.

    Args:
        kernel: Float weights, within the range of the grid.
        rounded: The nearest values of the grid.
        snap: As for `descend`.
        fixed: The weights that make the range, which stay.
    """

    kernel: np.ndarray
    rounded: np.ndarray
    snap: Callable[[np.ndarray, int], np.ndarray]
    fixed: np.ndarray


def integer_grid(kernel: np.ndarray, spec: TensorSpec, share: np.ndarray | None = None) -> Grid:
    """The grid of integers times their scales.

    Args:
        kernel: Float weights, `(groups, taps, channels)`.
        spec: How they are quantized.
        share: The share of each channel's range that is kept, `(groups, 1, channels)`.
    """
    if share is not None:
        limit = share * np.abs(kernel).max(axis=1, keepdims=True)
        kernel = np.clip(kernel, -limit, limit)
    layout = spec.layout(ScaleLayout((0, 2)))
    parts = layout.split(kernel, numpy_ops)
    params = weight_params(parts, spec.bits, layout.parts(3), numpy_ops, spec.symmetric)
    scale, zero_point = (
        layout.merge(np.broadcast_to(p, parts.shape), kernel.shape, numpy_ops)
        for p in (layout.stored(params[0], numpy_ops), params[1])
    )
    low, high = integer_range(spec.bits, narrow=spec.symmetric)

    def to_grid(values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(values / scale), low - zero, high - zero) * scale

    def snap(values: np.ndarray, tap: int) -> np.ndarray:
        return to_grid(values, scale[:, tap], zero_point[:, tap])

    fixed = np.zeros(kernel.shape, bool)
    for ends in (np.abs(parts),) if spec.symmetric else (parts, -parts):
        fixed |= layout.merge(_first_largest(ends, layout.parts(3)), kernel.shape, numpy_ops)
    rounded = np.where(fixed, kernel, to_grid(kernel, scale, zero_point))
    return Grid(kernel, rounded.astype("float32"), snap, fixed)


def _first_largest(values: np.ndarray, layout: ScaleLayout) -> np.ndarray:
    """Where the largest value stands of those that share a scale, the first one of equal ones."""
    shared = layout.shared(values.ndim)
    groups = np.moveaxis(values, shared, range(-len(shared), 0))
    rows = groups.reshape(*groups.shape[: values.ndim - len(shared)], -1)
    largest = np.zeros(rows.shape, bool)
    np.put_along_axis(largest, rows.argmax(axis=-1)[..., None], True, axis=-1)
    return np.moveaxis(largest.reshape(groups.shape), range(-len(shared), 0), shared)


def half_grid(kernel: np.ndarray, factor: np.ndarray) -> Grid:
    """The grid of float16, as the file has it: with a batch norm folded into the weights.

    Args:
        kernel: Float weights, `(groups, taps, channels)`.
        factor: The batch norm's factors, `(groups, channels)`.
    """
    factor = np.where(factor == 0, np.float32(1), factor)

    def snap(values: np.ndarray, tap: int) -> np.ndarray:
        return half_precision(values * factor, numpy_ops) / factor

    rounded = half_precision(kernel * factor[:, None], numpy_ops) / factor[:, None]
    return Grid(kernel, rounded, snap, np.zeros(kernel.shape, bool))


def shrunk(covariance: Covariance, kernel: np.ndarray, spec: TensorSpec) -> Grid:
    """The grid of the range, per channel, that leaves the smallest error.

    Args:
        covariance: Of the layer's patches.
        kernel: Float weights, `(groups, taps, channels)`.
        spec: How they are quantized.
    """
    shape = (kernel.shape[0], 1, kernel.shape[2])
    errors = []
    for share in SHRINK:
        grid = integer_grid(kernel, spec, np.full(shape, share, "float32"))
        errors.append(covariance.error(kernel, grid.rounded))
    best = np.array(SHRINK, "float32")[np.argmin(errors, axis=0)]
    return integer_grid(kernel, spec, best.reshape(shape))
