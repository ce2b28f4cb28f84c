"""Attention without weights for queries, keys and values."""

from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor, is_trainable, to_numpy
from intact.ops.attention import attend, attention, of_sources, repeated, step_mask
from intact.ops.base import Case, Op
from intact.ops.masking import Named, whole_mask
from intact.ops.matmul import contract
from intact.ops.moves import reshape
from intact.ops.registry import register_op


def _row_or_zeros(seen: Tensor, y: Tensor) -> Tensor:
    return ops.where(seen[:, :, None], y, 0.0)


@register_op
class DotProductAttention(Op):
    """`keras.ops.dot_product_attention`."""

    operations = ("DotProductAttention",)
    litert = ("BATCH_MATMUL", "SOFTMAX")
    masks = True
    notes = "No soft cap."
    cases = (
        Case(
            lambda: lambda q, k, v: ops.dot_product_attention(q, k, v),
            [(4, 2, 3), (5, 2, 3), (5, 2, 3)],
            exact=False,
        ),
        Case(
            lambda: (
                lambda q, k, v: ops.dot_product_attention(
                    q, k, v, bias=np.linspace(-2, 2, 20, dtype="float32").reshape(1, 1, 4, 5)
                )
            ),
            [(4, 4, 3), (5, 2, 3), (5, 2, 3)],
            exact=False,
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        names = ("query", "key", "value", "bias", "mask", "scale")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = (arguments[name] for name in names[:3])
        if layer.attn_logits_soft_cap:
            tracer.refuse(layer, "a soft cap of the scores is not known")
        causal = step_mask(query, key, layer, tracer, layer.is_causal)
        with tracer.scope(layer):
            mask = whole_mask([arguments.get("mask"), causal], layer, tracer)
            groups = query.shape[2] // key.shape[2]
            key, value = (repeated(t, groups, tracer) for t in (key, value))
        scale = float(arguments.get("scale") or 1.0 / np.sqrt(query.shape[-1]))
        bias = arguments.get("bias")
        return attention(query, key, value, scale, layer, tracer, mask, bias=bias)[0]


@register_op
class Attention(Op):
    """Attention without weights for queries, keys and values."""

    keras_layers = (layers.Attention, layers.AdditiveAttention)
    litert = ("BATCH_MATMUL", "SOFTMAX")
    masks = True
    notes = "Scalar weights do not train."
    cases = (
        Case(lambda: lambda a, b: layers.Attention()([a, b]), [(3, 4), (5, 4)], exact=False),
        Case(
            lambda: lambda a, b: layers.AdditiveAttention()([a, b]), [(3, 4), (5, 4)], exact=False
        ),
        Case(lambda: lambda a: layers.Attention(score_mode="concat")([a, a]), (3, 4), exact=False),
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        query, value, *rest = args[0]
        key = rest[0] if rest else value
        causal = step_mask(query, key, layer, tracer, bool(kwargs.get("use_causal_mask")))
        rows, sources, *_ = kwargs.get("mask") or (None, None)
        with tracer.scope(layer):
            mask = whole_mask([causal, of_sources(sources, tracer)], layer, tracer)
            q, k, v = (
                tracer.emit_new(layers.Reshape((-1, 1, t.shape[-1]), name=f"head_{i}"), t)
                for i, t in enumerate((query, key, value))
            )
        dropout = layers.Dropout(layer.dropout, name="dropout")
        if layer.score_mode == "dot" and not isinstance(layer, layers.AdditiveAttention):
            scale = 1.0 if layer.scale is None else float(to_numpy(layer.scale))
            y, shares = attention(q, k, v, scale, layer, tracer, mask, dropout)
        else:
            scores = self.additive_scores(layer, query, key, tracer)
            y, shares = attend(scores, v, 1.0, layer, tracer, mask, dropout)
        with tracer.scope(layer):
            y = tracer.emit_new(layers.Reshape((-1, y.shape[-1]), name="output"), y)
            if rows is not None:
                y = tracer.expand(Named("rows"), _row_or_zeros, rows, y)
            if kwargs.get("return_attention_scores"):
                sizes = shares.shape[2:]
                return y, tracer.emit_new(layers.Reshape(sizes, name="shares"), shares)
        return y

    def additive_scores(self, layer: Any, query: Any, key: Any, tracer: Any) -> Any:
        """Weighted sums of the tanh of queries plus keys (Bahdanau et al., arXiv:1409.0473)."""
        inner, weights = 1.0, layer.scale
        if not isinstance(layer, layers.AdditiveAttention):
            inner = 1.0 if layer.scale is None else float(to_numpy(layer.scale))
            weights = np.full(query.shape[-1], to_numpy(layer.concat_score_weight), "float32")
        elif weights is None:
            weights = np.ones(query.shape[-1], "float32")

        def sums(q: Tensor, k: Tensor) -> Tensor:
            pairs = ops.expand_dims(q, 2) + ops.expand_dims(k, 1)
            return ops.tanh(pairs if inner == 1 else pairs * inner)

        with tracer.scope(layer):
            pairs = tracer.expand(Named("pairs"), sums, query, key)
            trainable = is_trainable(weights)
            named = Named("additive")
            scores = contract(pairs, weights, "btsd,d->bts", named, tracer, trainable=trainable)
            return reshape(scores, (1, *scores.shape[1:]), "scores", tracer)
