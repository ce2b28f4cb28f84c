"""Attention."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.ops.activation import Curve
from intact.ops.base import Case, Fixed, Op, register_op
from intact.ops.matmul import contract

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
class AttentionSoftmax(Curve):
    """A softmax whose kernel multiplies the scores by a factor."""

    keras_layers = (ScaledSoftmax,)
    litert = ("SOFTMAX",)
    output = Fixed(1 / 256, -128)
    cases = (Case(lambda: ScaledSoftmax(0.5), (3, 5), False, low=-4.0, high=4.0),)

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
    mask: np.ndarray | None = None,
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
        mask: Truth values that broadcast to `(1, heads, targets, sources)`, or None.
        dropout: A dropout layer for the shares, or None.

    Returns:
        The output, shaped as the query, and the shares `(batch, heads, targets, sources)`.
    """
    if scale <= 0:
        tracer.refuse(layer, f"its scores are scaled by {scale:g}; kernels take positive factors")
    with tracer.scope(layer):
        scores = contract(query, key, "btnh,bsnh->bnts", _Named("scores"), tracer)
        if mask is not None:
            penalty = np.where(mask, 0.0, -MASKED / scale).astype("float32")
            other = tracer.constant(penalty, "mask", 4)
            scores = tracer.emit(layers.Add(name="masked"), [scores, other])
        shares = tracer.emit(ScaledSoftmax(float(scale), name="softmax"), scores)
        if dropout is not None and dropout.rate:
            shares = tracer.trace(dropout, (shares,), {})
        return contract(shares, value, "bnts,bsnh->btnh", _Named("combined"), tracer), shares


class _Named:
    """A name for the layers of a part."""

    def __init__(self, name: str) -> None:
        self.name = name


def constant_mask(mask: Any, layer: Any, tracer: Any) -> np.ndarray | None:
    """A mask that does not depend on the inputs, as truth values.

    Args:
        mask: The mask argument of a call, or None.
        layer: The layer, for the error.
        tracer: The tracer.
    """
    if mask is None:
        return None
    if isinstance(mask, keras.KerasTensor):
        tracer.refuse(layer, "its mask depends on the inputs; only constant masks are known")
    return np.asarray(ops.convert_to_numpy(mask)).astype(bool)


def causal_mask(query: Any, key: Any, layer: Any, tracer: Any) -> np.ndarray:
    """Each target sees the sources up to its own place."""
    targets, sources = query.shape[1], key.shape[1]
    if targets is None or sources is None:
        tracer.refuse(layer, "a causal mask needs a known number of steps")
    return np.tril(np.ones((targets, sources), bool))


@register_op
class MultiHeadAttention(Op):
    """Dense layers, products of activations, and a softmax between them."""

    keras_layers = (layers.MultiHeadAttention, layers.GroupQueryAttention)
    litert = ("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX")
    notes = "One axis of attention. Masks: constant or causal."
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
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        given = dict(zip(("query", "value", "key"), args, strict=False)) | kwargs
        query, value = given["query"], given["value"]
        key = given.get("key")
        key = value if key is None else key
        for name in ("query_mask", "value_mask", "key_mask"):
            if given.get(name) is not None:
                tracer.refuse(layer, f"{name} is given, and masks of steps are not known")
        if len(query.shape) != 3:
            tracer.refuse(layer, f"its query has shape {query.shape}, not (batch, steps, size)")
        mask = constant_mask(given.get("attention_mask"), layer, tracer)
        if given.get("use_causal_mask"):
            causal = causal_mask(query, key, layer, tracer)
            mask = causal if mask is None else np.logical_and(mask, causal)
        if getattr(layer, "sliding_window", None) is not None:
            tracer.refuse(layer, "a sliding window is not known; pass it as `attention_mask`")
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]
        with tracer.scope(layer):
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
    notes = "Masks: constant or causal. No bias, no soft cap."
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
        mask = constant_mask(given.get("mask"), layer, tracer)
        if layer.is_causal:
            mask = causal_mask(query, key, layer, tracer)
        scale = given.get("scale") or 1.0 / float(np.sqrt(query.shape[-1]))
        return attention(query, key, value, float(scale), layer, tracer, mask)[0]


@register_op
class Attention(Op):
    """Attention without weights for queries, keys and values."""

    keras_layers = (layers.Attention,)
    litert = ("BATCH_MATMUL", "SOFTMAX")
    notes = "score_mode 'dot'; no masks but the causal one."
    cases = (
        Case(lambda: lambda a, b: layers.Attention()([a, b]), [(3, 4), (5, 4)], exact=False),
        Case(
            lambda: lambda a: layers.Attention(use_scale=True)([a, a], use_causal_mask=True),
            (3, 4),
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
        mask = causal_mask(query, key, layer, tracer) if kwargs.get("use_causal_mask") else None
        with tracer.scope(layer):
            q, k, v = (
                tracer.emit(layers.Reshape((-1, 1, t.shape[-1]), name=f"head_{i}"), t)
                for i, t in enumerate((query, key, value))
            )
        dropout = layers.Dropout(layer.dropout, name="dropout")
        y, shares = attention(q, k, v, scale, layer, tracer, mask, dropout)
        with tracer.scope(layer):
            y = tracer.emit(layers.Reshape((-1, y.shape[-1]), name="output"), y)
            if kwargs.get("return_attention_scores"):
                sizes = shares.shape[2:]
                return y, tracer.emit(layers.Reshape(sizes, name="shares"), shares)
        return y
