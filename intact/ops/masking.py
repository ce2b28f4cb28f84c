"""Masks that hide scores from a softmax."""

import functools
from typing import Any

import numpy as np
from keras import layers

from intact.numerics.light_ops import ops
from intact.numerics.tensors import is_symbolic, is_whole, to_numpy
from intact.ops.whole import WholeNumbers, truths

MASKED = 16.0
"""How much is subtracted from a masked score, which keeps e^-16 of its attention.

A score of minus infinity would leave no integers for the others.
"""


class Named:
    """A name for the layers of a part.

    Args:
        name: The name.
    """

    def __init__(self, name: str) -> None:
        self.name = name


def whole_mask(parts: list[Any], layer: Any, tracer: Any, rank: int = 4) -> Any:
    """Merge masks of scores.

    Args:
        parts: Truth values or whole numbers, in arrays or tensors of the new graph; or None.
        layer: The layer, for names and errors.
        tracer: The tracer.
        rank: The number of axes of the scores.

    Returns:
        Truth values that hold where all do; an array, a tensor, or None.
    """
    parts_present = [part for part in parts if part is not None]
    tensors = [part for part in parts_present if is_symbolic(part)]
    arrays = [
        np.asarray(to_numpy(part)).astype(bool) for part in parts_present if not is_symbolic(part)
    ]
    known = functools.reduce(np.logical_and, arrays) if arrays else None
    if not all(map(is_whole, tensors)):
        tracer.refuse(layer, "a mask that depends on the inputs must be whole numbers or truths")
    if not tensors:
        return known

    tensors = [truths(t, f"truths_{i}", rank, tracer) for i, t in enumerate(tensors)]
    if known is not None:
        tensors.append(truths(known, "known", rank, tracer))
    while len(tensors) > 1:
        pair = [tensors.pop(0), tensors.pop(0)]
        tensors.append(tracer.emit(WholeNumbers("LogicalAnd", name="mask", dtype="bool"), pair))
    return tensors[0]


def hide(scores: Any, mask: Any, scale: float, tracer: Any) -> Any:
    """Hide scores from a softmax where a mask does not hold.

    Args:
        scores: A tensor of the new graph.
        mask: Truth values that broadcast to the scores, in an array or a tensor.
        scale: The factor by which the softmax multiplies the scores.
        tracer: The tracer.
    """
    low = np.float32(-MASKED / scale)
    if is_symbolic(mask):
        named = Named("penalty")
        penalty = tracer.expand(named, lambda m: ops.where(m, np.float32(0), low), mask)
    else:
        rank = len(scores.shape)
        penalty = tracer.constant(np.where(mask, np.float32(0), low), "mask", rank)
    return tracer.emit_new(layers.Add(name="masked"), [scores, penalty])
