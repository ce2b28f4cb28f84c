"""Binary weights and activations: signs, and XNOR-Net."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from intact.numerics.exact import inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import reparametrized, straight_through
from intact.numerics.tensors import Tensor
from intact.quantizers.base import ActivationStats, Grid, QuantizeContext, Quantizer, _scaled, _sign


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

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        xp = at.xp
        ones = xp.zeros_like(xp.max(w, axis=at.reduced(w), keepdims=True)) + np.float32(1)
        return straight_through(_sign(w, xp), xp.clip(w, -1.0, 1.0), xp), xp.stop_gradient(ones)

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

    def weights(self, w: Any, state: dict[str, Any], at: QuantizeContext) -> tuple[Any, Any]:
        xp = at.xp
        scale = at.scale(at.mean(xp.abs(xp.stop_gradient(w))))
        smooth = w * (inverse_of(scale, xp) * np.float32(1 / at.shared(w)))
        return straight_through(_sign(w, xp), smooth + xp.clip(w, -1.0, 1.0), xp), scale

    def grid(self, seen: ActivationStats, learned: dict[str, Tensor], at: QuantizeContext) -> Grid:
        first = ops.where(seen.size > 0, seen.size, 1.0)
        scale = at.scale(_scaled(reparametrized(first, learned["scale"]), at.count, 1.0))
        zero = ops.zeros_like(scale)
        return Grid(scale, zero, zero - 1.0, zero + 1.0)
