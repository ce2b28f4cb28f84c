"""Samples that are held out of calibration, to see what the ranges do to new samples."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from intact.calibration.biases import State
from intact.calibration.sources import FEW
from intact.layers.fake_quantize import FakeQuantize
from intact.numerics.tensors import to_numpy

STRIDE = 4
"""At most every fourth sample is held out, so that the others are most of the data."""

GROWTH = 0.05
"""Growth of a range, relative to its width, that can cost a model its accuracy."""


class Holdout:
    """Samples from all parts of the data, and what the observers saw of the other samples.

    Args:
        set_ranges: Sets the ranges of the model from the states of its observers.
        batches: How many batches there are, if that is known.

    Example:

    >>> holdout = Holdout(print, batches=1)
    >>> rest, held = holdout.split([np.arange(8)])
    >>> rest[0].tolist(), held[0].tolist()
    ([0, 1, 2, 4, 5, 6], [3, 7])
    """

    def __init__(self, set_ranges: Callable[[list[Any]], None], batches: int | None = None) -> None:
        self.samples: list[np.ndarray] = []
        self.states: list[Any] = []
        self.total = 0
        self._set_ranges = set_ranges
        self._batches = batches or 1
        self._stride = STRIDE

    def split(self, batch: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The samples of a batch that are not held out, and those that are.

        Args:
            batch: An array for each input.
        """
        size = len(batch[0])
        if not self.total:
            self.samples = [array[:0] for array in batch]
            self._stride = max(STRIDE, self._batches * size // FEW)
        places = np.arange(self.total, self.total + size)
        chosen = places % self._stride == self._stride - 1
        chosen &= np.cumsum(chosen) <= FEW - len(self.samples[0])
        self.total += size
        held = [array[chosen] for array in batch]
        pairs = zip(self.samples, held, strict=True)
        self.samples = [np.concatenate(pair) for pair in pairs]
        return [array[~chosen] for array in batch], held

    @contextlib.contextmanager
    def ranges_of_others(self, model: keras.Model) -> Iterator[bool]:
        """Inside a `with` block, let a model have the ranges of the samples not held out.

        Args:
            model: The quantized model.

        Yields:
            Whether any of these ranges is much narrower than that of all samples.
        """
        if not self.states or not len(self.samples[0]):
            yield False
            return
        quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
        layers = [layer for layer in quantizers if layer.fixed is None]
        wide = [_ends(layer) for layer in layers]
        before = State(model, weights=False)
        try:
            self._set_ranges(self.states)
            pairs = zip(wide, map(_ends, layers), strict=True)
            yield any(_grows(narrow, ends) for ends, narrow in pairs)
        finally:
            before.restore()


def _ends(layer: FakeQuantize) -> tuple[np.ndarray, np.ndarray]:
    """The minimum and maximum of a layer's ranges, which may share memory with its variables."""
    return to_numpy(layer.minimum).copy(), to_numpy(layer.maximum).copy()


def _grows(narrow: tuple[np.ndarray, np.ndarray], wide: tuple[np.ndarray, np.ndarray]) -> bool:
    growth = np.maximum(narrow[0] - wide[0], wide[1] - narrow[1])
    return bool((growth > GROWTH * (narrow[1] - narrow[0])).any())
