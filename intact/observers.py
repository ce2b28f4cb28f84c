"""Observers: how the range of a tensor follows the data that is seen.

An observer is a pure rule, `(state, batch) -> state`; the state lives in variables of
the layer that asks (`intact.quantizers.FakeQuantize`). Ranges start from the first
data seen, never from a constant.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from keras import ops

from intact.numerics import Tensor


class Range(NamedTuple):
    """What an observer remembers: a range and how many batches made it."""

    minimum: Tensor
    maximum: Tensor
    count: Tensor


@dataclass(frozen=True)
class Observer:
    """Base of the observers: a rule for updating a range."""

    name: ClassVar[str]

    def update(self, state: Range, minimum: Tensor, maximum: Tensor) -> Range:
        """Take in the range of one batch.

        Args:
            state: The range until now; its bounds are ignored while `count` is 0.
            minimum: Smallest value of the batch, scalar.
            maximum: Largest value of the batch, scalar.

        Returns:
            The new range.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MinMax(Observer):
    """The smallest and largest value ever seen.

    Example:

    >>> state = MinMax().update(Range(0.0, 0.0, 0.0), 1.0, 3.0)
    >>> float(MinMax().update(state, 2.0, 4.0).maximum)
    4.0
    """

    name: ClassVar[str] = "min_max"

    def update(self, state: Range, minimum: Tensor, maximum: Tensor) -> Range:
        first = state.count == 0
        return Range(
            ops.where(first, minimum, ops.minimum(state.minimum, minimum)),
            ops.where(first, maximum, ops.maximum(state.maximum, maximum)),
            state.count + 1.0,
        )


@dataclass(frozen=True)
class MovingAverage(Observer):
    """A debiased exponential moving average of the batches' smallest and largest value.

    The step size `(1 - momentum) / (1 - momentum ** count)` is the moving average
    divided by the sum of its weights, as in Adam (Kingma & Ba, arXiv:1412.6980).

    Args:
        momentum: Share of the old range that is kept in the long run.

    Example:

    >>> state = MovingAverage(0.9).update(Range(0.0, 0.0, 0.0), -1.0, 3.0)
    >>> float(state.maximum)
    3.0
    """

    name: ClassVar[str] = "moving_average"
    momentum: float = 0.99

    def update(self, state: Range, minimum: Tensor, maximum: Tensor) -> Range:
        count = state.count + 1.0
        # In float32 on both sides, so that the first step is exactly 1.
        rest = float(np.float32(1) - np.float32(self.momentum))
        step = rest / (1.0 - ops.power(self.momentum, count))
        return Range(
            state.minimum + step * (minimum - state.minimum),
            state.maximum + step * (maximum - state.maximum),
            count,
        )


def following(momentum: float) -> Observer:
    """How ranges follow the data of training.

    Args:
        momentum: Share of the old range that is kept; all of it makes ranges that only grow.

    Returns:
        The observer.

    Example:

    >>> following(1.0)
    MinMax()
    """
    return MinMax() if momentum == 1 else MovingAverage(momentum)


OBSERVERS: dict[str, type[Observer]] = {cls.name: cls for cls in (MinMax, MovingAverage)}
"""Every observer by its name."""
