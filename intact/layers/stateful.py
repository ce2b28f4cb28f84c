"""Layers that keep a state between calls, and checks for models that have them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from intact.errors import IntactError, InvalidDataError
from intact.layers.fake_quantize import FakeQuantize
from intact.numerics.affine import Affine, QTensor
from intact.numerics.exact import power_of_two_above
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, to_numpy
from intact.rounding.int16_tables import CELL_BITS, HIGH
from intact.rounding.kernel_rounding import KernelRounding
from intact.rounding.lstm import LSTMRounding, Run, State, StateKeeper

UNSEEN = 8.0
"""The assumed largest cell state before any was seen."""


@keras.saving.register_keras_serializable("intact")
class StatefulQuantize(StateKeeper, FakeQuantize):
    """Quantizes the outputs of an LSTM that keeps its state, and keeps it.

    The output is the hidden state, rounded at every step; so the steps are computed here.

    Args:
        state: The shape of the state, `(batch, units)`.
    """

    def __init__(self, *args: Any, state: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = (state[0], state[1])

        def variable(name: str, shape: tuple[int, ...]) -> Any:
            return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

        self.hidden, self.cell = (variable(name, self.state) for name in State._fields)
        # The largest cell state that was seen.
        self.peak = variable("peak", ())

    def cell_scale(self) -> Tensor:
        """Scale of the cell: the smallest power of two that the kernel takes and that suffices."""
        peak = self._value("peak")
        peak = ops.where(peak > 0, peak, UNSEEN)
        scale = power_of_two_above(peak * np.float32(1 / HIGH))
        return ops.clip(scale, *(2.0 ** (bits - 15) for bits in (CELL_BITS[0], CELL_BITS[-1])))

    def observe(self, on: bool) -> None:
        super().observe(on)
        if on:
            self.peak.assign(0.0)

    def settled(self) -> "StatefulQuantize":
        copy = StatefulQuantize(self.spec, 1, self.stored_pair(), state=self.state, name=self.name)
        for name in ("hidden", "cell", "peak"):
            getattr(copy, name).assign(to_numpy(getattr(self, name)))
        return copy

    def _quantized(
        self, rule: KernelRounding, pending: Any, training: bool | None, *rest: Any
    ) -> QTensor:
        """Compute all steps from the kept state, and keep the new one."""
        if not isinstance(rule, LSTMRounding):
            return super()._quantized(rule, pending, training, *rest)
        before = State(*map(self._value, State._fields))
        run = Run(pending, before, self.cell_scale())
        if self.observing or (training and self.trainable and self.fixed is None):
            seen = ops.max(ops.abs(ops.stop_gradient(run.real.cell)))
            self.peak.assign(ops.maximum(self._value("peak"), seen))
            run.cell_scale = self.cell_scale()
        output = super()._quantized(rule, run, training, *rest)
        self.keep(self._after(run, output))
        return output

    def _after(self, run: Run, output: QTensor) -> State:
        """The state after a call that made real values or integers."""
        if self.observing:
            return run.real.last
        hidden, cell = run.whole(Affine(output.scale, output.zero_point)).last
        whole = State(hidden * output.scale, cell * run.cell_scale)
        if self.fixed is not None:
            return whole
        pairs = zip(whole, run.real.last, strict=True)
        return State(*(ops.where(output.whole, a, b) for a, b in pairs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "state": list(self.state)}


def stateful_layers(model: keras.Model) -> list[StateKeeper]:
    """The layers of a quantized or canonical model that keep a state between calls."""
    layers = [one for layer in model.layers for one in (layer, getattr(layer, "layer", None))]
    return [layer for layer in layers if isinstance(layer, StateKeeper)]


def check_stream(model: keras.Model, samples: int) -> None:
    """Make sure that a model that keeps its state gets as many samples as it has states.

    Args:
        model: A quantized or canonical model.
        samples: How many samples it is about to get.

    Raises:
        InvalidDataError: The number is no multiple of the batch.
    """
    size = model.inputs[0].shape[0]
    if stateful_layers(model) and samples % size:
        raise InvalidDataError(
            f"Model {model.name!r} keeps a state for each of the {size} samples of a batch, so it "
            f"takes whole batches. Received: {samples} samples. Leave out {samples % size} of them."
        )


def refuse_stream(model: keras.Model, what: str) -> None:
    """Refuse to run parts of a model that keeps its state, which would move it.

    Args:
        model: A quantized or canonical model.
        what: What would run them, for the error.

    Raises:
        IntactError: It keeps a state.
    """
    if stateful_layers(model):
        raise IntactError(
            f"Model {model.name!r} keeps its state between calls (stateful=True), and {what} runs "
            "its layers several times for each batch. Do that on a twin that has the same weights "
            "and stateful=False, or leave it out: `calibrate`, `fit` and `compare(q, file, x)` go "
            "through a stream in its order."
        )


def reset_states(model: keras.Model) -> None:
    """Reset the state of a model that keeps one (`stateful=True`).

    Afterwards it computes what its file does after LiteRT's `reset_all_variables`, or what
    a newly loaded file does.

    Args:
        model: What `quantize_model` returned, perhaps trained, saved and loaded.

    Example:

    >>> import intact
    >>> lstm = keras.layers.LSTM(2, stateful=True)
    >>> model = keras.Sequential([keras.Input((3, 4), batch_size=1), lstm])
    >>> q = intact.quantize_model(model)
    >>> x = np.ones((1, 3, 4), "float32")
    >>> first, second = (q.predict(x, verbose=0) for _ in range(2))
    >>> reset_states(q)
    >>> bool((q.predict(x, verbose=0) == first).all()), bool((second == first).all())
    (True, False)
    """
    for layer in stateful_layers(model):
        layer.reset_state()
