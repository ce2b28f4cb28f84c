"""Simplifies a flat model before it is planned."""

from collections.abc import Collection
from typing import Any

import keras

from intact.graph.chains import fuse_chains
from intact.graph.equal_layers import share_equal
from intact.graph.hidden_scores import hide_scores
from intact.graph.input_norms import fold_input_norms
from intact.graph.masked_scores import bound_masks
from intact.graph.scalings import fold_scalings, join_channel_scales
from intact.graph.wide_forms import in_wide_kernels
from intact.plan.scheme import Rule, Scheme


def simplify(model: keras.Model, scheme: Scheme) -> keras.Model:
    """Fold and share layers, bound values that would spoil a range, and expand what has no kernel.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        scheme: How the model will be quantized.

    Returns:
        A functional model that computes the same, but for scores that a softmax does not see.
        Layers that the user has named keep their outputs.

    Example:

    >>> from intact.schemes import float32
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> simplify(model, float32) is model
    True
    """
    named: set[str] = getattr(model, "named", set())
    model = in_wide_kernels(fold_input_norms(model), scheme)
    if any(rule.integer for rule in scheme.rules):
        model = bound_masks(hide_scores(model))
    model = join_channel_scales(fold_scalings(model, named), named)
    model = fuse_chains(model, lambda layer: _fusing(layer, scheme), named)
    return share_equal(model, named, lambda layer: _rule(layer, scheme))


def simplify_alike(model: keras.Model, known: Collection[str]) -> keras.Model:
    """Fold, fuse and share the layers of a float model that a quantized one lacks.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        known: The names of the quantized model's layers.

    Returns:
        A functional model that computes the same.
    """
    named: set[str] = getattr(model, "named", set())
    model = join_channel_scales(fold_scalings(model, named, known), {*named, *known})
    model = fuse_chains(model, lambda layer: True, set(known), always=True)
    return share_equal(model, set(known))


def _rule(layer: Any, scheme: Scheme) -> Rule:
    return getattr(layer, "own_rule", None) or scheme.rule_for(layer)


def _fusing(layer: Any, scheme: Scheme) -> Rule | None:
    """The rule of a layer that may join a table; None if it must not."""
    rule = _rule(layer, scheme)
    activations = rule.activations
    ranged = rule.integer and activations is not None and activations.rule.name == "range"
    return rule if ranged else None
