"""Recovers accuracy beyond calibration, without labels."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.calibration.biases import BiasPass, State, take_back_corrections
from intact.calibration.calibration import RangePass, find_ranges, look, observing
from intact.calibration.sources import Data, Source, collect
from intact.calibration.walk import (
    Call,
    as_filed,
    cut,
    run,
    variance,
)
from intact.errors import IntactError
from intact.graph.view import view
from intact.layers.alignment import before_shares
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.kernel_graph import kernel_graph
from intact.layers.stateful import refuse_stream
from intact.names import ObserverName
from intact.progress import Progress
from intact.quantizers.observers import Observer
from intact.recovery.blocks import find_blocks, float_blocks, reconstruct
from intact.recovery.equalization import equalize as equalize_layers
from intact.recovery.folds import folds, surely_better
from intact.recovery.layerwise import adjust, adjustable, float_pass
from intact.tables import table

CHANGES = {
    "round": "weights rounded up or down as their sums need it",
    "bias_correction": "biases corrected by the mean error of the sums",
    "weight_scales": "a range for each channel of weights that leaves the smallest error",
    "equalize": "scales moved between layers",
    "blocks": "weights of few bits rounded together, as their block's output needs it",
}
"""What each step changes."""

STEPS = tuple(CHANGES)
"""The steps, in the order in which they are tried."""


def recover(
    model: keras.Model,
    data: Data,
    steps: int | None = None,
    batch_size: int = 32,
    bias_correction: bool | None = None,
    weight_scales: bool | None = None,
    round: bool | None = None,
    equalize: bool | None = None,
    blocks: bool | None = False,
    observer: ObserverName | Observer | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> keras.Model:
    """Win back accuracy that quantization costs, from calibration samples alone.

    Calibrates the model, too. By default each step is tried, and kept where the model's outputs
    are nearer to the float model's than before, by more than chance. Each sample is judged by a
    model whose weights, biases and ranges come from other samples: there are five of them, each
    fitted to four fifths. The kept steps are then fitted to all samples. If none is kept, the model
    is as `calibrate` leaves it.

    The new weights are whole multiples of their scales, so that the file holds exactly these.

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
        blocks: Learn by gradients how the weights of fewer than 8 bits of a residual block, or of
            a layer in a chain, are rounded together, and the ranges of its activations of fewer
            than 8 bits (BRECQ, arXiv:2102.05426, with QDrop, arXiv:2203.05740). This takes minutes,
            so it is not tried by default. None tries it, and keeps it if it helps on a fifth of
            the samples.
        observer: As for `calibrate`.
        seed: Seed of the fifths, of the sampled places in images, and of learning.
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
            "blocks": blocks,
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
        error: The squared error of the outputs with it, on samples that were not fitted to, in
            units of their variance. A step that does not help on the first folds is not tried on
            the rest.
        before: The same without it, on the same samples.
        kept: Whether it was kept.
    """

    name: str
    error: float
    before: float
    kept: bool


def describe(trials: Sequence[Trial]) -> str:
    """What a recovery has tried, changed and gained.

    Args:
        trials: The steps that were tried.

    Example:

    >>> print(describe([Trial("round", 0.02, 0.05, True), Trial("equalize", 0.03, 0.02, False)]))
    step        before   with it
    round     13.01 dB  16.99 dB      kept
    equalize  16.99 dB  15.23 dB  rejected
    Changed: weights rounded up or down as their sums need it. The outputs gained 3.98 dB ...
    """
    if not trials:
        return "No step was left to choose."
    rows: list[tuple[str, ...]] = [("step", "before", "with it", "")]
    for trial in trials:
        ratios = (f"{_decibels(error):.2f} dB" for error in (trial.before, trial.error))
        rows.append((trial.name, *ratios, "kept" if trial.kept else "rejected"))
    kept = [trial for trial in trials if trial.kept]
    if not kept:
        return f"{table(rows)}\nNothing was changed: no step surely helps."
    before, after = _decibels(kept[0].before), _decibels(kept[-1].error)
    return (
        f"{table(rows)}\nChanged: {', '.join(CHANGES[trial.name] for trial in kept)}. The outputs "
        f"gained {after - before:.2f} dB against float, on samples that were not fitted to."
    )


def _decibels(error: float) -> float:
    """The signal-to-noise ratio of a relative squared error."""
    return -10 * math.log10(max(error, 1e-20))


def try_steps(
    model: keras.Model,
    data: Data,
    options: dict[str, bool | None] | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    observer: ObserverName | Observer | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> list[Trial]:
    """Recover a model, and return the steps that were tried.

    Args:
        model: As for `recover`.
        data: As for `recover`, like the arguments that are not listed here.
        options: By the name of a step, whether to take it; None tries it. By default, all are tried
            but `blocks`.

    Returns:
        The steps that were tried, in their order.
    """
    refuse_stream(model, "`recover`")
    adjusted_layers = [layer for layer in model.layers if adjustable(layer)]
    if not adjusted_layers:
        raise IntactError(
            f"Model {model.name!r} has no quantized weights to recover accuracy with. Make a "
            "quantized model first: `q = intact.quantize_model(model)`."
        )
    folded = [layer.name for layer in adjusted_layers if layer.norm is not None]
    if folded:
        raise IntactError(
            f"The weights of {folded} have the factors of a batch norm in them, which `recover` "
            "does not adjust. Quantize the model without `fold_batch_norm`, which is for training."
        )
    options = {"blocks": False} if options is None else options
    options = _possible(model, adjusted_layers, dict.fromkeys(STEPS) | options)
    arrays = collect(data, steps, batch_size, model.inputs)
    before = State(model)
    try:
        return _Recovery(model, arrays, batch_size, observer, seed, verbose).run(options)
    except BaseException:
        # A recovery that fails leaves the model as it was.
        before.restore()
        raise


def _possible(
    model: keras.Model, adjusted_layers: list[Any], options: dict[str, bool | None]
) -> dict[str, bool | None]:
    """The options, without steps that cannot help a model."""
    if options["weight_scales"] is None and all(layer.spec.bits >= 8 for layer in adjusted_layers):
        options = {**options, "weight_scales": False}
    if options["blocks"] is not False and not find_blocks(view(model)):
        if options["blocks"]:
            raise IntactError(
                f"Model {model.name!r} has no block with weights of fewer than 8 bits between "
                "integer activations, so `recover` cannot learn their rounding. Leave out "
                "`blocks=True`, or quantize the model with a scheme such as 'int4'."
            )
        options = {**options, "blocks": False}
    return options


class _Recovery:
    """Attempts to quantize one model, each judged on samples that it has not seen.

    A *way* says for each step whether it is taken.
    """

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
        self.judged = [before_shares(kernel_graph(model), tensor) for tensor in model.outputs]
        self.calls = sum(not node.is_input for node in view(model).nodes)
        self.folds = folds(len(arrays[0]), seed)
        self.batches = [cut([a[fold] for a in arrays], batch_size) for fold in self.folds]
        self.errors: dict[tuple[tuple[bool, ...], int], np.ndarray] = {}

    def run(self, options: dict[str, bool | None]) -> list[Trial]:
        """Try the open options one after the other, and keep those that surely help."""
        way = {name: value is True for name, value in options.items()}
        open_options = [name for name, value in options.items() if value is None]
        self.corrects = options["bias_correction"] is not False
        fits = 1 + len(self.folds) * (1 + len(open_options)) if open_options else 1
        self.bar = Progress("Recovering accuracy", fits * self.calls, self.verbose)

        as_given = None if any(way.values()) or not _calibrated(self.model) else State(self.model)
        # Keep the state before earlier corrections are undone.
        first_outputs = self._outputs_of_all(as_filed) if as_given and open_options else None
        take_back_corrections(self.model)
        self.real = State(self.model)
        self._run_in_float()
        trials: list[Trial] = []
        if open_options:
            self._observe()
            outputs = zip(*self.expected, strict=True)
            self.variances = [variance(np.concatenate(parts)) for parts in outputs]
            for index, outputs_of_fold in enumerate(first_outputs or ()):
                self.errors[tuple(way.values()), index] = self._judge(index, outputs_of_fold)
            way, trials = self._choose(way, options)
        if as_given and not any(way.values()):
            as_given.restore()
        else:
            self._fit(way, range(len(self.folds)))
        self.bar.update(fits * self.calls)
        return trials

    def _run_in_float(self) -> None:
        """Find the means of sums and the outputs that the model should have."""
        self.sums, self.expected = [], []
        for fold in self.batches:
            passes = [float_pass(self.model, batch, self.judged) for batch in fold]
            self.sums.append([sums for sums, _ in passes])
            parts = zip(*(outputs for _, outputs in passes), strict=True)
            self.expected.append([np.concatenate(part) for part in parts])

    def _observe(self) -> None:
        """Let observers see each fold in float: fits to four folds merge what they saw."""
        self.biases, self.ranges = BiasPass(self.model), RangePass(self.model, self.observer)
        watches = [*self.biases.watches, *self.ranges.watches]
        self.rules = [rule for _, rule in watches]
        self.seen = []
        with observing(self.model):
            for fold in self.folds:
                arrays = [array[fold] for array in self.arrays]
                data = arrays if len(arrays) > 1 else arrays[0]
                source = Source(data, None, self.batch_size, self.model.inputs)
                self.seen.append(look(self.model, watches, source, Progress("", None, 0)))

    def _choose(
        self, way: dict[str, bool], options: dict[str, bool | None]
    ) -> tuple[dict[str, bool], list[Trial]]:
        """The best way that is surely better than the first one, and the steps that were tried.

        Args:
            way: The way to begin with.
            options: The steps to try are None.
        """
        trials = []
        names = [name for name, value in options.items() if value is None]
        for name in names:
            trial = {**way, name: True}
            if name == "round" and options["bias_correction"] is None:
                trial["bias_correction"] = True
            if trial == way:
                continue
            # Blocks take so long to learn that one fold judges.
            judges = 1 if name == "blocks" else len(self.folds)
            errors, before = self._compare(trial, way, judges)
            helps = surely_better(errors, before, len(names))
            new, old = (float(np.concatenate(side).mean()) for side in (errors, before))
            trials.append(Trial(name, new, old, helps))
            if helps:
                way = trial
        return way, trials

    def _compare(
        self, trial: dict[str, bool], way: dict[str, bool], judges: int
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The errors with and without a step, up to the first fold that it does not help.

        Args:
            trial: The way with the step.
            way: The way without it.
            judges: How many folds judge at most.
        """
        errors: list[np.ndarray] = []
        before: list[np.ndarray] = []
        for index in range(judges):
            errors.append(self._error(trial, index))
            before.append(self._error(way, index))
            if errors[-1].mean() >= before[-1].mean():
                break
        return errors, before

    def _error(self, way: dict[str, bool], index: int) -> np.ndarray:
        """The error of each sample of a fold, by the model that is fitted to all the others."""
        key = tuple(way.values()), index
        if key not in self.errors:
            others = [other for other in range(len(self.folds)) if other != index]
            self._fit(way, others or [index])
            outputs = self._outputs(self.batches[index], as_filed)
            self.errors[key] = self._judge(index, outputs)
        return self.errors[key]

    def _judge(self, index: int, outputs: list[np.ndarray]) -> np.ndarray:
        """The squared error of each sample of a fold, in units of the variance of all samples."""
        rows = zip(self.expected[index], outputs, self.variances, strict=True)
        errors = [
            np.mean((real - output) ** 2, axis=tuple(range(1, real.ndim))) / scale
            for real, output, scale in rows
        ]
        return np.mean(errors, axis=0)

    def _fit(self, way: dict[str, bool], chosen: Sequence[int]) -> None:
        """Quantize the float model in some way, from the samples of some folds."""
        self.real.restore()
        samples = np.sort(np.concatenate([self.folds[index] for index in chosen]))
        arrays = [array[samples] for array in self.arrays]
        batches = [batch for index in chosen for batch in self.batches[index]]
        sums = [part for index in chosen for part in self.sums[index]]
        if way["equalize"]:
            equalize_layers(self.model, batches)
            sums = [float_pass(self.model, batch)[0] for batch in batches]
        real = float_blocks(self.model, batches) if way["blocks"] else None
        options = (way["weight_scales"], way["round"], way["bias_correction"])
        merged = None if way["equalize"] or len(chosen) == len(self.folds) else self._merged(chosen)
        if any(options):
            if merged is None:
                self._calibrate(arrays)
            else:
                self.ranges.apply(merged[len(self.biases.watches) :])
            counts = [len(batch[0]) for batch in batches]
            targets = {
                name: np.average([part[name] for part in sums], axis=0, weights=counts)
                for name in sums[0]
            }
            adjust(self.model, batches, targets, *options, self.seed, self.bar)
            self._calibrate(arrays)
        else:
            if merged is not None and self.corrects:
                self.biases.apply(merged[: len(self.biases.watches)])
            self._calibrate(arrays, bias_correction=self.corrects and merged is None)
            self.bar.add(self.calls)
        if real is not None:
            reconstruct(self.model, batches, real, self.seed)

    def _merged(self, chosen: Sequence[int]) -> list[Any] | None:
        """What the observers saw of some folds; None if that depends on the order of the data."""
        states = self.seen[chosen[0]]
        try:
            for index in chosen[1:]:
                triples = zip(self.rules, states, self.seen[index], strict=True)
                states = [rule.merge(a, b) for rule, a, b in triples]
        except IntactError:
            return None
        return states

    def _calibrate(self, arrays: list[np.ndarray], bias_correction: bool = False) -> None:
        find_ranges(
            self.model,
            arrays if len(arrays) > 1 else arrays[0],
            batch_size=self.batch_size,
            observer=self.observer,
            bias_correction=bias_correction,
        )

    def _outputs_of_all(self, call: Call) -> list[list[np.ndarray]]:
        return [self._outputs(batches, call) for batches in self.batches]

    def _outputs(self, batches: list[list[np.ndarray]], call: Call) -> list[np.ndarray]:
        """The model's outputs, before a softmax or sigmoid."""
        parts = zip(*run(self.model, batches, call, self.judged), strict=True)
        return [np.concatenate(part) for part in parts]


def _calibrated(model: keras.Model) -> bool:
    return all(layer.calibrated for layer in model.layers if isinstance(layer, FakeQuantize))
