"""The toolkit's quantizers, as descriptions of intact's ranges."""

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from intact.errors import IntactError
from intact.numerics.affine import integer_range, stored_range
from intact.numerics.exact import inverse_of
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.plan.scheme import TensorSpec
from intact.quantizers import base as widths
from intact.quantizers.base import QuantizeContext


class Quantizer:
    """How a tensor is quantized: base of the toolkit's quantizers.

    A subclass with a `__call__` of its own is an algorithm for weights. Its result is stored in 8
    bits per channel, so values on a grid of up to 255 levels around 0 are kept to half a percent of
    the largest. Trained numbers are added in `build`. For
    activations there is `intact.Quantizer`, whose `grid` says what integer kernels do.

    Example:

    >>> class Clipped(Quantizer):
    ...     def __call__(self, inputs, training, weights, **kwargs):
    ...         return keras.ops.clip(inputs, -1.0, 1.0)
    >>> Clipped().spec(activation=False).bits
    8
    """

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Add the trained numbers that the algorithm has.

        Args:
            tensor_shape: Shape of the weights.
            name: Name of the weights.
            layer: Has `add_weight`, as a Keras layer.

        Returns:
            The results of `layer.add_weight`, under any names.
        """
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        """Compute the quantized values.

        Args:
            inputs: The weights, a tensor of the backend.
            training: Whether the model trains.
            weights: The trained numbers, by the names that `build` returned.
            **kwargs: None yet.

        Returns:
            A tensor of the same shape.
        """
        raise NotImplementedError

    def spec(self, activation: bool) -> TensorSpec:
        """The equivalent spec.

        Args:
            activation: Whether it is for an activation, or else for a weight.

        Raises:
            IntactError: There is none.
        """
        if type(self).__call__ is Quantizer.__call__:
            return self._own_spec(activation)
        if activation:
            raise IntactError(
                f"{type(self).__name__} has a `__call__` of its own, and integer kernels round "
                "activations their own way. Write an `intact.Quantizer` with a `grid`, and a "
                "rule: `intact.Rule(layer_name, activations=intact.TensorSpec(quantizer=...))`."
            )
        return TensorSpec(8, symmetric=True, per_axis=True, quantizer=OwnAlgorithm(self))

    def _own_spec(self, activation: bool) -> TensorSpec:
        raise IntactError(f"{type(self).__name__} has neither a range nor a `__call__`.")

    def get_config(self) -> dict[str, Any]:
        """The arguments of its constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantizer":
        """A quantizer of what `get_config` returned."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), *self.get_config().values()))


@dataclass(frozen=True)
class OwnAlgorithm(widths.Quantizer):
    """Weights by a user's `Quantizer.__call__`, in 8 bits.

    Args:
        quantizer: The user's quantizer, or its serialized form.

    Example:

    >>> class Half(Quantizer):
    ...     def __call__(self, inputs, training, weights, **kwargs):
    ...         return inputs / 2
    >>> n, scale = OwnAlgorithm(Half()).weights(
    ...     np.array([254.0, 2.0], "float32"), {}, QuantizeContext(symmetric=True)
    ... )
    >>> [float(value) for value in n]
    [127.0, 1.0]
    """

    name = "own_algorithm"
    weight_bits = range(8, 9)
    quantizer: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.quantizer, dict):
            quantizer = keras.saving.deserialize_keras_object(self.quantizer)
            object.__setattr__(self, "quantizer", quantizer)

    def weight_state(self, w: np.ndarray, at: QuantizeContext) -> dict[str, np.ndarray]:
        recorder = _Recorder(type(self.quantizer).__name__)
        weights = self.quantizer.build(w.shape, "weights", recorder) or {}
        return {name: recorder.values[variable] for name, variable in weights.items()}

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        tensors = {name: ops.convert_to_tensor(value) for name, value in state.items()}
        values = self.quantizer(ops.convert_to_tensor(w), at.training, tensors)
        values = to_numpy(values) if at.xp is numpy_ops else values
        return widths.RangeQuantizer().weights(values, {}, at)


class _Recorder:
    """Replaces a layer in `Quantizer.build`, and notes the initial values of its weights."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.values: dict[str, np.ndarray] = {}

    def add_weight(
        self,
        name: str | None = None,
        shape: Any = (),
        initializer: Any = "zeros",
        trainable: bool = True,
        **kwargs: Any,
    ) -> str:
        name = name or f"variable_{len(self.values)}"
        if not trainable:
            raise IntactError(
                f"{self.owner} keeps {name!r}, which does not train. Ranges of weights need no "
                "memory: compute them from `inputs`. For another state, write an "
                "`intact.Quantizer`."
            )
        value = keras.initializers.get(initializer)(shape, dtype="float32")
        self.values[name] = to_numpy(value)
        return name


class _RangeQuantizer(Quantizer):
    """Base of the quantizers whose range follows the data."""

    momentum: ClassVar[float]

    def __init__(self, num_bits: int, per_axis: bool, symmetric: bool, narrow_range: bool) -> None:
        self.num_bits = num_bits
        self.per_axis = per_axis
        self.symmetric = symmetric
        self.narrow_range = narrow_range

    def _own_spec(self, activation: bool) -> TensorSpec:
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


@keras.saving.register_keras_serializable("intact.tfmot")
class FixedQuantizer(Quantizer):
    """A known range that no data moves.

    Args:
        num_bits: Width in bits.
        init_min: Smallest real value, at most 0.
        init_max: Largest real value, at least 0.
        narrow_range: Leave out the smallest integer. Of weights it is always left out, and
            their range is the larger side of both.

    Example:

    >>> FixedQuantizer(8, 0.0, 2.55, narrow_range=False).spec(activation=True).rule.fixed(8)
    (0.009999999776482582, -128.0)
    """

    def __init__(
        self, num_bits: int, init_min: float, init_max: float, narrow_range: bool = False
    ) -> None:
        self.num_bits = num_bits
        self.init_min = init_min
        self.init_max = init_max
        self.narrow_range = narrow_range

    def _own_spec(self, activation: bool) -> TensorSpec:
        fixed = FixedRange(self.init_min, self.init_max, self.narrow_range)
        symmetric = not activation or self.num_bits > 8
        return TensorSpec(self.num_bits, symmetric=symmetric, quantizer=fixed)

    def get_config(self) -> dict[str, Any]:
        return {
            "num_bits": self.num_bits,
            "init_min": self.init_min,
            "init_max": self.init_max,
            "narrow_range": self.narrow_range,
        }


@dataclass(frozen=True)
class FixedRange(widths.Quantizer):
    """A range that is known beforehand.

    Args:
        minimum: Smallest real value, at most 0.
        maximum: Largest real value, at least 0.
        narrow: Leave out the smallest integer.

    Example:

    >>> FixedRange(-1.0, 1.0, narrow=True).fixed(8)
    (0.007874015718698502, 0.0)
    """

    name = "fixed_range"
    weight_bits = range(2, 9)
    activation_bits = range(2, 17)
    minimum: float = 0.0
    maximum: float = 1.0
    narrow: bool = False

    def __post_init__(self) -> None:
        self.fixed(8)

    def fixed(self, bits: int) -> tuple[float, float]:
        return fixed_params(self.minimum, self.maximum, bits, self.narrow, symmetric=bits > 8)

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        _, high = integer_range(at.bits)
        size = np.float32(max(-self.minimum, self.maximum) / high)
        zeros = at.xp.zeros_like(at.xp.max(w, axis=at.reduced(w), keepdims=True))
        scale = at.scale(at.xp.stop_gradient(zeros) + size)
        return at.round_clip(w * inverse_of(scale, at.xp), -high, high), scale


def fixed_params(
    minimum: float,
    maximum: float,
    num_bits: int,
    narrow_range: bool = False,
    symmetric: bool = False,
) -> tuple[float, float]:
    """Scale and zero point of a range that is known.

    Args:
        minimum: Smallest real value, at most 0.
        maximum: Largest real value, at least 0.
        num_bits: Width in bits.
        narrow_range: Leave out the smallest integer.
        symmetric: Widen the range to have 0 in its middle.

    Returns:
        `(scale, zero_point)`.

    Raises:
        IntactError: The range lacks 0, or holds nothing else.

    Example:

    >>> fixed_params(0.0, 255.0, 8)
    (1.0, -128.0)
    >>> fixed_params(-127.0, 127.0, 8, narrow_range=True)
    (1.0, 0.0)
    """
    if not minimum <= 0 <= maximum or minimum == maximum:
        raise IntactError(
            "A range has to hold 0, which integers represent exactly, and more than that. "
            f"Received: {minimum} to {maximum}."
        )
    low, high = stored_range(num_bits)
    if symmetric:
        steps = integer_range(num_bits)[1]
        return float(np.float32(max(-minimum, maximum) / steps)), float(high - steps)
    low += narrow_range
    scale = float(np.float32((maximum - minimum) / (high - low)))
    return scale, float(np.clip(np.rint(low - minimum / scale), low, high))
