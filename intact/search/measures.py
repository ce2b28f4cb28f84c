"""Measures of a file: latency, and the quality of its outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from intact.errors import InvalidDataError
from intact.litert.runtime import load_litert
from intact.litert.timing import spans

ROUNDS = 5
"""How often the latency of each file is measured, in turns with the other files."""

Metric = Callable[[Any], float]
"""From a model's outputs to a number, larger is better."""


class LabelError(InvalidDataError):
    """Labels fit neither the samples nor the model's classes."""

    argument = "labels"


def top1(labels: np.ndarray) -> Metric:
    """A metric: the share of samples whose largest output is at the label.

    The metric raises `InvalidDataError` where labels and outputs do not fit together. An output of
    one number is class 1 above one half, or above 0 if it is no probability.

    Args:
        labels: Whole numbers, or one-hot rows.

    Example:

    >>> top1(np.array([0, 1]))(np.array([[0.9, 0.1], [0.8, 0.2]]))
    0.5
    """
    labels = np.asarray(labels)

    def metric(outputs: Any) -> float:
        if isinstance(outputs, dict | list | tuple):
            raise LabelError(
                f"Labels score a model with one output, and this one has {len(outputs)}. Pass a "
                "`metric` of its outputs."
            )
        outputs = np.asarray(outputs)
        classes, expected = _classes(outputs), _expected(labels, outputs)
        return float((classes == expected).mean())

    return metric


def _classes(outputs: np.ndarray) -> np.ndarray:
    """The class that each output is for."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    shares = outputs.min() >= 0 and outputs.max() <= 1
    return (outputs[..., 0] > (0.5 if shares else 0)).astype(int)


def _expected(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The labels as whole numbers, one for each class that the outputs are for."""
    shape, count = outputs.shape[:-1], max(outputs.shape[-1], 2)
    if labels.shape == outputs.shape and outputs.shape[-1] > 1:
        labels = labels.argmax(-1)
    elif labels.shape == (*shape, 1):
        labels = labels[..., 0]
    if labels.shape != shape:
        raise LabelError(
            f"Expected labels of shape {shape}, or one-hot ones of shape {outputs.shape}: one for "
            f"each sample that is scored. Received: labels of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= count or (labels != np.rint(labels)).any():
        raise LabelError(
            f"The model has {count} classes, so labels must be whole numbers from 0 to "
            f"{count - 1}. Received: {labels.min()} to {labels.max()}."
        )
    return labels


def agreement(expected: Any) -> Metric:
    """A metric: the share of samples whose largest output is where it was expected.

    For outputs that are no classes, it is 1 minus the error relative to the variance.

    Args:
        expected: The outputs of the float model: an array, or a dict of them.
    """

    def one(expected: np.ndarray, actual: np.ndarray) -> float:
        if expected.ndim == 2 and expected.shape[1] > 1:
            return float((expected.argmax(1) == actual.argmax(1)).mean())
        spread = float(np.mean((expected - expected.mean(axis=0)) ** 2)) or 1.0
        return 1 - float(np.mean((expected - actual) ** 2)) / spread

    def metric(outputs: Any) -> float:
        if isinstance(expected, dict):
            return min(one(expected[name], outputs[name]) for name in expected)
        return one(expected, outputs)

    return metric


class Latency(NamedTuple):
    """How long one run of a file takes, in milliseconds: the best, and by how much that varies."""

    best: float
    spread: float


def latencies(files: list[bytes], seconds: float = 1.0) -> list[Latency]:
    """The run time of each file, taken in turns, so that other load slows all alike.

    Other work on the machine only ever adds time, so that the shortest run is the measure. Its
    spread is how far the second best of `ROUNDS` rounds is from the best, because rounds that other
    work has slowed say nothing about the file.

    Args:
        files: LiteRT files, which run on one thread.
        seconds: How long to measure, for each of them.
    """
    models = [load_litert(file) for file in files]
    rounds = [spans(models, seconds / ROUNDS) for _ in range(ROUNDS)]
    bests = [
        sorted(1000 * min(durations) for durations in each) for each in zip(*rounds, strict=True)
    ]
    return [Latency(first, second - first) for first, second, *_ in bests]
