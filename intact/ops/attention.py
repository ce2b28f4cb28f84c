"""Attention."""

import functools
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor
from intact.numerics.tensors import Tensor, is_symbolic, to_numpy
from intact.ops.activation import OfIntegers
from intact.ops.base import INTEGERS, Case, Fixed, Op, register_op
from intact.ops.matmul import contract
from intact.ops.moves import reshape
from intact.ops.whole import WholeNumbers, truths
from intact.ops.wide import SoftmaxArithmetic

MASKED = 16.0
"""How far below the others a masked score is put: e^-16 of attention is left to it.

A score of minus infinity would leave no integers for the others.
"""


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
    arithmetic = SoftmaxArithmetic.name
    keras_layers = (ScaledSoftmax,)
    litert = ("SOFTMAX",)
    output = Fixed(1 / 256, -128)
    cases = (Case(lambda: ScaledSoftmax(0.5), (3, 5), low=-4.0, high=4.0),)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(scale=x.scale * np.float32(layer.beta))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
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
) -> tuple[Any, Any]:
    """Dot-product attention (Vaswani et al., arXiv:1706.03762).

    Args:
        query: Tensor of shape `(batch, targets, heads, size)`.
        key: Tensor of shape `(batch, sources, heads, size)`.
        value: Tensor of shape `(batch, sources, heads, size)`.
        scale: The factor of the scores.
        layer: The layer that it stands for.
        tracer: The tracer.
        mask: Truth values that broadcast to `(batch, heads, targets, sources)`, in an array
            or a tensor; or None.
        dropout: A dropout layer for the shares, or None.

    Returns:
        The output, shaped as the query, and the shares `(batch, heads, targets, sources)`.
    """
    if scale <= 0:
        tracer.refuse(layer, f"its scores are scaled by {scale:g}; kernels take positive factors")
    with tracer.scope(layer):
        scores = contract(query, key, "btnh,bsnh->bnts", _Named("scores"), tracer)
        if mask is not None:
            low = np.float32(-MASKED / scale)
            if is_symbolic(mask):
                named = _Named("penalty")
                penalty = tracer.expand(named, lambda m: ops.where(m, np.float32(0), low), mask)
            else:
                penalty = tracer.constant(np.where(mask, np.float32(0), low), "mask", 4)
            scores = tracer.emit(layers.Add(name="masked"), [scores, penalty])
        shares = tracer.emit(ScaledSoftmax(float(scale), name="softmax"), scores)
        if dropout is not None and dropout.rate:
            shares = tracer.trace(dropout, (shares,), {})
        return contract(shares, value, "bnts,bsnh->btnh", _Named("combined"), tracer), shares


class _Named:
    """A name for the layers of a part."""

    def __init__(self, name: str) -> None:
        self.name = name


def whole_mask(parts: list[Any], layer: Any, tracer: Any) -> Any:
    """Masks of scores as one.

    Args:
        parts: Truth values, in arrays or tensors of the new graph; or None.
        layer: The layer, for names and errors.
        tracer: The tracer.

    Returns:
        Truth values that hold where all do; an array, a tensor, or None.
    """
    given = [part for part in parts if part is not None]
    tensors = [part for part in given if is_symbolic(part)]
    arrays = [np.asarray(to_numpy(part)).astype(bool) for part in given if not is_symbolic(part)]
    known = functools.reduce(np.logical_and, arrays) if arrays else None
    if any(t.dtype != "bool" for t in tensors):
        tracer.refuse(layer, "a mask that depends on the inputs must be of truth values")
    if not tensors:
        return known

    if known is not None:
        tensors.append(truths(known, "known", 4, tracer))
    while len(tensors) > 1:
        pair = [tensors.pop(0), tensors.pop(0)]
        tensors.append(tracer.emit(WholeNumbers("LogicalAnd", name="mask", dtype="bool"), pair))
    return tensors[0]


def causal_mask(query: Any, key: Any, layer: Any, tracer: Any) -> np.ndarray:
    """Each target sees the sources up to its own place."""
    targets, sources = query.shape[1], key.shape[1]
    if targets is None or sources is None:
        tracer.refuse(layer, "a causal mask needs a known number of steps")
    return np.tril(np.ones((targets, sources), bool))


def _of_sources(mask: Any, tracer: Any) -> Any:
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


def _row_or_zeros(seen: Tensor, y: Tensor) -> Tensor:
    return ops.where(seen[:, :, None], y, 0.0)


@register_op
class MultiHeadAttention(Op):
    """Dense layers, products of activations, and a softmax between them."""

    keras_layers = (layers.MultiHeadAttention, layers.GroupQueryAttention)
    litert = ("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX")
    masks = True
    notes = (
        "One axis of attention. No sliding window: pass it as a mask. Where all sources are "
        "hidden, it is as if none were."
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

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        given = dict(zip(("query", "value", "key"), args, strict=False)) | kwargs
        query, value = given["query"], given["value"]
        key = given.get("key")
        key = value if key is None else key
        if len(query.shape) != 3:
            tracer.refuse(layer, f"its query has shape {query.shape}, not (batch, steps, size)")
        if getattr(layer, "sliding_window", None) is not None:
            tracer.refuse(layer, "a sliding window is not known; pass it as `attention_mask`")
        parts = [causal_mask(query, key, layer, tracer) if given.get("use_causal_mask") else None]
        with tracer.scope(layer):
            parts.append(_with_heads(given.get("attention_mask"), tracer))
            parts += [_of_sources(given.get(f"{name}_mask"), tracer) for name in ("value", "key")]
            mask = whole_mask(parts, layer, tracer)
            q = tracer.trace(layer._query_dense, (query,), {})
            k = tracer.trace(layer._key_dense, (key,), {})
            v = tracer.trace(layer._value_dense, (value,), {})
            repeats = getattr(layer, "num_repeats", 1)
            if repeats > 1:
                k, v = (
                    tracer.expand(_Named("repeat"), lambda t: ops.repeat(t, repeats, axis=2), t)
                    for t in (k, v)
                )
        scale = 1.0 / float(np.sqrt(q.shape[-1]))
        dropout = getattr(layer, "_dropout_layer", None)
        y, shares = attention(q, k, v, scale, layer, tracer, mask, dropout)
        with tracer.scope(layer):
            if given.get("query_mask") is not None:
                # As all sources are hidden from them, they get the mean of all.
                y = tracer.expand(_Named("rows"), _row_or_mean, given["query_mask"], y, v)
            if getattr(layer, "_use_gate", False) or getattr(layer, "use_gate", False):
                gate = tracer.trace(layer._gate_dense, (query,), {})
                y = tracer.emit(layers.Multiply(name="gated"), [y, gate])
            y = tracer.trace(layer._output_dense, (y,), {})
        return (y, shares) if given.get("return_attention_scores") else y


@register_op
class DotProductAttention(Op):
    """`keras.ops.dot_product_attention`."""

    operations = ("DotProductAttention",)
    litert = ("BATCH_MATMUL", "SOFTMAX")
    notes = "No bias, no soft cap."
    cases = (
        Case(
            lambda: lambda q, k, v: ops.dot_product_attention(q, k, v),
            [(4, 2, 3), (5, 2, 3), (5, 2, 3)],
            exact=False,
        ),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        names = ("query", "key", "value", "bias", "mask", "scale")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = (given[name] for name in names[:3])
        if given.get("bias") is not None or layer.attn_logits_soft_cap:
            tracer.refuse(layer, "a bias or soft cap of the scores is not known")
        causal = causal_mask(query, key, layer, tracer) if layer.is_causal else None
        with tracer.scope(layer):
            mask = whole_mask([given.get("mask"), causal], layer, tracer)
        scale = given.get("scale") or 1.0 / float(np.sqrt(query.shape[-1]))
        return attention(query, key, value, float(scale), layer, tracer, mask)[0]


@register_op
class Attention(Op):
    """Attention without weights for queries, keys and values."""

    keras_layers = (layers.Attention,)
    litert = ("BATCH_MATMUL", "SOFTMAX")
    masks = True
    notes = "score_mode 'dot'."
    cases = (
        Case(lambda: lambda a, b: layers.Attention()([a, b]), [(3, 4), (5, 4)], exact=False),
        Case(
            lambda: lambda a: layers.Attention(use_scale=True)([a, a], use_causal_mask=True),
            (3, 4),
            exact=False,
        ),
        Case(
            lambda: (
                lambda a, b: (
                    2.0
                    * layers.Attention()(
                        [a, b],
                        mask=[
                            ops.relu(a)[:, :, 1] > 0.0,
                            (ops.relu(b)[:, :, 0] > 0.0) | (np.arange(2) == 0),
                        ],
                    )
                )
            ),
            [(3, 4), (2, 4)],
            exact=False,
        ),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        query, value, *rest = args[0]
        key = rest[0] if rest else value
        if layer.score_mode != "dot":
            tracer.refuse(layer, f"score_mode {layer.score_mode!r} is not known; use 'dot'")
        scale = 1.0 if layer.scale is None else float(ops.convert_to_numpy(layer.scale))
        causal = causal_mask(query, key, layer, tracer) if kwargs.get("use_causal_mask") else None
        rows, sources, *_ = kwargs.get("mask") or (None, None)
        with tracer.scope(layer):
            mask = whole_mask([causal, _of_sources(sources, tracer)], layer, tracer)
            q, k, v = (
                tracer.emit(layers.Reshape((-1, 1, t.shape[-1]), name=f"head_{i}"), t)
                for i, t in enumerate((query, key, value))
            )
        dropout = layers.Dropout(layer.dropout, name="dropout")
        y, shares = attention(q, k, v, scale, layer, tracer, mask, dropout)
        with tracer.scope(layer):
            y = tracer.emit(layers.Reshape((-1, y.shape[-1]), name="output"), y)
            if rows is not None:
                y = tracer.expand(_Named("rows"), _row_or_zeros, rows, y)
            if kwargs.get("return_attention_scores"):
                sizes = shares.shape[2:]
                return y, tracer.emit(layers.Reshape(sizes, name="shares"), shares)
        return y
