"""Compares the ways to quantize a model after training, and recommends one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import keras
import numpy as np

from intact.api import export, quantize_model
from intact.calibration.calibration import find_ranges
from intact.calibration.sources import Data, collect
from intact.errors import IntactError, InvalidDataError
from intact.graph.view import data_inputs
from intact.litert.inspection import inspect
from intact.litert.kernels.targets import get_target
from intact.litert.runtime import load_litert
from intact.litert.timing import processor
from intact.names import ADVICE_OPTIONS, Target, TargetName
from intact.paths import write_whole
from intact.progress import Progress
from intact.recovery.recover import recover
from intact.schemes import SCHEMES, get_scheme
from intact.search.measures import LabelError, Latency, Metric, agreement, latencies, top1
from intact.search.picture import Dot, picture
from intact.tables import Report, Table
from intact.targets.micro_trial import dense_scales_note
from intact.targets.placement import place

NOISE = 0.05
"""How far apart latencies of one and the same file may be, beside their spread.

Measured on copies of a file of 2.6 microseconds: up to 4 %.
"""


@dataclass(frozen=True)
class Candidate:
    """The measurements of one way to quantize a model.

    Args:
        name: The preset, with "+recover" if accuracy was recovered.
        size: Bytes of the file.
        latency: Milliseconds of one run; None where the target cannot be measured here.
        score: Accuracy, or agreement with the float model, or what a metric says.
        spread: By how many milliseconds the shortest runs of the two best rounds differ.
        integer: Whether the file computes on integers only.

    Example:

    >>> Candidate("int8", size=2048, latency=0.5, score=0.99).size
    2048
    """

    name: str
    size: int
    latency: float | None
    score: float
    spread: float = 0.0
    integer: bool = False

    def is_slower(self, other: "Candidate") -> bool:
        """Whether it takes longer than another one, by more than can be by chance.

        Args:
            other: The other one.
        """
        if self.latency is None or other.latency is None:
            return False
        return self.latency - self.spread > (other.latency + other.spread) * (1 + NOISE)


@dataclass(frozen=True, repr=False)
class Advice(Report):
    """What `advise` returns; printing it gives a table and the reasons.

    Args:
        options: What was tried, the float file first.
        measure: What the score is.
        recommended: The name of the option that is recommended.
        reason: Why.
        notes: More that was measured, in sentences.
        tolerance: How much of the score may be lost.

    Example:

    >>> options = (Candidate("float32", 4096, 2.0, 0.92), Candidate("int8", 1024, 0.5, 0.91))
    >>> print(Advice(options, "accuracy", *recommend(options, tolerance=0.02)))
             bytes  of float  accuracy  latency   spread
    float32   4096  100.00 %   92.00 %  2.00 ms  0.00 ms
    int8      1024   25.00 %   91.00 %  0.50 ms  0.00 ms
    <BLANKLINE>
    Take int8: within 2.00 points of float32 it is the fastest, with 0.25 of its time ...
    """

    options: tuple[Candidate, ...]
    measure: str
    recommended: str
    reason: str
    notes: tuple[str, ...] = ()
    tolerance: float = 0.01

    def headline(self) -> str:
        """What is recommended."""
        return f"take {self.recommended}"

    def parts(self) -> list[str | Table]:
        """The table of the options, the recommendation, and what else was measured."""
        real = self.options[0]
        rows: list[tuple[str, ...]] = [("", "bytes", "of float", self.measure, "latency", "spread")]
        for option in self.options:
            share, score = (f"{100 * x:.2f} %" for x in (option.size / real.size, option.score))
            times = [_milliseconds(option.latency), _milliseconds(option.spread, option.latency)]
            times = ["", ""] if option.latency is None else times
            rows.append((option.name, str(option.size), share, score, *times))
        return [Table(rows), "", f"Take {self.recommended}: {self.reason}", *self.notes]

    def picture(self) -> str:
        """Size against score over all options, as an SVG drawing."""
        dots = [
            Dot(option.name, option.size, option.score, option.name == self.recommended)
            for option in self.options
        ]
        return picture(dots, self.measure, self.options[0].score - self.tolerance)

    def to_html(self, path: str | os.PathLike) -> None:
        """Write a page with the picture and the table.

        Args:
            path: The file to write.

        Raises:
            ExportError: The path cannot be written.
        """
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            "<title>Size against accuracy</title><style>:root{color-scheme:light dark}"
            "body{font:15px/1.6 system-ui,sans-serif;max-width:720px;margin:24px auto;"
            "padding:0 12px}"
            "table{border-collapse:collapse;display:block;overflow-x:auto;"
            "font-variant-numeric:tabular-nums}td,th{padding:3px 10px;white-space:nowrap}"
            "div{overflow-x:auto}svg{min-width:560px}"
            f"</style></head><body><div>{self.picture()}</div>{super()._repr_html_()}"
            "</body></html>\n"
        )
        write_whole(page.encode(), path)

    def _repr_html_(self) -> str:
        return self.picture() + super()._repr_html_()


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
    target: Target | None = None,
) -> Advice:
    """Try every way to quantize a model after training, and recommend one.

    Each becomes a file, whose size, score and latency are measured. Among the files within the
    tolerance, it recommends the smallest of those that are as fast as the fastest: within the
    spread of the measurements and 5 %. Latency is the shortest of many runs on LiteRT, on one
    thread, with all files in turns. On an Ethos-U it is Vela's estimate. On other targets there is
    none, so the smallest file is recommended.

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
        target: Where the file is to run; options that do not run there are left out, and named.

    Returns:
        The advice; print it, or look at its picture: `advice.to_html("page.html")`.

    Raises:
        IntactError: An option does not exist.
        InvalidDataError: The data is empty, not finite, or wrongly shaped, or the labels are not
            one class of the model for each sample.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> [option.name for option in advise(model, x, options=("int8",), verbose=0).options]
    ['float32', 'int8']
    """
    names = [name for name in dict.fromkeys(options) if name != "float32"]
    _check_names(names)
    seen = _plain(collect(data, steps, batch_size, data_inputs(model)))
    scored = seen if test is None else _plain(collect(test, None, batch_size, data_inputs(model)))
    count = len(scored[0] if isinstance(scored, list) else scored)
    if labels is not None and np.shape(labels)[:1] != (count,):
        raise LabelError(
            f"Expected a label for each of the {count} samples that are scored. "
            f"Received: labels of shape {np.shape(labels)}."
        )
    files, failed = {"float32": export(model)}, {}
    expected = load_litert(files["float32"]).predict(scored, batch_size)
    measure, metric = _measure(metric, labels, expected)
    scores = {"float32": metric(expected)}
    bar = Progress(f"Measuring {', '.join(['float32', *names])}", len(names) + 1, verbose)
    for name in names:
        try:
            files[name] = _file(model, name, seen, batch_size, target)
        except InvalidDataError:
            raise
        except IntactError as error:
            failed[name] = str(error)
        else:
            scores[name] = metric(load_litert(files[name]).predict(scored, batch_size))
        bar.add(1)
    times = _times(files, target)
    bar.add(1)
    candidates = tuple(_candidate(name, files[name], times[name], scores[name]) for name in files)
    recommended, reason = recommend(candidates, tolerance, target)
    notes = [
        *_notes(candidates, recommended, tolerance, count),
        dense_scales_note(files[recommended]),
        *(f"{name} is not possible: {why}" for name, why in failed.items()),
        "" if times["float32"] is None else f"Measured on LiteRT, one thread, {processor()}.",
    ]
    noted = tuple(filter(None, notes))
    return Advice(candidates, measure, recommended, reason, noted, tolerance)


def recommend(
    options: Sequence[Candidate], tolerance: float, target: str | None = None
) -> tuple[str, str]:
    """The option to take, and why.

    Args:
        options: What was measured, the float file first.
        tolerance: How much of the score may be lost.
        target: The target, if one was asked for: the float file was not made for it.
    """
    real, others = options[0], options[1:]
    within = f"within {100 * tolerance:.2f} points of float32"
    able = others if target and others else options
    good = [option for option in able if option.score >= real.score - tolerance]
    if not good:
        best = max(able, key=lambda option: option.score)
        return best.name, (
            f"nothing that runs on {target} is {within}, and it comes nearest, "
            f"{100 * (real.score - best.score):.2f} points below. Train it further: `fit` a model "
            "that `quantize_model` has made."
        )
    timed = [option for option in good if option.latency is not None]
    fastest = min(timed, key=lambda option: option.latency or 0, default=None)
    as_fast = [o for o in good if fastest is None or not o.is_slower(fastest)]
    best = min(as_fast, key=lambda option: (option.size, -option.score))
    if best is real:
        return best.name, (
            f"nothing else is {within}, and as fast. Try quantization-aware training: `fit` a "
            "model that `quantize_model` has made."
        )
    reason = f"{within} it is {_praise(best, fastest)}, with {_shares(best, real)}."
    plain = next((o for o in options if f"{o.name}+recover" == best.name), None)
    if plain and plain.score < real.score - tolerance:
        reason += f" Without recovery it would lose {100 * (real.score - plain.score):.2f} points."
    return best.name, reason


def _praise(best: Candidate, fastest: Candidate | None) -> str:
    """Why an option is the best of those within the tolerance."""
    if fastest is None:
        return "the smallest"
    if best.size == fastest.size:
        return "the fastest"
    return f"as fast as {fastest.name} as far as can be measured, and the smallest of these"


def _shares(best: Candidate, real: Candidate) -> str:
    size = f"{best.size / real.size:.2f} of its size"
    if best.latency is None or not real.latency:
        return size
    return f"{best.latency / real.latency:.2f} of its time and {size}"


def _notes(
    options: Sequence[Candidate], recommended: str, tolerance: float, samples: int
) -> list[str]:
    """What else the measurements say."""
    real, others = options[0], options[1:]
    notes = []
    slower = [f"{o.name} ({_milliseconds(o.latency)})" for o in others if o.is_slower(real)]
    if slower:
        notes.append(
            f"Slower than float32 ({_milliseconds(real.latency)}) here: {', '.join(slower)}."
        )
    whole = [option for option in others if option.integer]
    if whole and recommended not in {option.name for option in whole}:
        name, _ = recommend([real, *whole], tolerance, "integers alone")
        best = next(option for option in whole if option.name == name)
        notes.append(
            f"{recommended} computes in float. Of the files of integers alone, take {name}: "
            f"{100 * best.score:.2f} % against {100 * real.score:.2f} %, {best.size} bytes."
        )
    if 1 / samples > tolerance:
        notes.append(
            f"Each of the {samples} samples counts for {100 / samples:.2f} points: score more "
            "samples for a finer comparison."
        )
    return notes


def _milliseconds(value: float | None, scale: float | None = None) -> str:
    """A time in as many digits as another one needs; by default, as it needs itself."""
    if value is None:
        return ""
    return f"{value:.{2 if (scale or value) >= 0.1 else 4}f} ms"


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        preset, _, extra = name.partition("+")
        if preset not in SCHEMES or extra not in ("", "recover"):
            raise IntactError(
                f"There is no option {name!r}. Expected the name of a preset "
                f"({', '.join(sorted(SCHEMES))}), perhaps with '+recover' behind it."
            )


def _measure(metric: Metric | None, labels: Any, expected: Any) -> tuple[str, Metric]:
    """What is scored, and how."""
    if metric is not None:
        return "score", metric
    return ("agreement", agreement(expected)) if labels is None else ("accuracy", top1(labels))


def _times(files: dict[str, bytes], target: Target | None) -> dict[str, Latency | None]:
    """The latency of each file where it can be measured or estimated."""
    base = None if target is None else get_target(target)
    if base in (None, "xnnpack"):
        return dict(zip(files, latencies(list(files.values())), strict=True))
    times: dict[str, Latency | None] = dict.fromkeys(files)
    for name, file in files.items() if str(base).startswith("ethos") else ():
        estimate = place(file, str(target)).figures.get("estimated_microseconds")
        if name != "float32" and estimate is not None:
            times[name] = Latency(estimate / 1000, 0.0)
    return times


def _candidate(name: str, file: bytes, time: Latency | None, score: float) -> Candidate:
    content = inspect(file)
    best, spread = (None, 0.0) if time is None else time
    integer = not (content.float_ops or content.hybrid_ops)
    return Candidate(name, len(file), best, score, spread, integer)


def _file(
    model: keras.Model, name: str, data: Any, batch_size: int, target: Target | None
) -> bytes:
    """The file of one option."""
    preset, _, extra = name.partition("+")
    base = None if target is None else cast(TargetName, get_target(target))
    q = quantize_model(model, get_scheme(preset), target=base)
    if extra:
        recover(q, data, batch_size=batch_size, verbose=0)
    else:
        find_ranges(q, data, batch_size=batch_size, bias_correction=True)
    return export(q, target=base)


def _plain(arrays: list[Any]) -> Any:
    return arrays if len(arrays) > 1 else arrays[0]
