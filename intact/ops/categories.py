"""Categories: bins, vocabularies, and their encodings."""

import functools
from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor
from intact.ops.base import Case, Op
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

        def count(x: Tensor) -> Tensor:
            reached = [ops.cast(x >= bound, "int32") for bound in bounds]
            return functools.reduce(ops.add, reached)

        return encoded(layer, tracer.expand(layer, count, x), len(bounds) + 1, tracer)


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
