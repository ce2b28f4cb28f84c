"""Learned step sizes: LSQ and LSQ+."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from intact.numerics.affine import integer_range, stored_range
from intact.numerics.exact import inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.straight_through import reparametrized, straight_through
from intact.numerics.tensors import Tensor
from intact.quantizers.base import ActivationStats, Grid, QuantizeContext, Quantizer, _scaled


@dataclass(frozen=True)
class LSQ(Quantizer):
    """Learned step size: `round(clip(v / s, -Qn, Qp)) * s`, with a trained `s`.

    The gradient of `s` is multiplied by `1 / sqrt(N Qp)`, where N values share it; it starts
    at `2 mean|v| / sqrt(Qp)`. Weights that fill their stored type (4 or 8 bits) omit its smallest
    integer, because a negative factor of a batch norm negates them.
    Activations are unsigned if none were negative before training.

    Source: arXiv:1902.08153, equations 1 to 3 and section 2.2.

    Example:

    >>> w, state = np.array([[-9.0, 0.6]], "float32"), {"scale": np.array([[0.5]])}
    >>> n, scale = LSQ().weights(w, state, QuantizeContext(3, xp=numpy_ops))
    >>> n.tolist()
    [[-4.0, 1.0]]
    """

    name = "lsq"
    weight_bits = range(2, 17)
    activation_bits = range(2, 17)
    trained = ("scale",)

    def stored_bits(self, bits: int) -> int:
        # All four integers of 2 bits, and their negatives.
        return 3 if bits == 2 else bits

    def weight_state(self, w: np.ndarray, at: QuantizeContext) -> dict[str, np.ndarray]:
        _, high = integer_range(at.bits)
        size = np.mean(np.abs(w), axis=at.reduced(w), keepdims=True)
        size = np.where(size > 0, size, np.float32(1))
        return {"scale": (size * (2 / np.sqrt(high))).astype("float32")}

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        low, high = integer_range(at.bits, narrow=at.bits in (4, 8, 16))
        scale = state["scale"]
        if at.xp is not numpy_ops:
            scale = _scaled(scale, at.shared(w), high)
        scale = at.scale(scale)
        return at.round_clip(w * inverse_of(scale, at.xp), low, high), scale

    def grid(self, seen: ActivationStats, learned: dict[str, Tensor], at: QuantizeContext) -> Grid:
        low, high = stored_range(at.bits, at.symmetric)
        positive = integer_range(at.bits)[1]
        signed = float(high - positive)
        if at.bits > 8 or at.symmetric:
            zero_point, steps = ops.zeros_like(seen.minimum) + signed, float(positive)
        else:
            zero_point = ops.where(seen.minimum < 0, signed, float(low))
            steps = high - zero_point
        first = seen.size * (2.0 / ops.sqrt(steps))
        scale = at.scale(_scaled(reparametrized(first, learned["scale"]), at.count, steps))
        return Grid(scale, zero_point, low - zero_point, high - zero_point)


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

    def grid(self, seen: ActivationStats, learned: dict[str, Tensor], at: QuantizeContext) -> Grid:
        low, high = stored_range(at.bits)
        steps = high - low
        minimum = ops.minimum(seen.minimum, 0.0)
        span = ops.maximum(seen.maximum, 0.0) - minimum
        first = ops.where(span > 0, span * np.float32(1 / steps), 1.0)
        scale = at.scale(_scaled(reparametrized(first, learned["scale"]), at.count, steps))
        start = reparametrized(minimum, learned["offset"], unit=first * float(steps))
        offset = _scaled(start, at.count, steps)
        smooth = low - offset / scale
        zero_point = straight_through(ops.clip(ops.round(smooth), low, high), smooth)
        return Grid(scale, ops.stop_gradient(zero_point), low - zero_point, high - zero_point)
