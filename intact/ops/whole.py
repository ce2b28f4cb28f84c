"""Whole numbers and truth values: arithmetic, comparisons, and changes of type."""

import functools
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.graph.view import made_by
from intact.numerics.affine import Affine
from intact.numerics.backend_kernels import round_clip
from intact.numerics.fixed_point import multiplier, multiply
from intact.numerics.tensors import Tensor, is_symbolic, is_whole, to_numpy
from intact.ops.base import COUNTS, INTEGERS, Case, Op
from intact.ops.elementwise import broadcast_shape
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import known_class, register_op
from intact.ops.shape import of_one_rank
from intact.ops.table import Elementwise
from intact.ops.truncation import Truncated
from intact.rounding.kernel_rounding import KernelRounding

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Absolute": ("ABS", ("int32",)),
    "Add": ("ADD", COUNTS),
    "BitwiseRightShift": ("RIGHT_SHIFT", ("int32",)),
    "BitwiseXor": ("BITWISE_XOR", ("int32",)),
    "Equal": ("EQUAL", ("bool", *COUNTS)),
    "FloorDivide": ("FLOOR_DIV", ("int32",)),
    "Greater": ("GREATER", COUNTS),
    "GreaterEqual": ("GREATER_EQUAL", COUNTS),
    "Less": ("LESS", COUNTS),
    "LessEqual": ("LESS_EQUAL", COUNTS),
    "LogicalAnd": ("LOGICAL_AND", ("bool",)),
    "LogicalNot": ("LOGICAL_NOT", ("bool",)),
    "LogicalOr": ("LOGICAL_OR", ("bool",)),
    "LogicalXor": ("NOT_EQUAL", ("bool",)),
    "Maximum": ("MAXIMUM", COUNTS),
    "Minimum": ("MINIMUM", COUNTS),
    "Mod": ("FLOOR_MOD", COUNTS),
    "Multiply": ("MUL", COUNTS),
    "Negative": ("NEG", COUNTS),
    "NotEqual": ("NOT_EQUAL", ("bool", *COUNTS)),
    "Power": ("POW", ("int32",)),
    "Sign": ("SIGN", ("int32",)),
    "Subtract": ("SUB", COUNTS),
}
"""Per operation of Keras on whole numbers: its kernel, and the types that the kernel takes."""

LOGICAL = ("LogicalAnd", "LogicalNot", "LogicalOr", "LogicalXor")
TRUTHFUL = ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual", *LOGICAL)
"""The operations whose results are truth values."""

BITWISE = (
    *("BitwiseAnd", "BitwiseInvert", "BitwiseLeftShift", "BitwiseNot", "BitwiseOr"),
    *("BitwiseRightShift", "BitwiseXor", "LeftShift", "RightShift"),
)
"""The operations on the bits of whole numbers."""

FUSABLE = ("ADD", "MUL", "SUB")
"""The kernels with an option for a fused activation."""

NARROW = ("int8", "uint8", "int16")
"""The types that are computed in int32; cast back, the results wrap around."""


def _bitwise_and(layer: Any, a: Any, b: Any) -> Any:
    """The sum of two numbers is their XOR plus twice their AND; the lowest bits are products.

    Only halves are added, so nothing overflows.
    """
    high_a, high_b = ops.bitwise_right_shift(a, 1), ops.bitwise_right_shift(b, 1)
    high = high_a + high_b - ops.bitwise_xor(high_a, high_b)
    return high + (a - high_a * 2) * (b - high_b * 2)


EXPANSIONS: dict[str, Callable[..., Any]] = {
    "BitwiseAnd": _bitwise_and,
    "BitwiseInvert": lambda layer, x: -1 - x,
    "BitwiseLeftShift": lambda layer, x, bits: x * ops.power(2, bits),
    "BitwiseNot": lambda layer, x: -1 - x,
    "BitwiseOr": lambda layer, a, b: ops.bitwise_xor(a, b) + ops.bitwise_and(a, b),
    "LeftShift": lambda layer, x, bits: x * ops.power(2, bits),
    "RightShift": lambda layer, x, bits: ops.bitwise_right_shift(x, bits),
    "Clip": lambda layer, x: ops.minimum(ops.maximum(x, _limit(layer.x_min)), _limit(layer.x_max)),
    "Relu": lambda layer, x: ops.maximum(x, 0),
    "Square": lambda layer, x: x * x,
}
"""Operations made of others: functions of the operation and its operands."""


def _limit(value: Any) -> Any:
    """A limit as a whole number, if it is one."""
    return int(value) if float(value).is_integer() else value


@keras.saving.register_keras_serializable("intact")
class Convert(FunctionLayer):
    """Whole numbers or truth values in another type, which is the layer's `dtype`.

    Example:

    >>> keras.backend.standardize_dtype(Convert(dtype="float32")(np.array([1, 2])).dtype)
    'float32'
    """

    def call(self, x: Tensor) -> Tensor:
        """The same values in the layer's type."""
        return ops.cast(x, self.compute_dtype)


class WholeRounding(KernelRounding):
    """Whole numbers as real values: QUANTIZE of int32, in fixed point."""

    name = "whole"

    def real(self, pending: Any) -> Tensor:
        return ops.cast(pending, "float32")

    def quantize(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        steps = multiply(ops.cast(pending, "int32"), multiplier(1.0, 1.0, params.scale))
        return round_clip(ops.cast(steps, "float32"), low, high)

    def quantize_wide(self, pending: Any, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return self.quantize(pending, params, low, high)


@register_op
class Cast(Op):
    """Another type: whole numbers as real ones are quantized by their range.

    A step of the range is 1 or more, so that up to 255 whole numbers in a row are exact.
    """

    keras_layers = (Convert,)
    operations = ("Cast",)
    litert = ("CAST", "QUANTIZE")
    plain = (0,)
    dtypes = INTEGERS
    kernel_rounding = WholeRounding.name
    notes = "From real values to whole ones: a table."
    cases = (
        Case(lambda: lambda x: x * ops.cast(x > 0.0, "float32"), (4, 5)),
        Case(lambda: lambda x: layers.Dense(3)(ops.cast(ops.argmax(x, 1), "float32")), (4, 5)),
        Case(lambda: lambda x: ops.cast(x, "float32") * 0.5, (4,), low=-9, high=200, dtype="int32"),
        Case(lambda: layers.Rescaling(1 / 255), (4, 4, 3), low=0, high=255, dtype="uint8"),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if is_whole(x):
            return tracer.convert(x, layer.dtype, layer.name)
        if "float" in layer.dtype:
            return x
        if layer.dtype == "bool":
            return tracer.expand(layer, lambda x: ops.not_equal(x, 0.0), x)
        before, steps = made_by(x), []
        if isinstance(before.layer, Elementwise):
            # One table: between two, whole numbers would be rounded.
            (x,), steps = before.inputs, before.layer.steps
        y = tracer.emit(Truncated(steps, name=layer.name), x)
        return tracer.convert(y, layer.dtype)

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        return inputs[0]

    def pending_spec(self, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        return keras.KerasTensor(shape, inputs.dtype)

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        stays_whole = node.layer.compute_dtype != "float32"
        if stays_whole or not y.quantized:
            builder.convert(x, y)
            return
        if not x.quantized or y.scale != 1:
            # QUANTIZE takes whole numbers as int32 with a scale.
            counts = builder.tensor(x.shape, "int32", f"{y.name}/counts", scale=np.float32(1))
            builder.convert(x, counts)
            x = counts
        if (x.dtype, y.dtype) == ("int32", "uint8"):
            signed = builder.tensor(y.shape, "int8", f"{y.name}/signed", scale=y.scale)
            signed.zero_point = y.zero_point - 128
            builder.add("QUANTIZE", [x], [signed])
            x = signed
        builder.add("QUANTIZE", [x], [y])


@keras.saving.register_keras_serializable("intact")
class WholeNumbers(FunctionLayer):
    """An operation on whole numbers or truth values; the layer's `dtype` is that of the result.

    Args:
        kind: A name in `KINDS`.

    Example:

    >>> int(WholeNumbers("Mod", dtype="int32")([np.array(7), np.array(4)]))
    3
    """

    kind: str

    def call(self, inputs: Any) -> Tensor:
        """The results."""
        operands = inputs if isinstance(inputs, list) else [inputs]
        return ops.cast(Elementwise.function(self.kind)(*operands), self.compute_dtype)

    def compute_output_shape(self, shapes: Any) -> Any:
        shapes = shapes if isinstance(shapes[0], list | tuple) else [shapes]
        return functools.reduce(broadcast_shape, map(tuple, shapes))


@register_op
class WholeNumber(Op):
    """Arithmetic, comparisons and logic, by the kernels for int32, int64 or bool."""

    keras_layers = (WholeNumbers,)
    operations = (*LOGICAL, *BITWISE)
    litert = tuple(dict.fromkeys(kernel for kernel, _ in KINDS.values()))
    plain = (0, 1)
    notes = (
        "Of whole numbers also `add`, `subtract`, `multiply`, `floor_divide`, `mod`, `maximum`, "
        "`minimum`, `clip`, `abs`, `negative`, `sign`, `square`, `power`, `relu` and comparisons: "
        "they are never quantized."
    )
    cases = (
        Case(lambda: lambda x: ops.where(ops.logical_and(x > 0.0, x < 0.5), x, 0.0), (4, 5)),
        Case(
            lambda: lambda a, b: ops.where(ops.logical_or(ops.logical_not(a > 0), b > 0), a, b),
            [(4, 5), (4, 5)],
        ),
        Case(lambda: lambda x: ops.where(ops.not_equal(x, 0), 1.0, 0.5), (4,), dtype="int32"),
        Case(lambda: lambda x: ops.where(ops.equal(x, 2), 1.0, 0.5), (4,), high=3, dtype="int32"),
        Case(
            lambda: lambda a, b: ops.cast(ops.bitwise_or(a, b) - (a & b) * 2, "float32"),
            [(4,), (4,)],
            low=-9,
            high=9,
            dtype="int32",
        ),
        Case(
            lambda: lambda x: layers.Embedding(900, 3)((x * 31 + np.arange(4)) % 900 // 2),
            (4,),
            low=0,
            high=20000,
            dtype="int32",
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        operands = keras.tree.flatten([args, list(kwargs.values())])
        kind = kind_of(layer)
        if kind in EXPANSIONS:
            return tracer.expand(layer, partial(EXPANSIONS[kind], layer), *operands)
        if isinstance(layer, layers.Layer):
            operands = of_one_rank(operands, layer, tracer)
        y, *others = operands
        if not others:
            return self.emit(kind, layer, [y], tracer)
        for other in others:
            y = self.emit(kind, layer, [y, other], tracer)
        return y

    def emit(self, kind: str, layer: Any, operands: list[Any], tracer: Any) -> Any:
        """Replace a layer or operation by an operation on whole numbers.

        Args:
            kind: A name in `KINDS`.
            layer: The layer or operation, for names and errors.
            operands: Tensors of the new graph, arrays and numbers; one at least is a tensor.
            tracer: The tracer.
        """
        rank = max(len(x.shape) for x in operands if is_symbolic(x))
        if kind in LOGICAL:
            operands = [truths(x, layer.name, rank, tracer) for x in operands]
        types = KINDS[kind][1]
        dtype = common_type(operands)
        work = "int32" if dtype in NARROW else dtype
        if work not in types:
            tracer.refuse(
                layer,
                f"its values are {dtype}, and its kernel takes {' or '.join(types)}; put "
                f'`ops.cast(x, "{types[-1]}")` before it',
            )
        for x in operands:
            if not is_symbolic(x):
                self.check_constant(layer, to_numpy(x), rank, dtype, tracer)
        inputs = [
            tracer.convert(x, work)
            if is_symbolic(x)
            else tracer.constant(x, f"{layer.name}_constant", rank, work)
            for x in operands
        ]
        whole_layer = WholeNumbers(
            kind, name=layer.name, dtype="bool" if kind in TRUTHFUL else work
        )
        y = tracer.emit(whole_layer, inputs if len(inputs) > 1 else inputs[0])
        return y if kind in TRUTHFUL else tracer.convert(y, dtype)

    def check_constant(
        self, layer: Any, values: np.ndarray, rank: int, dtype: str, tracer: Any
    ) -> None:
        """Refuse a constant that does not fit tensors of a rank and a type."""
        if not fits(values, dtype):
            tracer.refuse(layer, f"its constant {values} has no place in {dtype}")
        if values.ndim > rank or (values.ndim == rank and values.shape[0] != 1):
            tracer.refuse(
                layer,
                f"its constant has shape {values.shape}, which does not leave the batch alone",
            )

    def lower(self, node: Any, builder: Any) -> None:
        kernel = KINDS[node.layer.kind][0]
        options = {"fusedActivationFunction": "NONE"} if kernel in FUSABLE else {}
        builder.add(kernel, node.inputs, [node.output], options)


def kind_of(layer: Any) -> str:
    """The name that a layer or operation would have in `KINDS`."""
    return (known_class(layer) if isinstance(layer, layers.Layer) else type(layer)).__name__


def counts(layer: Any, operands: Iterable[Any]) -> bool:
    """Whether a call of a layer or operation computes on whole numbers.

    Args:
        layer: The user's layer or operation.
        operands: The arguments of its call, flat.
    """
    kind, operands = kind_of(layer), list(operands)
    known = kind in KINDS or kind in EXPANSIONS
    return known and any(map(is_symbolic, operands)) and all(map(is_whole, operands))


def fits(values: np.ndarray, dtype: str) -> bool:
    """Whether whole numbers fit a type; truth values and real types take all."""
    if not dtype.startswith(("int", "uint")) or not values.size:
        return True
    limits = np.iinfo(dtype)
    return bool(limits.min <= values.min() and values.max() <= limits.max)


def common_type(values: Iterable[Any]) -> str:
    """The common type of tensors of whole numbers; constants adapt to it."""
    types = (
        x.dtype if is_symbolic(x) else bool if to_numpy(x).dtype == bool else int for x in values
    )
    return keras.backend.result_type(*types)


def truths(value: Any, name: str, rank: int, tracer: Any) -> Any:
    """Truth values as a tensor of the new graph; a number is true if it is not 0.

    Args:
        value: An array or a number, or a tensor already.
        name: A name for it.
        rank: The number of axes that it must have.
        tracer: The tracer.
    """
    if not is_symbolic(value):
        return tracer.constant(to_numpy(value) != 0, f"{name}_chosen", rank, "bool")
    if value.dtype == "bool":
        return value
    return tracer.expand(SimpleNamespace(name=name), lambda x: ops.not_equal(x, 0), value)


def whole_indices(x: Any, layer: Any, tracer: Any) -> Any:
    """A layer's indices; a model input of unknown type becomes one of whole numbers.

    Args:
        x: A tensor of the new graph.
        layer: The layer, for errors.
        tracer: The tracer.
    """
    if not (tracer.wants_integers(x) or is_whole(x)):
        tracer.refuse(
            layer,
            "its indices are computed in real numbers, which quantization rounds; compute them "
            'from an input of whole numbers, `keras.Input(..., dtype="int32")`',
        )
    return x
