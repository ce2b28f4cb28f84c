"""What TensorFlow, which runs op by op on CPUs, computes faster its own way."""

from typing import Any

import tensorflow as tf


@tf.custom_gradient
def round_clip(x: Any, factor: Any, low: Any, high: Any) -> Any:
    """Scales, rounds half to even and saturates; the gradient passes inside the bounds.

    Args:
        x: Values.
        factor: What they are multiplied by, scalar.
        low: Smallest value, scalar.
        high: Largest value, scalar.

    Returns:
        Whole numbers.
    """

    def grad(g: Any) -> tuple[Any, None, None, None]:
        # A select is as slow as ten other ops; this is one, with bounds of 0 and 6.
        six = (x * factor - low) * (6.0 / tf.maximum(high - low, 1e-30))
        return tf.raw_ops.Relu6Grad(gradients=g, features=six) * factor, None, None, None

    return tf.maximum(tf.minimum(tf.round(x * factor), high), low), grad
