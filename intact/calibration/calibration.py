"""Calibration: finds ranges by running data past observers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from intact.calibration.accuracy import warn_of_losses
from intact.calibration.biases import BiasPass, State
from intact.calibration.capture import Capture, Watch, pairs_samples
from intact.calibration.holdout import Holdout
from intact.calibration.sources import Data, Source
from intact.conversion import conversion
from intact.errors import IntactError, InvalidDataError
from intact.graph.view import Node, view
from intact.layers.fake_quantize import FakeQuantize
from intact.layers.quantized_model import QuantizedModel, is_quantized
from intact.layers.ranges import range_calls, refuse_nested
from intact.layers.stateful import check_stream, reset_states
from intact.memory import separate_pages
from intact.names import ObserverName
from intact.numerics.numpy_ops import numpy_ops
from intact.numerics.tensors import to_numpy
from intact.progress import Progress
from intact.quantizers.means import MeanSize
from intact.quantizers.observers import Observer, get_observer
from intact.quantizers.uses import UseObserver, limits


def calibrate(
    model: keras.Model,
    data: Data | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    observer: ObserverName | Observer | None = None,
    bias_correction: bool | None = None,
    verbose: int = 1,
    default_ranges: tuple[float, float] | None = None,
) -> keras.Model:
    """Find the ranges of a quantized model's activations from data.

    The model runs with float activations while its observers look on. Ranges that were
    there before are replaced. A model whose activations stay in float, or whose ranges are all
    fixed, is returned unchanged, except with `bias_correction=True`.

    Finally a few samples run as the file will run them, and in float: a warning names outputs that
    are lost, and remedies. Some of the samples run with the ranges of the others, too: a warning
    says where the samples are too few for new ones.

    Args:
        model: What `quantize_model` returned.
        data: An array (samples first), or a list, tuple or dict of arrays for several
            inputs; or anything that yields batches, of known length or not: a generator,
            `tf.data.Dataset`, torch `DataLoader` or `keras.utils.PyDataset`, a list of batches,
            or a function that returns one of these. Batches that are tuples are taken as
            `(inputs, targets, ...)`, as in `fit`. About 100 samples are enough. Where biases are
            corrected, too, data is read twice, and the batches of a generator are kept in memory;
            those of a function that returns one are not.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays. A model that is built for a known batch has its
            own. If it keeps a state, it reads the batches as a new stream.
        observer: "min_max", "moving_average", "percentile", "entropy" or "mse", or an
            `Observer` such as `intact.quantizers.observers.Percentile(99.9)`; None takes what the
            scheme says for each range.
        bias_correction: Shift each layer's bias (or its batch norm's mean) by what
            rounding the weights changes in the mean of its outputs, before ranges are
            found (Nagel et al., arXiv:1906.04721, section 4.2). None does so for a
            model whose ranges have seen no data yet: one that was trained has learned it.
            Schemes with float activations were corrected by their batch norms when they were made;
            True corrects them by the data, layers without a batch norm before them, too.
        verbose: 1 shows a progress bar, 0 nothing.
        default_ranges: `(min, max)`, in place of data: the range of every tensor that has
            none, within the clamp of a fused activation; other ranges stay as they are. To
            try how fast a file runs, not how well.

    Returns:
        The model itself.

    Raises:
        IntactError: The model is not quantized, or an unknown observer.
        InvalidDataError: The data is empty, not finite, or wrongly shaped.

    Warns:
        AccuracyWarning: An output, or a part of one, is lost (it has less than 20 dB against
            float), or that could not be found out.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> q = calibrate(q, np.random.default_rng(0).normal(size=(100, 4)), verbose=0)
    """
    refuse_nested(model, "calibrating")
    observed = observed_layers(model)
    if not observed and not isinstance(model, QuantizedModel) and not is_quantized(model):
        raise IntactError(
            f"Model {model.name!r} has no ranges to calibrate. "
            "Make a quantized model first: `q = intact.quantize_model(model)`."
        )
    if data is None and default_ranges is not None:
        _fill_all(model, default_ranges)
        return model
    if not observed and not bias_correction:
        return model
    # A trained model differs from the float model on purpose, so they are not compared.
    fresh = not any(layer.calibrated for layer in observed)
    with conversion(model), separate_pages(model):
        few, holdout = find_ranges(
            model, data, steps, batch_size, observer, bias_correction, verbose
        )
        warn_of_losses(model, few, fresh, holdout)
    return model


def find_ranges(
    model: keras.Model,
    data: Data,
    steps: int | None = None,
    batch_size: int = 32,
    observer: ObserverName | Observer | None = None,
    bias_correction: bool | None = None,
    verbose: int = 0,
) -> tuple[list[np.ndarray], Holdout | None]:
    """Calibrate a model without checking its accuracy afterwards.

    Args:
        model: As for `calibrate`, like the other arguments.

    Returns:
        A few samples of the data, an array for each input; and what tells the effect of the ranges
        on new samples, if samples may be taken out of a batch.
    """
    observed = observed_layers(model)
    known = model.inputs[0].shape[0]
    if bias_correction is None:
        bias_correction = not any(layer.calibrated for layer in observed)
    source = Source(
        data,
        steps,
        known or batch_size,
        model.inputs,
        whole_batches=known is not None,
        once=not (observed and bias_correction),
    )
    passes = bool(observed) + bias_correction
    bar = Progress("Calibrating", source.total(passes), verbose)
    before = State(model, weights=False)
    holdout = None
    try:
        with observing(model):
            if bias_correction:
                biases = BiasPass(model)
                biases.apply(look(model, biases.watches, source, bar))
            ranges = RangePass(model, observer)
            if known is None and not pairs_samples(model):
                holdout = Holdout(ranges.apply, source.total(1))
            ranges.apply(look(model, ranges.watches, source, bar, holdout))
        if bar.target is None:
            bar.update(source.taken, finalize=True)
        reset_states(model)
    except BaseException:
        # A calibration that fails leaves the model as it was.
        before.restore()
        raise
    return source.few, holdout


def observed_layers(model: keras.Model) -> list[FakeQuantize]:
    """The quantizers whose ranges come from data."""
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    return [layer for layer in quantizers if layer.fixed is None]


class RangePass:
    """The pass over the data that finds the ranges of a model's activations.

    Args:
        model: A quantized model.
        observer: As for `calibrate`.
    """

    def __init__(self, model: keras.Model, observer: str | Observer | None = None) -> None:
        self.layers = observed_layers(model)
        self.calls = range_calls(view(model))
        rules = {id(fake): get_observer(observer or fake.spec.observer) for fake in self.layers}
        self.rules = rules
        watches: list[Watch] = [(node.outputs[0], rules[id(node.layer)]) for node, _ in self.calls]
        sizes = (node for node, _ in self.calls if node.layer.learns)
        sized: list[Watch] = [(node.outputs[0], MeanSize()) for node in sizes]
        self.watches = watches + sized + _uses(self.calls)

    def apply(self, states: list[Any]) -> None:
        """Set the ranges.

        Args:
            states: What each observer of `watches` saw of all the data.
        """
        calls, others = self.calls, iter(states[len(self.calls) :])
        sizes = {id(node): next(others) for node, _ in calls if node.layer.learns}
        seen: dict[int, dict[int, tuple]] = {}
        for (node, slot), state in zip(calls, states, strict=False):
            ends = limits([next(others) for _ in _partners(node)], node.layer.steps)
            seen.setdefault(id(node.layer), {})[slot] = (state, sizes.get(id(node)), ends)
        for layer in self.layers:
            slots = (seen[id(layer)][slot] for slot in range(layer.slots))
            parts, totals, ends = zip(*slots, strict=True)
            size = np.array([s.total / s.count for s in totals]) if layer.learns else None
            bounds = self.rules[id(layer)].bounds(list(parts), layer.grid_of)
            bounds = tuple(np.clip(bounds, *np.array(ends, "float32").T))
            if not np.isfinite(bounds).all():
                raise InvalidDataError(
                    f"Values that {layer.name!r} quantizes are too large for float32, or not "
                    "numbers, on this data. Scale the data, or the layers before."
                )
            layer.set_range(*bounds, size)


def _fill_all(model: keras.Model, default_ranges: tuple[float, float]) -> None:
    """Give a range to all tensors that have none."""
    low, high = default_ranges
    if not (np.isfinite([low, high]).all() and low < high):
        raise IntactError(
            "Expected default_ranges=(min, max), finite and min < max. "
            f"Received: {default_ranges!r}."
        )
    calls = range_calls(view(model))
    for layer in observed_layers(model):
        if not layer.calibrated:
            _fill(layer, calls, low, high)


def _partners(node: Node) -> list[tuple[tuple[keras.KerasTensor, ...], Any]]:
    """The partners of a quantizer's tensor, if it is a factor."""
    return [*zip(*node.args[1:], node.kwargs.get("shapes", ()), strict=True)]


def _uses(calls: list[tuple[Node, int]]) -> list[Watch]:
    """The factors, each beside its partners."""
    return [
        ((node.outputs[0], partner[0]), UseObserver(shape))
        for node, _ in calls
        for partner, shape in _partners(node)
    ]


def _fill(layer: FakeQuantize, calls: list[tuple[Node, int]], low: float, high: float) -> None:
    """Give a range to the tensors of a quantizer that have none."""
    minimum, maximum = to_numpy(layer.minimum).copy(), to_numpy(layer.maximum).copy()
    for node, slot in calls:
        if node.layer is layer and not to_numpy(layer.count)[slot]:
            bounds = node.kwargs.get("lower", -np.inf), node.kwargs.get("upper", np.inf)
            minimum[slot], maximum[slot] = np.clip([low, high], *bounds)
    layer.set_range(minimum, maximum)


def look(
    model: keras.Model,
    watches: list[Watch],
    source: Source,
    bar: Any,
    holdout: Holdout | None = None,
) -> list[Any]:
    """Run all batches through a model that lets real values through.

    Args:
        model: A quantized model.
        watches: The tensors to look at, and their observers.
        source: The batches.
        bar: A progress bar.
        holdout: Gets some of the samples, and what the observers saw of the others.

    Returns:
        The state of each observer.
    """
    if not watches:
        return []
    states: list[Any] = []
    observers = [observer for _, observer in watches]
    with separate_pages(model):
        watcher = Capture(model, watches)
        reset_states(model)
        for batch in source:
            check_stream(model, len(batch[0]))
            rest, held = holdout.split(batch) if holdout else (batch, [])
            seen = watcher(rest) if len(rest[0]) else []
            if holdout and seen:
                holdout.states = _updated(observers, holdout.states, seen)
            if held and len(held[0]):
                seen = _joined(observers, seen, watcher(held))
            states = _updated(observers, states, seen)
            bar.add(1)
    return states


def _updated(observers: list[Observer], states: list[Any], seen: list[Any]) -> list[Any]:
    """The observers' states after one more batch."""
    if not states:
        return seen
    rows = zip(observers, states, seen, strict=True)
    return [observer.update(old, new, numpy_ops) for observer, old, new in rows]


def _joined(observers: list[Observer], seen: list[Any], more: list[Any]) -> list[Any]:
    """What the observers saw of two parts of one batch."""
    if not seen:
        return more
    rows = zip(observers, seen, more, strict=True)
    return [observer.join(a, b, numpy_ops) for observer, a, b in rows]


@contextlib.contextmanager
def observing(model: keras.Model) -> Iterator[None]:
    """Let real values through all quantizers."""
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    for layer in quantizers:
        layer.observe(True)
    try:
        yield
    finally:
        for layer in quantizers:
            layer.observe(False)
