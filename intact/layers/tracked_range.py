"""A layer's range: its variables, and how it follows the data."""

from typing import Any, NamedTuple

import numpy as np

from intact.errors import IntactError
from intact.layers.base import QuantizedLayer
from intact.layers.schedule import Schedule, make_clock
from intact.numerics.affine import QTensor, Scaled, affine_params, integer_range
from intact.numerics.backend_kernels import EQUAL, either
from intact.numerics.exact import MIN_SCALE
from intact.numerics.light_ops import ops
from intact.numerics.numbers import number_ops, read_numbers, write_numbers
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import Tensor, to_numpy
from intact.plan.scheme import TensorSpec
from intact.quantizers.base import ActivationStats, Grid, QuantizeContext, Quantizer
from intact.quantizers.means import MeanSize
from intact.quantizers.observers import Range, following
from intact.quantizers.replicas import check_agreement, of_all_replicas
from intact.quantizers.uses import SAMPLE, UseObserver, look, reach


class Clamp(NamedTuple):
    """The real values that a fused activation passes; None where it has no limit."""

    lower: float | None = None
    upper: float | None = None

    def real(self, x: Any, xp: Any = ops) -> Any:
        """Real values after the activation.

        Args:
            x: Values of any shape.
            xp: `keras.ops`, or `numpy_ops`.
        """
        if self == (0.0, None) and xp is not numpy_ops:
            # A maximum halves the gradient at 0, and takes PyTorch several passes.
            return ops.relu(x)
        if self.lower is not None:
            x = xp.maximum(x, np.float32(self.lower))
        if self.upper is not None:
            x = xp.minimum(x, np.float32(self.upper))
        return x


class TrackedRange(QuantizedLayer):
    """Base of the layers that quantize by a range which is observed, trained, or fixed.

    Args:
        spec: How the tensors are quantized.
        slots: How many tensors share the range.
        fixed: `(scale, zero_point)` of a fixed range, or None.
        schedule: The steps of training at which quantization begins and observation ends.
    """

    def __init__(
        self,
        spec: TensorSpec | None = None,
        slots: int = 1,
        fixed: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.spec = spec or TensorSpec()
        self.slots = slots
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        self.rule: Quantizer = self.spec.rule
        low, high = self.rule.ends(self.spec.bits, self.spec.symmetric)
        self.low, self.high = float(low), float(high)
        self.steps = int(self.high - self.low)
        self.learns = bool(self.rule.trained) and fixed is None

        def variable(name: str, shape: tuple[int, ...], value: float) -> Any:
            def init(shape: tuple[int, ...], dtype: str) -> np.ndarray:
                # Keras' own initializers compute on TensorFlow what is a constant.
                return np.full(shape, value, dtype)

            return self.add_weight(
                name=name, shape=shape, initializer=init, trainable=False, aggregation=EQUAL
            )

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
        # The slots whose ranges are known to be equal in all processes.
        self._agreed: set[int] = set()
        self.schedule = schedule
        self.clock = make_clock(schedule)
        self.built = True

    @property
    def range_name(self) -> str:
        """The name of its range: that of the first layer whose output has it."""
        return self.name.removesuffix("_quantizer")

    @property
    def calibrated(self) -> bool:
        """Whether every slot has a range."""
        return self.fixed is not None or bool(to_numpy(self.count).min() > 0)

    def grid(self, count: Any = 1, step: Any = None, xp: Any = ops) -> Grid:
        """Scale, zero point and bounds, as they are now.

        Args:
            count: How many values a sample has, for the scale of gradients.
            step: The training step, if there is a schedule.
            xp: `keras.ops`; or, of a range that is not trained, `numpy_ops`.
        """
        if not self.learns:
            return self._grid_by(self.scale, self.zero_point, xp)
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

    def stored_grid(self) -> Grid:
        """Scale, zero point and bounds, as they are now, as the file has them: NumPy arrays."""
        # On the host: backends take far longer for single numbers.
        return Grid(*map(to_numpy, self.grid(xp=ops if self.learns else numpy_ops)))

    def _grid_by(self, scale: Any, zero_point: Any, xp: Any = ops) -> Grid:
        """The grid of an observed range, as it is now."""
        scale, zero_point = (read_numbers(variable, xp) for variable in (scale, zero_point))
        return Grid(scale, zero_point, self.low - zero_point, self.high - zero_point)

    def grid_of(self, minimum: np.ndarray, maximum: np.ndarray) -> tuple[np.ndarray, ...]:
        """The integers that ranges would give.

        Args:
            minimum: Smallest real values, float32 of any shape.
            maximum: Largest real values.

        Returns:
            `(scale, first, last)`: the scales, and the smallest and largest whole number
            `q - zero_point`, float32 of the same shape.
        """
        scale, zero_point = self._params(minimum, maximum, numpy_ops)
        return scale, self.low - zero_point, self.high - zero_point

    def set_range(
        self,
        minimum: float | np.ndarray,
        maximum: float | np.ndarray,
        size: float | np.ndarray | None = None,
    ) -> None:
        """Set the range; training continues from it, and moves it slowly.

        Args:
            minimum: Smallest real value, of all tensors that share the range or of each.
            maximum: Largest real value.
            size: Mean size of the values, from which trained numbers start; None if not known.
        """
        ones = np.ones(self.slots, "float32")
        self._assign(Range(ones * minimum, ones * maximum, self._settled()), numpy_ops)
        if self.learns:
            if size is None:
                # The mean size of evenly spread values.
                size = np.maximum(np.abs(minimum), np.abs(maximum)) / 2
            self._start(ones * size)

    def check_agreement(self, slot: int) -> None:
        """Make sure, before a slot's first step, that all processes begin with the same range.

        Args:
            slot: Which of the tensors that share the range.

        Raises:
            IntactError: The range of another process differs.
        """

        def read() -> np.ndarray:
            return np.stack([to_numpy(getattr(self, name))[slot] for name in Range._fields])

        if slot not in self._agreed:
            check_agreement(self.range_name, read)
            self._agreed.add(slot)

    def widen(self, scale: float) -> None:
        """Widen the range to a scale that kernels take, with 0 in the middle.

        Args:
            scale: The scale.
        """
        steps = 2.0 ** (max(self.spec.bits, 8) - 1)
        # Trained scales start at a fraction of the range.
        end = float(scale) * steps * (4 if self.learns else 1)
        self.set_range(-end, end)

    def stored_pair(self) -> tuple[float, float]:
        """Scale and zero point, as they are now."""
        scale, zero_point = (float(part) for part in self.stored_grid()[:2])
        return scale, zero_point

    def reset(self) -> None:
        """Forget the range."""
        zeros = np.zeros(self.slots, "float32")
        self._assign(Range(zeros, zeros, zeros), numpy_ops)
        if self.learns:
            self._start(zeros)

    def _start(self, size: np.ndarray) -> None:
        """Reset the trained numbers."""
        self.size.assign(size)
        for variable in self.learned.values():
            variable.assign(0.0)

    def _settled(self) -> np.ndarray:
        """The count of a moving average in the long run; any count if ranges only grow."""
        rest = 1 - self.spec.momentum
        return np.full(self.slots, round(1 / rest) if rest else 1, "float32")

    def _params(self, minimum: Any, maximum: Any, xp: Any) -> tuple[Any, Any]:
        spec = self.spec
        if spec.limit is not None:
            limit = np.float32(spec.limit)
            minimum, maximum = xp.maximum(minimum, -limit), xp.minimum(maximum, limit)
        least = 1.0 if spec.whole else MIN_SCALE
        scale, zero_point = affine_params(
            minimum, maximum, spec.bits, spec.symmetric, spec.power_of_two, least, xp
        )
        # With fewer than 8 bits, the topmost integers are used.
        return scale, zero_point + (self.high - integer_range(spec.bits)[1])

    def _value(self, name: str, xp: Any = ops) -> Any:
        return read_numbers(getattr(self, name), xp)

    def _observe(
        self,
        slot: int,
        scaled: Scaled,
        products: list[tuple[QTensor, Any]],
        clamp: Clamp,
        now: Tensor | None,
    ) -> None:
        """Let the range of a slot follow a batch; the arguments are those of a call."""
        self._refuse_no_samples(scaled.values)
        self.check_agreement(slot)
        scaled = Scaled(*(ops.stop_gradient(x) if ops.is_tensor(x) else x for x in scaled))
        xp = number_ops(scaled.values)
        names = [*Range._fields, *(["size"] if self.learns else [])]
        stored = [self._value(name, xp) for name in names]
        before = [value[slot] for value in stored]
        state = Range(*before[:3])
        # A range that has seen no data, or only zeros, has nothing to keep.
        only_zeros = xp.logical_and(state.minimum == 0, state.maximum == 0)
        state = state._replace(count=xp.where(only_zeros, np.float32(0), state.count))

        def followed() -> list[Any]:
            new = self._followed(state, scaled, products, clamp, xp)
            if not self.learns:
                return [*new]
            size = before[3]
            total = MeanSize().look(clamp.real(scaled.real()))
            total, count = of_all_replicas(MeanSize(), total, xp)
            return [*new, size + (total / count - size) / new.count]

        if self.clock is None and not self.learns:
            after = followed()
        else:
            after = [*either(self._follows(state, now), followed, lambda: before)]
        here = np.arange(self.slots) == slot
        new = [xp.where(here, value, old) for value, old in zip(after, stored, strict=True)]
        self._assign(Range(*new[:3]), xp)
        if self.learns:
            self.size.assign(new[3])

    def _followed(
        self,
        state: Range,
        scaled: Scaled,
        products: list[tuple[QTensor, Any]],
        clamp: Clamp,
        xp: Any,
    ) -> Range:
        """The range of a slot after a batch."""
        observer = following(self.spec.momentum)
        seen = of_all_replicas(observer, observer.look(scaled.values, xp), xp)
        # Clamping the ends gives the ends of the clamped values.
        unit = xp.convert_to_tensor(scaled.unit)
        ends = [clamp.real(end * unit, xp) for end in seen[:2]]
        seen = Range._make([*ends, seen.count])
        if products:
            seen = self._needed(clamp.real(scaled.real()), products, seen, state, xp)
        return observer.update(state, seen, xp)

    def _follows(self, state: Range, now: Tensor | None) -> Tensor:
        """Whether a range with a schedule, or with trained numbers, follows a batch."""
        no_data = state.count == 0
        if self.clock is None:
            return no_data
        over = self.clock.reached("freeze_ranges", now)
        if self.learns:
            # The optimizer moves what the first data, or those before the delay, gave.
            over = ops.logical_or(over, self.clock.reached("quant_delay", now))
        return ops.logical_or(no_data, ops.logical_not(over))

    def _refuse_no_samples(self, values: Tensor) -> None:
        if 0 in values.shape:
            raise IntactError(
                f"{self.range_name!r} got a batch without samples, of shape {tuple(values.shape)}. "
                "It has no range that training could follow. Give every step at least one sample, "
                "in each process that trains: leave out the last batch where it is too small."
            )

    def _needed(
        self, real: Tensor, products: list[tuple[QTensor, Any]], seen: Range, state: Range, xp: Any
    ) -> Range:
        """The part of a range that products need; the range so far if no partner tells."""
        reaches = []
        for x, shape in products:
            # Before a schedule's delay is over, partners are not rounded.
            step = xp.convert_to_tensor(ops.where(x.whole, x.scale, 0.0))
            partner, unit = map(ops.stop_gradient, (x.values, x.scale))
            use = look(real, partner, shape, most=SAMPLE, unit=unit)
            use = of_all_replicas(UseObserver(), use, xp)
            low, high, known = reach(use, self.steps, xp, step)
            # A product that needs all sampled values also needs the values between the samples.
            low = xp.where(low <= xp.min(use.minimum), seen.minimum, low)
            high = xp.where(high >= xp.max(use.maximum), seen.maximum, high)
            reaches.append((low * known, high * known, known))
        minimum, maximum, known = (xp.stack(part) for part in zip(*reaches, strict=True))
        needed = Range(xp.min(minimum), xp.max(maximum), seen.count)
        other = (xp.where(state.count > 0, a, b) for a, b in zip(state, seen, strict=True))
        told = xp.max(known) > 0
        return Range(*(xp.where(told, a, b) for a, b in zip(needed, other, strict=True)))

    def _assign(self, new: Range, xp: Any) -> None:
        # Slots without data hold 0, which every range contains.
        pair = self._params(xp.min(new.minimum), xp.max(new.maximum), xp)
        variables = self.minimum, self.maximum, self.count, self.scale, self.zero_point
        for variable, value in zip(variables, (*new, *pair), strict=True):
            write_numbers(variable, value, xp)
