"""Observers choose the range of a tensor from the data that they see.

An observer is a rule in pure parts. It looks at a batch, which gives a small state (a
range, or a histogram); it takes what it saw into the state that it has; and in the end
it chooses the bounds of the range from the state. The caller keeps the states: in variables while
training (`intact.layers.fake_quantize.FakeQuantize`), on the host while
calibrating. Ranges start from the first data seen, never from a constant.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from intact.errors import IntactError
from intact.numerics.backend_kernels import extremes
from intact.numerics.light_ops import ops
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import Tensor, to_numpy
from intact.registry import Registry

BINS = 8192
"""Bins of a histogram, half of them for each sign."""

# An upper bound of the magnitudes of a tensor's values, and its bins per unit.
_REACHES = np.append(2.0 ** np.arange(-60, 128), np.inf).astype("float32")
_UNITS = (BINS / 2 / 2.0 ** np.arange(-60, 129)).astype("float32")


class Range(NamedTuple):
    """A range, and how many batches made it."""

    minimum: Tensor
    maximum: Tensor
    count: Tensor


class Histogram(NamedTuple):
    """Counts of values in `BINS` bins around 0, and their range.

    The width of a bin is a power of two. Histograms of different widths therefore share their
    edges, and joining two of them never splits a bin.
    """

    minimum: Tensor
    maximum: Tensor
    counts: Tensor


Bounds = tuple[np.ndarray, np.ndarray]
"""Smallest and largest value of one or several tensors."""

Grid = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
"""From the ends of ranges to their scales, and to the smallest and largest whole numbers."""


@dataclass(frozen=True)
class Observer:
    """Base of the observers: a rule for finding a range.

    A subclass is a frozen dataclass, with a `name` that schemes and saved models call it by: by
    default, that of the class.

    Raises:
        IntactError: A subclass has the name of another observer, and was not declared with
            `replace=True` behind its base.

    Example:

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Halved(Observer):
    ...     share: float = 0.5
    ...     def bounds(self, states, grid):
    ...         low, high = super().bounds(states, grid)
    ...         return self.share * low, self.share * high
    >>> get_observer("Halved")
    Halved(share=0.5)
    """

    name: str = field(default="", init=False, repr=False)
    state_type: ClassVar[type] = Range
    """The type of the states: a named tuple of tensors."""
    registry: ClassVar[Registry[type["Observer"]]] = Registry(
        "observer",
        "Pass one of these, or an `intact.Observer`; a class of your own has to be imported before "
        "a model that was saved with it is loaded.",
    )

    def __init_subclass__(cls, replace: bool = False) -> None:
        name = vars(cls).get("name", "")
        Observer.registry.add(getattr(name, "default", name) or cls.__name__, cls, replace)

    def get_config(self) -> dict[str, Any]:
        """The name and the settings, as `get_observer` takes them."""
        return {**asdict(self), "name": self.name or type(self).__name__}

    def look(self, x: Tensor, xp: Any = ops) -> Any:
        """The state of one batch of a tensor.

        Args:
            x: Real values, of any shape.
            xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.

        Returns:
            A state: by default, a `Range`.
        """
        return Range(*extremes(x, xp), xp.ones((), "float32"))

    def join(self, a: Any, b: Any, xp: Any = ops) -> Any:
        """The joint state of two parts of one batch.

        Args:
            a: The result of `look` on one part.
            b: Its result on the other part.
            xp: As for `look`.
        """
        return Range(xp.minimum(a.minimum, b.minimum), xp.maximum(a.maximum, b.maximum), a.count)

    def update(self, state: Any, seen: Any, xp: Any = ops) -> Any:
        """Update the state with one batch.

        Args:
            state: The state so far; ignored if its `count` is 0.
            seen: What `look` returned for the batch.
            xp: As for `look`.

        Returns:
            The new state.
        """
        raise NotImplementedError

    def merge(self, a: Any, b: Any) -> Any:
        """The state of two shards of the data, in whatever order; both are on the host.

        Raises:
            IntactError: The state depends on the order of the data.
        """
        return self.join(a, b, numpy_ops)

    def bounds(self, states: list[Any], grid: Grid) -> Bounds:
        """Choose the range of tensors that share it.

        Args:
            states: The state of each.
            grid: The integers that a range gives (`FakeQuantize.grid_of`).

        Returns:
            `(minimum, maximum)`, float32 arrays with an entry for each tensor; their union
            is the range.
        """
        both = np.array([(state.minimum, state.maximum) for state in states], "float32")
        return both[:, 0], both[:, 1]


@dataclass(frozen=True)
class MinMax(Observer):
    """The smallest and largest value ever seen.

    Example:

    >>> observer = MinMax()
    >>> state = observer.update(observer.look(np.array([1.0, 3.0])), observer.look(np.array([4.0])))
    >>> float(state.maximum)
    4.0
    """

    name: str = field(default="min_max", init=False, repr=False)

    def update(self, state: Range, seen: Range, xp: Any = ops) -> Range:
        first = state.count == 0
        both = self.join(state, seen, xp)
        return Range(
            xp.where(first, seen.minimum, both.minimum),
            xp.where(first, seen.maximum, both.maximum),
            state.count + 1.0,
        )


@dataclass(frozen=True)
class MovingAverage(Observer):
    """A debiased exponential moving average of the batches' smallest and largest value.

    The step size `(1 - momentum) / (1 - momentum ** count)` is the moving average
    divided by the sum of its weights, as in Adam (Kingma & Ba, arXiv:1412.6980).

    Args:
        momentum: Share of the old range that is kept in the long run.

    Example:

    >>> observer = MovingAverage(0.9)
    >>> state = observer.update(Range(0.0, 0.0, 0.0), Range(-1.0, 3.0, 1.0))
    >>> float(state.maximum)
    3.0
    """

    name: str = field(default="moving_average", init=False, repr=False)
    momentum: float = 0.99

    def merge(self, a: Range, b: Range) -> Range:
        raise IntactError(
            "A moving average depends on the order of the data, so that shards of it cannot be "
            "merged. Observe by another rule: `observer='min_max'`, or 'percentile'."
        )

    def update(self, state: Range, seen: Range, xp: Any = ops) -> Range:
        count = state.count + 1.0
        # Both are float32, so that the first step is exactly 1.
        rest = float(np.float32(1) - np.float32(self.momentum))
        step = rest / (1.0 - xp.power(np.float32(self.momentum), count))
        return Range(
            state.minimum + step * (seen.minimum - state.minimum),
            state.maximum + step * (seen.maximum - state.maximum),
            count,
        )


def following(momentum: float) -> Observer:
    """How ranges follow the data of training.

    Args:
        momentum: Share of the old range that is kept; all of it makes ranges that only grow.

    Returns:
        The observer.

    Example:

    >>> following(1.0)
    MinMax()
    """
    return MinMax() if momentum == 1 else MovingAverage(momentum)


@dataclass(frozen=True)
class HistogramObserver(Observer):
    """Base of the observers that choose bounds from a histogram of all data.

    Tensors that share a range share one histogram.
    """

    state_type: ClassVar[type] = Histogram

    def look(self, x: Tensor, xp: Any = ops) -> Histogram:
        minimum, maximum = xp.min(x), xp.max(x)
        unit = _unit(minimum, maximum, xp)
        index = xp.cast(xp.floor(xp.reshape(x, (-1,)) * unit), "int32") + BINS // 2
        counts = xp.segment_sum(xp.ones_like(index), index, num_segments=BINS)
        return Histogram(minimum, maximum, counts)

    def join(self, a: Histogram, b: Histogram, xp: Any = ops) -> Histogram:
        """Both histograms with the wider of their bins, on the host."""
        minimum, maximum = np.minimum(a.minimum, b.minimum), np.maximum(a.maximum, b.maximum)
        unit = _unit(minimum, maximum, numpy_ops)
        counts = np.zeros(BINS, "int64")
        for part in (a, b):
            finer = _unit(part.minimum, part.maximum, numpy_ops) / unit
            index = np.floor_divide(np.arange(BINS) - BINS // 2, finer).astype("int64")
            np.add.at(counts, index + BINS // 2, np.asarray(part.counts, "int64"))
        return Histogram(minimum, maximum, counts)

    def update(self, state: Histogram, seen: Histogram, xp: Any = ops) -> Histogram:
        return self.join(state, seen, xp)

    def bounds(self, states: list[Histogram], grid: Grid) -> Bounds:
        low, high = self.choose(functools.reduce(self.join, states), grid)
        return np.full(len(states), low, "float32"), np.full(len(states), high, "float32")

    def choose(self, state: Histogram, grid: Grid) -> tuple[float, float]:
        """The bounds of a range.

        Args:
            state: The histogram of all data.
            grid: As for `bounds`.

        Returns:
            `(minimum, maximum)`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Percentile(HistogramObserver):
    """Leaves out the same share of the values at either end.

    Wu et al., "Integer Quantization for Deep Learning Inference" (arXiv:2004.09602),
    section 3.3, with a percentile for each sign instead of one for magnitudes. It is within
    one bin's width of an observed value (numpy's method "inverted_cdf").

    Args:
        percentile: Share of the values at or below the maximum, and at or above the
            minimum, in percent: above 50, at most 100.

    Example:

    >>> from intact.layers.fake_quantize import FakeQuantize
    >>> observer = Percentile(99.0)
    >>> state = observer.look(np.append(np.linspace(0.0, 1.0, 999), 50.0), numpy_ops)
    >>> _, maximum = observer.bounds([state], FakeQuantize().grid_of)
    >>> round(float(maximum[0]), 1)
    1.0
    """

    name: str = field(default="percentile", init=False, repr=False)
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise IntactError(
                f"Expected a percentile above 50 and at most 100. Received: {self.percentile!r}."
            )

    def choose(self, state: Histogram, grid: Grid) -> tuple[float, float]:
        counts = np.asarray(to_numpy(state.counts), "int64")
        total = np.cumsum(counts)
        unit = _unit(state.minimum, state.maximum, numpy_ops)

        def value(share: float) -> float:
            # That many values are at or below it; it lies in their last one's bin.
            rank = min(max(share * total[-1], 1.0), float(total[-1]))
            bin_ = int(np.searchsorted(total, rank))
            inside = (rank - (total[bin_] - counts[bin_])) / counts[bin_]
            return (bin_ - BINS // 2 + inside) / unit

        share = self.percentile / 100
        bounds = value(1 - share), value(share)
        low, high = np.clip(bounds, state.minimum, state.maximum)
        return float(low), float(high)


@dataclass(frozen=True)
class MSE(HistogramObserver):
    """The range whose integers have the smallest mean squared error, clipping included.

    Error of a value: `(x - scale * clip(round(x / scale), low - zero_point, high -
    zero_point)) ** 2`, by the very scale and zero point that the range gives; as in
    Banner et al. (arXiv:1810.05723), with what was seen in place of a distribution.

    Example:

    >>> from intact.layers.fake_quantize import FakeQuantize
    >>> values = np.random.default_rng(0).normal(size=100_000)
    >>> _, maximum = MSE().bounds([MSE().look(values, numpy_ops)], FakeQuantize().grid_of)
    >>> bool(maximum < values.max())
    True
    """

    name: str = field(default="mse", init=False, repr=False)

    def choose(self, state: Histogram, grid: Grid) -> tuple[float, float]:
        values, counts, _ = _bins(state)

        def error(low: float, high: float, scale: float, first: float, last: float) -> float:
            rounded = scale * np.clip(np.rint(values / scale), first, last)
            return float((counts * (values - rounded) ** 2).sum())

        return _search(error, state, grid)


@dataclass(frozen=True)
class Entropy(HistogramObserver):
    """The range that loses the least information, in Kullback and Leibler's sense.

    As TensorRT calibrates (Migacz, "8-bit Inference with TensorRT", GTC 2017): of the
    values inside a candidate range, with those outside added to its ends (P), and the
    same spread evenly over the bins of each integer (Q, without those outside), the
    divergence is `sum(P * log(P / Q))`. The integers are those of the range's very scale
    and zero point, and a candidate has at least as many bins as integers, as there. Zeros,
    such as those of a ReLU, are exact in any range, and must not count as values near 0
    that lose theirs: as in NVIDIA's pytorch-quantization, the bin of 0 counts no more than
    the one beside it.

    Example:

    >>> from intact.layers.fake_quantize import FakeQuantize
    >>> values = np.append(np.random.default_rng(0).normal(size=100_000), 40.0)
    >>> _, maximum = Entropy().bounds([Entropy().look(values, numpy_ops)], FakeQuantize().grid_of)
    >>> bool(maximum < 10.0)
    True
    """

    name: str = field(default="entropy", init=False, repr=False)

    def choose(self, state: Histogram, grid: Grid) -> tuple[float, float]:
        zero = BINS // 2
        all_counts = to_numpy(state.counts).copy()
        all_counts[zero] = min(all_counts[zero], all_counts[zero + 1])
        if not all_counts.any():
            return float(state.minimum), float(state.maximum)
        values, counts, unit = _bins(state._replace(counts=all_counts))

        def divergence(low: float, high: float, scale: float, first: float, last: float) -> float:
            # A range around a zero point of 0 has more in it than its ends say.
            low, high = min(low, scale * first), max(high, scale * last)
            start, stop = np.searchsorted(values, low), np.searchsorted(values, high, "right")
            inside = counts[start:stop]
            if len(inside) < len(counts) and (not len(inside) or scale * unit < 1):
                return np.inf
            seen = inside.copy()
            seen[0] += counts[:start].sum()
            seen[-1] += counts[stop:].sum()
            level = np.clip(np.rint(values[start:stop] / scale), first, last)
            level = (level - level[0]).astype("int64")
            spread = (np.bincount(level, inside) / np.maximum(np.bincount(level), 1))[level]
            p, q = seen / seen.sum(), spread / spread.sum()
            return float((p * np.log(p / q)).sum())

        return _search(divergence, state, grid)


def _unit(minimum: Any, maximum: Any, xp: Any) -> Any:
    """The bins per unit of a histogram of a range: a power of two."""
    size = xp.maximum(xp.maximum(-minimum, maximum), np.float32(0))
    units = xp.convert_to_tensor(_UNITS)
    return xp.max(xp.where(xp.convert_to_tensor(_REACHES) > size, units, xp.zeros_like(units)))


def _bins(state: Histogram) -> tuple[np.ndarray, np.ndarray, float]:
    """Middles and counts of the bins that are not empty, and the bins per unit."""
    counts = np.asarray(to_numpy(state.counts), "float64")
    unit = float(_unit(state.minimum, state.maximum, numpy_ops))
    filled = np.flatnonzero(counts)
    middles = (filled - BINS // 2 + 0.5) / unit
    return np.clip(middles, state.minimum, state.maximum), counts[filled], unit


_LADDER = 2.0 ** (-np.arange(97) / 8)
_BETWEEN = 2.0 ** (np.linspace(1, -1, 17) / 8)


def _search(cost: Callable[..., float], state: Histogram, grid: Grid) -> tuple[float, float]:
    """The bounds of smallest cost, found from the whole range inwards.

    First both ends are clipped at one magnitude, which suffices if one of them is 0; then each end
    by itself. Sizes go down in steps of a twelfth, and then in smaller ones around the
    best. Of equal costs, the widest range wins.

    Args:
        cost: Of a range `low, high` whose integers are `scale, first, last`.
        state: The histogram of all data.
        grid: As for `Observer.bounds`.
    """
    whole = bounds = float(state.minimum), float(state.maximum)
    best = np.inf

    def attempt(lows: Any, highs: Any) -> None:
        nonlocal bounds, best
        lows, highs = np.broadcast_arrays(np.maximum(lows, whole[0]), np.minimum(highs, whole[1]))
        grids = grid(lows.astype("float32"), highs.astype("float32"))
        for candidate in np.stack([lows, highs, *grids], axis=1).tolist():
            value = cost(*candidate)
            if value < best:
                bounds, best = (candidate[0], candidate[1]), value

    for steps in (_LADDER, _BETWEEN):
        sizes = max(map(abs, bounds)) * steps
        attempt(-sizes, sizes)
    if whole[0] < 0 < whole[1]:
        for _ in range(2):
            attempt(bounds[0], whole[1] * _LADDER)
            attempt(bounds[0], bounds[1] * _BETWEEN)
            attempt(whole[0] * _LADDER, bounds[1])
            attempt(bounds[0] * _BETWEEN, bounds[1])
    return bounds


OBSERVERS: dict[str, type[Observer]] = {
    cls.name: cls for cls in (MinMax, MovingAverage, Percentile, Entropy, MSE)
}
"""Every observer by its name."""


def get_observer(observer: Any) -> Observer:
    """An observer by name, or the observer itself.

    Args:
        observer: A name in `OBSERVERS`, an `Observer`, or a dict of its name and fields.

    Returns:
        The observer.

    Raises:
        IntactError: There is none of that name.

    Example:

    >>> get_observer("percentile")
    Percentile(percentile=99.99)
    """
    if isinstance(observer, Observer):
        return observer
    fields = dict(observer) if isinstance(observer, dict) else {"name": observer}
    return Observer.registry.find(fields.pop("name", None))(**fields)
