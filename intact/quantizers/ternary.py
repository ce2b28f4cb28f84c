"""Ternary weights and activations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from intact.numerics.affine import stored_range
from intact.numerics.exact import inverse_of
from intact.numerics.straight_through import straight_through
from intact.quantizers.base import QuantizeContext, Quantizer, _sign


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

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        xp = at.xp
        size = xp.abs(xp.stop_gradient(w))
        large = xp.cast(size > at.mean(size) * np.float32(self.threshold), "float32")
        # If all weights are 0, any scale is right.
        share = xp.maximum(at.mean(large), np.float32(1e-9))
        scale = at.scale(at.mean(size * large) * inverse_of(share, xp))
        return straight_through(_sign(w, xp) * large, w * inverse_of(scale, xp), xp), scale


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

    def weight_state(self, w: np.ndarray, at: QuantizeContext) -> dict[str, np.ndarray]:
        size = np.abs(w)
        top = np.max(size, axis=at.reduced(w), keepdims=True)
        ends = {}
        for name, sign in (("positive", 1), ("negative", -1)):
            large = sign * w > self.threshold * top
            total = np.sum(size * large, axis=at.reduced(w), keepdims=True)
            count = np.maximum(np.sum(large, axis=at.reduced(w), keepdims=True), 1)
            ends[name] = np.where(total > 0, total / count, top).astype("float32")
        return ends

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
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
        return n + straight_through(xp.zeros_like(smooth), smooth, xp), scale
