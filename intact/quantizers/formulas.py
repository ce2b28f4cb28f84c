"""Quantizers: the formulas by which real values become few whole numbers, times a scale.

A quantizer is a small frozen class, found by its `name`. What it computes for weights is the
same in training, in inference and in the file (`Setting.xp` is `keras.ops` or numpy); what it
says of activations is a `Grid`, to which kernels round as they do.

Gradients need no formulas of their own for the scale: `values * scale` is differentiated by
both of its factors, and the straight-through gradient of `values` is that of `w / scale`.
Together these are LSQ's.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops

from intact.errors import IntactError
from intact.numerics.affine import integer_range, stored_range
from intact.numerics.backend_kernels import round_clip, shared, with_shape
from intact.numerics.exact import MIN_SCALE, exact_mean, inverse_of, power_of_two_above
from intact.numerics.numpy_ops import host
from intact.numerics.straight_through import moved, round_through, scale_gradient, through
from intact.numerics.tensors import Tensor
from intact.numerics.weights import quantize_weight


@dataclass(frozen=True)
class Setting:
    """Where a quantizer is at work, and what it needs from there.

    Args:
        bits: Width in bits.
        axis: Weights: the axes that keep a scale of their own, or None for one scale.
        symmetric: Zero in the middle of the integers.
        power_of_two: Scales are powers of two.
        xp: `keras.ops`, or `intact.numerics.numpy_ops.host` where a file is written.
        training: Whether the model trains.
        noise: Gives uniform values in [-0.5, 0.5) of a shape, for stochastic rounding while
            training; None rounds to the nearest.
        step: The training step, a scalar tensor; None where the model has no schedule.
        count: Activations: how many values a sample has.
    """

    bits: int = 8
    axis: tuple[int, ...] | None = None
    symmetric: bool = False
    power_of_two: bool = False
    xp: Any = ops
    training: bool = False
    noise: Callable[[Any], Tensor] | None = None
    step: Tensor | None = None
    count: Any = 1

    def reduced(self, w: Any) -> tuple[int, ...]:
        """The axes of weights that share a scale."""
        rank = len(w.shape)
        kept = () if self.axis is None else tuple(a % rank for a in self.axis)
        return tuple(a for a in range(rank) if a not in kept)

    def shared(self, w: Any) -> int:
        """How many weights share a scale."""
        return int(np.prod([w.shape[a] for a in self.reduced(w)], dtype="int64"))

    def mean(self, x: Any) -> Any:
        """The mean of values that are not negative, per scale: of the same bits everywhere."""
        return exact_mean(x, self.reduced(x), self.xp)

    def scale(self, scale: Any) -> Any:
        """A scale as it is used: positive, and a power of two if it must be."""
        scale = through(self.xp.maximum(scale, np.float32(MIN_SCALE)), scale, self.xp)
        return power_of_two_above(scale, self.xp) if self.power_of_two else scale

    def round(self, x: Any) -> Any:
        """Whole numbers with a straight-through gradient; stochastic if that is asked for."""
        if self.noise is not None:
            return through(self.xp.round(x + self.noise(x)), x, self.xp)
        return round_through(x, self.xp)

    def round_clip(self, x: Any, low: int, high: int) -> Any:
        """Whole numbers between bounds; the gradient passes inside of them."""
        if self.noise is not None:
            x = through(x + self.noise(x), x, self.xp)
        if self.xp is host:
            return np.clip(np.rint(x), low, high)
        return round_clip(x, low, high)


class Seen(NamedTuple):
    """What was seen of an activation before training, each a scalar.

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
      far training has moved what was `seen` (`intact.numerics.straight_through.moved`).
    * `trains_bounds`: Activations: whether values outside of the grid move its ends.
    * `signs`: Activations: they are -1 or 1, times the scale, and never 0. Kernels round to a
      127th of the scale first; a table then tells the sign, 1 of 0.

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
    registry: ClassVar[dict[str, type["Quantizer"]]] = {}
    weight_bits: ClassVar[range] = range(0)
    activation_bits: ClassVar[range] = range(0)
    trained: ClassVar[tuple[str, ...]] = ()
    trains_bounds: ClassVar[bool] = False
    signs: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if cls.name:
            Quantizer.registry[cls.name] = cls

    def stored_bits(self, bits: int) -> int:
        """How many bits the integers of weights take, signed.

        Args:
            bits: Width of the weights.
        """
        return bits

    def weight_state(self, w: np.ndarray, at: Setting) -> dict[str, np.ndarray]:
        """The trained numbers that go with weights, as they start.

        Args:
            w: The weights.
            at: The setting.

        Returns:
            Arrays by name. For each the layer has a trainable variable, which starts at 0
            and is how far training has moved it (`intact.numerics.straight_through.moved`).
        """
        return {}

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
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
        """Scale and zero point of activations, where neither data nor training moves them.

        Args:
            bits: Width of the activations.
        """
        return None

    def grid(self, seen: Seen, learned: dict[str, Tensor], at: Setting) -> Grid:
        """The grid of activations.

        Args:
            seen: What was seen of them before training.
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

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        def quantized(w: Any) -> tuple[Any, Any]:
            return quantize_weight(w, at.bits, at.axis, at.xp, at.symmetric)

        if at.xp is host or at.training:
            n, scale = quantized(w)
        else:
            n, scale = shared((quantize_weight, at.bits, at.axis, at.symmetric), quantized, w)
            n = with_shape(n, w.shape)
        shape = [1 if a in at.reduced(w) else size for a, size in enumerate(w.shape)]
        scale = at.xp.reshape(scale, shape)
        if not at.power_of_two and at.noise is None:
            return n, scale
        scale = at.scale(scale)
        _, high = integer_range(at.bits)
        return at.round_clip(w * inverse_of(scale, at.xp), -high, high), scale


@dataclass(frozen=True)
class LSQ(Quantizer):
    """Learned step size: `round(clip(v / s, -Qn, Qp)) * s`, with a trained `s`.

    The gradient of `s` is multiplied by `1 / sqrt(N Qp)`, where N values share it; it starts
    at `2 mean|v| / sqrt(Qp)`. Weights that fill their stored type (4 or 8 bits) leave its
    smallest integer out, for a negative factor of a batch norm has to turn them round.
    Activations are unsigned where no negative ones were seen before training.

    Source: arXiv:1902.08153, equations 1 to 3 and section 2.2.

    Example:

    >>> n, scale = LSQ().weights(
    ...     np.array([[-9.0, 0.6]], "float32"), {"scale": np.array([[0.5]])}, Setting(3, xp=host)
    ... )
    >>> n.tolist()
    [[-4.0, 1.0]]
    """

    name = "lsq"
    weight_bits = range(2, 17)
    activation_bits = range(2, 17)
    trained = ("scale",)

    def stored_bits(self, bits: int) -> int:
        # All four integers of 2 bits, and each of them turned round.
        return 3 if bits == 2 else bits

    def weight_state(self, w: np.ndarray, at: Setting) -> dict[str, np.ndarray]:
        _, high = integer_range(at.bits)
        size = np.mean(np.abs(w), axis=at.reduced(w), keepdims=True)
        size = np.where(size > 0, size, np.float32(1))
        return {"scale": (size * (2 / np.sqrt(high))).astype("float32")}

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        low, high = integer_range(at.bits, narrow=at.bits in (4, 8, 16))
        scale = state["scale"]
        if at.xp is not host:
            scale = _scaled(scale, at.shared(w), high)
        scale = at.scale(scale)
        return at.round_clip(w * inverse_of(scale, at.xp), low, high), scale

    def grid(self, seen: Seen, learned: dict[str, Tensor], at: Setting) -> Grid:
        low, high = stored_range(at.bits, at.symmetric)
        positive = integer_range(at.bits)[1]
        signed = float(high - positive)
        if at.bits > 8 or at.symmetric:
            zero_point, steps = ops.zeros_like(seen.minimum) + signed, float(positive)
        else:
            zero_point = ops.where(seen.minimum < 0, signed, float(low))
            steps = high - zero_point
        first = seen.size * (2.0 / ops.sqrt(steps))
        scale = at.scale(_scaled(moved(first, learned["scale"]), at.count, steps))
        return Grid(scale, zero_point, low - zero_point, high - zero_point)


def _scaled(scale: Any, count: Any, steps: Any) -> Any:
    """LSQ's scale of the gradient."""
    count, steps = (ops.cast(x, "float32") for x in (count, steps))
    return scale_gradient(ops.convert_to_tensor(scale), 1.0 / ops.sqrt(count * steps))


@dataclass(frozen=True)
class LSQPlus(Quantizer):
    """Learned step size and offset of activations: `round(clip((x - b) / s, 0, Q)) * s + b`.

    They start from the range that was seen. The offset is a whole number of steps, as
    integer kernels have it: a zero point. Both gradients are scaled as LSQ's.

    Source: arXiv:2004.09576, equations 1 to 7.
    """

    name = "lsq_plus"
    activation_bits = range(2, 9)
    trained = ("scale", "offset")
    trains_bounds = True

    def grid(self, seen: Seen, learned: dict[str, Tensor], at: Setting) -> Grid:
        low, high = stored_range(at.bits)
        steps = high - low
        minimum = ops.minimum(seen.minimum, 0.0)
        span = ops.maximum(seen.maximum, 0.0) - minimum
        first = ops.where(span > 0, span * np.float32(1 / steps), 1.0)
        scale = at.scale(_scaled(moved(first, learned["scale"]), at.count, steps))
        start = moved(minimum, learned["offset"], unit=first * float(steps))
        offset = _scaled(start, at.count, steps)
        smooth = low - offset / scale
        zero_point = through(ops.clip(ops.round(smooth), low, high), smooth)
        return Grid(scale, ops.stop_gradient(zero_point), low - zero_point, high - zero_point)


@dataclass(frozen=True)
class PACT(Quantizer):
    """Learned clipping of activations: `clip(x, 0, a)`, in `2^k - 1` steps.

    The gradient of `a` is 1 where `x >= a`, and 0 elsewhere; `a` starts at the largest value
    seen. Put a regularizer on it as on any weight of the layer.

    Source: arXiv:1805.06085, equations 1 to 3.
    """

    name = "pact"
    activation_bits = range(1, 9)
    trained = ("clip",)
    trains_bounds = True

    def grid(self, seen: Seen, learned: dict[str, Tensor], at: Setting) -> Grid:
        low, high = stored_range(at.bits)
        first = ops.where(seen.maximum > 0, seen.maximum, 1.0)
        clip = moved(first, learned["clip"])
        scale = at.scale(ops.stop_gradient(clip) * np.float32(1 / (high - low)))
        zero = ops.zeros_like(scale)
        top = through(zero + float(high - low), clip / scale)
        return Grid(scale, zero + float(low), zero, top)


@dataclass(frozen=True)
class DoReFa(Quantizer):
    """Weights by `tanh`, activations between 0 and 1.

    Weights are `2 q_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1` with
    `q_k(x) = round((2^k - 1) x) / (2^k - 1)`: odd multiples of `1 / (2^k - 1)`, which take a
    bit more than k to store. With one bit they are `sign(w) mean|w|`. Activations are
    `q_k(clip(x, 0, 1))`.

    Source: arXiv:1606.06160, equations 5 to 9.
    """

    name = "dorefa"
    weight_bits = range(1, 17)
    activation_bits = range(1, 9)

    def stored_bits(self, bits: int) -> int:
        return bits + 1

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        xp = at.xp
        if at.bits == 1:
            scale = at.scale(at.mean(xp.abs(xp.stop_gradient(w))))
            return through(_sign(w, xp), w * inverse_of(scale, xp), xp), scale
        steps = 2.0**at.bits - 1
        bent = xp.tanh(w)
        top = xp.max(xp.abs(bent), axis=at.reduced(w), keepdims=True)
        half = bent * inverse_of(2.0 * xp.maximum(top, np.float32(MIN_SCALE)), xp)
        n = 2.0 * at.round(np.float32(steps) * (half + 0.5)) - np.float32(steps)
        scale = xp.zeros_like(xp.max(n, axis=at.reduced(w), keepdims=True))
        return n, scale + np.float32(1 / steps)

    def fixed(self, bits: int) -> tuple[float, float] | None:
        return 1 / (2.0**bits - 1), float(stored_range(bits)[0])


@dataclass(frozen=True)
class Sign(Quantizer):
    """Weights or activations of -1 and 1; the gradient passes where `|x| <= 1`.

    Source: BinaryNet, arXiv:1602.02830, equations 1 and 4.
    """

    name = "sign"
    weight_bits = activation_bits = range(1, 2)
    signs = True

    def stored_bits(self, bits: int) -> int:
        return 2

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        xp = at.xp
        ones = xp.zeros_like(xp.max(w, axis=at.reduced(w), keepdims=True)) + np.float32(1)
        return through(_sign(w, xp), xp.clip(w, -1.0, 1.0), xp), xp.stop_gradient(ones)

    def fixed(self, bits: int) -> tuple[float, float] | None:
        return 1.0, 0.0


@dataclass(frozen=True)
class XNOR(Quantizer):
    """Weights or activations of -1 and 1, times the mean of their absolute values.

    The gradient of a weight is that of its value times `1 / N + a [|w| <= 1]`, where N
    weights share the scale `a`; that of an activation, times `a [|x| <= 1]`. Where the paper
    has a mean for each window of an activation, kernels have one scale for all: it starts at
    the mean that was seen, and is trained, its gradient scaled as LSQ's.

    Source: XNOR-Net, arXiv:1603.05279, section 3; a trained scale: arXiv:1909.13863.
    """

    name = "xnor"
    weight_bits = activation_bits = range(1, 2)
    trained = ("scale",)
    signs = True

    def stored_bits(self, bits: int) -> int:
        return 2

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        xp = at.xp
        scale = at.scale(at.mean(xp.abs(xp.stop_gradient(w))))
        smooth = w * (inverse_of(scale, xp) * np.float32(1 / at.shared(w)))
        return through(_sign(w, xp), smooth + xp.clip(w, -1.0, 1.0), xp), scale

    def grid(self, seen: Seen, learned: dict[str, Tensor], at: Setting) -> Grid:
        first = ops.where(seen.size > 0, seen.size, 1.0)
        scale = at.scale(_scaled(moved(first, learned["scale"]), at.count, 1.0))
        zero = ops.zeros_like(scale)
        return Grid(scale, zero, zero - 1.0, zero + 1.0)


@dataclass(frozen=True)
class Ternary(Quantizer):
    """Activations of -1, 0 and 1: 0 where `|x| < 1/2`; the gradient passes where `|x| < 1`.

    Source: GXNOR-Net, arXiv:1705.09283, with r = a = 1/2.
    """

    name = "ternary"
    activation_bits = range(2, 3)

    def ends(self, bits: int, symmetric: bool) -> tuple[int, int]:
        return stored_range(bits, symmetric=True)

    def fixed(self, bits: int) -> tuple[float, float] | None:
        return 1.0, stored_range(bits)[1] - 1.0


@dataclass(frozen=True)
class TWN(Quantizer):
    """Weights of -1, 0 and 1: 0 where `|w|` is at most 0.7 times its mean.

    The scale is the mean of `|w|` over the others; the gradient of the values goes to the
    weights as it is.

    Source: Ternary weight networks, arXiv:1605.04711, equations 5, 6 and 9.

    Args:
        threshold: The factor 0.7.
    """

    name = "twn"
    weight_bits = range(2, 3)
    threshold: float = 0.7

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        xp = at.xp
        size = xp.abs(xp.stop_gradient(w))
        large = xp.cast(size > at.mean(size) * np.float32(self.threshold), "float32")
        # Where all weights are 0, any scale does.
        share = xp.maximum(at.mean(large), np.float32(1e-9))
        scale = at.scale(at.mean(size * large) * inverse_of(share, xp))
        return through(_sign(w, xp) * large, w * inverse_of(scale, xp), xp), scale


@dataclass(frozen=True)
class TTQ(Quantizer):
    """Weights of `-Wn`, 0 and `Wp`, two trained numbers; 0 where `|w| <= t max|w|`.

    One integer scale cannot hold two numbers: the larger is 127 steps, and the other one is
    rounded to a whole number of them. The gradients of `Wp` and `Wn` are the sums over their
    weights; that of a weight is multiplied by `Wp`, 1 or `Wn`.

    Source: Trained ternary quantization, arXiv:1612.01064, equations 6 to 8.

    Args:
        threshold: The factor t.
    """

    name = "ttq"
    weight_bits = range(2, 3)
    threshold: float = 0.05

    def stored_bits(self, bits: int) -> int:
        return 8

    def weight_state(self, w: np.ndarray, at: Setting) -> dict[str, np.ndarray]:
        size = np.abs(w)
        top = np.max(size, axis=at.reduced(w), keepdims=True)
        ends = {}
        for name, sign in (("positive", 1), ("negative", -1)):
            large = sign * w > self.threshold * top
            total = np.sum(size * large, axis=at.reduced(w), keepdims=True)
            count = np.maximum(np.sum(large, axis=at.reduced(w), keepdims=True), 1)
            ends[name] = np.where(total > 0, total / count, top).astype("float32")
        return ends

    def weights(self, w: Any, state: dict[str, Any], at: Setting) -> tuple[Any, Any]:
        xp = at.xp
        positive, negative = state["positive"], state["negative"]
        size = xp.abs(xp.stop_gradient(w))
        large = xp.max(size, axis=at.reduced(w), keepdims=True) * np.float32(self.threshold)
        up, down = (xp.cast(a > b, "float32") for a, b in ((w, large), (-w, large)))
        larger = xp.maximum(xp.abs(positive), xp.abs(negative)) * np.float32(1 / 127)
        scale = at.scale(xp.stop_gradient(larger))
        steps = inverse_of(scale, xp)
        n_up, n_down = (at.round(end * steps) for end in (positive, negative))
        factor = up * positive + down * negative + (1.0 - up - down)
        smooth = w * xp.stop_gradient(factor) * steps
        n = up * n_up - down * n_down
        return n + through(xp.zeros_like(smooth), smooth, xp), scale


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
    if quantizer not in Quantizer.registry:
        raise IntactError(
            f"There is no quantizer {quantizer!r}. Known: "
            f"{', '.join(sorted(Quantizer.registry))}. Pass one of these, or an "
            "`intact.Quantizer` of your own."
        )
    return Quantizer.registry[quantizer]()


def quantizer_config(quantizer: str | Quantizer) -> Any:
    """A quantizer as plain data: its name, or a dict with its settings."""
    if isinstance(quantizer, str) or not fields(quantizer):
        return quantizer if isinstance(quantizer, str) else quantizer.name
    return {"name": quantizer.name, **asdict(quantizer)}


def quantizer_from_config(config: Any) -> str | Quantizer:
    """What `quantizer_config` made."""
    if isinstance(config, str):
        return config
    settings = {key: value for key, value in config.items() if key != "name"}
    get_quantizer(config["name"])
    return Quantizer.registry[config["name"]](**settings)
