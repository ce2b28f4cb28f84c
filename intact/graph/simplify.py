"""What happens to a flat model before it is planned."""

import keras

from intact.graph.input_norms import fold_input_norms
from intact.graph.masked_scores import bound_masks
from intact.graph.wide_forms import in_wide_kernels
from intact.plan.scheme import Scheme


def simplify(model: keras.Model, scheme: Scheme) -> keras.Model:
    """Fold what needs no kernel, bound what would spoil a range, write out what has no kernel.

    Args:
        model: What `canonicalize` returned; its layers are reused.
        scheme: How the model will be quantized.

    Returns:
        A functional model that computes the same, but for scores that a softmax does not see.

    Example:

    >>> from intact.schemes import float32
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> simplify(model, float32) is model
    True
    """
    model = in_wide_kernels(fold_input_norms(model), scheme)
    return bound_masks(model) if any(rule.integer for rule in scheme.rules) else model
