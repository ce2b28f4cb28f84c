"""The part of `keras.ops` that weights and biases need, in numpy."""

from types import SimpleNamespace

import numpy as np

from intact.numerics.tensors import to_numpy


def _segment_max(data: np.ndarray, ids: np.ndarray, num_segments: int) -> np.ndarray:
    top = np.full(num_segments, -np.inf, data.dtype)
    np.maximum.at(top, ids, data)
    return top


numpy_ops = SimpleNamespace(
    abs=np.abs,
    broadcast_to=np.broadcast_to,
    cast=lambda x, dtype: np.asarray(x, dtype),
    concatenate=np.concatenate,
    convert_to_tensor=lambda x: to_numpy(x).astype("float32", copy=False),
    exp=np.exp,
    clip=np.clip,
    max=np.max,
    floor=np.floor,
    log=np.log,
    logical_and=np.logical_and,
    maximum=np.maximum,
    min=np.min,
    minimum=np.minimum,
    ones=np.ones,
    ones_like=np.ones_like,
    power=np.power,
    reshape=np.reshape,
    round=np.rint,
    sign=np.sign,
    size=np.size,
    sqrt=np.sqrt,
    stack=np.stack,
    tanh=np.tanh,
    segment_max=_segment_max,
    segment_sum=lambda data, ids, num_segments: np.bincount(ids, data, num_segments),
    stop_gradient=lambda x: x,
    sum=np.sum,
    where=np.where,
    zeros_like=np.zeros_like,
)
"""The part of `keras.ops` that weights and biases need, in numpy.

Passed as `xp` when a file is written: fast, and to the same bits on every backend.
"""
