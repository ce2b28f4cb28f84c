"""Counts of tensors over batches: values that differ, noise, histograms."""

from typing import Any

import numpy as np

from intact.analysis.comparison import BINS, Distribution, Flip, TensorComparison
from intact.calibration.accuracy import Pair
from intact.errors import InvalidDataError
from intact.layers.alignment import Point
from intact.layers.quantized import Quantized
from intact.numerics.affine import dequantize
from intact.numerics.tensors import to_numpy
from intact.ops.base import Fixed
from intact.ops.registry import find_op

MOST_FLIPS = 24
"""How many samples that change their class are kept."""

MOST_LSB = 4
"""Differences of so many LSB or more are counted together."""


class Tally:
    """Counts of one tensor, over batches."""

    def __init__(
        self, name: str, tensor: str, dtype: str, point: Point | None = None, step: float = 1.0
    ) -> None:
        self.name, self.tensor, self.dtype = name, tensor, dtype
        self.point, self.step = point, step
        self.values = self.different = 0
        self.max_lsb = 0.0
        self.lsb = np.zeros(2 * MOST_LSB + 1, int)
        self.same, self.float_same, self.rows = 0, 0, 0
        self.flips: list[Flip] = []
        self.flipped = 0
        self.sums: np.ndarray | None = None
        self.own_sums: np.ndarray | None = None
        self.bars: _Bars | None = None

    def add(
        self,
        ours: np.ndarray,
        theirs: np.ndarray,
        params: tuple[float, int] | None,
        real: np.ndarray | None,
        noise: np.ndarray | None,
    ) -> None:
        """Add a batch.

        Args:
            ours: What Keras computes: of quantized tensors inside the integers.
            theirs: What the file has.
            params: Scale and zero point there.
            real: What the float model computes.
            noise: Sums of the layer alone, as of `Noise`.
        """
        if self.point is not None and ours.size == theirs.size:
            # The file may lack a reshape behind the kernel.
            theirs = theirs.reshape(ours.shape)
        if ours.shape != theirs.shape:
            raise InvalidDataError(
                f"Shapes of {self.name!r} differ: {ours.shape} in Keras, {theirs.shape} in LiteRT."
            )
        values = theirs if params is None else dequantize(theirs, *params)
        whole = self.point is not None and self.point.quantizer is not None
        step = self.step
        if whole:
            ours, theirs = ours.astype("float32"), theirs.astype("float32")
        else:
            theirs = values
            step = params[0] if self.point and params else step
        gap = (ours - theirs.astype("float32")) / np.float32(step)
        self.values += gap.size
        self.different += int((np.abs(gap) > 1e-3).sum() if params else (ours != theirs).sum())
        self.max_lsb = max(self.max_lsb, float(np.abs(gap).max()))
        if params or step != 1.0:
            places = np.clip(np.rint(gap), -MOST_LSB, MOST_LSB).astype(int) + MOST_LSB
            self.lsb += np.bincount(places.ravel(), minlength=len(self.lsb))
        if self.point is None and ours.ndim == 2 and ours.shape[1] > 1:
            best = values.argmax(1)
            self._flip((ours if real is None else real).argmax(1), best)
            self.same += int((ours.argmax(1) == best).sum())
            self.float_same += 0 if real is None else int((real.argmax(1) == best).sum())
            self.rows += len(ours)
        pair = None if real is None else Pair.of(real, values)
        if pair is not None:
            self.sums = _added(self.sums, _squares(pair.real, pair.rounded))
        if noise is not None:
            self.own_sums = _added(self.own_sums, noise.sum(axis=0, dtype="float64"))
        if self.point is not None:
            values = values if pair is None else pair.real
            self.bars = self.bars or _Bars(values, params, self.dtype)
            self.bars.add(values)

    def _flip(self, before: np.ndarray, after: np.ndarray) -> None:
        """Note the samples of a batch whose class changes."""
        places = np.flatnonzero(before != after)
        self.flipped += len(places)
        for i in places[: MOST_FLIPS - len(self.flips)]:
            self.flips.append(Flip(self.rows + int(i), int(before[i]), int(after[i])))

    def agreement(self) -> TensorComparison:
        """What was counted."""
        point = self.point
        quantized = None if point is None else point.quantized
        real = self.sums is not None
        # Nobody chooses the range that the kernel of a softmax has.
        clips = real and not (point is not None and isinstance(_output(point), Fixed))
        return TensorComparison(
            name=self.name,
            values=self.values,
            different=self.different,
            max_lsb=self.max_lsb,
            top1=self.same / self.rows if self.rows else None,
            tensor=self.tensor,
            dtype=self.dtype,
            layer="" if point is None else point.layer.name,
            kind="" if point is None else type(point.layer).__name__,
            lsb=tuple(self.lsb.tolist()) if self.lsb.any() else (),
            snr=_ratio(self.sums),
            local_snr=_ratio(self.own_sums),
            float_top1=self.float_same / self.rows if self.rows and real else None,
            activations=None if self.bars is None else self.bars.distribution(clips),
            weights=None if quantized is None else _weights(quantized),
        )


def _output(point: Point) -> Any:
    """How the output of the layer behind a tensor is quantized."""
    return getattr(find_op(point.layer), "output", None)


def _squares(real: np.ndarray, values: np.ndarray) -> np.ndarray:
    gap = real.astype("float64") - values
    return np.array([np.vdot(real, real), np.vdot(gap, gap)], "float64")


def _added(total: np.ndarray | None, part: np.ndarray) -> np.ndarray:
    return part if total is None else total + part


def _ratio(sums: np.ndarray | None) -> float | None:
    """Signal-to-noise ratio in dB; at most 200, so that it is a number without noise, too."""
    if sums is None:
        return None
    signal, noise = sums
    return float(np.clip(10 * np.log10((signal + 1e-30) / (noise + 1e-30)), -200, 200))


class _Bars:
    """A histogram whose limits are those of the integers, or of the first values seen."""

    def __init__(self, first: np.ndarray, params: tuple[float, int] | None, dtype: str) -> None:
        self.range: tuple[float, float] | None = None
        self.step = 0.0
        low, high = float(first.min()), float(first.max())
        if params is not None:
            info = np.iinfo(dtype)
            self.step, zero_point = params
            low, high = ((n - zero_point) * self.step for n in (info.min, info.max))
            self.range = (low, high)
        margin = (high - low) / 8 if params else 0.0
        self.low = float(low - margin)
        # All values may be equal.
        self.high = max(float(high + margin), self.low + 1e-6 * abs(self.low) + 1e-12)
        self.counts = np.zeros(BINS, int)
        self.outside = self.values = 0

    def add(self, values: np.ndarray) -> None:
        """Add values."""
        where = (values.ravel() - self.low) * (BINS / (self.high - self.low))
        self.counts += np.bincount(np.clip(where, 0, BINS - 1).astype(int), minlength=BINS)
        if self.range is not None:
            low, high = self.range[0] - self.step / 2, self.range[1] + self.step / 2
            self.outside += int(((values < low) | (values > high)).sum())
        self.values += values.size

    def distribution(self, clips: bool) -> Distribution:
        """What was counted."""
        clipped = self.outside / self.values if clips and self.range else None
        return Distribution(self.low, self.high, tuple(self.counts.tolist()), self.range, clipped)


def _weights(quantized: Quantized) -> Distribution:
    """The distribution of a layer's weights, and the noise of rounding them."""
    name = next(iter(quantized.layouts()))
    real = to_numpy(getattr(quantized.layer, name)).astype("float32")
    rounded = to_numpy(quantized.real_weights()[name]).reshape(real.shape)
    bars = _Bars(real, None, "float32")
    bars.add(real)
    scales = None
    if name in (whole := quantized.quantized_weights()):
        scale = np.abs(to_numpy(whole[name][1]))
        scales = (float(scale.min()), float(scale.max()))
    return Distribution(
        bars.low,
        bars.high,
        tuple(bars.counts.tolist()),
        scales=scales,
        snr=_ratio(_squares(real, rounded)),
    )
