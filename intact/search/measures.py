"""Measures of a file: latency, and the quality of its outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from intact.litert.runtime import load_litert
from intact.litert.timing import spans

Metric = Callable[[Any], float]
"""From a model's outputs to a number, larger is better."""


def top1(labels: np.ndarray) -> Metric:
    """A metric: the share of samples whose largest output is at the label.

    Args:
        labels: Whole numbers, or one-hot rows.

    Example:

    >>> top1(np.array([0, 1]))(np.array([[0.9, 0.1], [0.8, 0.2]]))
    0.5
    """
    labels = np.asarray(labels)
    whole = labels.argmax(-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.reshape(-1)
    return lambda outputs: float((np.asarray(outputs).argmax(-1).reshape(-1) == whole).mean())


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


def latencies(files: list[bytes]) -> list[float]:
    """Milliseconds of one run of each file, taken in turns: the median of each.

    Args:
        files: LiteRT files, which run on one thread, for a second each.
    """
    durations = spans([load_litert(file) for file in files], 1.0)
    return [1000 * float(np.median(times)) for times in durations]
