"""Calibration: data through the observers."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.errors import IntactError, InvalidDataError
from intact.graph import Graph, Node, view, with_outputs
from intact.numerics import QTensor, along, to_numpy
from intact.observers import OBSERVERS, Observer
from intact.ops.base import get_op
from intact.quantizers import FakeQuantize
from intact.training import Quantized, QuantizedWeights


def calibrate(
    model: keras.Model,
    data: Any,
    steps: int | None = None,
    batch_size: int = 32,
    observer: str | Observer | None = None,
    bias_correction: bool | None = None,
    verbose: int = 1,
) -> keras.Model:
    """Find the ranges of a quantized model's activations from data.

    The model runs with float activations while its observers look on. Ranges that were
    there before are replaced. A model whose activations stay in float, or whose ranges are
    all fixed, has none to find, and is returned as it is.

    Args:
        model: What `quantize_model` returned.
        data: An array (samples first), or a list, tuple or dict of arrays for several
            inputs; or anything that yields batches: a generator, `tf.data.Dataset`,
            torch `DataLoader` or `keras.utils.PyDataset`. Batches that are tuples are
            taken as `(inputs, targets, ...)`, as in `fit`. About 100 samples are enough.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays.
        observer: "min_max" or "moving_average", or an `Observer`; None takes what the
            scheme says for each range.
        bias_correction: Shift each layer's bias (or its batch norm's mean) by what
            rounding the weights changes in the mean of its outputs, before ranges are
            found (Nagel et al., arXiv:1906.04721, section 4.2). None does so for a
            model that has seen no data yet: one that was trained has learned it.
        verbose: 1 shows a progress bar, 0 nothing.

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
    observers = {id(fake): _observer(observer or fake.spec.observer) for fake in observed}
    if bias_correction is None:
        bias_correction = not any(layer.calibrated for layer in observed)
    source = Source(data, steps, batch_size, model.inputs)
    bar = keras.utils.Progbar(source.total(1 + bias_correction), verbose=verbose)
    before = [to_numpy(variable) for variable in model.variables]
    try:
        with _observing(observed, observers):
            shifting = [node for node in view(model).nodes if _Shift.applies(node.layer)]
            shifts = [_Shift(node.layer)(node.inputs) for node in shifting]
            runner = with_outputs(model, [*shifts, _Sink()(model.outputs)])
            if bias_correction:
                _correct_biases(shifting, _mean_outputs(runner, source, bar), view(model))
                for layer in observed:
                    layer.reset()
            _mean_outputs(runner, source, bar)
    except BaseException:
        # A calibration that fails leaves the model as it was.
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        raise
    for layer in observed:
        layer.finish_calibration()
    return model


def _observer(observer: str | Observer) -> Observer:
    if isinstance(observer, Observer):
        return observer
    if observer not in OBSERVERS:
        raise IntactError(
            f"There is no observer {observer!r}. Known: {', '.join(sorted(OBSERVERS))}."
        )
    return OBSERVERS[observer]()


def _mean_outputs(runner: keras.Model, source: "Source", bar: Any) -> list[np.ndarray]:
    """Run all batches; the mean of each output over them."""
    sums: list[Any] = [0.0] * len(runner.outputs)
    for batch in source:
        found = runner.predict_on_batch(batch)
        found = found if isinstance(found, list) else [found]
        sums = [total + part.mean(axis=0) for total, part in zip(sums, found, strict=True)]
        bar.add(1)
    return [total / source.seen for total in sums]


def _correct_biases(nodes: list[Node], shifts: list[np.ndarray], graph: Graph) -> None:
    per_layer: dict[int, list[Any]] = {}
    for node, shift in zip(nodes, shifts, strict=False):
        per_layer.setdefault(id(node.layer), [node]).append(shift)
    for node, *found in per_layer.values():
        shift = np.mean(found, axis=0)
        following = graph.sole_consumer(node.outputs[0])
        layer = node.layer.layer
        if following and following.kwargs.get("folds"):
            layer = following.layer.layer
        get_op(layer).shift(layer, shift)
        node.layer.corrected = shift


class _Shift(keras.layers.Layer):
    """What rounding a layer's weights takes from the mean of its outputs, per channel."""

    def __init__(self, quantized: Quantized) -> None:
        super().__init__(autocast=False)
        # In a tuple, so that the layer is not tracked as a part of this one.
        self._held = (quantized,)

    @staticmethod
    def applies(layer: Any) -> bool:
        known = isinstance(layer, Quantized) and not isinstance(layer, QuantizedWeights)
        return known and "kernel" in get_op(layer.layer).weights

    def call(self, triple: Any) -> Any:
        (quantized,) = self._held
        x, layer = QTensor(*triple), quantized.layer
        op: Any = get_op(layer)
        values, scale = quantized.quantized_weights()["kernel"]
        axis = quantized.weight_axes()["kernel"]
        kernel = ops.convert_to_tensor(layer.kernel)
        rounding = kernel - values * along(scale, axis, kernel.shape)
        # Products are linear: the mean over the batch may be taken first.
        mean = ops.mean(x.values * x.scale, axis=0, keepdims=True)
        gap = op.products(layer, mean, rounding)
        return ops.mean(gap, axis=tuple(range(len(gap.shape) - 1)))[None]

    def compute_output_shape(self, shapes: Any) -> tuple[int, None]:
        return (1, None)


@contextlib.contextmanager
def _observing(quantizers: list[FakeQuantize], observers: dict[int, Observer]) -> Iterator[None]:
    for layer in quantizers:
        layer.reset()
        layer.observer = observers[id(layer)]
    try:
        yield
    finally:
        for layer in quantizers:
            layer.observer = None


class _Sink(keras.layers.Layer):
    """Swallows a model's outputs, so that running it keeps nothing."""

    def call(self, inputs: Any) -> Any:
        return ops.zeros((ops.shape(keras.tree.flatten(inputs)[0])[0], 1))

    def compute_output_shape(self, shape: Any) -> tuple[None, int]:
        return (None, 1)


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
        self.seen = 0
        self._batches = batches(data, batch_size, len(inputs), rng)
        length = len(self._batches) if hasattr(self._batches, "__len__") else None
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
            yield arrays if len(arrays) > 1 else arrays[0]
        if not self.seen:
            raise InvalidDataError("The data is empty. Pass about 100 samples.")


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
    parts = [
        batch if isinstance(batch, list) else [batch]
        for batch in Source(data, steps, batch_size, inputs)
    ]
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
