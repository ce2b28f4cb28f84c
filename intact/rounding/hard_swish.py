"""How the kernel HARD_SWISH rounds."""

import numpy as np

from intact.numerics.affine import Affine, QTensor
from intact.numerics.backend_kernels import round_clip, wide_types
from intact.numerics.exact import binary_exponent, divide, power_of_two
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor
from intact.rounding.kernel_rounding import KernelRounding


class HardSwishRounding(KernelRounding):
    """LiteRT's HARD_SWISH: 16-bit fixed point, in five roundings."""

    name = "hard_swish"
    takes = QTensor
    any_size = True

    def real(self, pending: QTensor) -> Tensor:
        real = pending.values * pending.scale
        return real * ops.relu6(real + 3.0) * (1.0 / 6.0)

    def quantize(self, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        x, smooth = pending, self.real(pending) / params.scale
        fine = x.scale * np.float32(1 / 128)
        out_factor, out_exponent = _factor_15(fine / params.scale)
        in_factor, in_exponent = _factor_15(divide(fine, np.float32(3.0 / 32768)))
        high_res = ops.cast(x.values, "int32") * 128
        scaled = _doubling_high_multiply(high_res, out_factor)
        left = ops.maximum(in_exponent, 0)
        gate = _saturating_shift(high_res, ops.maximum(left - 1, 0))
        gate = _doubling_high_multiply(gate, in_factor)
        gate = ops.where(left > 0, _saturating_shift(gate, ops.minimum(left, 1)), gate)
        gate = _rounding_shift(gate, ops.maximum(-in_exponent, 0))
        gate = ops.right_shift(gate + 32768, 1)
        product = _truncated_shift_15(gate * scaled)
        product = _rounding_shift(product, ops.maximum(-out_exponent, 0))
        product = _saturating_shift(product, ops.maximum(out_exponent, 0))
        exact = ops.cast(product, "float32")
        return round_clip(straight_through(exact, smooth), low, high)

    def quantize_wide(self, pending: QTensor, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        """A table takes the place of a 16-bit kernel."""
        with wide_types():
            values, step, scale = (
                ops.cast(ops.stop_gradient(x), "float64")
                for x in (pending.values, pending.scale, params.scale)
            )
            x = values * step
            inside = ops.where(x < 3.0, x * (x + 3.0) / 6.0, x)
            y = ops.where(x > -3.0, inside, ops.zeros_like(x))
            exact = ops.cast(ops.round(divide(y, scale)), "float32")
        return self.saturated(exact, pending, params, low, high)


def _factor_15(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """A positive factor as `m * 2**(e - 15)` with a 15-bit integer `m`."""
    exponent = binary_exponent(ratio) + 1
    factor = ops.cast(ops.floor(ratio * power_of_two(15 - exponent) + 0.5), "int32")
    return ops.minimum(factor, 32767), exponent


def _truncated_shift_15(x: Tensor) -> Tensor:
    return ops.sign(x) * ops.right_shift(ops.abs(x), 15)


def _doubling_high_multiply(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return _truncated_shift_15(product + ops.where(product >= 0, 1 << 14, 1 - (1 << 14)))


def _saturating_shift(x: Tensor, by: Tensor) -> Tensor:
    # A shift by more than 15 bits would leave only zeros.
    return ops.clip(ops.left_shift(x, ops.minimum(by, 15)), -32768, 32767)


def _rounding_shift(x: Tensor, by: Tensor) -> Tensor:
    by = ops.minimum(by, 30)
    mask = ops.left_shift(ops.ones_like(by), by) - 1
    beyond = ops.right_shift(mask, 1) + ops.cast(x < 0, "int32")
    return ops.right_shift(x, by) + ops.cast(ops.bitwise_and(x, mask) > beyond, "int32")
