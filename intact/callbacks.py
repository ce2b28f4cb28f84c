"""Schedules as Keras callbacks: for models that were quantized with a `Schedule`.

    q = intact.quantize_model(model, schedule=intact.Schedule())
    q.fit(x, y, callbacks=[intact.callbacks.QuantDelay(500), intact.callbacks.FreezeRanges(2000)])

Steps count from the model's first training step, before it was saved and loaded, too.
"""

from typing import Any, ClassVar

import keras

from intact.layers.schedule import Schedule, clocks, switch


class _StartAt(keras.callbacks.Callback):
    """Sets one step of the schedule when training begins.

    Args:
        step: The step; None for never.
    """

    part: ClassVar[str]

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.start = Schedule(**{self.part: step}).starts()[self.part]

    def on_train_begin(self, logs: Any = None) -> None:
        """Set the step."""
        for clock in clocks(self.model):
            clock.set(**{self.part: self.start})


class QuantDelay(_StartAt):
    """Train in float until a step.

    Example:

    >>> callback = QuantDelay(500)
    """

    part = "quant_delay"


class FreezeRanges(_StartAt):
    """Freeze observed ranges from a step on.

    Example:

    >>> callback = FreezeRanges(2000)
    """

    part = "freeze_ranges"


class FreezeBatchNorm(_StartAt):
    """Let batch norms use and keep their moving statistics from a step on.

    Example:

    >>> callback = FreezeBatchNorm(2000)
    """

    part = "freeze_batch_norm"


class Switch(keras.callbacks.Callback):
    """Switch quantization on and off at the beginning of epochs.

    Args:
        epochs: Maps an epoch to whether training computes on integers from it on.

    Example:

    >>> callback = Switch({0: False, 3: True})
    """

    def __init__(self, epochs: dict[int, bool]) -> None:
        super().__init__()
        self.epochs = dict(epochs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Switch at the epochs that say so."""
        if epoch in self.epochs:
            switch(self.model, self.epochs[epoch])
