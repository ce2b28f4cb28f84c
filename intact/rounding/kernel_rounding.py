"""How the integer kernels of the runtime round, and how training imitates them."""

from typing import Any, ClassVar

import keras

from intact.numerics.accumulator import Accumulator
from intact.numerics.affine import Affine, QTensor, Scaled
from intact.numerics.backend_kernels import (
    inverse,
    round_clip,
    wide_types,
)
from intact.numerics.exact import divide
from intact.numerics.fixed_point import (
    beyond_vectors,
    multiplier,
    multiply,
    multiply_sums,
    ratio,
    round_away,
)
from intact.numerics.integer_kernels import requantized, saturate
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, symbols
from intact.registry import Registry, is_same


class KernelRounding:
    """How an op's results become integers of the output's scale.

    A subclass is one kernel's way of rounding, without a state. The graph of a quantized model
    stores its `name`, and the registry has one object for each name. Training rounds once, to the
    nearest, whatever the kernel does, unless `in_training` says that it rounds as the kernel does.

    A subclass has its own `real`. Training takes `scaled` instead: the same real values, unless
    the subclass says how they come in fewer passes over the data.

    The pending result that the op's `call` returns is of the type `takes`: a named tuple whose
    class method `symbolic` gives its form in a graph. Without a type, it is one tensor.

    If `any_size` says that `real` and `quantize` read no sizes, all calls share one graph.
    """

    name: ClassVar[str]
    takes: ClassVar[Any] = None
    in_training: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    registry: ClassVar[Registry["KernelRounding"]] = Registry(
        "kernel rounding", "Import the module that declares it before the model is loaded."
    )

    def __init_subclass__(cls, replace: bool = False) -> None:
        if "real" in vars(cls) and "scaled" not in vars(cls):
            # Those of the class above are of other real values.
            cls.scaled = KernelRounding.scaled  # type: ignore[method-assign]
        if "name" in vars(cls):
            known = KernelRounding.registry.get(cls.name)
            again = known is not None and is_same(cls, type(known))
            KernelRounding.registry.add(cls.name, cls(), replace or again)

    def __repr__(self) -> str:
        return type(self).__name__

    def typed(self, pending: Any) -> Any:
        """The pending result in its type, because a saved graph has plain tuples."""
        return pending if self.takes is None else self.takes(*pending)

    def symbolic(self, shape: tuple[int | None, ...]) -> Any:
        """The form of the pending result in a graph.

        Args:
            shape: The shape of the op's output.
        """
        return symbols(shape)[0] if self.takes is None else self.takes.symbolic(shape)

    def output_shape(self, pending: Any) -> tuple[int | None, ...]:
        """The shape of the results: by default, of the first pending tensor."""
        return keras.tree.flatten(pending)[0].shape

    def real(self, pending: Any) -> Tensor:
        """The results as real values, for observers."""
        raise NotImplementedError

    def scaled(self, pending: Any) -> Scaled:
        """The results as real values to within their rounding, for training."""
        return Scaled(self.real(pending))

    def quantize(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        """The results as whole numbers `q - zero_point`, saturated.

        Args:
            pending: What the op's `call` returned.
            params: The output's `scale` and `zero_point`.
            low: Smallest value, scalar.
            high: Largest value, scalar.

        Returns:
            Whole numbers, with straight-through gradients.
        """
        raise NotImplementedError

    def quantize_wide(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        """The same for outputs of 16 bits, whose kernels round otherwise.

        Args:
            pending: What the op's `call` returned.
            params: The output's `scale` and `zero_point`.
            low: Smallest value, scalar.
            high: Largest value, scalar.
        """
        return self.quantize(pending, params, low, high)

    def saturated(
        self, exact: Tensor, pending: Any, params: Affine, low: Tensor, high: Tensor
    ) -> Tensor:
        """A kernel's results, saturated, with the gradient of the real values.

        Args:
            exact: The kernel's results minus the zero point.
            pending: What the op's `call` returned.
            params: The output's `scale` and `zero_point`.
            low: Smallest value, scalar.
            high: Largest value, scalar.
        """

        def smooth() -> Tensor:
            return self.real(pending) * inverse(params.scale)

        return saturate(exact, smooth, low, high)


class RealRounding(KernelRounding):
    """Rounds `x * (1 / scale)` half to even: QUANTIZE, and table ops."""

    name = "real"
    any_size = True

    def real(self, pending: Any) -> Tensor:
        return pending

    def quantize(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return round_clip(pending, low, high, inverse(params.scale))

    def quantize_wide(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        values = self.quantize(pending, params, low, high)
        rest = beyond_vectors(pending, 8)
        if rest is None:
            return values
        # Values after the last vector of eight are divided by the scale, halves away from zero.
        with wide_types():
            quotient = ops.cast(round_away(ratio(pending, 1.0, params.scale)), "float32")
        smooth = pending * inverse(params.scale)
        return ops.where(rest, round_clip(straight_through(quotient, smooth), low, high), values)


class AccumulatorRounding(KernelRounding):
    """Rounds `sum * (input_scale * weight_scale / scale)` half to even, in float32.

    This is XNNPACK's requantization of the sums of convolutions, dense layers,
    products and means.
    """

    name = "accumulator"
    takes = Accumulator
    any_size = True

    def real(self, pending: Accumulator) -> Tensor:
        return pending.real()

    def scaled(self, pending: Accumulator) -> Scaled:
        return Scaled(pending.real() if pending.bias is None else pending.shifted())

    def quantize(self, pending: Accumulator, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        acc = pending
        factor = divide(acc.input_scale * acc.weight_scale, params.scale)
        return requantized(acc.values, acc.bias, factor, low, high)

    def quantize_wide(
        self, pending: Accumulator, params: Affine, low: Tensor, high: Tensor
    ) -> Tensor:
        acc = pending
        smooth = (acc.values + acc.bias) * divide(acc.input_scale * acc.weight_scale, params.scale)
        scales = acc.input_scale, ops.abs(acc.weight_scale), params.scale
        with wide_types():
            exact = ops.cast(self.rounded(acc.exact(), *scales), "float32")
        return saturate(exact, smooth, low, high)

    def rounded(
        self, sums: Tensor, input_scale: Tensor, weight_scale: Tensor, scale: Tensor
    ) -> Tensor:
        """64-bit sums in steps of the output, as the 16-bit kernel rounds them."""
        return multiply_sums(sums, multiplier(input_scale, weight_scale, scale))


class DoubleRounding(AccumulatorRounding):
    """The same, but the 16-bit kernel multiplies in float64 and rounds half away from zero."""

    name = "double"

    def rounded(
        self, sums: Tensor, input_scale: Tensor, weight_scale: Tensor, scale: Tensor
    ) -> Tensor:
        return round_away(ops.cast(sums, "float64") * ratio(input_scale, weight_scale, scale))


class FixedPointRounding(AccumulatorRounding):
    """The sums in fixed point, rounded twice, half away from zero."""

    name = "fixed_point"

    def half_up(self, channels: Any) -> Any:
        """The channels whose halves round up instead."""
        return False

    def quantize(self, pending: Accumulator, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        acc = pending

        def smooth() -> Tensor:
            factor = divide(acc.input_scale * acc.weight_scale, params.scale)
            return (acc.values + acc.bias) * factor

        # The file has the signs of the scales in the weights.
        sums = ops.cast((acc.values + acc.bias) * ops.sign(acc.weight_scale), "int32")
        by = multiplier(acc.input_scale, ops.abs(acc.weight_scale), params.scale)
        exact = multiply(sums, by, self.half_up(ops.shape(sums)[-1]))
        return saturate(exact, smooth, low, high)


class VectorRounding(FixedPointRounding):
    """The sums in fixed point, rounded twice, half up: vectors of channels."""

    name = "fixed_point_vector"

    def half_up(self, channels: Any) -> Any:
        return True


class BlocksRounding(FixedPointRounding):
    """The sums in fixed point: vectors of eight channels, then the rest one by one."""

    name = "fixed_point_blocks"

    def half_up(self, channels: Any) -> Any:
        return ops.arange(channels) < channels // 8 * 8


class ConvertRounding(KernelRounding):
    """From one width to another, in fixed point."""

    name = "convert"
    takes: ClassVar[Any] = QTensor

    def real(self, pending: Any) -> Tensor:
        return pending.values * pending.scale

    def scaled(self, pending: Any) -> Scaled:
        return Scaled(pending.values, pending.scale)

    def quantize(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        by = multiplier(pending.scale, 1.0, params.scale)
        whole = multiply(ops.cast(pending.values, "int32"), by)
        return self.saturated(whole, pending, params, low, high)
