"""Operations of TensorFlow that models of Keras 2 call, in `keras.ops`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops


def _binary(function: Callable) -> Callable:
    return lambda x, y: function(_constant(x), _constant(y))


def _constant(value: Any) -> Any:
    return np.array(value, "float32") if isinstance(value, list) else value


def _slice(x: Any, slice_spec: Any) -> Any:
    def part(spec: Any) -> Any:
        if isinstance(spec, dict):
            return slice(spec["start"], spec["stop"], spec["step"])
        # TensorFlow's new axis and ellipsis are written as such lists or as text.
        return Ellipsis if spec == "Ellipsis" or spec == ["Ellipsis"] else spec

    specs = slice_spec if isinstance(slice_spec, list) else [slice_spec]
    return x[tuple(part(spec) for spec in specs)]


def _pad(x: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0) -> Any:
    constant = {"constant_values": constant_values} if mode.lower() == "constant" else {}
    return ops.pad(x, paddings, mode.lower(), **constant)


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    if transpose_a or transpose_b:
        raise TypeError("it transposes")
    return ops.matmul(a, b)


# TensorFlow functions by their last name, each as one operation of Keras: first the tensor
# that came first, then the function's own arguments.
TF_OPS: dict[str, Callable] = {
    "abs": lambda x: ops.abs(x),
    "add": _binary(ops.add),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "clip_by_value": lambda x, clip_value_min, clip_value_max: ops.clip(
        x, clip_value_min, clip_value_max
    ),
    "concat": lambda x, axis: ops.concatenate(x, axis),
    "div": _binary(ops.divide),
    "divide": _binary(ops.divide),
    "elu": lambda x: ops.elu(x),
    "exp": lambda x: ops.exp(x),
    "expand_dims": lambda x, axis: ops.expand_dims(x, axis),
    "gelu": lambda x, approximate=False: ops.gelu(x, approximate),
    "getitem": _slice,
    "l2_normalize": lambda x, axis=-1, epsilon=1e-12: ops.normalize(
        x, axis, epsilon=math.sqrt(epsilon)
    ),
    "leaky_relu": lambda x, alpha=0.2: ops.leaky_relu(x, alpha),
    "log": lambda x: ops.log(x),
    "matmul": _matmul,
    "maximum": _binary(ops.maximum),
    "minimum": _binary(ops.minimum),
    "mul": _binary(ops.multiply),
    "multiply": _binary(ops.multiply),
    "neg": lambda x: ops.negative(x),
    "negative": lambda x: ops.negative(x),
    "pad": _pad,
    "pow": _binary(ops.power),
    "reduce_max": lambda x, axis=None, keepdims=False: ops.max(x, axis, keepdims=keepdims),
    "reduce_mean": lambda x, axis=None, keepdims=False: ops.mean(x, axis, keepdims=keepdims),
    "reduce_min": lambda x, axis=None, keepdims=False: ops.min(x, axis, keepdims=keepdims),
    "reduce_sum": lambda x, axis=None, keepdims=False: ops.sum(x, axis, keepdims=keepdims),
    "relu": lambda x: ops.relu(x),
    "relu6": lambda x: ops.relu6(x),
    "reshape": lambda x, shape: ops.reshape(x, shape),
    "rsqrt": lambda x: ops.rsqrt(x),
    "selu": lambda x: ops.selu(x),
    "sigmoid": lambda x: ops.sigmoid(x),
    "silu": lambda x, beta=1.0: ops.silu(x),
    "softmax": lambda x, axis=-1: ops.softmax(x, axis),
    "softplus": lambda x: ops.softplus(x),
    "sqrt": lambda x: ops.sqrt(x),
    "square": lambda x: ops.square(x),
    "squeeze": lambda x, axis=None: ops.squeeze(x, tuple(axis) if axis else None),
    "stack": lambda x, axis=0: ops.stack(x, axis),
    "sub": _binary(ops.subtract),
    "subtract": _binary(ops.subtract),
    "swish": lambda x, beta=1.0: ops.silu(x),
    "tanh": lambda x: ops.tanh(x),
    "tile": lambda x, multiples: ops.tile(x, multiples),
    "transpose": lambda x, perm=None: ops.transpose(x, perm),
    "truediv": _binary(ops.divide),
}


_TF_MODULES = ("", "__operators__", "math", "nn", "linalg", "compat.v1", "compat.v1.math")


# Ops of graphs of TensorFlow 2.0 to 2.3, whose constants are inputs like any other.
_TF_NODES = {
    "AddV2": "add",
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "RealDiv": "divide",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Neg": "negative",
    "Abs": "abs",
    "Square": "square",
    "Sqrt": "sqrt",
    "Exp": "exp",
}
