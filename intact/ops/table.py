"""Elementwise functions, looked up in tables."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import activations, layers

from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.backend_kernels import holds, inverse, wide_types
from intact.numerics.exact import divide
from intact.numerics.forward import needs_gradients
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import finite_gradient, straight_through, unfused
from intact.numerics.tensors import Tensor, is_symbolic
from intact.ops.base import INTEGERS, Case, Op
from intact.ops.float_only import Powers
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
from intact.ops.shape import of_one_rank
from intact.ops.steps import KERNELS, Step, clip, kernel_options, lower_steps, make_step
from intact.rounding.curves import of_integers

EXACT: dict[str, Callable] = {"Divide": divide, "Reciprocal": inverse, "TrueDivide": divide}
"""Exact forms of operations that compilers would replace by approximations."""

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
"""Domains of operations that are not defined everywhere."""

TABLE_KERNELS = {
    "int8": ("Elu", "Exp", "Gelu", "Log"),
    "uint8": ("Elu", "Exp", "Gelu", "Log"),
    "int16": ("Absolute", "Fabs"),
}
"""Operations whose integer kernel may compute the same values, ten times as fast.

The int16 kernels of EXP, GELU and LOG interpolate in small tables, which loses 2 to 9000 LSB.
"""


@keras.saving.register_keras_serializable("intact")
class Elementwise(keras.layers.Layer):
    """An elementwise function, in steps that are operations of Keras.

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
            extended: Whether functions are constant beyond their domain.
        """
        results = [x]
        for name, operands, config in self.steps:
            args = [results[a] if isinstance(a, int) else a for a in operands]
            if extended:
                args[0] = clip(args[0], *DOMAINS.get(name, (None, None)))
            results.append(self.function(name)(*args, **config))
        return results[-1]

    def precise(self, x: Tensor) -> Tensor:
        """The function's values in float64, constant beyond its domain.

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
    """Any elementwise function, looked up in a table of all its integers.

    The entries are computed as the model computes them, so that the two are equal. An integer
    kernel with exactly the same values replaces the table.
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, Elementwise):
            return tracer.emit(layer, args[0])
        if isinstance(layer, layers.ELU):
            return self.emit("Elu", {"alpha": float(layer.alpha)}, layer, args[0], tracer)
        if isinstance(layer, layers.Activation):
            return self.emit("Mish", {}, layer, args[0], tracer)
        operands = [*args, *kwargs.values()]
        x = next(value for value in operands if isinstance(value, keras.KerasTensor))
        step = make_step(layer, operands, {id(x): 0})
        if step == ("Power", [0, 2.0], {}):
            return tracer.expand(layer, ops.square, x)
        if step is not None:
            return tracer.emit(Elementwise([step], name=layer.name), x)
        if type(layer).__name__ == "Power":
            rank = max(len(value.shape) for value in operands)
            tensors = [
                x if is_symbolic(x) else tracer.constant(x, f"{layer.name}_constant", rank)
                for x in operands
            ]
            return tracer.emit(Powers(name=layer.name), of_one_rank(tensors, layer, tracer))
        tracer.refuse(layer, "a table takes one tensor, and constants that are one number")

    @staticmethod
    def emit(name: str, config: dict[str, Any], layer: Any, x: Any, tracer: Any) -> Any:
        """Replace a layer by the table of one operation."""
        return tracer.emit(Elementwise([(name, [0], config)], name=layer.name), x)

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        return FiniteTableRounding.name if _is_finite(layer) else self.kernel_rounding

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        if _is_finite(layer) and not isinstance(x, WideTensor):
            if holds(x.whole) and not needs_gradients():
                return TableValues(of_integers(layer, x))
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

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        if not y.quantized:
            lower_steps(node.layer.steps, x, y, builder)
            return
        with np.errstate(over="ignore"):
            table = entries(self.call(node.layer, [all_values(x)], {}, False), TableRounding(), y)
        name, _, config = node.layer.steps[0]
        alone = len(node.layer.steps) == 1 and name in TABLE_KERNELS[x.dtype]
        kernel = KERNELS[name] if alone and builder.has(KERNELS[name]) else None
        look_up(x, y, table, builder, kernel, kernel_options(config))


def _is_finite(layer: Elementwise) -> bool:
    """Whether a function and its slope are finite at every finite number."""
    return len(layer.steps) == 1 and layer.steps[0][0] in FINITE


def _quick_gelu(x: Tensor) -> Tensor:
    return x * ops.sigmoid(1.702 * x)
