"""Functions of each value alone, looked up in tables."""

import re
from collections.abc import Callable
from math import log, pi
from typing import Any

import keras
import numpy as np
from keras import activations, layers, ops

from intact.graph.view import view
from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.backend_kernels import inverse, wide_types
from intact.numerics.exact import divide
from intact.numerics.straight_through import finite_gradient, straight_through, unfused
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import INTEGERS, Case, Op
from intact.ops.lookup import (
    COST,
    FINITE,
    FiniteTableRounding,
    TableRounding,
    TableValues,
    all_values,
    entries,
    look_up,
    split,
)
from intact.ops.precise import PRECISE, between
from intact.ops.registry import register_op

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

EXACT: dict[str, Callable] = {"Divide": divide, "Reciprocal": inverse, "TrueDivide": divide}
"""What stands for operations that compilers would replace by approximations."""

PLAIN = {"alpha": 1.0, "decimals": 0}
"""Attributes for which there is a kernel only if they have these values."""

EXPANSIONS: dict[str, Callable] = {
    "Arccos": lambda x: ops.arctan2(ops.sqrt(1.0 - x * x), x),
    "Arccosh": lambda x: ops.log(x + ops.sqrt(x * x - 1.0)),
    "Arcsin": lambda x: ops.arctan2(x, ops.sqrt(1.0 - x * x)),
    "Arcsinh": lambda x: ops.sign(x) * ops.log(ops.abs(x) + ops.sqrt(x * x + 1.0)),
    "Arctan": lambda x: ops.arctan2(x, _clip(x, 1.0, 1.0)),
    "Arctanh": lambda x: 0.5 * ops.log((1.0 + x) / (1.0 - x)),
    "Celu": lambda x, alpha: ops.relu(x) + alpha * ops.elu(ops.minimum(x, 0.0) / alpha),
    "Clip": lambda x, x_min, x_max: _clip(x, x_min, x_max),
    "Cosh": lambda x: 0.5 * (ops.exp(x) + ops.exp(-x)),
    "Elu": lambda x, alpha: ops.relu(x) + alpha * ops.elu(ops.minimum(x, 0.0)),
    # Of the two forms of the error function, one is right near 0 and one elsewhere.
    "Erf": lambda x: ops.where(
        ops.abs(x) < 1e-3,
        x * (2 / pi**0.5),
        2.0 * ops.gelu(x * 2**0.5, approximate=False) / (x * 2**0.5) - 1.0,
    ),
    "Exp2": lambda x: ops.power(2.0, x),
    "Expm1": lambda x: ops.tanh(0.5 * x) * (ops.exp(x) + 1.0),
    "HardShrink": lambda x, threshold: ops.where(ops.abs(x) > threshold, x, 0.0),
    "HardSigmoid": lambda x: ops.relu6(x + 3.0) * (1 / 6),
    "HardTanh": lambda x: _clip(x, -1.0, 1.0),
    "LeakyRelu": lambda x, negative_slope: ops.relu(x) - negative_slope * ops.relu(-x),
    "Log10": lambda x: ops.log(x) * (1 / log(10)),
    "Log1p": lambda x: ops.log(x + 1.0),
    "Log2": lambda x: ops.log(x) * (1 / log(2)),
    "LogSigmoid": lambda x: ops.minimum(x, 0.0) - ops.log(ops.exp(-ops.abs(x)) + 1.0),
    "Mish": lambda x: x * ops.tanh(ops.softplus(x)),
    "ReLU": lambda x, negative_slope, max_value, threshold: ops.where(
        x > threshold if threshold else x >= 0.0,
        _clip(x, None if max_value is None else 0.0, max_value),
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
    "SparsePlus": lambda x: 0.25 * ops.square(_clip(x, -1.0, 1.0) + 1.0) + ops.relu(x - 1.0),
    "SparseSigmoid": lambda x: _clip(0.5 * x + 0.5, 0.0, 1.0),
    "Squareplus": lambda x, b: 0.5 * (x + ops.sqrt(x * x + float(b))),
    "Tan": lambda x: ops.sin(x) / ops.cos(x),
    "TanhShrink": lambda x: x - ops.tanh(x),
    "Threshold": lambda x, threshold, default_value: ops.where(
        x > threshold, x, float(default_value)
    ),
    "Trunc": lambda x: ops.sign(x) * ops.floor(ops.abs(x)),
}
"""What operations without a float kernel are made of, so that nothing overflows."""

DOMAINS = {
    "Arccos": (-1.0, 1.0),
    "Arccosh": (1.0, None),
    "Arcsin": (-1.0, 1.0),
    "Arctanh": (-1.0, 1.0),
    "Log": (0.0, None),
    "Log10": (0.0, None),
    "Log1p": (-1.0, None),
    "Log2": (0.0, None),
    "Rsqrt": (0.0, None),
    "Sqrt": (0.0, None),
}
"""Where operations are defined, if not everywhere."""

TABLE_KERNELS = {
    "int8": ("Elu", "Exp", "Gelu", "Log"),
    "uint8": ("Elu", "Exp", "Gelu", "Log"),
    "int16": ("Absolute", "Fabs"),
}
"""Operations whose integer kernel may have the very same values, and is ten times as fast.

The int16 kernels of EXP, GELU and LOG interpolate in small tables, which loses 2 to 9000 LSB.
"""

LOGICAL = ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual")

Step = tuple[str, list[int | float], dict[str, Any]]
"""An operation's class name, its operands and its attributes.

An operand is a number, or the index (an int) of an earlier result; 0 is the input.
"""


def _clip(x: Any, lower: float | None, upper: float | None) -> Any:
    x = x if lower is None else ops.maximum(x, float(lower))
    return x if upper is None else ops.minimum(x, float(upper))


def make_step(operation: Any, operands: list[Any], index: dict[int, int]) -> Step | None:
    """An operation's call as data, or None if it is no function of each value alone.

    Args:
        operation: The Keras operation.
        operands: The arguments of its call.
        index: The index of each tensor, by its id.
    """
    name = type(operation).__name__
    casts = name == "Cast" and operation.dtype == "float32"
    known = casts or name in KERNELS or name in EXPANSIONS
    if isinstance(operation, layers.Layer) or not known:
        return None
    config = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in vars(operation).items()
        if not key.startswith("_") and key != "name"
    }
    if not all(isinstance(value, float | int | str | None) for value in config.values()):
        return None
    found: list[int | float] = []
    for operand in operands:
        if isinstance(operand, keras.KerasTensor):
            if id(operand) not in index:
                return None
            found.append(index[id(operand)])
        elif operand is None or isinstance(operand, keras.Variable):
            return None
        else:
            value = to_numpy(operand)
            if value.size != 1:
                return None
            found.append(float(value.reshape(())))
    return name, found, config


def make_steps(model: keras.Model) -> list[Step] | None:
    """The steps of a functional model that is a function of each value alone, or None."""
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


@keras.saving.register_keras_serializable("intact")
class Elementwise(keras.layers.Layer):
    """A function of each value alone, in steps that are operations of Keras.

    Args:
        steps: The steps: of each the operation's class name, its operands (a float, or
            the index of an earlier result, 0 being the input) and its attributes.

    Example:

    >>> layer = Elementwise([("Exp", [0], {}), ("Multiply", [1, 0.5], {})])
    >>> float(layer(np.zeros(1))[0])
    0.5
    """

    def __init__(self, steps: list[Step], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # In a tuple, for Keras would track and wrap a list.
        self._steps = (steps,)
        self.built = True

    @staticmethod
    def function(name: str) -> Callable:
        """The function that goes with an operation's class name."""
        if name in ("Mish", "ReLU"):
            return getattr(activations, name.lower())
        if name in EXACT:
            return EXACT[name]
        return getattr(ops, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())

    @property
    def steps(self) -> list[Step]:
        """The steps."""
        return self._steps[0]

    def call(self, x: Tensor, extended: bool = False) -> Tensor:
        """The function's values.

        Args:
            x: The input.
            extended: Let functions go on beyond where they are defined, as at the end.
        """
        results = [x]
        for name, operands, config in self.steps:
            args = [results[a] if isinstance(a, int) else a for a in operands]
            if extended:
                args[0] = _clip(args[0], *DOMAINS.get(name, (None, None)))
            results.append(self.function(name)(*args, **config))
        return results[-1]

    def precise(self, x: Tensor) -> Tensor:
        """The function's values in float64, beyond where it is defined as at the end.

        Args:
            x: The input, of float64.
        """
        results = [x]
        for name, operands, config in self.steps:
            args = [
                results[a] if isinstance(a, int) else ops.convert_to_tensor(a, "float64")
                for a in operands
            ]
            if name in DOMAINS:
                args[0] = between(args[0], *DOMAINS[name])
            function = PRECISE.get(name) or self.function(name)
            results.append(function(*args, **config))
        return results[-1]

    def compute_output_shape(self, shape: tuple) -> tuple:
        return shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "steps": [list(step) for step in self.steps]}


@register_op
class Table(Op):
    """Any function of each value alone: looked up in a table of all its integers.

    The entries are computed as the model computes them, so that the two are equal. Where
    an integer kernel has the very same table, it takes its place.
    """

    dtypes = INTEGERS
    wide = COST
    keras_layers = (Elementwise, layers.ELU)
    operations = (
        "Absolute",
        "Arccos",
        "Arccosh",
        "Arcsin",
        "Arcsinh",
        "Arctan",
        "Arctanh",
        "Ceil",
        "Celu",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "Exp2",
        "Expm1",
        "Fabs",
        "Floor",
        "Gelu",
        "HardShrink",
        "Log",
        "Log10",
        "Log1p",
        "Log2",
        "LogSigmoid",
        "Power",
        "Reciprocal",
        "Round",
        "Rsqrt",
        "Selu",
        "Sign",
        "Sin",
        "Sinh",
        "SoftShrink",
        "Softplus",
        "Softsign",
        "SparsePlus",
        "Sqrt",
        "Squareplus",
        "Tan",
        "TanhShrink",
        "Threshold",
        "Trunc",
    )
    activations = ("mish",)
    litert = ("CAST", "ADD", "GATHER", "ELU", "EXP", "GELU", "LOG")
    kernel_rounding = "table"
    pointwise = True
    notes = (
        "Any function of one tensor and constants, if it is made of such operations. What is "
        "infinite (`log(0)`, `1 / 0`) saturates at the end of the range, which only finite values "
        "make. Beyond their domain, functions stay at its end (`sqrt(-1)` is `sqrt(0)`); what is "
        "still not a number is 0. A table of 16 bits ends where the function becomes constant."
    )
    cases = (
        Case(lambda: Elementwise([("Exp", [0], {}), ("Subtract", [1, 1.0], {})]), (50, 4)),
        Case(lambda: layers.ELU(), (50, 4), low=-3.0, high=3.0),
        Case(lambda: layers.ELU(0.5), (50, 4), low=-3.0, high=3.0),
        Case(lambda: layers.Activation("mish"), (50, 4), low=-4.0, high=3.0),
        Case(lambda: layers.Activation("softplus"), (50, 4), low=-4.0, high=3.0),
        Case(lambda: ops.log, (50, 4), low=0.05, high=3.0),
        Case(lambda: ops.rsqrt, (50, 4), low=0.05, high=3.0),
        Case(lambda: lambda x: x**3, (50, 4)),
        Case(lambda: lambda x: x**0.5, (50, 4), low=0.0),
        Case(lambda: lambda x: 3.0**x, (50, 4)),
        Case(lambda: lambda x: 2.0 / x, (50, 4), low=0.1, high=2.0),
        # As activations of layers that train.
        Case(lambda: lambda x: layers.Dense(4, "gelu")(layers.Dense(6, "selu")(x)), (5,)),
        Case(lambda: layers.Activation(_quick_gelu), (50, 4), low=-4.0, high=4.0),
        Case(lambda: layers.Lambda(lambda x: ops.where(x > 0, ops.log1p(x), 0.1 * x)), (50, 4)),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, Elementwise):
            return tracer.emit(layer, args[0])
        if isinstance(layer, layers.ELU):
            return cls.emit("Elu", {"alpha": float(layer.alpha)}, layer, args[0], tracer)
        if isinstance(layer, layers.Activation):
            return cls.emit("Mish", {}, layer, args[0], tracer)
        operands = [*args, *kwargs.values()]
        x = next(value for value in operands if isinstance(value, keras.KerasTensor))
        step = make_step(layer, operands, {id(x): 0})
        if step == ("Power", [0, 2.0], {}):
            return tracer.expand(layer, ops.square, x)
        if step is not None:
            return tracer.emit(Elementwise([step], name=layer.name), x)
        tracer.refuse(layer, "a table takes one tensor, and constants that are one number")

    @staticmethod
    def emit(name: str, config: dict[str, Any], layer: Any, x: Any, tracer: Any) -> Any:
        """Put the table of one operation where a layer stands."""
        return tracer.emit(Elementwise([(name, [0], config)], name=layer.name), x)

    @classmethod
    def rounding(cls, layer: Any, dtype: str) -> str:
        return FiniteTableRounding.name if _is_finite(layer) else cls.kernel_rounding

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        if _is_finite(layer) and not isinstance(x, WideTensor):
            return TableValues(layer(unfused(x.values * x.scale)))
        # Rounding leaves zeros of both signs, and `1 / -0.0` is not `1 / 0.0`.
        whole = straight_through(ops.where(x.values == 0, 0.0, x.values), x.values)
        y = layer(finite_gradient(unfused(whole * x.scale)), extended=True)
        y = ops.where(ops.isnan(y), ops.zeros_like(y), y)
        if not isinstance(x, WideTensor):
            return TableValues(y)
        with wide_types():
            values, scale = (
                ops.cast(ops.stop_gradient(part), "float64") for part in (whole, x.scale)
            )
            precise = layer.precise(values * scale)
            nearest, rest = split(ops.where(ops.isnan(precise), ops.zeros_like(precise), precise))
        return TableValues(straight_through(nearest, y), rest)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if not y.quantized:
            lower_steps(node.layer.steps, x, y, builder)
            return
        with np.errstate(over="ignore"):
            table = entries(cls.call(node.layer, [all_values(x)], {}, False), TableRounding, y)
        name, _, config = node.layer.steps[0]
        alone = len(node.layer.steps) == 1 and name in TABLE_KERNELS[x.dtype]
        kernel = KERNELS[name] if alone and builder.has(KERNELS[name]) else None
        look_up(x, y, table, builder, kernel, _options(config))


def _is_finite(layer: Elementwise) -> bool:
    """Whether a function and its slope are finite at every finite number."""
    return len(layer.steps) == 1 and layer.steps[0][0] in FINITE


def _quick_gelu(x: Tensor) -> Tensor:
    return x * ops.sigmoid(1.702 * x)


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """The attributes that kernels know; the others have their plain values."""
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
        made = y
        if len(results) < len(steps):
            dtype = "bool" if name in LOGICAL or name.startswith("Logical") else "float32"
            made = builder.like(x, x.shape, dtype=dtype)
        inputs = [
            results[a] if isinstance(a, int) else builder.constant(np.array(a, "float32"))
            for a in operands
        ]
        results.append(made)
        if name == "Cast":
            _cast(inputs[0], made, builder)
        elif name in KERNELS and all(PLAIN.get(k, v) == v for k, v in config.items()):
            if not name.startswith("Logical"):
                condition = [inputs.pop(0)] if name == "Where" else []
                inputs = condition + [_cast(t, None, builder) for t in inputs]
            builder.add(KERNELS[name], inputs, [made], _options(config))
        else:
            symbol = keras.Input(batch_shape=(None,))
            inner = make_steps(keras.Model(symbol, EXPANSIONS[name](symbol, **config)))
            assert inner
            lower_steps(inner, inputs[0], made, builder)


def _cast(x: Any, y: Any, builder: Any) -> Any:
    """A tensor as float32."""
    if x.dtype == "float32" and y is None:
        return x
    y = y or builder.like(x, x.shape, dtype="float32")
    builder.convert(x, y)
    return y
