"""The layer that quantizes activations."""

import math
from typing import Any

import keras
import numpy as np

from intact.layers.base import Gives, activity_loss
from intact.layers.schedule import schedule_config, schedule_from_config
from intact.layers.tracked_range import Clamp, TrackedRange
from intact.numerics.affine import Affine, QTensor, Scaled, integer_range, unquantized
from intact.numerics.backend_kernels import either, over, round_clip, shared, with_shape
from intact.numerics.exact import inverse_of
from intact.numerics.light_ops import ops
from intact.numerics.numbers import from_number, number_ops, read_numbers, true
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.straight_through import round_through, straight_through
from intact.numerics.tensors import Tensor
from intact.plan.scheme import TensorSpec
from intact.quantizers.base import Grid, RangeQuantizer
from intact.rounding.kernel_rounding import KernelRounding, RealRounding


@keras.saving.register_keras_serializable("intact")
class FakeQuantize(TrackedRange):
    """Quantizes activations by a range that is observed, or fixed.

    One layer stands for one range. It is called at every tensor that shares the
    range (the inputs of a concatenation, say); each has a slot of its own, and the
    range is the union of the slots'.

    While training, ranges follow the data by a moving average, unless the layer is
    frozen (`trainable = False`); in inference they are fixed. Where the spec's quantizer has
    trained numbers, these start from the first data seen, and the optimizer moves them.

    Args:
        spec: How the tensors are quantized.
        slots: How many tensors share the range.
        fixed: `(scale, zero_point)` of a range that is fixed, or None.
        schedule: When quantization begins and observation stops in training.
        activity: Per slot, the regularizer of its tensor, if it has one.

    Example:

    >>> layer = FakeQuantize()
    >>> y = layer(np.array([[-1.0, 1.55]], "float32"), training=True)
    >>> keras.ops.convert_to_numpy(y.values).tolist()
    [[-100.0, 155.0]]
    """

    def __init__(self, *args: Any, activity: dict[int, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activity = dict(activity or {})
        self.observing = False
        if self.spec.stochastic:
            self.seeds = keras.random.SeedGenerator()

    @property
    def gives(self) -> Gives:
        """What a call returns."""
        return "integers"

    @property
    def label(self) -> str:
        """That it rounds, and to what."""
        return f"Range, {self.spec.activation_dtype}"

    def observe(self, on: bool) -> None:
        """Pass real values through, so that calibration can observe them; or stop that.

        Args:
            on: Whether to pass them through.
        """
        self.observing = on

    def first_grid(self, grid: Grid) -> Grid:
        """The grid that kernels round to, which is finer if only the sign counts.

        Args:
            grid: What `grid` returned.
        """
        if not self.rule.signs:
            return grid
        low, high = integer_range(8)
        fine = ops.stop_gradient(grid.scale) * np.float32(1 / high)
        zero = ops.zeros_like(fine)
        return Grid(fine, zero, zero + float(low), zero + float(high))

    def settled(self) -> "FakeQuantize":
        """A copy whose range is fixed to what it is now."""
        return FakeQuantize(self.spec, self.slots, self.stored_pair(), name=self.name)

    def call(
        self,
        pending: Any,
        partners: Any = (),
        kernel_rounding: str = "real",
        slot: int = 0,
        lower: float | None = None,
        upper: float | None = None,
        final: bool = False,
        shapes: Any = (),
        training: bool | None = None,
    ) -> QTensor:
        """Quantize an op's result.

        Args:
            pending: What the op's `call` returned; a float tensor for `"real"`.
            partners: The `QTensor`s that the output is multiplied with, if it is a factor: its
                range reaches as far as these products need (`intact.quantizers.uses`).
            kernel_rounding: Name of the kernel's way of rounding.
            slot: Which of the tensors that share the range this is.
            lower: Smallest real value that a fused activation passes.
            upper: Largest real value that a fused activation passes.
            final: Do not round in training: for probabilities and truth values at the end of a
                model. Rounded to 0 or 1, they would have no gradient in a loss that takes their
                logarithm.
            shapes: The output's shape in each product, without the batch; None for its own shape.
            training: Whether ranges follow the data.

        Returns:
            The integers.
        """
        rule, pending = typed(kernel_rounding, pending)
        products = [*zip((QTensor(*x) for x in partners), shapes, strict=True)]
        result = self._quantized(
            rule, pending, training, products, slot, Clamp(lower, upper), final
        )
        if slot in self.activity:
            self.add_loss(activity_loss(self.activity[slot], result.values * result.scale))
        return result

    def _quantized(
        self,
        rule: KernelRounding,
        pending: Any,
        training: bool | None,
        products: list[tuple[QTensor, Any]],
        slot: int,
        clamp: Clamp,
        final: bool,
    ) -> QTensor:
        """The result of `call`, rounded by a class."""
        if self.observing:
            # Calibration observes float activations.
            return unquantized(clamp.real(rule.real(pending)))
        if not training:
            return self._inferred(rule, pending, slot, clamp)
        # Clocks are read once, before ranges and counters move.
        now = on = None
        if self.clock is not None:
            now = self.clock.tick(again=slot > 0)
            on = self.clock.reached("quant_delay", now)
        scaled = rule.scaled(pending)
        by_numbers = not (self.learns or self.rule.signs or rule.in_training)
        xp = number_ops(*scaled) if by_numbers else ops
        if self.fixed is None and self.trainable:
            self._observe(slot, scaled, products, clamp, now)
        elif self.fixed is None:
            self.check_agreement(slot)
        if final:
            return unquantized(clamp.real(scaled.real()))
        grid = self.grid(self._count(rule, pending), now, xp)

        def quantized() -> QTensor:
            values = self._rounded(rule, pending, scaled, grid, clamp, xp)
            scale, zero_point = map(from_number, grid[:2])
            return QTensor(values, scale, zero_point, true(xp))

        def unrounded() -> QTensor:
            values = clamp.real(scaled.real())
            if self.learns:
                # Trained numbers need a gradient before they are used, too: 0.
                values = values + 0.0 * sum(variable * 1.0 for variable in self.learned.values())
            return unquantized(values)

        return quantized() if on is None else QTensor(*either(on, quantized, unrounded))

    def _inferred(
        self,
        rule: KernelRounding,
        pending: Any,
        slot: int,
        clamp: Clamp,
    ) -> QTensor:
        """What a call returns in inference."""
        plain = not (self.learns or self.rule.signs)
        if plain and number_ops(ops.convert_to_tensor(self.scale)) is numpy_ops:
            return self._inferred_by_numbers(rule, pending, slot, clamp)
        spots: tuple[Any, Any, Any, Any] = (self.scale, self.zero_point, None, None)
        if self.learns:
            now = None if self.clock is None else self.clock.now()
            spots = self.grid(self._count(rule, pending), now)
        count = None if self.fixed is not None else self.count

        def settled(
            pending: Any, scale: Any, zero_point: Any, low: Any, high: Any, count: Any, slot: int
        ) -> tuple[Tensor, ...]:
            grid = Grid(scale, zero_point, low, high)
            if low is None:
                grid = self._grid_by(scale, zero_point)

            def rounded() -> tuple[Tensor, ...]:
                values = self._rounded(rule, pending, None, grid, clamp)
                return values, grid.scale, grid.zero_point

            def real() -> tuple[Tensor, ...]:
                return unquantized(clamp.real(rule.real(pending)))[:3]

            if count is None:
                # Not a constant: TensorFlow copies a shared graph at each call that gets one.
                return *rounded(), ops.cast(scale > 0, "float32")
            # A model that has seen no data computes in float rather than in zeros.
            ready = count[slot] > 0
            return *either(ready, rounded, real), ops.cast(ready, "float32")

        if not rule.any_size or self.spec.bits > 8:
            values, scale, zero_point, whole = settled(pending, *spots, count, slot)
        else:
            key = (rule, self.spec, clamp)
            values, *scalars = shared(key, settled, pending, *spots, count, slot)
            scale, zero_point, whole = scalars
            values = with_shape(values, rule.output_shape(pending))
        return QTensor(values, scale, zero_point, ops.cast(whole, "bool"))

    def _inferred_by_numbers(
        self, rule: KernelRounding, pending: Any, slot: int, clamp: Clamp
    ) -> QTensor:
        """The same where `number_ops` computes what is one number."""
        if self.fixed is None and read_numbers(self.count, numpy_ops)[slot] == 0:
            # A model that has seen no data computes in float rather than in zeros.
            return unquantized(clamp.real(rule.real(pending)))
        grid = self.grid(xp=numpy_ops)
        values = self._rounded(rule, pending, None, grid, clamp, numpy_ops)
        scale, zero_point = map(from_number, grid[:2])
        return QTensor(values, scale, zero_point, true(numpy_ops))

    def _rounded(
        self,
        rule: KernelRounding,
        pending: Any,
        scaled: Scaled | None,
        grid: Grid,
        clamp: Clamp,
        xp: Any = ops,
    ) -> Tensor:
        """Whole numbers; while training, `scaled` are the values without rounding, else None."""
        first = self.first_grid(grid)
        low, high = self.bounds(first, clamp, xp)
        if scaled and (self.learns or self.spec.stochastic) and not self.rule.signs:
            moves = self.learns and (self.rule.trains_bounds or clamp.upper is not None)
            return self._trained(scaled.real() * inverse_of(grid.scale, xp), low, high, moves)
        if scaled and not rule.in_training:
            # Training rounds once, so few values differ from the kernels', by 1.
            passes = self.passes(first, clamp, xp)
            factor = xp.convert_to_tensor(scaled.unit) * inverse_of(first.scale, xp)
            values = round_clip(scaled.values, low, high, factor, passes)
        else:
            params = Affine(from_number(first.scale), from_number(first.zero_point))
            if xp is numpy_ops:
                low, high = float(low), float(high)
            rounded = rule.quantize_wide if self.spec.bits > 8 else rule.quantize
            values = rounded(pending, params, low, high)
        if self.rule.signs:
            values = ops.where(values < 0, -1.0, 1.0)
            if scaled:
                smooth = ops.clip(clamp.real(scaled.real()), -1.0, 1.0)
                values = straight_through(values, smooth)
        return values

    def passes(self, grid: Grid, clamp: Clamp, xp: Any = ops) -> tuple[Any, Any]:
        """The whole numbers between which gradients pass, where sums are rounded once.

        Values that round to an end of the range have a gradient, because a constant is an end of
        its range and has to learn. Other quantizers define where their gradient ends.

        Args:
            grid: What `first_grid` returned.
            clamp: The clamp of a fused activation.
            xp: As for `grid`.
        """
        margin = 0.5 if self.rule.name == RangeQuantizer.name else 0.0
        beyond = grid._replace(low=grid.low - margin, high=grid.high + margin)
        return self.bounds(beyond, clamp, xp)

    def unrounded(
        self,
        pending: Any,
        partners: Any = (),
        kernel_rounding: str = "real",
        lower: float | None = None,
        upper: float | None = None,
        **_: Any,
    ) -> QTensor:
        """The same without rounding; the arguments are those of a call."""
        rule, pending = typed(kernel_rounding, pending)
        return unquantized(Clamp(lower, upper).real(rule.real(pending)))

    def _count(self, rule: KernelRounding, pending: Any) -> Any:
        """How many values a sample has."""
        if not self.learns:
            return 1
        shape = rule.output_shape(pending)[1:]
        if None in shape:
            return ops.prod(ops.shape(rule.real(pending))[1:])
        return math.prod(size or 1 for size in shape)

    def bounds(self, grid: Grid, clamp: Clamp, xp: Any = ops) -> tuple[Any, Any]:
        """The smallest and largest whole number of a call.

        Args:
            grid: What `grid` returned.
            clamp: That of the fused activation.
            xp: As for `grid`.
        """
        # Where the scale is trained, the bounds have a gradient.
        whole = round_through if self.learns and xp is ops else xp.round
        low, high = grid.low, grid.high
        # A clamp is where its range ends. A ReLU is clamped by the kernel, at 0 and 6.
        free = 0.0 if clamp.lower == 0 else 1.0
        if clamp.lower is not None:
            bound = whole(over(clamp.lower, grid.scale, xp))
            low = xp.where(bound > low + free, bound, low)
        if clamp.upper is not None:
            bound = whole(over(clamp.upper, grid.scale, xp))
            high = xp.where(bound < high - free, bound, high)
        return low, high

    def _trained(self, steps: Tensor, low: Tensor, high: Tensor, moves: bool) -> Tensor:
        """Whole numbers with gradients for scale and, if it moves them, bounds."""
        noisy = steps
        if self.spec.stochastic:
            noise = keras.random.uniform(ops.shape(steps), -0.5, 0.5, seed=self.seeds)
            noisy = straight_through(steps + noise, steps)
        values = round_clip(noisy, low, high)
        return _moving_bounds(values, steps, low, high) if moves else values

    def compute_output_spec(self, pending: Any, *args: Any, **kwargs: Any) -> Any:
        rule = KernelRounding.registry.find(kwargs.get("kernel_rounding", "real"))
        return QTensor.symbolic(rule.output_shape(rule.typed(pending)))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            spec=self.spec.get_config(),
            slots=self.slots,
            fixed=self.fixed,
            schedule=schedule_config(self.schedule),
        )
        if self.activity:
            config["activity"] = {
                str(slot): keras.saving.serialize_keras_object(regularizer)
                for slot, regularizer in self.activity.items()
            }
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FakeQuantize":
        activity = config.pop("activity", {}).items()
        config["activity"] = {int(slot): keras.regularizers.get(own) for slot, own in activity}
        spec = TensorSpec.from_config(config.pop("spec"))
        schedule = schedule_from_config(config.pop("schedule", None))
        return cls(spec, schedule=schedule, **config)


def typed(kernel_rounding: str, pending: Any) -> tuple[KernelRounding, Any]:
    """The class that rounds, and the pending result in the type that it takes."""
    rule = KernelRounding.registry.find(kernel_rounding)
    if rule.name == RealRounding.name:
        # Images may come in whole numbers.
        return rule, ops.cast(pending, "float32")
    return rule, rule.typed(pending)


def _moving_bounds(values: Tensor, steps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The values themselves; the gradient of values outside the bounds moves the bounds."""
    steps = ops.stop_gradient(steps)
    above = ops.where(steps >= high, high - ops.stop_gradient(high), 0.0)
    below = ops.where(steps <= low, low - ops.stop_gradient(low), 0.0)
    return values + above + below


def tensor_name(quantizer: FakeQuantize, kwargs: dict) -> str:
    """The file's name of a tensor that a quantizer makes."""
    name = quantizer.range_name
    slot = kwargs.get("slot", 0)
    # A layer's name has no slash, so this one is no other tensor's.
    return f"{name}/{slot}" if slot else name


def stored_params(quantizer: FakeQuantize) -> tuple[np.float32, int]:
    """Scale and zero point of a quantizer's tensors, as the file has them."""
    grid = quantizer.stored_grid()
    # Keras holds signed integers.
    shift = 128 if quantizer.spec.kind == "uint" else 0
    return np.float32(grid.scale), int(grid.zero_point) + shift
