"""Keeps pruned models sparse and clustered models clustered while they train."""

import keras

from intact.errors import IntactError
from intact.layers.quantized import Quantized


def keep_sparsity(model: keras.Model) -> None:
    """Keep the zeros of a pruned model, while it trains and in its file.

    Weights that are exactly 0 have no gradient from here on, so that no optimizer moves them,
    in `fit` or in your own loop. Call it before `compile`; the saved model remembers.
    A pruned and clustered model takes `keep_clusters` as well.

    Args:
        model: A quantized model, made of a pruned one.

    Raises:
        IntactError: The model has no quantized weights.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> q = intact.quantize_model(model)
    >>> keep_sparsity(q)  # from here on, `q.fit(...)` leaves zeros alone
    """
    for layer in _weighted(model):
        layer.keep_zeros = True


def keep_clusters(model: keras.Model) -> None:
    """Keep equal weights equal while a clustered model trains, and in its file.

    Weights of one layer that have the same value now move together, by the mean of their
    gradients. Where each output channel has a scale of its own (the default), the file has no
    more values in a channel than the float model has there; with weights of one scale
    (`TensorSpec(per_axis=False)`), in the whole layer, unless a batch norm is folded into them.
    Call it before `compile`; the saved model remembers.

    Args:
        model: A quantized model, made of a clustered one.

    Raises:
        IntactError: The model has no quantized weights.

    Example:

    >>> import intact
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> _ = model.layers[0].kernel.assign([[1, 2], [2, 1], [1, 1], [2, 2]])
    >>> q = intact.quantize_model(model)
    >>> keep_clusters(q)  # from here on, `q.fit(...)` finds two better values
    """
    for layer in _weighted(model):
        layer.tie()


def _weighted(model: keras.Model) -> list[Quantized]:
    layers = [layer for layer in model.layers if isinstance(layer, Quantized) and layer.spec]
    if not layers:
        raise IntactError(
            f"Model {model.name!r} has no quantized weights. "
            "Make a quantized model first: `q = intact.quantize_model(model)`."
        )
    return layers
