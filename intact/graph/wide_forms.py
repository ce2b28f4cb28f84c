"""Expands layers that have no kernel for 16-bit activations."""

from typing import Any

import keras
from keras import layers

from intact.graph.view import Node, view, with_replaced
from intact.ops.activation import LogSoftmax
from intact.ops.reduce import Max, Sum
from intact.ops.registry import find_op
from intact.ops.table import Elementwise
from intact.plan.scheme import Rule, Scheme


def in_wide_kernels(model: keras.Model, scheme: Scheme) -> keras.Model:
    """Rewrite layers without a 16-bit kernel as layers that have one.

    That is the logarithm of softmax: `x - max - log(sum(exp(x - max)))`.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        scheme: How the model will be quantized.

    Returns:
        A functional model that computes the same; the model itself if it has no such layer.

    Example:

    >>> from intact.schemes import int16x8
    >>> x = keras.Input((4,))
    >>> model = keras.Model(x, layers.Activation("log_softmax", name="log")(x))
    >>> [layer.name for layer in in_wide_kernels(model, int16x8).layers][-1]
    'log'
    """
    while True:
        graph = view(model)
        node = next((n for n in graph.nodes if _is_wide_log_softmax(n, scheme)), None)
        if node is None:
            return model
        rule = _rule(node.layer, scheme)
        written = _log_softmax(node.inputs[0], node.layer.name, rule)
        model = with_replaced(model, graph, {id(node.outputs[0]): written})


def _rule(layer: Any, scheme: Scheme) -> Rule:
    return getattr(layer, "own_rule", None) or scheme.rule_for(layer)


def _is_wide_log_softmax(node: Node, scheme: Scheme) -> bool:
    if node.is_input or not isinstance(find_op(node.layer), LogSoftmax):
        return False
    rule = _rule(node.layer, scheme)
    activations = rule.activations
    return rule.integer and activations is not None and activations.activation_dtype == "int16"


def _log_softmax(x: Any, name: str, rule: Rule) -> Any:
    """The logarithm of softmax along the last axis, in layers that are under a rule."""

    def apply(layer: Any, inputs: Any) -> Any:
        layer.own_rule = rule
        return layer(inputs)

    last = [len(x.shape) - 1]
    top = apply(Max(last, True, name=f"{name}_top"), x)
    below = apply(layers.Subtract(name=f"{name}_below"), [x, top])
    powers = apply(Elementwise([("Exp", [0], {})], name=f"{name}_powers"), below)
    total = apply(Sum(last, True, name=f"{name}_total"), powers)
    log = apply(Elementwise([("Log", [0], {})], name=f"{name}_log"), total)
    return apply(layers.Subtract(name=name), [below, log])
