"""Chooses the range of a factor as wide as its products need.

A factor is a tensor that is only multiplied: the inverse of a deviation or of a sum, say. In blank
rows (padding, silence, dead channels) it is as large as an epsilon allows, and its partner, the
tensor that it is multiplied with, is 0 there. A range with room for such values has no integers
left for the others. So a factor's values are grouped by the magnitude of their partners, and values
beside the smallest partners may saturate if the products gain by it.

The relative error of a product has two parts: the rounding of the partner, which counts more the
smaller the partner is, and the rounding of the factor, which counts more the wider its range is.
The range is the widest one whose mean error, in decibels, is within `TOLERANCE` of the best.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from intact.numerics.backend_kernels import extremes, place, replicas
from intact.numerics.exact import MIN_SCALE
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import Tensor
from intact.quantizers.observers import Observer

LEVELS = 128
"""The number of octaves, around 1, by which partners are grouped."""

LOST = 1 / 12
"""Relative squared error of a partner as small as its step: its products are lost."""

SURE = 1e-2
"""Largest relative squared error (-20 dB) of a partner whose products count as right."""

SHARE = 5e-3
"""Share of the energy of right products that may be lost."""

TOLERANCE = math.log(10) / 10
"""One decibel, in the natural logarithm of a squared error."""

SAMPLE = 4096
"""Roughly how many values a training step samples."""

_LEAST = np.float32(2.0**-100)


class Use(NamedTuple):
    """Statistics of a factor, by the octave of its partner's magnitude.

    Args:
        count: How many of its values have such partners.
        logs: The sum of the logarithms of their sizes.
        energy: The sum of their squared products.
        minimum: The smallest of them, or 0.
        maximum: The largest of them, or 0.
        span: The width of the partner's range.
    """

    count: Tensor
    logs: Tensor
    energy: Tensor
    minimum: Tensor
    maximum: Tensor
    span: Tensor


def look(
    x: Tensor,
    partner: Tensor,
    shape: tuple[int, ...] | None,
    xp: Any = ops,
    most: int | None = None,
    unit: Any = 1.0,
) -> Use:
    """The statistics of one batch of a factor.

    Args:
        x: The factor.
        partner: The tensor that it is multiplied with.
        shape: The factor's shape in the product, without the batch; None where it is its own.
        xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.
        most: Roughly how many values of the global batch to sample; None for all.
        unit: What the partner's values count in.
    """
    x = x if shape is None else xp.reshape(x, (-1, *shape))
    size = _size(partner, x.shape, xp) * unit
    # Either one may be broadcast along axes of the other.
    values = xp.reshape(x * xp.ones_like(size), (-1,))
    size = xp.reshape(size * xp.ones_like(x), (-1,))
    if most is not None:
        # An odd stride reaches all places of a row. Each replica goes on where the last one ended.
        before, total = place(ops.shape(values)[0])
        step = total // most // 2 * 2 + 1
        first = -before % step if replicas() > 1 else 0
        # TensorFlow does not know the rank of a slice of an open size.
        values, size = (xp.reshape(part[first::step], (-1,)) for part in (values, size))
    octave = xp.floor(xp.log(xp.maximum(size, _LEAST)) * np.float32(1 / math.log(2)))
    level = xp.cast(xp.clip(octave + LEVELS // 2, 0, LEVELS - 1), "int32")
    logs = xp.log(xp.maximum(xp.abs(values), _LEAST))
    count, logs, energy = (
        xp.segment_sum(part, level, num_segments=LEVELS)
        for part in (xp.ones_like(values), logs, (values * size) ** 2)
    )
    # A level without values gets 0, which every range contains.
    lower, upper = (
        xp.maximum(xp.segment_max(part, level, num_segments=LEVELS), np.float32(0))
        for part in (-values, values)
    )
    bottom, top = extremes(partner, xp)
    span = (xp.maximum(top, 0.0) - xp.minimum(bottom, 0.0)) * unit
    return Use(count, logs, energy, -lower, upper, span)


def _size(partner: Tensor, shape: tuple[int | None, ...], xp: Any) -> Tensor:
    """The root mean square of each value's partners, without zeros, which have no error.

    Args:
        partner: The tensor that a factor is multiplied with.
        shape: The shape of the factor.
        xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.
    """
    axes = [a for a, n in enumerate(shape) if a and n == 1 and partner.shape[a] != 1]
    if not axes:
        return xp.abs(partner)
    total = xp.sum(partner * partner, axis=tuple(axes), keepdims=True)
    filled = xp.sum(xp.cast(partner != 0, "float32"), axis=tuple(axes), keepdims=True)
    return xp.sqrt(total / xp.maximum(filled, np.float32(1)))


def reach(use: Use, steps: int, xp: Any = ops, least: Any = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The range that a factor needs.

    Args:
        use: The statistics of the factor.
        steps: How many steps its range has, and its partner's.
        xp: As for `look`.
        least: The smallest step that the partner may have.

    Returns:
        `(minimum, maximum, known)`: the range, and 1 or 0 for whether any partner is large enough
        to tell. If none is, the range is empty.

    Example:

    >>> from intact.numerics.numpy_ops import (numpy_ops)
    >>> x, partner = np.array([[1.0], [2.0], [1000.0]]), np.array([[1.0], [0.5], [0.0]])
    >>> use = look(x, partner, None, numpy_ops)
    >>> minimum, maximum, known = reach(use, 255, numpy_ops)
    >>> float(maximum)
    2.0
    """
    octave = np.arange(LEVELS, dtype="float32") - np.float32(LEVELS / 2 - 0.5)
    middle = xp.convert_to_tensor(np.exp2(octave))
    step = xp.maximum(use.span * np.float32(1 / steps), xp.maximum(least, np.float32(MIN_SCALE)))
    partner = xp.minimum(step / middle, np.float32(1)) ** 2 * np.float32(LOST)
    weight = xp.where(partner < LOST, use.count, xp.zeros_like(partner))
    total = xp.sum(weight)
    # A row for each range: of the values whose partners are of one level and above.
    kept = xp.convert_to_tensor(np.triu(np.ones((LEVELS, LEVELS), "float32")))
    low, high = xp.min(use.minimum * kept, axis=1), xp.max(use.maximum * kept, axis=1)
    loss = xp.sum(_errors(use, partner, low, high, steps, xp) * weight, axis=1)
    loss = loss / xp.maximum(total, np.float32(1))
    # Hardly any of the right products may be lost.
    right = xp.where(partner < SURE, use.energy, xp.zeros_like(partner))
    lost = xp.sum(right * (1 - kept), axis=1) > xp.sum(right) * np.float32(SHARE)
    loss = xp.where(lost, xp.zeros_like(loss), loss)
    fits = xp.cast(loss <= xp.min(loss) + np.float32(TOLERANCE), "float32")
    known = xp.cast(total > 0, "float32")
    return xp.min(fits * low) * known, xp.max(fits * high) * known, known


def _errors(use: Use, partner: Any, low: Any, high: Any, steps: int, xp: Any) -> Any:
    """The logarithm of the relative squared error of products.

    Args:
        use: As for `reach`.
        partner: By level, the error of the partner.
        low: Smallest values of ranges.
        high: Largest values.
        steps: As for `reach`.
        xp: As for `look`.

    Returns:
        A row for each range and a column for each level.
    """
    size = xp.exp(use.logs / xp.maximum(use.count, np.float32(1)))
    width, end = (xp.reshape(x, (-1, 1)) for x in (high - low, xp.maximum(-low, high)))
    # A larger error is a loss in any case.
    own = xp.minimum(width / size * np.float32(1 / steps), np.float32(4))
    missing = xp.maximum(1.0 - end / size, 0.0)
    # Products are rounded, too: about as finely as the largest partners.
    finest = xp.min(xp.where(use.count > 0, partner, xp.ones_like(partner)))
    error = partner + finest + own**2 * np.float32(1 / 12) + missing**2
    return xp.log(xp.clip(error, _LEAST, np.float32(1)))


@dataclass(frozen=True)
class UseObserver(Observer):
    """Looks at a factor and its partner together.

    Args:
        shape: As for `look`.
    """

    state_type: ClassVar[type] = Use
    shape: tuple[int, ...] | None = None

    def look(self, x: tuple[Tensor, Tensor], xp: Any = ops) -> Use:
        """The statistics of one batch, from the factor and its partner."""
        return look(*x, self.shape, xp)

    def join(self, a: Use, b: Use, xp: Any = ops) -> Use:
        """The joint statistics of two parts of the data."""
        return Use(
            a.count + b.count,
            a.logs + b.logs,
            a.energy + b.energy,
            xp.minimum(a.minimum, b.minimum),
            xp.maximum(a.maximum, b.maximum),
            xp.maximum(a.span, b.span),
        )

    def update(self, state: Use, seen: Use, xp: Any = ops) -> Use:
        """The same as `join`."""
        return self.join(state, seen, xp)


def limits(uses: list[Use], steps: int) -> tuple[float, float]:
    """The widest range of a factor.

    Args:
        uses: Its statistics for each partner, if it is a factor.
        steps: As for `reach`.

    Returns:
        `(minimum, maximum)`; infinite if nothing is known.
    """
    known = [ends[:2] for ends in (reach(use, steps, numpy_ops) for use in uses) if ends[2]]
    if not known:
        return -math.inf, math.inf
    minimum, maximum = zip(*known, strict=True)
    return float(min(minimum)), float(max(maximum))
