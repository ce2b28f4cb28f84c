"""Which values of a tensor share a scale."""

from dataclasses import dataclass
from typing import Any

from keras import ops


@dataclass(frozen=True)
class ScaleLayout:
    """Which values of a tensor share a scale.

    A tensor's scales are kept flat, in the order of the channels; one scale is a scalar.

    Args:
        axes: The axes of the channels: each of these has a scale of its own. Without any, the
            tensor has one scale.

    Example:

    >>> layout = ScaleLayout((-1,))
    >>> layout.shared(3), layout.spread(np.ones(4), (2, 3, 4)).shape[-1]
    ((0, 1), 4)
    """

    axes: tuple[int, ...] = ()

    def shared(self, rank: int) -> tuple[int, ...]:
        """The axes along which values share a scale.

        Args:
            rank: How many axes the tensor has.
        """
        return tuple(a for a in range(rank) if a not in {axis % rank for axis in self.axes})

    def flat(self, scale: Any, xp: Any = ops) -> Any:
        """Scales that broadcast to their tensor, in a row; one as a scalar.

        Args:
            scale: The scales.
            xp: `keras.ops`, or `numpy_ops`.
        """
        return xp.reshape(scale, (-1,) if self.axes else ())

    def spread(self, values: Any, shape: tuple[int, ...], xp: Any = ops) -> Any:
        """A value for each scale, shaped to broadcast to the tensor.

        Args:
            values: Flat values, or a scalar, which goes with any tensor.
            shape: The tensor's shape.
            xp: `keras.ops`, or `numpy_ops`.
        """
        if not len(values.shape):
            return values
        shared = self.shared(len(shape))
        return xp.reshape(values, [1 if a in shared else n for a, n in enumerate(shape)])


PER_TENSOR = ScaleLayout()
