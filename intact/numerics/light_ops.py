"""Keras' operations, without what Keras does around each where torch computes op by op.

Keras looks for symbolic tensors in all arguments, converts them, and moves them to a device. A
quantized model has hundreds of operations on small tensors, for which this takes longer than torch.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import backend
from keras import ops as keras_ops

if backend.backend() == "torch":
    import torch
    from keras.src.backend.torch.core import get_device

    TYPES = {
        "float32": torch.float32,
        "float64": torch.float64,
        "int32": torch.int32,
        "int64": torch.int64,
        "bool": torch.bool,
    }

NUMBERS = (float, np.float32)


def _is_ready(*tensors: Any) -> bool:
    """Whether torch can take the arguments as they are: float32, on this machine's processor."""
    for x in tensors:
        if not (isinstance(x, torch.Tensor) and x.is_cpu and x.dtype == torch.float32):
            return False
    return bool(get_device() == "cpu")


def _is_tensor(x: Any) -> bool:
    """The same for one tensor of any type."""
    return isinstance(x, torch.Tensor) and x.is_cpu and bool(get_device() == "cpu")


def _number(x: Any) -> Any:
    """A number as a scalar of float32; anything else as it is."""
    return torch.tensor(float(x), dtype=torch.float32) if isinstance(x, NUMBERS) else x


def _channels_first(
    function: Callable,
    inputs: Any,
    kernel: Any,
    strides: Any,
    padding: str,
    data_format: str | None,
    dilation_rate: Any,
) -> Any:
    """A convolution of images that torch takes as they are.

    For channels that are last, Keras copies images to channels first and back. A transposed view
    has the same layout in memory as the second copy.
    """
    last = data_format == "channels_last" and len(inputs.shape) == 4
    if not (last and _is_ready(inputs, kernel)):
        return function(inputs, kernel, strides, padding, data_format, dilation_rate)
    images = inputs.permute(0, 3, 1, 2)
    y = function(images, kernel, strides, padding, "channels_first", dilation_rate)
    return y.permute(0, 2, 3, 1)


class LightOps:
    """`keras.ops`; the most frequent operations go straight to torch where nothing is to convert.

    Values, types and gradients are those of `keras.ops`. Each method takes the same arguments.

    Example:

    >>> float(LightOps().maximum(np.float32(1.0), np.float32(2.0)))
    2.0
    """

    def __getattr__(self, name: str) -> Callable:
        return getattr(keras_ops, name)

    def abs(self, x: Any) -> Any:
        """Absolute values."""
        return torch.abs(x) if _is_ready(x) else keras_ops.abs(x)

    def sign(self, x: Any) -> Any:
        """Signs."""
        return torch.sign(x) if _is_ready(x) else keras_ops.sign(x)

    def floor(self, x: Any) -> Any:
        """The next smaller whole numbers."""
        return torch.floor(x) if _is_ready(x) else keras_ops.floor(x)

    def round(self, x: Any, decimals: int = 0) -> Any:
        """The nearest whole numbers, half to even."""
        if decimals == 0 and _is_ready(x):
            return torch.round(x)
        return keras_ops.round(x, decimals)

    def maximum(self, x1: Any, x2: Any) -> Any:
        """The larger ones."""
        a, b = _number(x1), _number(x2)
        return torch.maximum(a, b) if _is_ready(a, b) else keras_ops.maximum(x1, x2)

    def minimum(self, x1: Any, x2: Any) -> Any:
        """The smaller ones."""
        a, b = _number(x1), _number(x2)
        return torch.minimum(a, b) if _is_ready(a, b) else keras_ops.minimum(x1, x2)

    def where(self, condition: Any, x1: Any = None, x2: Any = None) -> Any:
        """A choice of each value."""
        a, b = _number(x1), _number(x2)
        if _is_tensor(condition) and condition.dtype == torch.bool and _is_ready(a, b):
            return torch.where(condition, a, b)
        return keras_ops.where(condition, x1, x2)

    def clip(self, x: Any, x_min: Any, x_max: Any) -> Any:
        """Values between two bounds."""
        if isinstance(x_min, NUMBERS) and isinstance(x_max, NUMBERS) and _is_ready(x):
            return torch.clamp(x, float(x_min), float(x_max))
        return keras_ops.clip(x, x_min, x_max)

    def matmul(self, x1: Any, x2: Any) -> Any:
        """Matrix products."""
        return torch.matmul(x1, x2) if _is_ready(x1, x2) else keras_ops.matmul(x1, x2)

    def conv(
        self,
        inputs: Any,
        kernel: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
    ) -> Any:
        """Convolutions."""
        settings = strides, padding, data_format, dilation_rate
        return _channels_first(keras_ops.conv, inputs, kernel, *settings)

    def depthwise_conv(
        self,
        inputs: Any,
        kernel: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
    ) -> Any:
        """Convolutions of each channel alone."""
        settings = strides, padding, data_format, dilation_rate
        return _channels_first(keras_ops.depthwise_conv, inputs, kernel, *settings)

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """Sums along axes."""
        if axis not in (None, (), []) and _is_ready(x):
            return torch.sum(x, axis, keepdim=keepdims)
        return keras_ops.sum(x, axis, keepdims)

    def reshape(self, x: Any, newshape: Any) -> Any:
        """The same values in another shape."""
        if isinstance(newshape, list | tuple) and _is_tensor(x):
            return torch.reshape(x, tuple(newshape))
        return keras_ops.reshape(x, newshape)

    def shape(self, x: Any) -> tuple[Any, ...]:
        """The sizes."""
        return tuple(x.shape) if isinstance(x, torch.Tensor) else keras_ops.shape(x)

    def ones_like(self, x: Any, dtype: Any = None) -> Any:
        """Ones of the same shape."""
        if dtype is None and _is_tensor(x):
            return torch.ones_like(x)
        return keras_ops.ones_like(x, dtype)

    def zeros_like(self, x: Any, dtype: Any = None) -> Any:
        """Zeros of the same shape."""
        if dtype is None and _is_tensor(x):
            return torch.zeros_like(x)
        return keras_ops.zeros_like(x, dtype)

    def stop_gradient(self, variable: Any) -> Any:
        """The values without a gradient."""
        if isinstance(variable, torch.Tensor):
            return variable.detach()
        return keras_ops.stop_gradient(variable)

    def cast(self, x: Any, dtype: Any) -> Any:
        """The values in another type."""
        if dtype in TYPES and isinstance(x, torch.Tensor):
            return x.to(TYPES[dtype])
        return keras_ops.cast(x, dtype)

    def convert_to_tensor(self, x: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """A tensor of the backend."""
        value = x.value if isinstance(x, keras.Variable) else x
        if (dtype is None or dtype in TYPES) and not kwargs and _is_tensor(value):
            return value if dtype is None else value.to(TYPES[dtype])
        return keras_ops.convert_to_tensor(x, dtype, **kwargs)


ops: Any = LightOps() if backend.backend() == "torch" else keras_ops
"""What quantized layers compute with."""
