"""The toolkit's quantizers, as descriptions of intact's ranges."""

from typing import Any, ClassVar

import keras

from intact.errors import IntactError
from intact.scheme import TensorSpec


class Quantizer:
    """How a tensor is quantized: base of the toolkit's quantizers.

    Example:

    >>> LastValueQuantizer(4, per_axis=True, symmetric=True, narrow_range=True).get_config()
    {'num_bits': 4, 'per_axis': True, 'symmetric': True, 'narrow_range': True}
    """

    def spec(self, activation: bool) -> TensorSpec:
        """The spec that says the same.

        Args:
            activation: Whether it is for an activation, or else for a weight.

        Raises:
            IntactError: There is none.
        """
        raise IntactError(f"{type(self).__name__} has no form that intact knows.")

    def get_config(self) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantizer":
        """A quantizer of what `get_config` returned."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), *self.get_config().values()))


class _RangeQuantizer(Quantizer):
    """Base of the quantizers whose range follows the data."""

    momentum: ClassVar[float]

    def __init__(self, num_bits: int, per_axis: bool, symmetric: bool, narrow_range: bool) -> None:
        self.num_bits = num_bits
        self.per_axis = per_axis
        self.symmetric = symmetric
        self.narrow_range = narrow_range

    def spec(self, activation: bool) -> TensorSpec:
        if activation and self.per_axis:
            raise IntactError(
                f"{type(self).__name__} of an activation has per_axis=True, and kernels take one "
                "scale for an activation. Set per_axis=False."
            )
        return TensorSpec(
            self.num_bits,
            symmetric=self.symmetric,
            per_axis=self.per_axis,
            momentum=self.momentum if activation else TensorSpec.momentum,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "num_bits": self.num_bits,
            "per_axis": self.per_axis,
            "symmetric": self.symmetric,
            "narrow_range": self.narrow_range,
        }


@keras.saving.register_keras_serializable("intact.tfmot")
class LastValueQuantizer(_RangeQuantizer):
    """The range of the last batch; of weights, the range that they have now.

    Args:
        num_bits: Width in bits.
        per_axis: A scale per output channel (weights only).
        symmetric: Zero point 0.
        narrow_range: Leave out the smallest integer. Symmetric ranges always do, as kernels
            demand of weights; others never.

    Example:

    >>> quantizer = LastValueQuantizer(8, per_axis=True, symmetric=True, narrow_range=True)
    >>> quantizer.spec(activation=False).per_axis
    True
    """

    momentum = 0.0


@keras.saving.register_keras_serializable("intact.tfmot")
class MovingAverageQuantizer(_RangeQuantizer):
    """A moving average of the batches' ranges, which starts from the first batch.

    Args:
        num_bits: Width in bits.
        per_axis: Must be False for activations.
        symmetric: Zero point 0.
        narrow_range: As for `LastValueQuantizer`.

    Example:

    >>> quantizer = MovingAverageQuantizer(8, per_axis=False, symmetric=False, narrow_range=False)
    >>> quantizer.spec(activation=True).momentum
    0.999
    """

    momentum = 0.999


@keras.saving.register_keras_serializable("intact.tfmot")
class AllValuesQuantizer(_RangeQuantizer):
    """The smallest and largest value of all batches.

    Args:
        num_bits: Width in bits.
        per_axis: Must be False for activations.
        symmetric: Zero point 0.
        narrow_range: As for `LastValueQuantizer`.

    Example:

    >>> quantizer = AllValuesQuantizer(8, per_axis=False, symmetric=False, narrow_range=False)
    >>> quantizer.spec(activation=True).momentum
    1.0
    """

    momentum = 1.0
