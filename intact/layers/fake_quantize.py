"""The layer that quantizes activations."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.layers.base import Gives, QuantizedLayer, activity_loss
from intact.layers.schedule import Schedule, make_clock, schedule_config, schedule_from_config
from intact.numerics.affine import Affine, QTensor, affine_params, integer_range, unquantized
from intact.numerics.backend_kernels import (
    either,
    inverse,
    over,
    round_clip,
    shared,
    with_shape,
)
from intact.numerics.exact import MIN_SCALE
from intact.numerics.straight_through import round_through, straight_through
from intact.numerics.tensors import Tensor, to_numpy
from intact.plan.scheme import TensorSpec
from intact.quantizers.base import ActivationStats, Grid, QuantizeContext, Quantizer, RangeQuantizer
from intact.quantizers.observers import Range, following
from intact.quantizers.uses import SAMPLE, look, reach
from intact.rounding.kernel_rounding import KernelRounding, RealRounding


@keras.saving.register_keras_serializable("intact")
class FakeQuantize(QuantizedLayer):
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
        schedule: When it begins to quantize, and stops to observe, in training.
        activity: Per slot, the regularizer of its tensor, if it has one.

    Example:

    >>> layer = FakeQuantize()
    >>> y = layer(np.array([[-1.0, 1.55]], "float32"), training=True)
    >>> np.asarray(to_numpy(y.values)).tolist()
    [[-100.0, 155.0]]
    """

    def __init__(
        self,
        spec: TensorSpec | None = None,
        slots: int = 1,
        fixed: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        activity: dict[int, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.spec = spec or TensorSpec()
        self.activity = dict(activity or {})
        self.slots = slots
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        self.observing = False
        self.rule: Quantizer = self.spec.rule
        low, high = self.rule.ends(self.spec.bits, self.spec.symmetric)
        self.low, self.high = float(low), float(high)
        self.steps = int(self.high - self.low)
        self.learns = bool(self.rule.trained) and fixed is None

        def variable(name: str, shape: tuple[int, ...], value: float) -> Any:
            init = keras.initializers.Constant(value)
            return self.add_weight(name=name, shape=shape, initializer=init, trainable=False)

        scale, zero_point = self.fixed or (1.0, 0.0)
        self.scale = variable("scale", (), scale)
        self.zero_point = variable("zero_point", (), zero_point)
        if self.fixed is None:
            self.minimum = variable("minimum", (slots,), 0.0)
            self.maximum = variable("maximum", (slots,), 0.0)
            self.count = variable("count", (slots,), 0.0)
        if self.learns:
            self.size = variable("size", (slots,), 0.0)
            self.learned = {
                name: self.add_weight(name=f"learned_{name}", shape=(), initializer="zeros")
                for name in self.rule.trained
            }
        self.schedule = schedule
        self.clock = make_clock(schedule)
        if self.spec.stochastic:
            self.seeds = keras.random.SeedGenerator()
        self.built = True

    @property
    def gives(self) -> Gives:
        """What a call returns."""
        return "integers"

    @property
    def range_name(self) -> str:
        """The name of its range: that of the first layer whose output has it."""
        return self.name.removesuffix("_quantizer")

    @property
    def calibrated(self) -> bool:
        """Whether every slot has a range."""
        return self.fixed is not None or bool(to_numpy(self.count).min() > 0)

    def grid(self, count: Any = 1, step: Any = None) -> Grid:
        """Scale, zero point and bounds, as they are now.

        Args:
            count: How many values a sample has, for the scale of gradients.
            step: The training step, if there is a schedule.
        """
        if not self.learns:
            return self._grid_by(self.scale, self.zero_point)
        spec = self.spec
        seen = ActivationStats(*(self._value(name) for name in ("minimum", "maximum", "size")))
        seen = ActivationStats(ops.min(seen.minimum), ops.max(seen.maximum), ops.max(seen.size))
        at = QuantizeContext(
            spec.bits,
            symmetric=spec.symmetric,
            power_of_two=spec.power_of_two,
            step=step,
            count=count,
        )
        learned = {name: variable * 1.0 for name, variable in self.learned.items()}
        return self.rule.grid(seen, learned, at)

    def _grid_by(self, scale: Any, zero_point: Any) -> Grid:
        """The grid of an observed range, as it is now."""
        # Copies: torch and TensorFlow would give the variables, which later calls change.
        scale, zero_point = scale * 1.0, zero_point * 1.0
        return Grid(scale, zero_point, self.low - zero_point, self.high - zero_point)

    def first_grid(self, grid: Grid) -> Grid:
        """The grid that kernels round to, which is finer where only the sign is kept.

        Args:
            grid: What `grid` returned.
        """
        if not self.rule.signs:
            return grid
        low, high = integer_range(8)
        fine = ops.stop_gradient(grid.scale) * np.float32(1 / high)
        zero = ops.zeros_like(fine)
        return Grid(fine, zero, zero + float(low), zero + float(high))

    def grid_of(self, minimum: np.ndarray, maximum: np.ndarray) -> tuple[np.ndarray, ...]:
        """The integers that ranges would give.

        Args:
            minimum: Smallest real values, float32 of any shape.
            maximum: Largest real values.

        Returns:
            `(scale, first, last)`: the scales, and the smallest and largest whole number
            `q - zero_point`, float32 of the same shape.
        """
        scale, zero_point = map(to_numpy, self._params(minimum, maximum))
        return scale, self.low - zero_point, self.high - zero_point

    def set_range(
        self,
        minimum: float | np.ndarray,
        maximum: float | np.ndarray,
        size: float | np.ndarray | None = None,
    ) -> None:
        """Set the range by hand; training continues from it at its own slow pace.

        Args:
            minimum: Smallest real value, of all tensors that share the range or of each.
            maximum: Largest real value.
            size: Mean size of the values, from which trained numbers start; None if not known.
        """
        ones = np.ones(self.slots, "float32")
        self._assign(Range(ones * minimum, ones * maximum, self._settled()))
        if self.learns:
            if size is None:
                # As if the values were spread evenly.
                size = np.maximum(np.abs(minimum), np.abs(maximum)) / 2
            self._start(ones * size)

    def widen(self, scale: float) -> None:
        """Make the scale at least as large as one that kernels take, and 0 the middle.

        Args:
            scale: The scale.
        """
        steps = 2.0 ** (max(self.spec.bits, 8) - 1)
        # Trained scales start at a part of the range.
        end = float(scale) * steps * (4 if self.learns else 1)
        self.set_range(-end, end)

    def observe(self, on: bool) -> None:
        """Let real values through, for calibration to look at; or end that.

        Args:
            on: Whether to let them through.
        """
        self.observing = on

    def stored_pair(self) -> tuple[float, float]:
        """Scale and zero point, as they are now."""
        scale, zero_point = (float(to_numpy(part)) for part in self.grid()[:2])
        return scale, zero_point

    def settled(self) -> "FakeQuantize":
        """A copy whose range is fixed to what it is now."""
        return FakeQuantize(self.spec, self.slots, self.stored_pair(), name=self.name)

    def reset(self) -> None:
        """Forget the range."""
        zeros = np.zeros(self.slots, "float32")
        self._assign(Range(zeros, zeros, zeros))
        if self.learns:
            self._start(zeros)

    def _start(self, size: np.ndarray) -> None:
        """Let the trained numbers start anew."""
        self.size.assign(size)
        for variable in self.learned.values():
            variable.assign(0.0)

    def _settled(self) -> np.ndarray:
        """The count of a moving average in its long run; any, where ranges only grow."""
        rest = 1 - self.spec.momentum
        return np.full(self.slots, round(1 / rest) if rest else 1, "float32")

    def _params(self, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.spec
        if spec.limit is not None:
            minimum, maximum = ops.maximum(minimum, -spec.limit), ops.minimum(maximum, spec.limit)
        least = 1.0 if spec.whole else MIN_SCALE
        scale, zero_point = affine_params(
            minimum, maximum, spec.bits, spec.symmetric, spec.power_of_two, least
        )
        # Fewer than 8 bits are the topmost integers.
        return scale, zero_point + (self.high - integer_range(spec.bits)[1])

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
        """Quantize what an op computed.

        Args:
            pending: What the op's `call` returned; a float tensor for `"real"`.
            partners: The `QTensor`s that the output is multiplied with, if it is a factor: its
                range reaches as far as these products need (`intact.uses`).
            kernel_rounding: Name of the kernel's way of rounding.
            slot: Which of the tensors that share the range this is.
            lower: Smallest real value that a fused activation lets through.
            upper: Largest real value that a fused activation lets through.
            final: Leave the values as they are while training: shares and truth values at
                the end of a model. Rounded to 0 or 1 they would have no gradient in a loss
                that takes their logarithm, and nothing follows that could learn of it.
            shapes: The output's shape beside each partner, without the batch; None where it is
                its own.
            training: Whether ranges follow the data.

        Returns:
            The integers.
        """
        rule, pending = _typed(kernel_rounding, pending)
        products = [*zip((QTensor(*x) for x in partners), shapes, strict=True)]
        result = self._quantized(rule, pending, training, products, slot, lower, upper, final)
        if slot in self.activity:
            self.add_loss(activity_loss(self.activity[slot], result.values * result.scale))
        return result

    def _quantized(
        self,
        rule: type[KernelRounding],
        pending: Any,
        training: bool | None,
        products: list[tuple[QTensor, Any]],
        slot: int,
        lower: float | None,
        upper: float | None,
        final: bool,
    ) -> QTensor:
        """What `call` returns, by the class that rounds."""
        if self.observing:
            # Calibration looks at what float activations would be.
            return unquantized(_bounded(rule.real(pending), lower, upper))
        if not training:
            return self._inferred(rule, pending, slot, lower, upper)
        # Clocks are read once, before ranges and counters move.
        now = on = None
        if self.clock is not None:
            now = self.clock.tick(again=slot > 0)
            on = self.clock.reached("quant_delay", now)
        real = rule.real(pending)
        if self.fixed is None and self.trainable:
            self._observe(slot, ops.stop_gradient(real), products, lower, upper, now)
        if final:
            return unquantized(_bounded(real, lower, upper))
        grid = self.grid(self._count(rule, pending), now)

        def quantized() -> QTensor:
            values = self._rounded(rule, pending, real, grid, lower, upper)
            return QTensor(values, grid.scale, grid.zero_point, ops.ones((), "bool"))

        def unrounded() -> QTensor:
            values = _bounded(real, lower, upper)
            if self.learns:
                # The gradient of trained numbers is 0 before they are used, and not missing.
                values = values + 0.0 * sum(variable * 1.0 for variable in self.learned.values())
            return unquantized(values)

        return quantized() if on is None else QTensor(*either(on, quantized, unrounded))

    def _inferred(
        self,
        rule: type[KernelRounding],
        pending: Any,
        slot: int,
        lower: float | None,
        upper: float | None,
    ) -> QTensor:
        """What a call returns in inference."""
        spots: tuple[Any, Any, Any, Any] = (self.scale, self.zero_point, None, None)
        if self.learns:
            now = None if self.clock is None else self.clock.now()
            spots = self.grid(self._count(rule, pending), now)
        ready = None if self.fixed is not None else self.count[slot] > 0

        def settled(
            pending: Any, scale: Any, zero_point: Any, low: Any, high: Any, ready: Any
        ) -> tuple[Tensor, ...]:
            grid = Grid(scale, zero_point, low, high)
            if low is None:
                grid = self._grid_by(scale, zero_point)
            values = self._rounded(rule, pending, None, grid, lower, upper)
            y = (values, grid.scale, grid.zero_point)
            if ready is None:
                return y
            # A model that has seen no data computes in float rather than in zeros.
            plain = unquantized(_bounded(rule.real(pending), lower, upper))
            return tuple(ops.where(ready, a, b) for a, b in zip(y, plain[:3], strict=True))

        if not rule.any_size or self.spec.bits > 8:
            values, scale, zero_point = settled(pending, *spots, ready)
        else:
            key = (rule, self.spec, lower, upper)
            values, scale, zero_point = shared(key, settled, pending, *spots, ready)
            values = with_shape(values, rule.output_shape(pending))
        # Not a constant: TensorFlow copies a shared graph at each call that gets one.
        return QTensor(values, scale, zero_point, self.scale > 0 if ready is None else ready)

    def _rounded(
        self,
        rule: type[KernelRounding],
        pending: Any,
        real: Tensor | None,
        grid: Grid,
        lower: float | None,
        upper: float | None,
    ) -> Tensor:
        """Whole numbers; while training, `real` are the values without rounding, else None."""
        first = self.first_grid(grid)
        params = Affine(first.scale, first.zero_point)
        low, high = self.bounds(first, lower, upper)
        training = real is not None
        if training and (self.learns or self.spec.stochastic) and not self.rule.signs:
            moves = self.learns and (self.rule.trains_bounds or upper is not None)
            return self._trained(real * inverse(grid.scale), low, high, moves)
        if training and not rule.in_training:
            # Rounded once; few values differ from those of the kernels, by 1. What is rounded to
            # an end of the range is not clipped: constants, which are one, have gradients. Other
            # formulas say themselves where theirs ends.
            margin = 0.5 if self.rule.name == RangeQuantizer.name else 0.0
            beyond = first._replace(low=first.low - margin, high=first.high + margin)
            passes = self.bounds(beyond, lower, upper)
            values = round_clip(real, low, high, inverse(first.scale), passes)
        elif self.spec.bits > 8:
            values = rule.quantize_wide(pending, params, low, high)
        else:
            values = rule.quantize(pending, params, low, high)
        if self.rule.signs:
            values = ops.where(values < 0, -1.0, 1.0)
            if training:
                smooth = ops.clip(_bounded(real, lower, upper), -1.0, 1.0)
                values = straight_through(values, smooth)
        return values

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
        rule, pending = _typed(kernel_rounding, pending)
        return unquantized(_bounded(rule.real(pending), lower, upper))

    def _count(self, rule: type[KernelRounding], pending: Any) -> Any:
        """How many values a sample has."""
        if not self.learns:
            return 1
        shape = rule.output_shape(pending)[1:]
        if None in shape:
            return ops.prod(ops.shape(rule.real(pending))[1:])
        return math.prod(size or 1 for size in shape)

    def bounds(self, grid: Grid, lower: float | None, upper: float | None) -> tuple[Any, Any]:
        """The smallest and largest whole number of a call.

        Args:
            grid: What `grid` returned.
            lower: As for `call`.
            upper: As for `call`.
        """
        # Where the scale is trained, the bounds have a gradient.
        whole = round_through if self.learns else ops.round
        low, high = grid.low, grid.high
        # A clamp is where its range ends. A ReLU is clamped by the kernel, at 0 and 6.
        free = 0.0 if lower == 0 else 1.0
        if lower is not None:
            bound = whole(over(lower, grid.scale))
            low = ops.where(bound > low + free, bound, low)
        if upper is not None:
            bound = whole(over(upper, grid.scale))
            high = ops.where(bound < high - free, bound, high)
        return low, high

    def _value(self, name: str) -> Tensor:
        # A copy: torch and TensorFlow would give the variable, which later calls change.
        return getattr(self, name) * 1.0

    def _trained(self, steps: Tensor, low: Tensor, high: Tensor, moves: bool) -> Tensor:
        """Whole numbers with gradients for scale and, if it moves them, bounds."""
        noisy = steps
        if self.spec.stochastic:
            noise = keras.random.uniform(ops.shape(steps), -0.5, 0.5, seed=self.seeds)
            noisy = straight_through(steps + noise, steps)
        values = round_clip(noisy, low, high)
        return _moving_bounds(values, steps, low, high) if moves else values

    def _observe(
        self,
        slot: int,
        real: Tensor,
        products: list[tuple[QTensor, Any]],
        lower: float | None,
        upper: float | None,
        now: Tensor | None,
    ) -> None:
        state = Range(self.minimum[slot], self.maximum[slot], self.count[slot])
        kept = [*state, self.size[slot]] if self.learns else [*state]
        # A range that has seen nothing, or nothing but 0, has nothing to keep.
        only_zeros = ops.logical_and(state.minimum == 0, state.maximum == 0)
        state = state._replace(count=ops.where(only_zeros, 0.0, state.count))

        def followed() -> list[Tensor]:
            observer = following(self.spec.momentum)
            seen = observer.look(real)
            # The ends of what is clamped are the ends, clamped.
            minimum, maximum = (_bounded(end, lower, upper) for end in seen[:2])
            seen = Range(minimum, maximum, seen.count)
            if products:
                seen = self._needed(_bounded(real, lower, upper), products, seen, state)
            new = observer.update(state, seen)
            if not self.learns:
                return [*new]
            mean = ops.mean(ops.abs(_bounded(real, lower, upper)))
            return [*new, kept[-1] + (mean - kept[-1]) / new.count]

        observes = state.count == 0
        if self.clock is not None:
            over = self.clock.reached("freeze_ranges", now)
            if self.learns:
                # The optimizer moves what the first data gave, or those before it began.
                over = ops.logical_or(over, self.clock.reached("quant_delay", now))
            observes = ops.logical_or(observes, ops.logical_not(over))
        always = self.clock is None and not self.learns
        new = followed() if always else either(observes, followed, lambda: kept)
        names = [*Range._fields, "size"][: len(new)]
        here = np.arange(self.slots) == slot
        new = [ops.where(here, n, self._value(k)) for n, k in zip(new, names, strict=True)]
        self._assign(Range(*new[:3]))
        if self.learns:
            self.size.assign(new[3])

    def _needed(
        self, real: Tensor, products: list[tuple[QTensor, Any]], seen: Range, state: Range
    ) -> Range:
        """The part of a range that products need; what is known of it where nothing tells."""
        found = []
        for x, shape in products:
            # Before a schedule's delay is over, partners are not rounded.
            step = ops.where(x.whole, x.scale, 0.0)
            use = look(real, ops.stop_gradient(x.values * x.scale), shape, most=SAMPLE)
            low, high, known = reach(use, self.steps, least=step)
            # A sample that needs all of its values needs those beside them, too.
            low = ops.where(low <= ops.min(use.minimum), seen.minimum, low)
            high = ops.where(high >= ops.max(use.maximum), seen.maximum, high)
            found.append((low * known, high * known, known))
        minimum, maximum, known = (ops.stack(part) for part in zip(*found, strict=True))
        needed = Range(ops.min(minimum), ops.max(maximum), seen.count)
        other = (ops.where(state.count > 0, a, b) for a, b in zip(state, seen, strict=True))
        told = ops.max(known) > 0
        return Range(*(ops.where(told, a, b) for a, b in zip(needed, other, strict=True)))

    def _assign(self, new: Range) -> None:
        self.minimum.assign(new.minimum)
        self.maximum.assign(new.maximum)
        self.count.assign(new.count)
        # Slots without data hold 0, which is in every range anyway.
        scale, zero_point = self._params(
            ops.min(self._value("minimum")), ops.max(self._value("maximum"))
        )
        self.scale.assign(scale)
        self.zero_point.assign(zero_point)

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


def _typed(kernel_rounding: str, pending: Any) -> tuple[type[KernelRounding], Any]:
    """The class that rounds, and what is pending in the type that it takes."""
    rule = KernelRounding.registry.find(kernel_rounding)
    if rule is RealRounding:
        # Images may come in whole numbers.
        return rule, ops.cast(pending, "float32")
    return rule, rule.typed(pending)


def _moving_bounds(values: Tensor, steps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The values themselves; the gradient of those outside of the bounds moves the bounds."""
    steps = ops.stop_gradient(steps)
    above = ops.where(steps >= high, high - ops.stop_gradient(high), 0.0)
    below = ops.where(steps <= low, low - ops.stop_gradient(low), 0.0)
    return values + above + below


def _bounded(real: Tensor, lower: float | None, upper: float | None) -> Tensor:
    if (lower, upper) == (0.0, None):
        # A maximum has half a gradient at 0, and takes torch several passes.
        return ops.relu(real)
    if lower is not None:
        real = ops.maximum(real, lower)
    if upper is not None:
        real = ops.minimum(real, upper)
    return real


def tensor_name(quantizer: FakeQuantize, kwargs: dict) -> str:
    """The file's name of a tensor that a quantizer makes."""
    name = quantizer.range_name
    slot = kwargs.get("slot", 0)
    # A layer's name has no slash, so this one is no other tensor's.
    return f"{name}/{slot}" if slot else name


def stored_params(quantizer: FakeQuantize) -> tuple[np.float32, int]:
    """Scale and zero point of a quantizer's tensors, as the file has them."""
    grid = quantizer.grid()
    # Keras has the integers signed.
    shift = 128 if quantizer.spec.kind == "uint" else 0
    return np.float32(to_numpy(grid.scale)), int(to_numpy(grid.zero_point)) + shift
