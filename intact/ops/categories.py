"""Categories: bins, vocabularies, and their encodings."""

import functools
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import over
from intact.numerics.tensors import Tensor, is_whole
from intact.ops.base import INTEGERS, Case, NotQuantized, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.lookup import look_up
from intact.ops.registry import register_op
from intact.ops.whole import whole_indices

MAX_SPAN = 2**20
"""The largest span of a vocabulary, because each number in it has a row in a table."""


def encoded(layer: Any, indices: Any, depth: int, tracer: Any, weights: Any = None) -> Any:
    """Indices encoded according to a layer's `output_mode`.

    Args:
        layer: The layer, with an `output_mode`.
        indices: A tensor of whole numbers of the new graph.
        depth: How many categories there are.
        tracer: Makes the new graph.
        weights: The weight of each index in mode "count"; None for 1.

    Returns:
        The output tensor.
    """
    mode, rank = layer.output_mode, len(indices.shape)
    if mode == "int":
        return indices
    if mode not in ("one_hot", "multi_hot", "count"):
        tracer.refuse(layer, f"its output_mode {mode!r} has no integer form")
    if rank < 2 and mode != "one_hot":
        tracer.refuse(layer, f"its output_mode {mode!r} runs over the batch")

    def encode(x: Tensor, counts: Tensor | None) -> Tensor:
        if mode == "one_hot":
            single = rank > 1 and x.shape[-1] == 1
            return ops.one_hot(ops.squeeze(x, -1) if single else x, depth)
        rows = ops.one_hot(x, depth)
        if counts is not None:
            rows = rows * ops.expand_dims(counts, -1)
        return ops.max(rows, axis=-2) if mode == "multi_hot" else ops.sum(rows, axis=-2)

    return tracer.expand(layer, encode, indices, weights)


@register_op
class CategoryEncoding(Op):
    """Indices as one or more ones in a row of zeros, or as counts."""

    keras_layers = (layers.CategoryEncoding,)
    litert = ("GATHER", "REDUCE_MAX", "SUM")
    notes = "Indices are in range."
    cases = (
        Case(lambda: layers.CategoryEncoding(6, "one_hot"), (1,), high=5, dtype="int32", low=0),
        Case(
            lambda: lambda x: layers.Dense(2)(layers.CategoryEncoding(6, "multi_hot")(x)),
            (3,),
            high=5,
            dtype="int32",
            low=0,
        ),
        Case(lambda: layers.CategoryEncoding(6, "count"), (3,), high=5, dtype="int32", low=0),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, *weights = (*args, *kwargs.values())
        x = whole_indices(x, layer, tracer)
        return encoded(layer, x, layer.num_tokens, tracer, weights[0] if weights else None)


@keras.saving.register_keras_serializable("intact")
class Bins(FunctionLayer):
    """How many limits a value has reached.

    Args:
        limits: The limits.

    Example:

    >>> [int(n) for n in Bins([0.0, 2.0])(np.array([-1.0, 0.0, 3.0]))]
    [0, 1, 2]
    """

    limits: tuple[float, ...]
    output_dtype = "int32"

    def call(self, x: Tensor) -> Tensor:
        """The counts."""
        return _reached([x >= limit for limit in self.limits])


def _reached(limits: list[Tensor]) -> Tensor:
    return functools.reduce(ops.add, [ops.cast(limit, "int32") for limit in limits])


@register_op
class BinsOp(Op):
    """How many limits a value has reached: a table of all integers, or a sum of comparisons."""

    keras_layers = (Bins,)
    litert = ("CAST", "ADD", "GATHER", "GREATER_EQUAL")
    output = NotQuantized("int32")
    dtypes = INTEGERS
    cases = (
        Case(lambda: lambda x: layers.Embedding(4, 3)(Bins([-0.4, 0.1, 0.7])(x)), (5, 2)),
        Case(lambda: lambda x: layers.Embedding(3, 3)(Bins([-2.0, 50.0])(x)), (5,)),
    )

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        places = [over(limit, x.scale) for limit in layer.limits]
        exact = _reached([x.values >= ops.ceil(place) for place in places])
        return ops.where(x.whole, exact, _reached([x.values >= place for place in places]))

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        limits = np.array(node.layer.limits, "float32")
        if x.quantized:
            with np.errstate(over="ignore"):
                places = np.ceil(limits / np.float32(x.scale)) + x.zero_point
            limits = np.clip(places, -(2**17), 2**17).astype("int32")
            if x.dtype != "int16" and builder.has_own("GATHER", y.dtype):
                info = np.iinfo(x.dtype)
                values = np.arange(info.min, info.max + 1)[:, None]
                look_up(x, y, (values >= limits).sum(1).astype(y.dtype), builder)
                return
            whole = builder.like(x, x.shape, dtype="int32")
            builder.convert(x, whole)
            x = whole
        self._sum(x, y, limits, builder)

    @staticmethod
    def _sum(x: Any, y: Any, limits: np.ndarray, builder: Any) -> None:
        """Add comparisons, and the sum of what they say."""
        total = None
        for n, limit in enumerate(limits, 1):
            reached = builder.like(x, x.shape, dtype="bool")
            builder.add("GREATER_EQUAL", [x, builder.constant(limit)], [reached])
            one = y if len(limits) == 1 else builder.like(y, y.shape)
            builder.convert(reached, one)
            if total is not None:
                parts, one = [total, one], y if n == len(limits) else builder.like(y, y.shape)
                builder.add("ADD", parts, [one], {"fusedActivationFunction": "NONE"})
            total = one


@register_op
class Discretization(Op):
    """The bin of a number: how many boundaries it has reached."""

    keras_layers = (layers.Discretization,)
    litert = ("GREATER_EQUAL", "CAST", "ADD", "GATHER")
    cases = (
        Case(
            lambda: layers.Discretization([18.0, 30.5, 65.0], output_mode="one_hot"),
            (1,),
            low=0,
            high=99,
            dtype="int32",
        ),
        Case(
            lambda: (
                lambda x: layers.Embedding(4, 3)(
                    layers.Discretization([-1.3, 0.2, 2.2])(ops.cast(x, "float32") * 0.5)
                )
            ),
            (3,),
            low=-9,
            high=9,
            dtype="int32",
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        bounds = np.asarray(layer.bin_boundaries, "float32").tolist()
        if is_whole(x):
            bins = tracer.expand(layer, lambda x: _reached([x >= bound for bound in bounds]), x)
        else:
            bins = tracer.emit(Bins(bounds, name=layer.name), x)
        return encoded(layer, bins, len(bounds) + 1, tracer)


@register_op
class IntegerLookup(Op):
    """Whole numbers as places in a vocabulary: rows of a table."""

    keras_layers = (layers.IntegerLookup,)
    litert = ("MAXIMUM", "MINIMUM", "GATHER")
    notes = (
        "A known vocabulary, at most one index for what is not in it. Modes 'int', 'one_hot', "
        "'multi_hot' and 'count'."
    )
    cases = (
        Case(
            lambda: lambda x: layers.Embedding(6, 3)(layers.IntegerLookup(vocabulary=[7, 3, 5])(x)),
            (3,),
            low=0,
            high=9,
            dtype="int32",
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if layer.num_oov_indices > 1:
            tracer.refuse(layer, "it hashes what is not in its vocabulary; use num_oov_indices=1")
        tokens = [int(token) for token in layer.get_vocabulary()]
        places = {token: i for i, token in enumerate(tokens)}
        other = places.pop(int(layer.oov_token), 0) if layer.num_oov_indices else 0
        low, high = min(places) - 1, max(places) + 1
        if high - low > MAX_SPAN:
            tracer.refuse(layer, f"its vocabulary goes from {low + 1} to {high - 1}")
        table = np.full(high - low + 1, other, "int32")
        table[[token - low for token in places]] = list(places.values())
        x = whole_indices(x, layer, tracer)

        def look_up(x: Tensor) -> Tensor:
            return ops.take(table, ops.clip(x, low, high) - low, axis=0)

        return encoded(layer, tracer.expand(layer, look_up, x), len(tokens), tracer)
