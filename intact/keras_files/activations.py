"""Functions of Keras 2 that Keras 3 does not have."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("intact")
def hard_sigmoid_keras_2(x: Any) -> Any:
    """The hard sigmoid of Keras 2, whose slope is 1/5; that of Keras 3 has 1/6.

    Args:
        x: A tensor.

    Returns:
        `0.2 * x + 0.5`, between 0 and 1.
    """
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)
