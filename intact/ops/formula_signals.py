"""Formulas of signals: Fourier transforms are products with constant matrices."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import Case


def _turns(rows: int, columns: int, size: int) -> np.ndarray:
    """Angles of the places of a row times the frequencies of a column."""
    return 2 * np.pi * (np.outer(np.arange(rows), np.arange(columns)) % size) / size


def _transform(size: int, sign: float = 1.0, factor: float = 1.0) -> np.ndarray:
    """The matrix from real and imaginary parts to those of the transform."""
    angles = _turns(size, size, size)
    cosine, sine = factor * np.cos(angles), factor * sign * np.sin(angles)
    return np.block([[cosine, -sine], [sine, cosine]]).astype("float32")


def _along(x: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    """A product along one of the last two axes."""
    if axis == -1:
        return ops.matmul(x, matrix)
    return ops.swapaxes(ops.matmul(ops.swapaxes(x, -1, -2), matrix), -1, -2)


def _fourier(axes: tuple[int, ...], sign: float = 1.0) -> Callable[..., Any]:
    """A transform of complex values along axes."""

    def transform(layer: Any, x: Any) -> tuple[Tensor, Tensor]:
        real, imaginary = x
        for axis in axes:
            size = real.shape[axis]
            matrix = _transform(size, sign, 1.0 if sign > 0 else 1.0 / size)
            both = _along(ops.concatenate([real, imaginary], axis), axis, matrix)
            real, imaginary = ops.split(both, 2, axis)
        return real, imaginary

    return transform


def _real_matrix(rows: int, length: int, window: np.ndarray | None = None) -> np.ndarray:
    """The matrix from `rows` values to real and imaginary parts of a transform of a length."""
    angles = _turns(min(rows, length), length // 2 + 1, length)
    matrix = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    if window is not None:
        matrix *= window[:, None]
    return np.pad(matrix, [(0, max(rows - length, 0)), (0, 0)]).astype("float32")


def _real_fourier(layer: Any, x: Tensor) -> Any:
    size = x.shape[-1]
    return ops.split(ops.matmul(x, _real_matrix(size, layer.fft_length or size)), 2, -1)


def _inverse_matrix(bins: int, length: int) -> np.ndarray:
    """The matrix from real and imaginary parts of a transform to values of a length."""
    known = min(bins, length // 2 + 1)
    angles = _turns(known, length, length)
    # Every frequency counts twice, except the first one and the Nyquist frequency.
    weights = np.full((known, 1), 2.0 / length)
    weights[0] = 1.0 / length
    if length % 2 == 0 and known == length // 2 + 1:
        weights[-1] = 1.0 / length
    parts = (weights * np.cos(angles), -weights * np.sin(angles))
    return np.concatenate([np.pad(p, [(0, bins - known), (0, 0)]) for p in parts]).astype("float32")


def _inverse_real(layer: Any, x: Any) -> Tensor:
    bins = x[0].shape[-1]
    matrix = _inverse_matrix(bins, layer.fft_length or 2 * (bins - 1))
    return ops.matmul(ops.concatenate(x, axis=-1), matrix)


def _window(layer: Any) -> np.ndarray:
    """The window of a short-time transform, as long as the transform."""
    size, length = layer.sequence_length, layer.fft_length
    if layer.window is None:
        return np.ones(length)
    if isinstance(layer.window, str):
        level = {"hann": 0.5, "hamming": 0.54}[layer.window]
        values = level - (1 - level) * np.cos(2 * np.pi * np.arange(size) / size)
    else:
        values = to_numpy(layer.window)
    before = (length - size) // 2
    return np.pad(values, (before, length - size - before))


def _short_time(layer: Any, x: Tensor) -> Any:
    """Transforms of windows that follow one another: a convolution in one step."""
    length, size = layer.fft_length, x.shape[-1]
    if layer.center:
        half = length // 2
        x = ops.take(x, np.pad(np.arange(size), half, mode="reflect"), axis=-1)
    kernel = _real_matrix(length, length, _window(layer))[:, None, :]
    lead = x.shape[1:-1]
    y = ops.conv(
        ops.reshape(x, (-1, x.shape[-1], 1)),
        kernel,
        layer.sequence_stride,
        padding="valid",
        data_format="channels_last",
    )
    y = ops.reshape(y, (-1, *lead, *y.shape[1:]))
    return ops.split(y, 2, -1)


def _inverse_short_time(layer: Any, x: Any) -> Tensor:
    """Values of overlapping windows, added where they belong and divided by their weight."""
    length, stride = layer.fft_length, layer.sequence_stride
    frames, bins = x[0].shape[-2:]
    window, total = _window(layer), length + stride * (frames - 1)
    places = np.arange(frames)[:, None] * stride + np.arange(length)
    weight = np.zeros(total)
    np.add.at(weight, places, np.broadcast_to(window**2, places.shape))
    start = length // 2 if layer.center else 0
    stop = total - start if layer.length is None else start + layer.length
    y = ops.matmul(ops.concatenate(x, -1), _inverse_matrix(bins, length) * window.astype("float32"))
    # Each window in strides, which are added to those of the windows before it.
    count = -(-length // stride)
    lead, zeros = y.shape[1:-2], [(0, 0)] * (len(y.shape) - 1)
    y = ops.pad(y, (*zeros, (0, count * stride - length)))
    y = ops.reshape(y, (-1, *lead, frames, count, stride))
    parts = [
        ops.pad(y[..., shift, :], (*zeros[1:], (shift, count - 1 - shift), (0, 0)))
        for shift in range(count)
    ]
    summed = parts[0]
    for part in parts[1:]:
        summed = summed + part
    summed = ops.reshape(summed, (-1, *lead, (frames + count - 1) * stride))[..., start:stop]
    safe = np.where(weight > 1e-8, weight, 1.0)[start:stop]
    return summed * (1.0 / safe).astype("float32")


FORMULAS: dict[str, Callable[..., Any]] = {
    "FFT": _fourier((-1,)),
    "FFT2": _fourier((-1, -2)),
    "IFFT2": _fourier((-1, -2), -1.0),
    "IRFFT": _inverse_real,
    "ISTFT": _inverse_short_time,
    "RFFT": _real_fourier,
    "STFT": _short_time,
}
"""Per operation, its formula: a function of the operation and its operands."""

MAX_SIZE = 4096
"""The longest signal that is transformed by one matrix."""


def _has_size(layer: Any, x: Any) -> bool:
    real = x[0] if isinstance(x, list | tuple) else x
    sizes = real.shape[1:] or real.shape
    return None not in sizes and real.shape[-1] <= MAX_SIZE


def _has_length(layer: Any, x: Any) -> bool:
    real = x[0] if isinstance(x, list | tuple) else x
    return len(real.shape) > 1 and None not in real.shape[1:]


LIMITS: dict[str, tuple[Callable[..., bool], str]] = {
    **dict.fromkeys(
        ("FFT", "RFFT", "IRFFT", "FFT2", "IFFT2"),
        (_has_size, f"the size of its axes must be known, and {MAX_SIZE} at most"),
    ),
    **dict.fromkeys(("STFT", "ISTFT"), (_has_length, "the sizes of its signals must be known")),
}
"""Limits of formulas: the condition under which one applies, and the reason otherwise."""

CASES: dict[str, Case] = {
    "fft2": Case(lambda: lambda a, b: ops.fft2((a, b))[0], [(4, 6), (4, 6)]),
    "ifft2": Case(lambda: lambda a, b: ops.ifft2((a, b))[1], [(4, 6), (4, 6)]),
    "rfft irfft": Case(lambda: lambda x: ops.irfft(ops.rfft(x, 8), 6), (3, 7)),
    "stft": Case(lambda: lambda x: ops.concatenate(ops.stft(x, 12, 4, 16), -1), (32,)),
    "istft": Case(
        lambda: lambda a, b: ops.istft((a, b), 16, 8, 16), [(6, 9), (6, 9)], low=-0.5, high=0.5
    ),
}
"""Cases, by the operations that they have; older versions of Keras lack some."""
