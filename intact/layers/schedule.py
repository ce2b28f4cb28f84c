"""The training steps at which quantization begins, and ranges and batch norms freeze.

Each layer with a schedule counts its training steps in a variable, so that a compiled step reads it
as data, and a saved model continues where it stopped.
"""

from dataclasses import asdict, dataclass
from typing import Any

import keras

from intact.errors import IntactError
from intact.numerics.backend_kernels import EQUAL
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, to_numpy

NEVER = float("inf")


@dataclass(frozen=True)
class Schedule:
    """The training step at which each change happens; None for never.

    It affects training only: predictions and files are quantized from the start, as the graphs of
    `tf.contrib.quantize.create_eval_graph` were.

    Args:
        quant_delay: The first step that computes on integers; before it, weights and
            activations are as in float, while ranges are observed.
        freeze_ranges: The first step at which observed ranges are frozen. Learned scales keep
            training.
        freeze_batch_norm: The first step at which batch norms use their moving statistics, and
            freeze them (`freeze_bn_delay` in `tf.contrib.quantize`).

    Raises:
        IntactError: A step is negative, or no whole number.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model, schedule=Schedule(quant_delay=100))
    >>> intact.training_step(q)
    0
    """

    quant_delay: int | None = 0
    freeze_ranges: int | None = None
    freeze_batch_norm: int | None = None

    def __post_init__(self) -> None:
        for name, step in asdict(self).items():
            if step is not None and (not isinstance(step, int) or step < 0):
                raise IntactError(
                    f"Expected {name} to be a training step: a whole number from 0 on, or None "
                    f"for never. Received: {step!r}."
                )

    def starts(self) -> dict[str, float]:
        """The steps, `inf` for never."""
        return {k: NEVER if v is None else float(v) for k, v in asdict(self).items()}


class Clock(keras.layers.Layer):
    """The training step of one layer, and its schedule, as variables.

    Args:
        schedule: The schedule to begin with.
    """

    def __init__(self, schedule: Schedule, **kwargs: Any) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.step = self._variable("step", 0.0)
        self.starts = {k: self._variable(k, v) for k, v in schedule.starts().items()}
        self.built = True

    def _variable(self, name: str, value: float) -> Any:
        init = keras.initializers.Constant(value)
        return self.add_weight(
            name=name, shape=(), initializer=init, trainable=False, aggregation=EQUAL
        )

    def now(self) -> Tensor:
        """How many steps there have been, as a scalar tensor."""
        # A copy, because PyTorch would return the variable, which keeps counting.
        return self.step * 1.0

    def tick(self, again: bool = False) -> Tensor:
        """Count a step, and return the number of those before it.

        Args:
            again: The layer was called before in the same step.
        """
        if again:
            return ops.maximum(self.now() - 1.0, 0.0)
        now = self.now()
        self.step.assign(now + 1.0)
        return now

    def reached(self, what: str, now: Tensor) -> Tensor:
        """Whether a part of the schedule has begun, as a scalar truth value.

        Args:
            what: A field of `Schedule`.
            now: What `tick` or `now` returned.
        """
        return now >= self.starts[what]

    def set(self, **starts: float) -> None:
        """Change the schedule.

        Args:
            **starts: Fields of `Schedule`, with the steps; `inf` for never.
        """
        for name, step in starts.items():
            self.starts[name].assign(step)


def make_clock(schedule: Schedule | None) -> Clock | None:
    """A clock, if there is a schedule."""
    return None if schedule is None else Clock(schedule, name="clock")


def schedule_config(schedule: Schedule | None) -> dict[str, Any] | None:
    """A schedule as plain data."""
    return None if schedule is None else asdict(schedule)


def schedule_from_config(config: dict[str, Any] | None) -> Schedule | None:
    """The schedule of a config."""
    return None if config is None else Schedule(**config)


def clocks(model: keras.Model) -> list[Clock]:
    """The clocks of a quantized model.

    Args:
        model: A model that was quantized with a schedule.

    Raises:
        IntactError: It was quantized without one.
    """
    model_clocks = _clocks(model)
    if not model_clocks:
        raise IntactError(
            f"Model {model.name!r} has no schedule. Make it with one: "
            "`intact.quantize_model(model, schedule=intact.Schedule())`."
        )
    return model_clocks


def _clocks(model: keras.Model) -> list[Clock]:
    return [layer.clock for layer in model.layers if getattr(layer, "clock", None) is not None]


def set_schedule(model: keras.Model, schedule: Schedule) -> None:
    """Give a quantized model another schedule, even while it trains.

    Nothing is recompiled, because the steps are variables. In `fit`, use the callbacks of
    `intact.callbacks`.

    Args:
        model: A model that was quantized with a schedule.
        schedule: The new one.

    Raises:
        IntactError: The model has none.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model, schedule=intact.Schedule())
    >>> set_schedule(q, intact.Schedule(quant_delay=1000, freeze_batch_norm=2000))
    """
    for clock in clocks(model):
        clock.set(**schedule.starts())


def switch(model: keras.Model, on: bool) -> None:
    """Switch quantization in training on or off.

    Args:
        model: A model that was quantized with a schedule.
        on: Whether training computes on integers.

    Raises:
        IntactError: The model has no schedule.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model, schedule=intact.Schedule())
    >>> switch(q, False)  # `q.fit(...)` now trains in float
    """
    for clock in clocks(model):
        clock.set(quant_delay=0.0 if on else NEVER)


def training_step(model: keras.Model) -> int:
    """How many steps a model has trained.

    Args:
        model: A model that was quantized with a schedule.

    Returns:
        The number of steps, those before it was saved and loaded included.

    Raises:
        IntactError: The model has no schedule.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> training_step(intact.quantize_model(model, schedule=intact.Schedule()))
    0
    """
    return max(int(to_numpy(clock.step)) for clock in clocks(model))


def delay_left(model: keras.Model) -> float:
    """How many steps of float training are left; 0 without a schedule.

    Args:
        model: A quantized model.
    """
    left = (to_numpy(c.starts["quant_delay"]) - to_numpy(c.step) for c in _clocks(model))
    return max((float(n) for n in left), default=0.0)
