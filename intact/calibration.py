"""Calibration: data through the observers."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from intact.errors import IntactError, InvalidDataError
from intact.graph import Graph, Node, view
from intact.lstm import check_stream, keepers, reset_states
from intact.numerics import along, host, to_numpy
from intact.observers import Observer, get_observer
from intact.ops.base import get_op
from intact.quantizers import FakeQuantize, range_calls, refuse_nested
from intact.training import Quantized, QuantizedWeights
from intact.uses import UseObserver, limits
from intact.watching import Watch, Watcher, products


def calibrate(
    model: keras.Model,
    data: Any = None,
    steps: int | None = None,
    batch_size: int = 32,
    observer: str | Observer | None = None,
    bias_correction: bool | None = None,
    verbose: int = 1,
    default_ranges: tuple[float, float] | None = None,
) -> keras.Model:
    """Find the ranges of a quantized model's activations from data.

    The model runs with float activations while its observers look on. Ranges that were
    there before are replaced. A model whose activations stay in float, or whose ranges are
    all fixed, has none to find, and is returned as it is.

    Args:
        model: What `quantize_model` returned.
        data: An array (samples first), or a list, tuple or dict of arrays for several
            inputs; or anything that yields batches, of known length or not: a generator,
            `tf.data.Dataset`, torch `DataLoader` or `keras.utils.PyDataset`. Batches that are
            tuples are taken as `(inputs, targets, ...)`, as in `fit`. About 100 samples are
            enough.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays. A model that keeps its state has its own, and
            goes through the batches as through a stream that begins anew.
        observer: "min_max", "moving_average", "percentile", "entropy" or "mse", or an
            `Observer` such as `intact.observers.Percentile(99.9)`; None takes what the
            scheme says for each range.
        bias_correction: Shift each layer's bias (or its batch norm's mean) by what
            rounding the weights changes in the mean of its outputs, before ranges are
            found (Nagel et al., arXiv:1906.04721, section 4.2). None does so for a
            model that has seen no data yet: one that was trained has learned it.
        verbose: 1 shows a progress bar, 0 nothing.
        default_ranges: `(min, max)`, in place of data: the range of every tensor that has
            none, within the clamp of a fused activation; other ranges stay as they are. To
            try how fast a file runs, not how well.

    Returns:
        The model itself.

    Raises:
        IntactError: The model has no ranges to find, or an unknown observer.
        InvalidDataError: The data is empty, not finite, or wrongly shaped.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> q = calibrate(q, np.random.default_rng(0).normal(size=(100, 4)), verbose=0)
    """
    refuse_nested(model, "calibrating")
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    observed = [layer for layer in quantizers if layer.fixed is None]
    if not observed and any(
        isinstance(layer, QuantizedWeights | FakeQuantize) for layer in model.layers
    ):
        return model
    if not observed:
        raise IntactError(
            f"Model {model.name!r} has no ranges to calibrate. "
            "Make a quantized model first: `q = intact.quantize_model(model)`."
        )
    graph = view(model)
    if data is None and default_ranges is not None:
        low, high = default_ranges
        if not (np.isfinite([low, high]).all() and low < high):
            raise IntactError(
                "Expected default_ranges=(min, max), finite and min < max. "
                f"Received: {default_ranges!r}."
            )
        for layer in observed:
            if not layer.calibrated:
                _fill(layer, range_calls(graph), low, high)
        return model
    observers = {id(fake): get_observer(observer or fake.spec.observer) for fake in observed}
    if keepers(model):
        batch_size = model.inputs[0].shape[0]
    if bias_correction is None:
        bias_correction = not any(layer.calibrated for layer in observed)
    source = Source(data, steps, batch_size, model.inputs)
    bar = keras.utils.Progbar(source.total(1 + bias_correction), verbose=verbose)
    before = [to_numpy(variable) for variable in model.variables]
    calls = range_calls(graph)
    try:
        with _in_float(quantizers):
            if bias_correction:
                nodes = [node for node in graph.nodes if _has_kernel(node.layer)]
                means = _look(model, [(node.inputs[0], _Mean()) for node in nodes], source, bar)
                _correct_biases(model, nodes, means, graph)
            watches = [(node.outputs[0], observers[id(node.layer)]) for node, _ in calls]
            sized: list[Watch] = [
                (node.outputs[0], _Size()) for node, _ in calls if node.layer.learns
            ]
            states = _look(model, watches + sized + _uses(calls), source, bar)
            if bar.target is None:
                bar.update(source.taken, finalize=True)
        sizes = iter(states[len(calls) :])
        uses = iter(states[len(calls) + len(sized) :])
        seen: dict[int, dict[int, tuple]] = {}
        for (node, slot), state in zip(calls, states, strict=False):
            size = next(sizes) if node.layer.learns else None
            ends = limits([next(uses) for _ in _partners(node)], node.layer.steps)
            seen.setdefault(id(node.layer), {})[slot] = (state, size, ends)
        for layer in observed:
            slots = (seen[id(layer)][slot] for slot in range(layer.slots))
            parts, totals, ends = zip(*slots, strict=True)
            size = np.array([s.total / s.count for s in totals]) if layer.learns else None
            bounds = observers[id(layer)].bounds(list(parts), layer.grid_of)
            bounds = tuple(np.clip(bounds, *np.array(ends, "float32").T))
            if not np.isfinite(bounds).all():
                raise InvalidDataError(
                    f"Values that {layer.name!r} quantizes are too large for float32, or not "
                    "numbers, on this data. Scale the data, or the layers before."
                )
            layer.set_range(*bounds, size)
        reset_states(model)
    except BaseException:
        # A calibration that fails leaves the model as it was.
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        raise
    return model


def _partners(node: Node) -> list[tuple[tuple[keras.KerasTensor, ...], Any]]:
    """What the tensor of a quantizer's call is multiplied with, if it is a factor."""
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


def _look(model: keras.Model, watches: list[Watch], source: "Source", bar: Any) -> list[Any]:
    """Run all batches; what each observer makes of its tensor."""
    if not watches:
        return []
    watcher = Watcher(model, watches)
    states: list[Any] = []
    reset_states(model)
    for batch in source:
        check_stream(model, len(batch[0]))
        seen = watcher(batch)
        pairs = zip(watches, states or seen, seen, strict=True)
        states = [o.update(old, new, host) if states else new for (_, o), old, new in pairs]
        bar.add(1)
    return states


def _has_kernel(layer: Any) -> bool:
    """Whether a layer sums integer products with a kernel that is rounded."""
    known = isinstance(layer, Quantized) and not isinstance(layer, QuantizedWeights)
    return known and layer.norm is None and "kernel" in get_op(layer.layer).weights


class _Total(NamedTuple):
    """The sum of samples, and how many they are."""

    total: Any
    count: Any


class _Mean(Observer):
    """The mean over the samples."""

    def look(self, x: Any, xp: Any = ops) -> _Total:
        return _Total(xp.sum(x, axis=0), xp.sum(xp.ones_like(x[:, 0]), axis=0))

    def join(self, a: _Total, b: _Total, xp: Any = ops) -> _Total:
        return _Total(a.total + b.total, a.count + b.count)

    def update(self, state: _Total, seen: _Total, xp: Any = ops) -> _Total:
        return self.join(state, seen)


class _Size(_Mean):
    """The mean size of all values."""

    def look(self, x: Any, xp: Any = ops) -> _Total:
        return _Total(xp.sum(xp.abs(x)), xp.sum(xp.ones_like(x)))


def _correct_biases(
    model: keras.Model, nodes: list[Node], inputs: list[_Total], graph: Graph
) -> None:
    """Add to biases what rounding the weights takes from the mean of the outputs."""
    # Products are linear: the mean over the samples may be taken first.
    means = [np.asarray(seen.total / seen.count, "float32")[None] for seen in inputs]
    lost = products(model, nodes, [_rounding(node.layer) for node in nodes], means)
    per_layer: dict[int, list[Any]] = {}
    for node, gap in zip(nodes, lost, strict=True):
        shift = gap.mean(axis=tuple(range(gap.ndim - 1)))
        per_layer.setdefault(id(node.layer), [node]).append(shift)
    for node, *found in per_layer.values():
        following = graph.sole_consumer(node.outputs[0])
        layer = node.layer.layer
        if following and following.kwargs.get("folds"):
            layer = following.layer.layer
        shift = np.mean(found, axis=0)
        get_op(layer).shift(layer, shift)
        node.layer.corrected = shift


def _rounding(quantized: Quantized) -> np.ndarray:
    """What rounding takes from a layer's kernel."""
    kernel, axis = to_numpy(quantized.layer.kernel), quantized.weight_axes()["kernel"]
    values, scale = quantized.quantized_weights(host)["kernel"]
    return kernel - values * along(scale, axis, kernel.shape, host)


@contextlib.contextmanager
def _in_float(quantizers: list[FakeQuantize]) -> Iterator[None]:
    """Let real values through all quantizers."""
    for layer in quantizers:
        layer.observe(True)
    try:
        yield
    finally:
        for layer in quantizers:
            layer.observe(False)


class Source:
    """Checked batches of any kind of data, which can be gone through twice.

    Args:
        data: As for `calibrate`.
        steps: How many batches to take at most each time.
        batch_size: Samples per batch, for arrays.
        inputs: The model's inputs.
        rng: Shuffles arrays, anew each time.
    """

    def __init__(
        self,
        data: Any,
        steps: int | None,
        batch_size: int,
        inputs: list[Any],
        rng: np.random.Generator | None = None,
    ) -> None:
        self.steps = steps
        self.inputs = inputs
        self.seen = self.taken = 0
        self._batches = batches(data, batch_size, len(inputs), rng)
        length = length_of(self._batches)
        if length is None and steps is None and _is_endless(data):
            raise InvalidDataError("The data is without end. Say how many batches: `steps=100`.")
        self._length = min((n for n in (steps, length) if n is not None), default=None)

    def total(self, passes: int) -> int | None:
        """How many batches there will be in all, if that is known."""
        return None if self._length is None else self._length * passes

    def __iter__(self) -> Iterator[Any]:
        if iter(self._batches) is self._batches:
            # A generator gives its batches only once.
            self._batches = list(itertools.islice(self._batches, self.steps))
        self.seen = 0
        for batch in itertools.islice(self._batches, self.steps):
            if isinstance(batch, list) and 1 < len(batch) <= 3 and len(self.inputs) == 1:
                # Torch's loaders collate to lists; only its first part can be the inputs.
                batch = tuple(batch)
            batch = batch[0] if isinstance(batch, tuple) else batch
            arrays = check_batch(batch, self.inputs)
            self.seen += 1
            self.taken += 1
            yield arrays
        if not self.seen:
            raise InvalidDataError("The data is empty. Pass about 100 samples.")


def length_of(data: Any) -> int | None:
    """How many batches there are; None where that is not known.

    Args:
        data: What yields them.
    """
    try:
        return len(data)
    except TypeError:
        # It has no length, or it is a `tf.data.Dataset` or a `DataLoader` that cannot tell.
        return None


def _is_endless(data: Any) -> bool:
    """Whether data is a `tf.data.Dataset` that says that it never ends."""
    return hasattr(data, "cardinality") and int(data.cardinality()) == -1


def batches(data: Any, batch_size: int, inputs: int, rng: np.random.Generator | None = None) -> Any:
    """Batches of any kind of data.

    Args:
        data: As for `calibrate`.
        batch_size: Samples per batch, for arrays.
        inputs: How many inputs the model has.
        rng: Shuffles arrays, anew each time.

    Returns:
        An iterable of batches.

    Raises:
        InvalidDataError: Neither arrays nor something that yields batches.
    """
    if isinstance(data, keras.utils.PyDataset):
        return _Batches(len(data), data.__getitem__)
    if isinstance(data, dict | list | tuple) or _is_array(data):
        leaves = [_host(leaf) for leaf in keras.tree.flatten(data)]
        if isinstance(data, list | tuple) and inputs == 1 and len(leaves) > 1:
            # A list of samples.
            data = leaves = [np.stack(leaves)]
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
        if len(sizes) > 1:
            raise InvalidDataError(
                f"All inputs need the same number of samples. Received: {sorted(sizes)}."
            )
        size = next(iter(sizes), 0)
        order = np.arange(size)

        def part(i: int) -> Any:
            if i == 0 and rng is not None:
                rng.shuffle(order)
            chosen: Any = slice(i * batch_size, (i + 1) * batch_size)
            chosen = chosen if rng is None else order[chosen]
            packed = keras.tree.pack_sequence_as(data, [leaf[chosen] for leaf in leaves])
            return list(packed) if isinstance(packed, tuple) else packed

        return _Batches(-(-size // batch_size), part)
    if not hasattr(data, "__iter__") or isinstance(data, str | bytes):
        raise InvalidDataError(
            "Expected arrays or something that yields batches. "
            f"Received: {data!r} of type {type(data).__name__}."
        )
    return data


def collect(
    data: Any, steps: int | None, batch_size: int, inputs: list[keras.KerasTensor]
) -> list[np.ndarray]:
    """All samples of any kind of data at once.

    Args:
        data: As for `calibrate`.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays.
        inputs: The model's inputs.

    Returns:
        One array per input.

    Raises:
        InvalidDataError: The data is empty, not finite, or wrongly shaped.
    """
    parts = Source(data, steps, batch_size, inputs)
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


class _Batches:
    """So many batches, each made when its turn comes."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return map(self._make, range(self._count))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _host(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def check_batch(batch: Any, inputs: list[keras.KerasTensor]) -> list[np.ndarray]:
    """The arrays of one batch, in the order of a model's inputs.

    Args:
        batch: An array, or a list, tuple or dict of arrays.
        inputs: The model's inputs.

    Returns:
        One array per input.

    Raises:
        InvalidDataError: A name, number, shape or value that cannot be.
    """
    if isinstance(batch, dict):
        missing = [t.name for t in inputs if t.name not in batch]
        if missing:
            raise InvalidDataError(
                f"The data has no input named {missing}. Received: {sorted(batch)}."
            )
        leaves = [batch[t.name] for t in inputs]
    else:
        leaves = keras.tree.flatten(batch)
    if len(leaves) != len(inputs):
        raise InvalidDataError(
            f"The model has {len(inputs)} inputs: {[t.name for t in inputs]}. "
            f"Received: a batch of {len(leaves)} arrays."
        )
    arrays = []
    for tensor, leaf in zip(inputs, leaves, strict=True):
        array = _host(leaf)
        if array.dtype.kind in "OSU":
            raise InvalidDataError(
                f"Input {tensor.name!r} takes numbers. Received: an array of {array.dtype}."
            )
        # Any number of samples: a model built by its first call has that call's.
        fits = array.ndim == len(tensor.shape) and all(
            want in (None, got) for want, got in zip(tensor.shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise InvalidDataError(
                f"Input {tensor.name!r} takes shape {tensor.shape}. Received: {array.shape}."
            )
        if not len(array):
            raise InvalidDataError(f"The data for input {tensor.name!r} is empty.")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise InvalidDataError(
                f"The data for input {tensor.name!r} has {bad} values that are NaN or "
                "infinite. Clean it first."
            )
        arrays.append(array)
    return arrays
