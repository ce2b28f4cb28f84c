"""Sums and extremes of the rows of segments, as graph networks gather their messages."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from intact.numerics.tensors import is_symbolic, to_numpy
from intact.ops.base import FIXED_BATCH, Case, Op
from intact.ops.registry import register_op

EDGES = np.array([0, 3, 3, 1, 0, 2, 2, 2] * 4)

EXTREMES: dict[str, Callable[..., Any]] = {
    "SegmentMax": ops.max,
    "SegmentMin": ops.min,
    "SegmentProd": ops.prod,
}


@register_op
class Segments(Op):
    """`keras.ops.segment_sum`, `segment_max`, `segment_min` and `segment_prod`, of known segments.

    A sum is a product with a known matrix of zeros and ones. For the others, the rows of each
    segment are taken side by side.
    """

    operations = ("SegmentSum", *EXTREMES)
    litert = ("BATCH_MATMUL", "GATHER", "REDUCE_MAX", "REDUCE_MIN", "MUL")
    notes = "Known segments, in a model of known batch, whose rows are then one sample."
    cases = (
        Case(lambda: lambda x: ops.segment_sum(x, EDGES, num_segments=6), (5,), batch=32),
        Case(lambda: lambda x: ops.segment_sum(x, EDGES), (3, 2), batch=32),
        Case(lambda: lambda x: ops.segment_max(x, EDGES), (5,), batch=32),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, ids = (*args, *kwargs.values())
        if is_symbolic(ids):
            tracer.refuse(layer, "its segments are a tensor, not constants")
        if x.shape[0] is None:
            tracer.refuse(layer, f"it joins samples of a batch; {FIXED_BATCH}")
        ids = np.asarray(to_numpy(ids))
        count = layer.num_segments or int(ids.max()) + 1
        rows = [np.flatnonzero(ids == segment) for segment in range(count)]
        kind = type(layer).__name__
        if kind == "SegmentSum":
            return tracer.expand(layer, _sums(ids == np.arange(count)[:, None]), x)
        if not all(map(len, rows)):
            tracer.refuse(layer, "one of its segments is empty, and has no value")
        if kind == "SegmentProd" and len(set(map(len, rows))) > 1:
            tracer.refuse(layer, "its segments have different numbers of rows")
        most = max(map(len, rows))
        table = np.stack([np.resize(row, most) for row in rows])
        return tracer.expand(layer, lambda x: EXTREMES[kind](ops.take(x, table, axis=0), axis=1), x)


def _sums(members: np.ndarray) -> Callable[[Any], Any]:
    """The sums of the rows of segments, by which rows belong to which segment."""

    def total(x: Any) -> Any:
        flat = ops.reshape(x, (x.shape[0], -1))
        return ops.reshape(
            ops.matmul(members.astype("float32"), flat), (len(members), *x.shape[1:])
        )

    return total
