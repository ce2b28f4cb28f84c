"""The base of quantizers: formulas for weights and activations of some width."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from intact.numerics.affine import integer_range, stored_range
from intact.numerics.backend_kernels import round_clip, shared, with_shape
from intact.numerics.exact import MIN_SCALE, exact_mean, inverse_of, power_of_two_above
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.scale_layout import PER_TENSOR, ScaleLayout
from intact.numerics.straight_through import round_through, scale_gradient, straight_through
from intact.numerics.tensors import Tensor
from intact.numerics.weights import quantize_weight
from intact.registry import Registry


@dataclass(frozen=True)
class QuantizeContext:
    """The facts that a quantizer needs about a tensor.

    Args:
        bits: Width in bits.
        layout: Weights: which of them share a scale.
        symmetric: Zero in the middle of the integers.
        power_of_two: Scales are powers of two.
        xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops` where a file is written.
        training: Whether the model trains.
        noise: Gives uniform values in [-0.5, 0.5) of a shape, for stochastic rounding while
            training; None rounds to the nearest.
        step: The training step, a scalar tensor; None where the model has no schedule.
        count: Activations: how many values a sample has.
    """

    bits: int = 8
    layout: ScaleLayout = PER_TENSOR
    symmetric: bool = False
    power_of_two: bool = False
    xp: Any = ops
    training: bool = False
    noise: Callable[[Any], Tensor] | None = None
    step: Tensor | None = None
    count: Any = 1

    def reduced(self, w: Any) -> tuple[int, ...]:
        """The axes of weights that share a scale."""
        return self.layout.shared(len(w.shape))

    def shared(self, w: Any) -> int:
        """How many weights share a scale."""
        return int(np.prod([w.shape[a] for a in self.reduced(w)], dtype="int64"))

    def mean(self, x: Any) -> Any:
        """The mean of values that are not negative, per scale, with the same bits everywhere."""
        return exact_mean(x, self.reduced(x), self.xp)

    def scale(self, scale: Any) -> Any:
        """A valid scale: positive, and a power of two if required."""
        scale = straight_through(self.xp.maximum(scale, np.float32(MIN_SCALE)), scale, self.xp)
        return power_of_two_above(scale, self.xp) if self.power_of_two else scale

    def round(self, x: Any) -> Any:
        """Whole numbers with a straight-through gradient; stochastic if requested."""
        if self.noise is not None:
            return straight_through(self.xp.round(x + self.noise(x)), x, self.xp)
        return round_through(x, self.xp)

    def round_clip(self, x: Any, low: int, high: int) -> Any:
        """Whole numbers between bounds; the gradient passes inside of them."""
        if self.noise is not None:
            x = straight_through(x + self.noise(x), x, self.xp)
        if self.xp is numpy_ops:
            return np.clip(np.rint(x), low, high)
        return round_clip(x, low, high)


class ActivationStats(NamedTuple):
    """Statistics of an activation from before training, each a scalar.

    `size` is the mean of the absolute values.
    """

    minimum: Tensor
    maximum: Tensor
    size: Tensor


class Grid(NamedTuple):
    """The integers of an activation: `real = n * scale`, `n` from `low` to `high`.

    `zero_point` is the stored integer that stands for 0.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Quantizer:
    """Base of the quantizers. A subclass is one formula, its fields are its settings.

    Class data:

    * `name`: what specs and saved models call it.
    * `weight_bits`, `activation_bits`: the widths that it knows; none by default.
    * `trained`: Activations: the names of its trained numbers, scalars that start at 0: how
      far training has moved what was `seen` (`intact.numerics.straight_through.reparametrized`).
    * `trains_bounds`: Activations: whether values outside of the grid move its ends.
    * `signs`: Activations: they are -1 or 1, times the scale, and never 0. Kernels round to a
      127th of the scale first; a table then tells the sign, 1 of 0.

    Raises:
        IntactError: A subclass has the name of another quantizer, and was not declared with
            `replace=True` behind its base.

    Example:

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Thirds(Quantizer):
    ...     "Weights of -1, 0 and 1 times a third of the largest."
    ...
    ...     name = "thirds"
    ...     weight_bits = range(2, 3)
    ...
    ...     def weights(self, w, state, at):
    ...         scale = at.scale(at.xp.max(at.xp.abs(w), axis=at.reduced(w), keepdims=True) / 3)
    ...         return at.round_clip(w / scale, -1, 1), scale
    >>> spec = intact.TensorSpec(2, quantizer="thirds")
    >>> intact.Rule(weights=spec).weights.dtype
    'int2'
    """

    name: ClassVar[str] = ""
    registry: ClassVar[Registry[type["Quantizer"]]] = Registry(
        "quantizer",
        "Pass one of these, or an `intact.Quantizer`; a class of your own has to be imported "
        "before a model that was saved with it is loaded.",
    )
    weight_bits: ClassVar[range] = range(0)
    activation_bits: ClassVar[range] = range(0)
    trained: ClassVar[tuple[str, ...]] = ()
    trains_bounds: ClassVar[bool] = False
    signs: ClassVar[bool] = False

    def __init_subclass__(cls, replace: bool = False) -> None:
        if vars(cls).get("name"):
            Quantizer.registry.add(cls.name, cls, replace)

    def stored_bits(self, bits: int) -> int:
        """How many bits the integers of weights take, signed.

        Args:
            bits: Width of the weights.
        """
        return bits

    def weight_state(self, w: np.ndarray, at: QuantizeContext) -> dict[str, np.ndarray]:
        """The initial values of the trained numbers of weights.

        Args:
            w: The weights.
            at: The setting.

        Returns:
            Arrays by name. For each the layer has a trainable variable. It starts at 0 and is how
            far training has moved it (`numerics.straight_through.reparametrized`).
        """
        return {}

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        """Weights as whole numbers and scales.

        Args:
            w: The weights, float32.
            state: The trained numbers by name.
            at: The setting; compute with `at.xp`, and sums with `at.mean`.

        Returns:
            `(n, scale)`: whole numbers of the shape of `w`, with gradients, and scales that
            broadcast to it and are the same along `at.reduced(w)`.
        """
        raise NotImplementedError

    def ends(self, bits: int, symmetric: bool) -> tuple[int, int]:
        """The smallest and largest integer that files store for activations.

        Args:
            bits: Width of the activations.
            symmetric: Zero in the middle of them.
        """
        return (-1, 1) if self.signs else stored_range(bits, symmetric)

    def fixed(self, bits: int) -> tuple[float, float] | None:
        """Scale and zero point of activations, if neither data nor training moves them.

        Args:
            bits: Width of the activations.
        """
        return None

    def grid(self, seen: ActivationStats, learned: dict[str, Tensor], at: QuantizeContext) -> Grid:
        """The grid of activations.

        Args:
            seen: Their statistics from before training.
            learned: How far training has moved each of `trained`.
            at: The setting.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RangeQuantizer(Quantizer):
    """The scale covers the range: of the weights as they are, of activations as observed.

    Source: arXiv:1712.05877.
    """

    name = "range"
    weight_bits = range(2, 17)
    activation_bits = range(2, 17)

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        def quantized(w: Any) -> tuple[Any, Any]:
            n, scale = quantize_weight(w, at.bits, at.layout, at.xp, at.symmetric)
            sizes = w.shape if at.xp is numpy_ops else ops.shape(w)
            return n, at.layout.spread(scale, sizes, at.xp)

        if at.xp is numpy_ops or at.training:
            n, scale = quantized(w)
        else:
            n, scale = shared((quantize_weight, at.bits, at.layout, at.symmetric), quantized, w)
            n = with_shape(n, w.shape)
            if at.layout.axes:
                shape = (1 if a in at.reduced(w) else size for a, size in enumerate(w.shape))
                scale = with_shape(scale, tuple(shape))
        if not at.power_of_two and at.noise is None:
            return n, scale
        scale = at.scale(scale)
        _, high = integer_range(at.bits)
        return at.round_clip(w * inverse_of(scale, at.xp), -high, high), scale


def _scaled(scale: Any, count: Any, steps: Any) -> Any:
    """LSQ's scale of the gradient."""
    count, steps = (ops.cast(x, "float32") for x in (count, steps))
    return scale_gradient(ops.convert_to_tensor(scale), 1.0 / ops.sqrt(count * steps))


def _sign(w: Any, xp: Any) -> Any:
    """-1 or 1; 1 of 0."""
    return xp.where(w < 0, np.float32(-1), np.float32(1))


def get_quantizer(quantizer: str | Quantizer) -> Quantizer:
    """A quantizer by its name, or the object itself.

    Args:
        quantizer: A name in `Quantizer.registry`, or a `Quantizer`.

    Returns:
        The quantizer.

    Raises:
        IntactError: There is none of that name.

    Example:

    >>> get_quantizer("lsq")
    LSQ()
    """
    if isinstance(quantizer, Quantizer):
        return quantizer
    return Quantizer.registry.find(quantizer)()


def quantizer_config(quantizer: str | Quantizer) -> Any:
    """A quantizer as plain data: its name, or a dict with its settings."""
    if isinstance(quantizer, str) or not fields(quantizer):
        return quantizer if isinstance(quantizer, str) else quantizer.name
    return {"name": quantizer.name, **asdict(quantizer)}


def quantizer_from_config(config: Any) -> str | Quantizer:
    """The quantizer of a config."""
    if isinstance(config, str):
        return config
    settings = {key: value for key, value in config.items() if key != "name"}
    return Quantizer.registry.find(config["name"])(**settings)
