"""Attention."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from intact.numerics.affine import QTensor
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, is_symbolic, is_trainable, to_numpy
from intact.ops.activation import OfIntegers
from intact.ops.base import INTEGERS, Case, Fixed, Op
from intact.ops.masking import Named, hide, whole_mask
from intact.ops.matmul import contract
from intact.ops.moves import permute, reshape
from intact.ops.registry import register_op
from intact.ops.sized import LARGEST, FirstValues
from intact.rounding.curves import SoftmaxRounding


@keras.saving.register_keras_serializable("intact")
class ScaledSoftmax(layers.Softmax):
    """The softmax of `beta * x` along the last axis.

    Args:
        beta: The factor.
    """

    def __init__(self, beta: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = beta

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Shares that sum to 1."""
        return super().call(inputs * self.beta)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta}


@register_op
class AttentionSoftmax(OfIntegers):
    """A softmax whose kernel multiplies the scores by a factor."""

    dtypes = INTEGERS
    kernel_rounding = SoftmaxRounding.name
    keras_layers = (ScaledSoftmax,)
    litert = ("SOFTMAX",)
    output = Fixed(1 / 256, -128)
    cases = (Case(lambda: ScaledSoftmax(0.5), (3, 5), low=-4.0, high=4.0),)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(scale=x.scale * np.float32(layer.beta))

    def lower(self, node: Any, builder: Any) -> None:
        builder.add("SOFTMAX", [node.input], [node.output], {"beta": node.layer.beta})


def attention(
    query: Any,
    key: Any,
    value: Any,
    scale: float,
    layer: Any,
    tracer: Any,
    mask: Any = None,
    dropout: Any = None,
    bias: Any = None,
) -> tuple[Any, Any]:
    """Dot-product attention (Vaswani et al., arXiv:1706.03762).

    Args:
        query: Tensor of shape `(batch, targets, heads, size)`.
        key: Tensor of shape `(batch, sources, heads, size)`.
        value: Tensor of shape `(batch, sources, heads, size)`.
        scale: The factor of the scores.
        layer: The user's layer.
        tracer: The tracer.
        mask: Truth values that broadcast to `(batch, heads, targets, sources)`, in an array
            or a tensor; or None.
        dropout: A dropout layer for the shares, or None.
        bias: Added to the scaled scores, with the shape of a mask: a tensor, an array, a variable,
            or None.

    Returns:
        The output, shaped as the query, and the shares `(batch, heads, targets, sources)`.
    """
    if scale <= 0:
        tracer.refuse(layer, f"its scores are scaled by {scale:g}; kernels take positive factors")
    with tracer.scope(layer):
        scores = contract(query, key, "btnh,bsnh->bnts", Named("scores"), tracer)
        if bias is not None:
            bias = _unscaled(bias, scale, tracer)
            scores = tracer.emit_new(layers.Add(name="biased"), [scores, bias])
    return attend(scores, value, scale, layer, tracer, mask, dropout)


def _unscaled(bias: Any, scale: float, tracer: Any) -> Any:
    """A bias divided by the scale of the scores, as a tensor of the new graph."""
    if not (is_symbolic(bias) or is_trainable(bias)):
        return tracer.constant(to_numpy(bias) / np.float32(scale), "bias", 4)
    bias = bias if is_symbolic(bias) else tracer.constant(bias, "bias", 4)
    return tracer.expand(Named("unscaled"), lambda b: b * (1.0 / scale), bias)


def attend(
    scores: Any,
    value: Any,
    scale: float,
    layer: Any,
    tracer: Any,
    mask: Any = None,
    dropout: Any = None,
) -> tuple[Any, Any]:
    """The second half of `attention`, from scores of shape `(batch, heads, targets, sources)`."""
    with tracer.scope(layer):
        if mask is not None:
            scores = hide(scores, mask, scale, tracer)
        shares = tracer.emit(ScaledSoftmax(float(scale), name="softmax"), scores)
        if dropout is not None and dropout.rate:
            shares = tracer.trace(dropout, (shares,), {})
        return contract(shares, value, "bnts,bsnh->btnh", Named("combined"), tracer), shares


def step_mask(
    query: Any, key: Any, layer: Any, tracer: Any, causal: bool, window: int | None = None
) -> Any:
    """Which sources each target sees because of its position, or None if it sees all.

    Args:
        query: The queries, steps behind the batch.
        key: The keys, likewise.
        layer: The layer, for errors.
        tracer: The tracer.
        causal: Whether a target sees no source behind its own place.
        window: One more than the largest distance of a source from its target; or None.
    """
    if not causal and window is None:
        return None
    targets, sources = (t.shape[1] or LARGEST for t in (query, key))
    ahead = np.arange(targets)[:, None] - np.arange(sources)
    seen = ahead >= 0 if causal else np.ones(ahead.shape, bool)
    seen = seen if window is None else seen & (np.abs(ahead) < window)
    free = [place for place, t in enumerate((query, key)) if t.shape[1] is None]
    if not free:
        return seen
    table = tracer.constant(seen, f"{layer.name}_steps", 4, "bool", broadcast=True)
    ends = [(2 + place, place, 1) for place in free]
    return tracer.emit(FirstValues(ends, name=f"{layer.name}_seen"), [table, query, key])


def of_sources(mask: Any, tracer: Any) -> Any:
    """A mask of shape `(batch, sources)`, with axes for the heads and the targets."""
    return None if mask is None else reshape(mask, (1, 1, *mask.shape[1:]), "sources", tracer)


def _with_heads(mask: Any, tracer: Any) -> Any:
    """A mask of shape `(batch, targets, sources)`, with an axis for the heads if it has none."""
    if mask is None or len(mask.shape) != 3:
        return mask
    if is_symbolic(mask):
        return reshape(mask, (1, *mask.shape[1:]), "heads", tracer)
    return np.asarray(to_numpy(mask))[:, None]


def _row_or_mean(seen: Tensor, y: Tensor, value: Tensor) -> Tensor:
    return ops.where(seen[:, :, None, None], y, ops.mean(value, axis=1, keepdims=True))


@register_op
class MultiHeadAttention(Op):
    """Dense layers, products of activations, and a softmax between them."""

    keras_layers = (layers.MultiHeadAttention, layers.GroupQueryAttention)
    litert = ("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX")
    masks = True
    notes = (
        "Masks of the steps need one axis of attention. Where all sources are hidden, it is as "
        "if none were."
    )
    cases = (
        Case(lambda: lambda x: layers.MultiHeadAttention(2, 4)(x, x), (5, 6), exact=False),
        Case(
            lambda: lambda x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
            (5, 6),
            exact=False,
        ),
        Case(
            lambda: lambda a, b: layers.MultiHeadAttention(2, 4, value_dim=3, output_shape=5)(a, b),
            [(3, 6), (5, 4)],
            exact=False,
        ),
        Case(lambda: lambda x: layers.GroupQueryAttention(3, 4, 2)(x, x), (5, 6), exact=False),
        Case(lambda: lambda x: layers.MultiHeadAttention(2, 4)(x, x), (2, 3, 6), exact=False),
        Case(
            lambda: (
                lambda x: layers.MultiHeadAttention(2, 4)(
                    x,
                    x,
                    attention_mask=ops.cast(
                        (ops.relu(x)[:, None, :, 0] > 0.0) | (np.arange(3) == 0), "int32"
                    ),
                )
            ),
            (3, 6),
            exact=False,
        ),
        Case(
            lambda: lambda x: layers.MultiHeadAttention(2, 4, attention_axes=1)(x, x),
            (3, 2, 6),
            exact=False,
        ),
        Case(
            lambda: (
                lambda x: layers.MultiHeadAttention(2, 4)(
                    x,
                    x,
                    value_mask=(ops.relu(x)[:, :, 0] > 0.0) | (np.arange(3) == 0),
                    attention_mask=np.eye(3, k=2) == 0,
                )
            ),
            (3, 6),
            exact=False,
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        arguments = dict(zip(("query", "value", "key"), args, strict=False)) | kwargs
        query, value = arguments["query"], arguments["value"]
        arguments["key"] = value if arguments.get("key") is None else arguments["key"]
        mask = self.mask(layer, arguments, tracer)
        with tracer.scope(layer):
            q = tracer.trace(layer._query_dense, (query,), {})
            k = tracer.trace(layer._key_dense, (arguments["key"],), {})
            v = tracer.trace(layer._value_dense, (value,), {})
            places = _Places(layer, q.shape, tracer)
            q, k, v = (places.join(t, name) for t, name in ((q, "q"), (k, "k"), (v, "v")))
            k, v = (repeated(t, getattr(layer, "num_repeats", 1), tracer) for t in (k, v))
        scale = 1.0 / float(np.sqrt(q.shape[-1]))
        dropout = getattr(layer, "_dropout_layer", None)
        y, shares = attention(q, k, v, scale, layer, tracer, mask, dropout)
        if len(query.shape) > 3 and arguments.get("return_attention_scores"):
            tracer.refuse(layer, "attention scores of several axes are not known")
        with tracer.scope(layer):
            if arguments.get("query_mask") is not None:
                # All sources are hidden from them, so they get the mean of all.
                y = tracer.expand(Named("rows"), _row_or_mean, arguments["query_mask"], y, v)
            y = places.part(y)
            if getattr(layer, "_use_gate", False) or getattr(layer, "use_gate", False):
                gate = tracer.trace(layer._gate_dense, (query,), {})
                y = tracer.emit_new(layers.Multiply(name="gated"), [y, gate])
            y = tracer.trace(layer._output_dense, (y,), {})
        return (y, shares) if arguments.get("return_attention_scores") else y

    def mask(self, layer: Any, arguments: dict[str, Any], tracer: Any) -> Any:
        """Which sources each target sees, from all masks of a call; None for all."""
        query, key = arguments["query"], arguments["key"]
        attention_mask, causal = (
            arguments.get("attention_mask"),
            bool(arguments.get("use_causal_mask")),
        )
        window = getattr(layer, "_sliding_window", getattr(layer, "sliding_window", None))
        names = ("query", "value", "key")
        beside = [arguments.get(f"{name}_mask") for name in names]
        if len(query.shape) > 3:
            if causal or window is not None or any(mask is not None for mask in beside):
                tracer.refuse(layer, "masks of steps are not known for several axes of steps")
            attention_mask = _of_joined(attention_mask, layer, query, key, tracer)
        with tracer.scope(layer):
            parts = [step_mask(query, key, layer, tracer, causal, window)]
            parts.append(_with_heads(attention_mask, tracer))
            parts += [of_sources(mask, tracer) for mask in beside[1:]]
            return whole_mask(parts, layer, tracer)


def repeated(x: Any, count: int, tracer: Any) -> Any:
    """Heads of keys or values, each repeated for its heads of queries."""
    if count == 1:
        return x
    return tracer.expand(Named("repeat"), lambda t: ops.repeat(t, count, axis=2), x)


def _of_joined(mask: Any, layer: Any, query: Any, key: Any, tracer: Any) -> Any:
    """A mask of several target and source axes, with one axis for each."""
    if mask is None:
        return None
    steps = [t.shape[1:-1] for t in (query, key)]
    sizes = [math.prod(n) for n in steps if None not in n]
    if tuple(mask.shape[1:]) != (*steps[0], *steps[1]) or len(sizes) < 2:
        tracer.refuse(layer, f"a mask of shape {mask.shape} is not that of all of its steps")
    if is_symbolic(mask):
        with tracer.scope(layer):
            return reshape(mask, tuple(sizes), "joined", tracer)
    return np.reshape(to_numpy(mask), (-1, *sizes))


class _Places:
    """Joins the attention axes of a MultiHeadAttention; other axes become part of the batch.

    Args:
        layer: The layer.
        shape: The shape of its queries, by head.
        tracer: The tracer.
    """

    def __init__(self, layer: Any, shape: tuple, tracer: Any) -> None:
        self.layer, self.tracer, self.shape = layer, tracer, shape
        steps = range(1, len(shape) - 2)
        axes = getattr(layer, "_attention_axes", None) or tuple(steps)
        self.rest = [a for a in steps if a not in axes]
        self.dims = (*self.rest, *axes, len(shape) - 2, len(shape) - 1)
        self.joins = len(shape) > 4

    def join(self, x: Any, name: str) -> Any:
        """A tensor of shape `(batch, ..., heads, size)`, with one axis between."""
        if not self.joins:
            return x
        if None in x.shape[1:]:
            self.tracer.refuse(self.layer, f"the sizes of shape {x.shape} must be known")
        x = permute(x, self.dims, f"{name}_order", self.tracer)
        sizes = x.shape[1 + len(self.rest) : -2]
        return reshape(x, (math.prod(sizes), *x.shape[-2:]), f"{name}_joined", self.tracer)

    def part(self, x: Any) -> Any:
        """The output, of the shape that the queries had."""
        if not self.joins:
            return x
        sizes = tuple(self.shape[d] for d in self.dims[:-2])
        x = reshape(x, (*sizes, *x.shape[-2:]), "parted", self.tracer)
        back = tuple(int(place) + 1 for place in np.argsort(self.dims))
        return permute(x, back, "order", self.tracer)
