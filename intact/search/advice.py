"""Compares the ways to quantize a model after training, and recommends one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from intact.api import export, quantize_model
from intact.calibration.calibration import find_ranges
from intact.calibration.sources import Data, collect
from intact.errors import IntactError, InvalidDataError
from intact.litert.runtime import load_litert
from intact.names import ADVICE_OPTIONS
from intact.recovery.recover import recover
from intact.schemes import SCHEMES, get_scheme
from intact.search.measures import Metric, agreement, latencies, top1
from intact.tables import table
from intact.targets.micro_trial import dense_scales_note


@dataclass(frozen=True)
class Candidate:
    """The measurements of one way to quantize a model.

    Args:
        name: The preset, with "+recover" if accuracy was recovered.
        size: Bytes of the file.
        latency: Milliseconds of one run.
        score: Accuracy, or agreement with the float model, or what a metric says.

    Example:

    >>> Candidate("int8", size=2048, latency=0.5, score=0.99).size
    2048
    """

    name: str
    size: int
    latency: float
    score: float


@dataclass(frozen=True)
class Advice:
    """What `advise` returns; printing it gives a table and the reasons.

    Args:
        options: What was tried.
        measure: What the score is.
        recommended: The name of the option that is recommended.
        reason: Why.

    Example:

    >>> options = (Candidate("float32", 4096, 2.0, 0.92), Candidate("int8", 1024, 0.5, 0.91))
    >>> print(Advice(options, "accuracy", *recommend(options, tolerance=0.02)))
             bytes  of float  latency  accuracy
    float32   4096  100.00 %  2.00 ms   92.00 %
    int8      1024   25.00 %  0.50 ms   91.00 %
    <BLANKLINE>
    Take int8: within 2.00 points of float32 it is the fastest, in 0.25 of its ...
    """

    options: tuple[Candidate, ...]
    measure: str
    recommended: str
    reason: str

    def __str__(self) -> str:
        real = self.options[0]
        rows: list[tuple[str, ...]] = [("", "bytes", "of float", "latency", self.measure)]
        for option in self.options:
            share, score = (f"{100 * x:.2f} %" for x in (option.size / real.size, option.score))
            rows.append((option.name, str(option.size), share, f"{option.latency:.2f} ms", score))
        return f"{table(rows)}\n\nTake {self.recommended}: {self.reason}"


def advise(
    model: keras.Model,
    data: Data,
    labels: Any = None,
    metric: Metric | None = None,
    test: Any = None,
    options: Sequence[str] = ADVICE_OPTIONS,
    tolerance: float = 0.01,
    steps: int | None = None,
    batch_size: int = 32,
    verbose: int = 1,
) -> Advice:
    """Try every way to quantize a model after training, and recommend one.

    Each becomes a file, which is measured on LiteRT, one thread. Among the files within the
    tolerance, it recommends the fastest; of those nearly as fast, the smallest. So it follows
    TensorFlow's decision tree for post-training quantization
    (integers where they are good enough, 16-bit activations or float16 where not), by
    measuring instead of by rule.

    Args:
        model: A float Keras model.
        data: Calibration data, as for `calibrate`.
        labels: Labels of the samples that are scored, whole numbers or one-hot. Without
            labels and metric, scored is the share of samples whose largest output is where
            the float model's is.
        metric: A function of the outputs, larger is better, instead.
        test: The samples that are scored; None scores those of `data`, which is a little
            kind to `recover`.
        options: Names of presets, each perhaps with "+recover" behind it.
        tolerance: How much of the score may be lost.
        steps: How many batches of `data` to take at most.
        batch_size: Samples that run at once.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The advice; print it.

    Raises:
        IntactError: An option does not exist.
        InvalidDataError: The data is empty, not finite, or wrongly shaped, or there is not one
            label for each sample.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> [option.name for option in advise(model, x, options=("int8",), verbose=0).options]
    ['float32', 'int8']
    """
    names = ["float32", *(name for name in options if name != "float32")]
    for name in names:
        preset, _, extra = name.partition("+")
        if preset not in SCHEMES or extra not in ("", "recover"):
            raise IntactError(
                f"There is no option {name!r}. Expected the name of a preset "
                f"({', '.join(sorted(SCHEMES))}), perhaps with '+recover' behind it."
            )
    seen = _plain(collect(data, steps, batch_size, model.inputs))
    scored = seen if test is None else _plain(collect(test, None, batch_size, model.inputs))
    count = len(scored[0] if isinstance(scored, list) else scored)
    if labels is not None and np.shape(labels)[:1] != (count,):
        raise InvalidDataError(
            f"Expected a label for each of the {count} samples that are scored. "
            f"Received: labels of shape {np.shape(labels)}."
        )
    bar = keras.utils.Progbar(len(names) + 1, verbose=verbose)
    files: list[bytes] = []
    for name in names:
        preset, _, extra = name.partition("+")
        files.append(_file(model, preset, bool(extra), seen, batch_size))
        bar.add(1)
    outputs = [load_litert(file).predict(scored, batch_size) for file in files]
    measure = "score"
    if metric is None:
        measure = "agreement" if labels is None else "accuracy"
        metric = agreement(outputs[0]) if labels is None else top1(labels)
    scores = [metric(output) for output in outputs]
    times = latencies(files)
    bar.add(1)
    candidates = tuple(
        Candidate(name, len(file), spent, score)
        for name, file, spent, score in zip(names, files, times, scores, strict=True)
    )
    recommended, reason = recommend(candidates, tolerance)
    note = dense_scales_note(files[names.index(recommended)])
    return Advice(candidates, measure, recommended, f"{reason} {note}".rstrip())


def recommend(options: Sequence[Candidate], tolerance: float) -> tuple[str, str]:
    """The option to take, and why.

    Args:
        options: What was measured, the float file first.
        tolerance: How much of the score may be lost.
    """
    real = options[0]
    good = [option for option in options if option.score >= real.score - tolerance]
    fastest = min(option.latency for option in good)
    # Differences of a few percent are noise.
    best = min((o for o in good if o.latency <= 1.1 * fastest), key=lambda option: option.size)
    if best is real:
        return best.name, (
            f"nothing else is within {100 * tolerance:.2f} points of it, and as fast. Try "
            "quantization-aware training: `fit` a model that `quantize_model` has made."
        )
    reason = (
        f"within {100 * tolerance:.2f} points of float32 it is the fastest, "
        f"in {best.latency / real.latency:.2f} of its time "
        f"and {best.size / real.size:.2f} of its size."
    )
    plain = next((o for o in options if f"{o.name}+recover" == best.name), None)
    if plain and plain.score < real.score - tolerance:
        reason += f" Without recovery it would lose {100 * (real.score - plain.score):.2f} points."
    if best.name in ("float16", "dynamic_range", "weight_only_8", "weight_only_4"):
        reason += " It still computes in float: for hardware that has integers only, take int16x8."
    return best.name, reason


def _file(model: keras.Model, preset: str, recovering: bool, data: Any, batch_size: int) -> bytes:
    """The file of one option."""
    if preset == "float32":
        return export(model)
    q = quantize_model(model, get_scheme(preset))
    if recovering:
        recover(q, data, batch_size=batch_size, verbose=0)
    else:
        find_ranges(q, data, batch_size=batch_size, bias_correction=True)
    return export(q)


def _plain(arrays: list[Any]) -> Any:
    return arrays if len(arrays) > 1 else arrays[0]
