"""Accuracy without labels: what calibration alone leaves on the table."""

from typing import Any

import keras
import numpy as np

from intact.calibration import calibrate, collect
from intact.errors import IntactError
from intact.graph import view
from intact.lstm import refuse_stream
from intact.numerics import to_numpy
from intact.ops.base import get_op
from intact.quantizers import FakeQuantize
from intact.recovery.equalization import equalize as equalize_layers
from intact.recovery.layerwise import adjust, adjustable
from intact.recovery.walk import (
    Call,
    as_filed,
    before_shares,
    cut,
    folded_norm,
    in_float,
    relative_error,
    run,
)
from intact.training import Quantized

HELD_OUT = 0.25
"""Share of the samples on which it is judged whether a step helps."""


def recover(
    model: keras.Model,
    data: Any,
    steps: int | None = None,
    batch_size: int = 32,
    bias_correction: bool | None = None,
    weight_scales: bool | None = None,
    round: bool | None = None,
    equalize: bool | None = None,
    observer: Any = None,
    seed: int = 0,
    verbose: int = 1,
) -> keras.Model:
    """Win back accuracy that quantization costs, from calibration samples alone.

    Calibrates the model, too. By default each step is tried, and kept where the model's
    outputs are nearer to the float model's than before, on a quarter of the samples that is
    put aside for this. So no step makes the model worse than `calibrate` leaves it.

    The weights that come out are whole multiples of their scales, so that the file holds
    just these.

    Args:
        model: What `quantize_model` returned, calibrated or not, but not trained: its own
            weights are what it should compute in float.
        data: As for `calibrate`; 100 samples are enough for 8 bits, and 1000 better for 4.
        steps: How many batches to take at most.
        batch_size: Samples that run at once.
        bias_correction: Take back what rounding shifts in the mean of each layer's sums
            (Nagel et al., arXiv:1906.04721, section 4.2). As for the next three, True does
            it, False does not, None does it if it helps.
        weight_scales: Search for the range of each channel of weights that leaves the
            smallest error in the layer's sums. None tries it for less than 8 bits.
        round: Round weights up or down so that the error of the sums is smallest, instead
            of to the nearest (AdaRound, arXiv:2004.10568).
        equalize: Move scales between layers through ReLUs, so that channels fill the range
            of their tensor alike (arXiv:1906.04721, section 4.1).
        observer: As for `calibrate`.
        seed: Of the samples put aside, and of the places in images that are looked at.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The model itself.

    Raises:
        IntactError: No layer of the model has quantized weights.
        InvalidDataError: The data is empty, not finite, or wrongly shaped.

    Example:

    >>> import intact
    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.recover(intact.quantize_model(model), x, verbose=0)
    >>> intact.compare(q, intact.export(q), x).different
    0
    """
    refuse_stream(model, "`recover`")
    held = [layer for layer in model.layers if adjustable(layer)]
    if not held:
        raise IntactError(
            f"Model {model.name!r} has no quantized weights to recover accuracy with. Make a "
            "quantized model first: `q = intact.quantize_model(model)`."
        )
    folded = [layer.name for layer in held if layer.norm is not None]
    if folded:
        raise IntactError(
            f"The weights of {folded} have the factors of a batch norm in them, which `recover` "
            "does not adjust. Quantize the model without `fold_batch_norm`, which is for training."
        )
    options = {
        "round": round,
        "bias_correction": bias_correction,
        "weight_scales": weight_scales,
        "equalize": equalize,
    }
    if weight_scales is None and all(layer.spec.bits >= 8 for layer in held):
        options["weight_scales"] = False
    arrays = collect(data, steps, batch_size, model.inputs)
    given = State(model)
    try:
        _Recovery(model, arrays, batch_size, observer, seed, verbose).run(options)
    except BaseException:
        # A recovery that fails leaves the model as it was.
        given.restore()
        raise
    return model


class State:
    """A copy of all that a recovery may change in a model."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.values = [np.array(to_numpy(variable)) for variable in model.variables]
        self.layers = [layer for layer in model.layers if isinstance(layer, Quantized)]
        self.corrected = [layer.corrected for layer in self.layers]

    def restore(self) -> None:
        """Put it back."""
        for variable, value in zip(self.model.variables, self.values, strict=True):
            variable.assign(value)
        for layer, corrected in zip(self.layers, self.corrected, strict=True):
            layer.corrected = corrected


class _Recovery:
    """Attempts to quantize one model, each judged on samples that the others have not seen."""

    def __init__(
        self,
        model: keras.Model,
        arrays: list[np.ndarray],
        batch_size: int,
        observer: Any,
        seed: int,
        verbose: int,
    ) -> None:
        self.model, self.arrays, self.observer = model, arrays, observer
        self.batch_size, self.seed, self.verbose = batch_size, seed, verbose
        order = np.random.default_rng(seed).permutation(len(arrays[0]))
        count = max(int(HELD_OUT * len(order)), 1)
        # A single sample is all that there is to learn from and to judge by.
        seen = order[count:] if len(order) > 1 else order
        self.seen = cut([array[seen] for array in arrays], batch_size)
        self.judging = cut([array[order[:count]] for array in arrays], batch_size)
        self.judged = [before_shares(view(model), tensor) for tensor in model.outputs]
        self.equalized: State | None = None

    def run(self, options: dict[str, bool | None]) -> None:
        """Try the options that are open one after the other, and keep what helps."""
        chosen = {name: value is True for name, value in options.items()}
        trials = [name for name, value in options.items() if value is None]
        equalizing = options["equalize"] is not False
        self.calls = sum(not node.is_input for node in view(self.model).nodes)
        total = (1 + len(trials) + equalizing) * self.calls
        self.bar = keras.utils.Progbar(total, verbose=self.verbose)

        best = State(self.model)
        fresh = any(chosen.values()) or not _calibrated(self.model)
        # As it is, before what calibration corrected is taken back.
        as_given = None if fresh else self._outputs(as_filed)
        take_back_corrections(self.model)
        self.expected = self._outputs(in_float)
        self._calibrate()
        self.real = State(self.model)
        if as_given is None:
            best, error = self._attempt(chosen, options["bias_correction"] is not False)
        else:
            error = self._error(as_given)
        for name in trials:
            trial = {**chosen, name: True}
            if name == "round" and options["bias_correction"] is None:
                trial["bias_correction"] = True
            if trial != chosen:
                state, found = self._attempt(trial)
                if found < error:
                    best, error, chosen = state, found, trial
        self.bar.update(total)
        best.restore()

    def _attempt(self, chosen: dict[str, bool], corrects: bool = False) -> tuple[State, float]:
        """Quantize the float model in some way; its state then, and its error."""
        self._float_weights(chosen["equalize"])
        options = (chosen["weight_scales"], chosen["round"], chosen["bias_correction"])
        if any(options):
            adjust(self.model, self.seen, *options, self.seed, self.bar)
            self._calibrate()
        else:
            self._calibrate(bias_correction=corrects)
            self.bar.add(self.calls)
        return State(self.model), self._error(self._outputs(as_filed))

    def _float_weights(self, equalized: bool) -> None:
        """Put the float weights back, and the ranges that they have."""
        if not equalized:
            self.real.restore()
        elif self.equalized:
            self.equalized.restore()
        else:
            self.real.restore()
            equalize_layers(self.model, self.seen, self.bar)
            self._calibrate()
            self.equalized = State(self.model)

    def _calibrate(self, bias_correction: bool = False) -> None:
        data = self.arrays if len(self.arrays) > 1 else self.arrays[0]
        calibrate(
            self.model,
            data,
            batch_size=self.batch_size,
            observer=self.observer,
            bias_correction=bias_correction,
            verbose=0,
        )

    def _outputs(self, call: Call) -> list[np.ndarray]:
        """What the model says on the samples that are put aside, before shares are made of it."""
        parts = zip(*run(self.model, self.judging, call, self.judged), strict=True)
        return [np.concatenate(part) for part in parts]

    def _error(self, found: list[np.ndarray]) -> float:
        """The squared error of the outputs, relative to their variance."""
        return float(
            np.mean([relative_error(*pair) for pair in zip(self.expected, found, strict=True)])
        )


def take_back_corrections(model: keras.Model) -> None:
    """Give layers the biases that they had before bias correction."""
    graph = view(model)
    for node in graph.nodes:
        corrected = getattr(node.layer, "corrected", None)
        if corrected is not None:
            held = folded_norm(node, graph) or node.layer.layer
            get_op(held).shift(held, -corrected)
            node.layer.corrected = None


def _calibrated(model: keras.Model) -> bool:
    return all(layer.calibrated for layer in model.layers if isinstance(layer, FakeQuantize))
