"""Conditions under which an op needs a later version of its kernel.

Each condition takes an op that is being written, or one that was read from a file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class AnyOp(Protocol):
    """An op of a file, written or read. Its tensors have `dtype`, `shape` and `scales`."""

    @property
    def inputs(self) -> Sequence[Any]:
        """The inputs; None for an optional one."""
        ...

    @property
    def outputs(self) -> Sequence[Any]:
        """The outputs."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Fields of the options table, by the schema's names."""
        ...


def _rank(op: AnyOp) -> int:
    return max((len(t.shape) for t in (*op.inputs, *op.outputs) if t is not None), default=0)


def _broadcasts(op: AnyOp) -> bool:
    return len({t.shape for t in op.inputs if t is not None}) > 1


def _is_grouped(op: AnyOp) -> bool:
    x, kernel = op.inputs[:2]
    return bool(x and kernel and x.shape and kernel.shape and x.shape[-1] != kernel.shape[-1])


def _is_dilated(op: AnyOp) -> bool:
    factors = (op.options.get(f"dilation{axis}Factor", 1) for axis in "HW")
    return any(factor != 1 for factor in factors)


def _has_bias(op: AnyOp, index: int) -> bool:
    return len(op.inputs) > index and op.inputs[index] is not None


def _product_is_large(op: AnyOp) -> bool:
    scales = [t.scales[0] for t in (*op.inputs, *op.outputs) if t is not None and len(t.scales)]
    return len(scales) == 3 and bool(scales[0] * scales[1] >= scales[2])


def _has_type(dtype: str) -> Callable[[AnyOp], bool]:
    return lambda op: any(t is not None and t.dtype == dtype for t in op.inputs[1:2])


def _is_per_channel(op: AnyOp) -> bool:
    return any(t is not None and len(t.scales) > 1 for t in (*op.inputs, *op.outputs))


def _is_hybrid_per_channel(op: AnyOp) -> bool:
    weights = op.inputs[1]
    return op.outputs[0].dtype == "float32" and weights is not None and len(weights.scales) > 1


CONDITIONS: dict[str, Callable[[AnyOp], Any]] = {
    "16-bit indices": _has_type("int16"),
    "16-bit output": lambda op: op.outputs[0].dtype == "int16",
    "2-bit weights": _has_type("int2"),
    "4-bit weights": _has_type("int4"),
    "8-bit data": lambda op: op.outputs[0].dtype == "int8",
    "batch dimensions": lambda op: op.options.get("batchDims"),
    "bias": lambda op: _has_bias(op, 3),
    "dilated": _is_dilated,
    "ellipsis or new axis": lambda op: (
        op.options.get("ellipsisMask") or op.options.get("newAxisMask")
    ),
    "exactly 5 dimensions": lambda op: _rank(op) == 5,
    "float data, weights per channel": _is_hybrid_per_channel,
    "fused activation": lambda op: op.options.get("fusedActivationFunction", "NONE") != "NONE",
    "grouped": _is_grouped,
    "half-pixel centers": lambda op: op.options.get("halfPixelCenters"),
    "half-pixel centers or aligned corners": lambda op: (
        op.options.get("halfPixelCenters") or op.options.get("alignCorners")
    ),
    "keeps dimensions": lambda op: op.options.get("keepNumDims"),
    "large product of scales": _product_is_large,
    "more than 4 dimensions": lambda op: _rank(op) > 4,
    "more than 4 dimensions, broadcast": lambda op: _rank(op) > 4 and _broadcasts(op),
    "more than 5 dimensions": lambda op: _rank(op) > 5,
    "no bias": lambda op: not _has_bias(op, 2),
    "not 4 dimensions": lambda op: len(op.outputs[0].shape) != 4,
    "per channel": _is_per_channel,
    "weights per channel": lambda op: op.inputs[1] is not None and len(op.inputs[1].scales) > 1,
}
"""Whether an op meets a condition, by the condition's name in `Kernel.later`."""
