"""Decides whether a step makes a model better on samples that it was not fitted to.

The samples are cut into folds. For each fold, the model is fitted to all the others, with the
step and without it, and judged by the fold (k-fold cross-validation). So each sample is judged by
a model that has not seen it, and all samples judge.

Two things may go wrong. A gain may be due to chance, so it has to pass a test over all samples. And
a fit may fail where others succeed, as equalization does with an extreme sample, so each of the
fits has to be better than the one without the step.
"""

from collections.abc import Sequence

import numpy as np

FOLDS = 5
"""How many folds there are."""

DOUBT = 0.01
"""The chance that any of the steps tried is kept, although none helps."""


def folds(count: int, seed: int) -> list[np.ndarray]:
    """Cut samples into folds.

    Args:
        count: How many samples there are.
        seed: Of the choice.

    Returns:
        The indices of each fold's samples, in ascending order.

    Example:

    >>> sorted(len(fold) for fold in folds(12, seed=0))
    [2, 2, 2, 3, 3]
    """
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(fold) for fold in np.array_split(order, min(FOLDS, count))]


def chance(errors: np.ndarray, before: np.ndarray) -> float:
    """The probability that chance alone gives a gain as large as this one, sample by sample.

    A one-sided t-test of pairs. A step that helps a few samples much, and others not at all, proves
    little.

    Args:
        errors: The error of each sample with a step.
        before: The same without it.

    Example:

    >>> before = np.array([1.0, 1.2, 0.8, 1.1, 0.9])
    >>> chance(0.9 * before, before) < 0.001 < chance(before[::-1], before)
    True
    """
    gains, count = before - errors, len(before)
    if count < 2 or gains.mean() <= 0:
        return 1.0
    deviation = gains.std(ddof=1) / np.sqrt(count)
    return student_tail(gains.mean() / max(deviation, 1e-30), count - 1)


def surely_better(
    errors: Sequence[np.ndarray], before: Sequence[np.ndarray], tried: int = 1
) -> bool:
    """Whether a step helps in every fit, and over all samples by more than chance.

    Args:
        errors: Per fold, the error of each sample with the step.
        before: The same without it.
        tried: How many steps are tried; they share the significance level (Bonferroni's
            correction).

    Example:

    >>> before = [np.array([1.0, 1.2, 0.8]), np.array([1.1, 0.9])]
    >>> surely_better([0.9 * e for e in before], before), surely_better(before, before)
    (True, False)
    """
    pairs = zip(errors, before, strict=True)
    if any(new.mean() >= old.mean() for new, old in pairs):
        return False
    return chance(np.concatenate(errors), np.concatenate(before)) < DOUBT / tried


def student_tail(t: float, freedom: int) -> float:
    """The probability that a value of Student's t distribution is larger.

    Args:
        t: The value.
        freedom: The degrees of freedom.

    Example:

    >>> round(student_tail(2.132, 4), 4)
    0.05
    """
    # With t = sqrt(freedom) * tan(angle), the density is a power of the cosine.
    angles = np.linspace(np.arctan(t / np.sqrt(freedom)), np.pi / 2, 2001)
    whole = np.linspace(-np.pi / 2, np.pi / 2, 2001)
    part, total = (np.trapezoid(np.cos(a) ** (freedom - 1), a) for a in (angles, whole))
    return float(part / total)
