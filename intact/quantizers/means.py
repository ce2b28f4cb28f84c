"""Observers of means."""

from typing import Any, ClassVar, NamedTuple

from intact.numerics.light_ops import ops
from intact.quantizers.observers import Observer


class Total(NamedTuple):
    """A sum, and the number of its terms."""

    total: Any
    count: Any


class Mean(Observer):
    """The mean over the samples."""

    state_type: ClassVar[type] = Total

    def look(self, x: Any, xp: Any = ops) -> Total:
        """The sum of a batch."""
        return Total(xp.sum(x, axis=0), xp.sum(xp.ones_like(x[:, 0]), axis=0))

    def join(self, a: Total, b: Total, xp: Any = ops) -> Total:
        """The sum of both."""
        return Total(a.total + b.total, a.count + b.count)

    def update(self, state: Total, seen: Total, xp: Any = ops) -> Total:
        """The sum with one more batch."""
        return self.join(state, seen)


class MeanSize(Mean):
    """The mean of the absolute values."""

    def look(self, x: Any, xp: Any = ops) -> Total:
        """The sum of the absolute values of a batch."""
        return Total(xp.sum(xp.abs(x)), xp.cast(xp.size(x), "float32"))
