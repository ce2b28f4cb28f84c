"""Elementwise functions, as steps that are operations of Keras."""

from collections.abc import Callable
from math import log, pi
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.graph.view import view
from intact.numerics.tensors import to_numpy

KERNELS = {
    "Absolute": "ABS",
    "Add": "ADD",
    "Arctan2": "ATAN2",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Divide": "DIV",
    "Elu": "ELU",
    "Equal": "EQUAL",
    "Exp": "EXP",
    "Fabs": "ABS",
    "Floor": "FLOOR",
    "Gelu": "GELU",
    "Greater": "GREATER",
    "GreaterEqual": "GREATER_EQUAL",
    "HardSilu": "HARD_SWISH",
    "Less": "LESS",
    "LessEqual": "LESS_EQUAL",
    "Log": "LOG",
    "LogicalAnd": "LOGICAL_AND",
    "LogicalNot": "LOGICAL_NOT",
    "LogicalOr": "LOGICAL_OR",
    "Maximum": "MAXIMUM",
    "Minimum": "MINIMUM",
    "Multiply": "MUL",
    "Negative": "NEG",
    "NotEqual": "NOT_EQUAL",
    "Power": "POW",
    "Relu": "RELU",
    "Relu6": "RELU6",
    "Round": "ROUND",
    "Rsqrt": "RSQRT",
    "Sigmoid": "LOGISTIC",
    "Sign": "SIGN",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Square": "SQUARE",
    "Subtract": "SUB",
    "Tanh": "TANH",
    "TrueDivide": "DIV",
    "Where": "SELECT_V2",
}
"""The float kernels of Keras' operations, by the operation's class name."""

PLAIN = {"alpha": 1.0, "decimals": 0}
"""The values of attributes that kernels require."""

EXPANSIONS: dict[str, Callable] = {
    "Arccos": lambda x: ops.arctan2(ops.sqrt(1.0 - x * x), x),
    "Arccosh": lambda x: ops.log(x + ops.sqrt(x * x - 1.0)),
    "Arcsin": lambda x: ops.arctan2(x, ops.sqrt(1.0 - x * x)),
    "Arcsinh": lambda x: ops.sign(x) * ops.log(ops.abs(x) + ops.sqrt(x * x + 1.0)),
    "Arctan": lambda x: ops.arctan2(x, clip(x, 1.0, 1.0)),
    "Arctanh": lambda x: 0.5 * ops.log((1.0 + x) / (1.0 - x)),
    "Celu": lambda x, alpha: ops.relu(x) + alpha * ops.elu(ops.minimum(x, 0.0) / alpha),
    "Clip": lambda x, x_min, x_max: clip(x, x_min, x_max),
    "Cosh": lambda x: 0.5 * (ops.exp(x) + ops.exp(-x)),
    "Elu": lambda x, alpha: ops.relu(x) + alpha * ops.elu(ops.minimum(x, 0.0)),
    # One form of the error function is accurate near 0, the other one elsewhere.
    "Erf": lambda x: ops.where(
        ops.abs(x) < 1e-3,
        x * (2 / pi**0.5),
        2.0 * ops.gelu(x * 2**0.5, approximate=False) / (x * 2**0.5) - 1.0,
    ),
    "Exp2": lambda x: ops.power(2.0, x),
    "Expm1": lambda x: ops.tanh(0.5 * x) * (ops.exp(x) + 1.0),
    "HardShrink": lambda x, threshold: ops.where(ops.abs(x) > threshold, x, 0.0),
    "HardSigmoid": lambda x: ops.relu6(x + 3.0) * (1 / 6),
    "HardTanh": lambda x: clip(x, -1.0, 1.0),
    "LeakyRelu": lambda x, negative_slope: ops.relu(x) - negative_slope * ops.relu(-x),
    "Log10": lambda x: ops.log(x) * (1 / log(10)),
    "Log1p": lambda x: ops.log(x + 1.0),
    "Log2": lambda x: ops.log(x) * (1 / log(2)),
    "LogSigmoid": lambda x: ops.minimum(x, 0.0) - ops.log(ops.exp(-ops.abs(x)) + 1.0),
    "Mish": lambda x: x * ops.tanh(ops.softplus(x)),
    "ReLU": lambda x, negative_slope, max_value, threshold: ops.where(
        x > threshold if threshold else x >= 0.0,
        clip(x, None if max_value is None else 0.0, max_value),
        negative_slope * (x - threshold),
    ),
    "Reciprocal": lambda x: 1.0 / x,
    "Round": lambda x, decimals: ops.round(x * 10.0**decimals) * 10.0**-decimals,
    "Selu": lambda x: 1.05070098 * (ops.relu(x) + 1.67326324 * ops.elu(ops.minimum(x, 0.0))),
    "Silu": lambda x: x * ops.sigmoid(x),
    "Sinh": lambda x: 0.5 * (ops.exp(x) - ops.exp(-x)),
    "SoftShrink": lambda x, threshold: ops.relu(x - threshold) - ops.relu(-x - threshold),
    "Softplus": lambda x: ops.relu(x) + ops.log(ops.exp(-ops.abs(x)) + 1.0),
    "Softsign": lambda x: x / (ops.abs(x) + 1.0),
    "SparsePlus": lambda x: 0.25 * ops.square(clip(x, -1.0, 1.0) + 1.0) + ops.relu(x - 1.0),
    "SparseSigmoid": lambda x: clip(0.5 * x + 0.5, 0.0, 1.0),
    "Squareplus": lambda x, b: 0.5 * (x + ops.sqrt(x * x + float(b))),
    "Tan": lambda x: ops.sin(x) / ops.cos(x),
    "TanhShrink": lambda x: x - ops.tanh(x),
    "Threshold": lambda x, threshold, default_value: ops.where(
        x > threshold, x, float(default_value)
    ),
    "Trunc": lambda x: ops.sign(x) * ops.floor(ops.abs(x)),
}
"""Formulas of operations without a float kernel, chosen so that nothing overflows."""

COMPARISONS = ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual")

Step = tuple[str, list[int | float], dict[str, Any]]
"""An operation's class name, its operands and its attributes.

An operand is a number, or the index (an int) of an earlier result; 0 is the input.
"""


def clip(x: Any, lower: float | None, upper: float | None) -> Any:
    """Values between two limits, of which None is no limit."""
    x = x if lower is None else ops.maximum(x, float(lower))
    return x if upper is None else ops.minimum(x, float(upper))


def make_step(operation: Any, operands: list[Any], index: dict[int, int]) -> Step | None:
    """An operation's call as data, or None if it is not elementwise.

    Args:
        operation: The Keras operation.
        operands: The arguments of its call.
        index: The index of each tensor, by its id.
    """
    name = type(operation).__name__
    casts = name == "Cast" and operation.dtype == "float32"
    computable = casts or name in KERNELS or name in EXPANSIONS
    if isinstance(operation, layers.Layer) or not computable:
        return None
    config = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in vars(operation).items()
        if not key.startswith("_") and key != "name"
    }
    if not all(isinstance(value, float | int | str | None) for value in config.values()):
        return None
    indexed = [_operand(value, index) for value in operands]
    known = [operand for operand in indexed if operand is not None]
    return (name, known, config) if len(known) == len(operands) else None


def _operand(value: Any, index: dict[int, int]) -> int | float | None:
    """The index of a tensor, or the number that a constant is; None for anything else."""
    if isinstance(value, keras.KerasTensor):
        return index.get(id(value))
    if value is None or isinstance(value, keras.Variable):
        return None
    constant = to_numpy(value)
    return float(constant.reshape(())) if constant.size == 1 else None


def make_steps(model: keras.Model) -> list[Step] | None:
    """The steps of an elementwise functional model, or None for any other model."""
    graph = view(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or graph.outputs[0].dtype == "bool":
        return None
    index = {id(graph.inputs[0]): 0}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.is_input:
            continue
        operands = keras.tree.flatten([node.args, list(node.kwargs.values())])
        step = make_step(node.layer, operands, index)
        if step is None or len(node.outputs) != 1:
            return None
        steps.append(step)
        index[id(node.outputs[0])] = len(steps)
    return steps if index[id(graph.outputs[0])] == len(steps) else None


def kernel_options(config: dict[str, Any]) -> dict[str, Any]:
    """The attributes that kernels have options for."""
    return {k: v for k, v in config.items() if k not in PLAIN}


def lower_steps(steps: list[Step], x: Any, y: Any, builder: Any) -> None:
    """Add the float kernels of a function.

    Args:
        steps: The steps of the function, as for `Elementwise`.
        x: The input, a tensor of a file.
        y: The output, likewise.
        builder: The file's builder.
    """
    results = [x]
    for name, operands, config in steps:
        output = y
        if len(results) < len(steps):
            dtype = "bool" if name in COMPARISONS or name.startswith("Logical") else "float32"
            output = builder.like(x, x.shape, dtype=dtype)
        truths = [name.startswith("Logical") or (name == "Where" and not i) for i in range(3)]
        inputs = [
            results[a]
            if isinstance(a, int)
            else builder.constant(np.array(a, "bool" if truth else "float32"))
            for a, truth in zip(operands, truths, strict=False)
        ]
        results.append(output)
        if name == "Cast":
            _cast(inputs[0], output, builder)
        elif name in KERNELS and all(PLAIN.get(k, v) == v for k, v in config.items()):
            if not name.startswith("Logical"):
                condition = [inputs.pop(0)] if name == "Where" else []
                inputs = condition + [_cast(t, None, builder) for t in inputs]
            builder.add(KERNELS[name], inputs, [output], kernel_options(config))
        else:
            symbol = keras.Input(batch_shape=(None,))
            inner = make_steps(keras.Model(symbol, EXPANSIONS[name](symbol, **config)))
            assert inner
            lower_steps(inner, inputs[0], output, builder)


def _cast(x: Any, y: Any, builder: Any) -> Any:
    """A tensor as float32."""
    if x.dtype == "float32" and y is None:
        return x
    y = y or builder.like(x, x.shape, dtype="float32")
    builder.convert(x, y)
    return y
