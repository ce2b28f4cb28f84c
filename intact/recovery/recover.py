"""Accuracy without labels: what calibration alone leaves on the table."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.calibration.biases import State, take_back_corrections
from intact.calibration.calibration import find_ranges
from intact.calibration.sources import collect
from intact.errors import IntactError
from intact.graph.view import view
from intact.layers.alignment import before_shares
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.stateful import refuse_stream
from intact.recovery.equalization import equalize as equalize_layers
from intact.recovery.layerwise import adjust, adjustable
from intact.recovery.walk import (
    Call,
    as_filed,
    cut,
    in_float,
    relative_errors,
    run,
)

HELD_OUT = 0.25
"""Share of the samples on which it is judged whether a step helps."""
CONFIDENCE = 2.0
"""By how many standard errors a mean gain has to be above 0."""

STEPS = ("round", "bias_correction", "weight_scales", "equalize")
"""What is tried, in this order."""


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
    put aside for this: weights, biases and ranges come from the others. What is not better by
    more than chance is rejected, and if all is, the model is as `calibrate` leaves it.

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
        verbose: 1 shows a progress bar, and what was kept and rejected; 0 nothing.

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
    trials = try_steps(
        model,
        data,
        {
            "round": round,
            "bias_correction": bias_correction,
            "weight_scales": weight_scales,
            "equalize": equalize,
        },
        steps,
        batch_size,
        observer,
        seed,
        verbose,
    )
    if verbose:
        sys.stdout.write(f"{describe(trials)}\n")
    return model


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Args:
        name: Which one.
        error: The squared error of the outputs with it, on the samples that were put aside,
            in units of their variance.
        before: The same without it.
        kept: Whether it was kept.
    """

    name: str
    error: float
    before: float
    kept: bool

    def __str__(self) -> str:
        return f"{self.name} (error {self.before:.3g} -> {self.error:.3g})"


def describe(trials: Sequence[Trial]) -> str:
    """What was kept of a recovery, and what was not.

    Args:
        trials: The steps that were tried.

    Example:

    >>> print(describe([Trial("round", 0.02, 0.05, True), Trial("equalize", 0.03, 0.02, False)]))
    kept: round (error 0.05 -> 0.02); rejected, as it does not surely help: equalize (error 0.02 ...
    """
    if not trials:
        return "no step was left to choose"
    kept = ", ".join(str(trial) for trial in trials if trial.kept) or "nothing"
    rejected = ", ".join(str(trial) for trial in trials if not trial.kept) or "nothing"
    return f"kept: {kept}; rejected, as it does not surely help: {rejected}"


def try_steps(
    model: keras.Model,
    data: Any,
    options: dict[str, bool | None] | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    observer: Any = None,
    seed: int = 0,
    verbose: int = 0,
) -> list[Trial]:
    """Recover a model, and say what was tried.

    Args:
        model: As for `recover`.
        data: As for `recover`; so are those that are not named here.
        options: By the name of a step, whether it is made; None tries it. By default each is.

    Returns:
        The steps that were tried, in their order.
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
    options = dict.fromkeys(STEPS) if options is None else options
    if options["weight_scales"] is None and all(layer.spec.bits >= 8 for layer in held):
        options = {**options, "weight_scales": False}
    arrays = collect(data, steps, batch_size, model.inputs)
    before = State(model)
    try:
        return _Recovery(model, arrays, batch_size, observer, seed, verbose).run(options)
    except BaseException:
        # A recovery that fails leaves the model as it was.
        before.restore()
        raise


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
        # Ranges, too, are found on other samples than those that judge them.
        self.learning = [array[seen] for array in arrays]
        self.seen = cut(self.learning, batch_size)
        self.judging = cut([array[order[:count]] for array in arrays], batch_size)
        self.judged = [before_shares(view(model), tensor) for tensor in model.outputs]
        self.equalized: State | None = None

    def run(self, options: dict[str, bool | None]) -> list[Trial]:
        """Try the options that are open one after the other, and keep what surely helps."""
        chosen = {name: value is True for name, value in options.items()}
        open_options = [name for name, value in options.items() if value is None]
        equalizing = options["equalize"] is not False
        self.calls = sum(not node.is_input for node in view(self.model).nodes)
        total = (1 + len(open_options) + equalizing) * self.calls
        self.bar = keras.utils.Progbar(total, verbose=self.verbose)
        corrects = options["bias_correction"] is not False

        best: State | None = State(self.model)
        fresh = any(chosen.values()) or not _calibrated(self.model)
        # As it is, before what calibration corrected is taken back.
        as_given = None if fresh else self._outputs(as_filed)
        take_back_corrections(self.model)
        self.expected = self._outputs(in_float)
        self._calibrate(self.learning)
        self.real = State(self.model)
        if as_given is None:
            best, errors = self._attempt(chosen, corrects)
            # Without any step it is what `calibrate` makes of all samples.
            best = best if any(chosen.values()) else None
        else:
            errors = self._errors(as_given)
        trials = []
        is_given = as_given is not None
        for name in open_options:
            trial = {**chosen, name: True}
            if name == "round" and options["bias_correction"] is None:
                trial["bias_correction"] = True
            if trial != chosen:
                state, tried = self._attempt(trial)
                helps = surely_smaller(tried, errors)
                trials.append(Trial(name, float(tried.mean()), float(errors.mean()), helps))
                if helps:
                    best, errors, chosen, is_given = state, tried, trial, False
        self.bar.update(total)
        self._settle(best, is_given, corrects)
        return trials

    def _settle(self, best: State | None, is_given: bool, corrects: bool) -> None:
        """Leave the model in its best state, with ranges of all samples."""
        if best is None:
            self.real.restore()
            self._calibrate(self.arrays, bias_correction=corrects)
            return
        best.restore()
        if not is_given:
            self._calibrate(self.arrays)

    def _attempt(self, chosen: dict[str, bool], corrects: bool = False) -> tuple[State, np.ndarray]:
        """Quantize the float model in some way; its state then, and its errors."""
        self._float_weights(chosen["equalize"])
        options = (chosen["weight_scales"], chosen["round"], chosen["bias_correction"])
        if any(options):
            adjust(self.model, self.seen, *options, self.seed, self.bar)
            self._calibrate(self.learning)
        else:
            self._calibrate(self.learning, bias_correction=corrects)
            self.bar.add(self.calls)
        return State(self.model), self._errors(self._outputs(as_filed))

    def _float_weights(self, equalized: bool) -> None:
        """Put the float weights back, and the ranges that they have."""
        if not equalized:
            self.real.restore()
        elif self.equalized:
            self.equalized.restore()
        else:
            self.real.restore()
            equalize_layers(self.model, self.seen, self.bar)
            self._calibrate(self.learning)
            self.equalized = State(self.model)

    def _calibrate(self, arrays: list[np.ndarray], bias_correction: bool = False) -> None:
        find_ranges(
            self.model,
            arrays if len(arrays) > 1 else arrays[0],
            batch_size=self.batch_size,
            observer=self.observer,
            bias_correction=bias_correction,
        )

    def _outputs(self, call: Call) -> list[np.ndarray]:
        """What the model says on the samples that are put aside, before shares are made of it."""
        parts = zip(*run(self.model, self.judging, call, self.judged), strict=True)
        return [np.concatenate(part) for part in parts]

    def _errors(self, outputs: list[np.ndarray]) -> np.ndarray:
        """The squared error of each sample, relative to the variance over samples."""
        return np.mean(
            [relative_errors(*pair) for pair in zip(self.expected, outputs, strict=True)], axis=0
        )


def surely_smaller(errors: np.ndarray, before: np.ndarray) -> bool:
    """Whether errors are smaller by more than chance, sample by sample.

    A step is judged on few samples, and what is only a little better on these may be worse on
    others: the mean gain has to be twice its standard error.

    Args:
        errors: One for each sample.
        before: The same without the step.

    Example:

    >>> before = np.array([1.0, 2.0, 3.0])
    >>> surely_smaller(before * 0.5, before), surely_smaller(before[::-1] * 0.99, before)
    (True, False)
    """
    gain = before - errors
    if len(gain) < 2:
        return False
    return bool(gain.mean() > CONFIDENCE * gain.std(ddof=1) / np.sqrt(len(gain)))


def _calibrated(model: keras.Model) -> bool:
    return all(layer.calibrated for layer in model.layers if isinstance(layer, FakeQuantize))
