"""PACT and DoReFa."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from intact.numerics.affine import stored_range
from intact.numerics.exact import MIN_SCALE, inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import reparametrized, straight_through
from intact.numerics.tensors import Tensor
from intact.quantizers.base import ActivationStats, Grid, QuantizeContext, Quantizer, _sign


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

    def grid(self, seen: ActivationStats, learned: dict[str, Tensor], at: QuantizeContext) -> Grid:
        low, high = stored_range(at.bits)
        first = ops.where(seen.maximum > 0, seen.maximum, 1.0)
        clip = reparametrized(first, learned["clip"])
        scale = at.scale(ops.stop_gradient(clip) * np.float32(1 / (high - low)))
        zero = ops.zeros_like(scale)
        top = straight_through(zero + float(high - low), clip / scale)
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

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        xp = at.xp
        if at.bits == 1:
            scale = at.scale(at.mean(xp.abs(xp.stop_gradient(w))))
            return straight_through(_sign(w, xp), w * inverse_of(scale, xp), xp), scale
        steps = 2.0**at.bits - 1
        bent = xp.tanh(w)
        top = xp.max(xp.abs(bent), axis=at.reduced(w), keepdims=True)
        half = bent * inverse_of(2.0 * xp.maximum(top, np.float32(MIN_SCALE)), xp)
        n = 2.0 * at.round(np.float32(steps) * (half + 0.5)) - np.float32(steps)
        scale = xp.zeros_like(xp.max(n, axis=at.reduced(w), keepdims=True))
        return n, scale + np.float32(1 / steps)

    def fixed(self, bits: int) -> tuple[float, float] | None:
        return 1 / (2.0**bits - 1), float(stored_range(bits)[0])
