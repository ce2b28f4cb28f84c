"""Checks of a traced layer."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from intact.errors import InvalidModelError
from intact.numerics.tensors import is_symbolic, is_whole, to_numpy
from intact.ops.constant import Constant

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer


def check_whole(tracer: "Tracer", layer: Any, args: tuple, kwargs: dict, outputs: Any) -> None:
    """Make sure that an operation on whole numbers returns whole numbers if Keras' operation does.

    Layers do not tell Keras the type of their outputs.
    """
    tensors = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    if isinstance(layer, keras.layers.Layer) or not any(map(is_whole, tensors)):
        return
    wanted = keras.tree.flatten(layer.compute_output_spec(*args, **kwargs))
    for want, output in zip(wanted, keras.tree.flatten(outputs), strict=True):
        if is_whole(want) and not is_whole(output):
            tracer.refuse(
                layer,
                "it computes whole numbers, for which there is no kernel; where real values "
                'will do, put `ops.cast(x, "float32")` before it',
            )


def check_finite(layer: keras.layers.Layer, where: str) -> None:
    """Make sure that the weights of a layer are numbers.

    Args:
        layer: The layer.
        where: Its path, for the error.
    """
    for variable in layer.variables:
        value = to_numpy(variable.value)
        if not np.issubdtype(value.dtype, np.floating):
            continue
        fine = np.isfinite(value)
        if isinstance(layer, Constant) and not layer.trainable:
            # A mask may hide places by minus infinity.
            fine |= np.isneginf(value)
        bad = int((~fine).sum())
        if bad:
            raise InvalidModelError(
                f"Weight {variable.path!r} of {type(layer).__name__} {where!r} "
                f"has {bad} of {value.size} values that are NaN or infinite. "
                "Retrain the model, or repair the weight before quantizing."
            )
