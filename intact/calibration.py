"""Calibration: data through the observers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from intact.errors import IntactError, InvalidDataError
from intact.graph import with_outputs
from intact.numerics import to_numpy
from intact.observers import OBSERVERS, Observer
from intact.quantizers import FakeQuantize


def calibrate(
    model: keras.Model,
    data: Any,
    steps: int | None = None,
    batch_size: int = 32,
    observer: str | Observer = "min_max",
    verbose: int = 1,
) -> keras.Model:
    """Find the ranges of a quantized model's activations from data.

    The model runs with float activations while its observers look on. Ranges that were
    there before are replaced.

    Args:
        model: What `quantize_model` returned.
        data: An array (samples first), or a list, tuple or dict of arrays for several
            inputs; or anything that yields batches: a generator, `tf.data.Dataset`,
            torch `DataLoader` or `keras.utils.PyDataset`. Batches that are tuples are
            taken as `(inputs, targets, ...)`, as in `fit`. About 100 samples are enough.
        steps: How many batches to take at most.
        batch_size: Samples per batch, for arrays.
        observer: "min_max" or "moving_average", or an `Observer`.
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
    if not observed:
        raise IntactError(
            f"Model {model.name!r} has no ranges to calibrate. "
            "Make a quantized model first: `q = intact.quantize_model(model)`."
        )
    if isinstance(observer, str):
        if observer not in OBSERVERS:
            raise IntactError(
                f"There is no observer {observer!r}. Known: {', '.join(sorted(OBSERVERS))}."
            )
        observer = OBSERVERS[observer]()
    before = [[to_numpy(v) for v in layer.variables] for layer in observed]
    seen = 0
    try:
        with _observing(observed, observer):
            runner = with_outputs(model, _Sink()(model.outputs))
            source, total = batches(data, batch_size, len(model.inputs))
            total = total if steps is None else min(steps, total or steps)
            bar = keras.utils.Progbar(total, verbose=verbose)
            for batch in source:
                if steps is not None and seen >= steps:
                    break
                inputs = check_batch(batch, model.inputs)
                runner.predict_on_batch(inputs if len(inputs) > 1 else inputs[0])
                seen += 1
                bar.update(seen)
        if not seen:
            raise InvalidDataError("The calibration data is empty. Pass about 100 samples.")
    except BaseException:
        # A calibration that fails leaves the ranges as they were.
        for layer, values in zip(observed, before, strict=True):
            for variable, value in zip(layer.variables, values, strict=True):
                variable.assign(value)
        raise
    for layer in observed:
        layer.finish_calibration()
    return model


@contextlib.contextmanager
def _observing(quantizers: list[FakeQuantize], observer: Observer) -> Iterator[None]:
    for layer in quantizers:
        layer.reset()
        layer.observer = observer
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


def batches(data: Any, batch_size: int, inputs: int) -> tuple[Iterator[Any], int | None]:
    """Batches of any kind of data, and how many there are if that is known.

    Args:
        data: As for `calibrate`.
        batch_size: Samples per batch, for arrays.
        inputs: How many inputs the model has.

    Returns:
        An iterator of inputs without targets, and the number of batches or None.
    """
    if isinstance(data, keras.utils.PyDataset):
        return (_without_targets(data[i]) for i in range(len(data))), len(data)
    if isinstance(data, dict) or _is_array(data) or isinstance(data, list | tuple):
        leaves = [_host(leaf) for leaf in keras.tree.flatten(data)]
        # A list of samples is an array, where the model has one input.
        if isinstance(data, list | tuple) and inputs == 1 and len(data) != 1:
            data = leaves = [np.stack(leaves)] if leaves else []
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
        if len(sizes) > 1:
            raise InvalidDataError(
                f"All inputs need the same number of samples. Received: {sorted(sizes)}."
            )
        total = -(-next(iter(sizes), 0) // batch_size)

        def slices() -> Iterator[Any]:
            for start in range(0, total * batch_size, batch_size):
                part = [leaf[start : start + batch_size] for leaf in leaves]
                yield keras.tree.pack_sequence_as(data, part)

        return slices(), total
    if not hasattr(data, "__iter__"):
        raise InvalidDataError(
            "Expected arrays or something that yields batches. "
            f"Received: {data!r} of type {type(data).__name__}."
        )
    try:
        total = len(data)
    except TypeError:
        total = None
    return (_without_targets(batch) for batch in data), total


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _without_targets(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


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
        fits = array.ndim == len(tensor.shape) and all(
            want in (None, got) for want, got in zip(tensor.shape, array.shape, strict=True)
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
