"""Functions of each value alone, as tables of all the integers that a tensor can have.

A table of 8 bits has 256 entries, one of 16 bits has up to 65536. The entries of 16 bits are
computed in float64, because float32 cannot round them alike on all backends.
"""

from typing import Any, NamedTuple

import numpy as np

from intact.errors import IntactError
from intact.litert.builder import Builder
from intact.litert.runtime import load_litert
from intact.numerics.affine import Affine, QTensor, WideTensor
from intact.numerics.backend_kernels import inverse, round_clip, wide_types
from intact.numerics.exact import divide
from intact.numerics.light_ops import ops
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, symbols, to_numpy
from intact.rounding.kernel_rounding import KernelRounding, RealRounding

COST = "a table of up to 65536 entries (128 kB)"
"""How functions of one tensor compute on 16 bits."""

TRIMMED = 8192
"""The fewest equal entries at an end of a table that a clamp of the index replaces."""


FINITE = {
    "Celu",
    "Cos",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSilu",
    "HardTanh",
    "LeakyRelu",
    "LogSigmoid",
    "Mish",
    "Relu",
    "Relu6",
    "Selu",
    "Sigmoid",
    "Silu",
    "Sin",
    "Softplus",
    "Softsign",
    "Tanh",
    "TanhShrink",
}
"""Operations whose values and slopes are finite at every finite number."""


class TableValues(NamedTuple):
    """A function's values; with 16 bits they are `real + rest`, as float32 cannot hold them."""

    real: Tensor
    rest: Any = None

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "TableValues":
        """Their form in a graph."""
        return cls(*symbols(shape, shape))


class TableRounding(RealRounding):
    """As `real`; infinite values saturate, and do not count for the range.

    With 16 bits, the values are the sum of two float32 tensors, and are rounded in float64.
    """

    name = "table"
    takes = TableValues

    def real(self, pending: TableValues) -> Tensor:
        real = pending.real
        finite = ops.where(ops.isfinite(real), real, ops.zeros_like(real))
        return ops.clip(real, ops.min(finite), ops.max(finite))

    def quantize(self, pending: TableValues, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        return super().quantize(pending.real, params, low, high)

    def quantize_wide(
        self, pending: TableValues, params: Affine, low: Tensor, high: Tensor
    ) -> Tensor:
        real, rest = pending
        if rest is None:
            return self.quantize(pending, params, low, high)
        with wide_types():
            precise, rest, scale = (ops.cast(x, "float64") for x in (real, rest, params.scale))
            exact = ops.cast(ops.round(divide(precise + rest, scale)), "float32")
        smooth = real * inverse(params.scale)
        return round_clip(straight_through(exact, smooth), low, high)


class FiniteTableRounding(TableRounding):
    """The same for functions that are finite everywhere, which saves passes over the data."""

    name = "finite_table"

    def real(self, pending: TableValues) -> Tensor:
        return pending.real


def split(real: Tensor) -> tuple[Tensor, Tensor]:
    """Values of float64 as the sum of two float32 tensors; needs `wide_types`.

    Args:
        real: The values.

    Returns:
        `(real, rest)`: the nearest float32 values, and the remainders.
    """
    nearest = ops.cast(real, "float32")
    rest = ops.cast(real - ops.cast(nearest, "float64"), "float32")
    return nearest, ops.where(ops.isfinite(rest), rest, ops.zeros_like(rest))


def all_values(x: Any) -> QTensor:
    """Every value that a quantized tensor can have, in order.

    Args:
        x: The tensor, of a file.

    Returns:
        The values; a `WideTensor` of a tensor of 16 bits.
    """
    limits = np.iinfo(x.dtype)
    values = np.arange(limits.min, limits.max + 1) - x.zero_point
    kind = WideTensor if x.dtype == "int16" else QTensor
    values, scale, zero_point = (
        ops.convert_to_tensor(v, "float32") for v in (values, x.scale, x.zero_point)
    )
    return kind(values, scale, zero_point, ops.ones((), "bool"))


def entries(pending: Any, kernel_rounding: KernelRounding, y: Any) -> np.ndarray:
    """The table of a function.

    Args:
        pending: The result of the op's `call` on `all_values` of the input.
        kernel_rounding: How it is rounded.
        y: The output, a tensor of a file.

    Returns:
        The stored integers of the output.
    """
    scale, zero_point = (ops.convert_to_tensor(v, "float32") for v in (y.scale, y.zero_point))
    limits = np.iinfo(y.dtype)
    params = Affine(scale, zero_point)
    rounded = kernel_rounding.quantize_wide if y.dtype == "int16" else kernel_rounding.quantize
    values = rounded(pending, params, limits.min - zero_point, limits.max - zero_point)
    return (to_numpy(values) + y.zero_point).astype(y.dtype)


def look_up(
    x: Any,
    y: Any,
    table: np.ndarray,
    builder: Any,
    kernel: str | None = None,
    options: dict[str, Any] | None = None,
) -> None:
    """Add the ops that look up each value in a table.

    Args:
        x: The input, of 8 or 16 bits.
        y: The output.
        table: The stored integer of the output for each of the input, in order.
        builder: The file's builder.
        kernel: A kernel that replaces the table if it computes the same values; or None.
        options: The kernel's options.
    """
    options = options or {}
    if kernel and _has_table(kernel, options, x, y, table):
        builder.add(kernel, [x], [y], options)
        return
    start, stop = _varying(table)
    index = _index(x, start, stop, len(table), builder)
    values = table[start:stop]
    values = builder.constant(values, f"{y.name}/table", scale=y.scale, zero_point=y.zero_point)
    builder.add("GATHER", [values, index], [y], {"axis": 0})


def _index(x: Any, start: int, stop: int, size: int, builder: Any) -> Any:
    """The index of each value in a part of a table, an int32 tensor that equal tables share."""

    def make() -> Any:
        # BITCAST in place of ADD would be a fifth faster, but microcontrollers lack it.
        index = builder.like(x, x.shape, dtype="int32")
        builder.convert(x, index)
        first = int(np.iinfo(x.dtype).min)
        for limit, kernel, needed in (
            (first + start, "MAXIMUM", start > 0),
            (first + stop - 1, "MINIMUM", stop < size),
        ):
            if needed:
                free, index = index, builder.like(x, x.shape, dtype="int32")
                builder.add(kernel, [free, builder.constant(np.array(limit, "int32"))], [index])
        if first + start:
            stored, index = index, builder.like(x, x.shape, dtype="int32")
            offset = builder.constant(np.array(-first - start, "int32"))
            builder.add("ADD", [stored, offset], [index], {"fusedActivationFunction": "NONE"})
        return index

    return builder.once((x.index, start, stop), make)


def _varying(table: np.ndarray) -> tuple[int, int]:
    """The part of a table to store: without long runs of one value at its ends."""
    changes = np.flatnonzero(np.diff(table))
    if not changes.size:
        changes = np.array([0])
    start, stop = int(changes[0]), int(changes[-1]) + 2
    return start if start >= TRIMMED else 0, stop if len(table) - stop >= TRIMMED else len(table)


def _has_table(kernel: str, options: dict[str, Any], x: Any, y: Any, table: np.ndarray) -> bool:
    """Whether an integer kernel computes exactly the values of a table."""
    builder = Builder("")
    source, target = (
        builder.tensor(table.shape, t.dtype, name, scale=t.scale, zero_point=t.zero_point)
        for name, t in (("x", x), ("y", y))
    )
    builder.add(kernel, [source], [target], options)
    limits = np.iinfo(x.dtype)
    try:
        model = load_litert(builder.finish([("x", source)], [("y", target)]))
        computed = model.predict(np.arange(limits.min, limits.max + 1).astype(x.dtype), raw=True)
    except IntactError:
        return False
    return np.array_equal(computed, table)
