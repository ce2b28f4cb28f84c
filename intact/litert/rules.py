"""What the integer kernels ask of a file, as data: one entry per op.

Measured on ai-edge-litert 2.3.0. The runtime itself checks little of this: where a rule is
broken, most kernels compute something else without a word.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from intact.litert.reader import FileOp

FREE = "free"
"""Scales of inputs and output are independent."""

SAME = "same"
"""The output has the scale and zero point of the data input."""

ALL_SAME = "all same"
"""All data inputs have the scale and zero point of the output."""

Fixed = dict[str, tuple[float, int]]
"""Or the output's scale and zero point are prescribed, by type."""

SILENT = "computes wrong values without a word"
REJECTED = "LiteRT refuses the file"
REQUANTIZED = "LiteRT requantizes, other runtimes may not"


@dataclass(frozen=True)
class OpRule:
    """What one op asks for.

    Args:
        versions: The lowest version by the type of the data; types that are not here are
            not checked.
        later: Versions that its use asks for, by the name of a condition in `CONDITIONS`.
        optional: Those conditions that allow the version, and do not ask for it.
        scales: `FREE`, `SAME`, `ALL_SAME`, or what the output must have.
        data: Places of the inputs that scales are about; none stands for all.
        mismatch: What happens where they differ; by type, where that depends on it.
        weights: Places of data, weights and bias, and the axis of the weights' channels.
        narrow: The types of less than 8 bits that weights may have.
        broken: Types for which the kernel is wrong or missing, and why.
        inexact: Types for which it is imprecise, and how much.
    """

    versions: dict[str, int]
    scales: str | Fixed = FREE
    later: dict[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    data: tuple[int, ...] = (0,)
    mismatch: str | dict[str, str] = SILENT
    weights: tuple[int, int, int, int] | None = None
    narrow: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)

    def on_mismatch(self, dtype: str) -> str:
        """What happens where scales of a type differ: `SILENT`, `REJECTED` or `REQUANTIZED`."""
        return self.mismatch if isinstance(self.mismatch, str) else self.mismatch[dtype]


def _rank(op: FileOp) -> int:
    return max((len(t.shape) for t in (*op.inputs, *op.outputs) if t is not None), default=0)


def _broadcasts(op: FileOp) -> bool:
    return len({t.shape for t in op.inputs if t is not None}) > 1


def _is_grouped(op: FileOp) -> bool:
    x, kernel = op.inputs[:2]
    return bool(x and kernel and x.shape and kernel.shape and x.shape[-1] != kernel.shape[-1])


def _has_bias(op: FileOp, place: int) -> bool:
    return len(op.inputs) > place and op.inputs[place] is not None


def _product_is_large(op: FileOp) -> bool:
    scales = [t.scales[0] for t in (*op.inputs, *op.outputs) if t is not None and t.quantized]
    return len(scales) == 3 and scales[0] * scales[1] >= scales[2]


def _has_short_indices(op: FileOp) -> bool:
    return any(t is not None and t.dtype == "int16" for t in op.inputs[1:2])


def _weights_are(dtype: str) -> Callable[[FileOp], bool]:
    return lambda op: any(t is not None and t.dtype == dtype for t in op.inputs[1:2])


def _is_per_channel(op: FileOp) -> bool:
    return any(t is not None and len(t.scales) > 1 for t in (*op.inputs, *op.outputs))


CONDITIONS: dict[str, Callable[[FileOp], Any]] = {
    "16-bit indices": _has_short_indices,
    "2-bit weights": _weights_are("int2"),
    "4-bit weights": _weights_are("int4"),
    "8-bit data": lambda op: op.outputs[0].dtype == "int8",
    "batch dimensions": lambda op: op.options["batch_dims"],
    "bias": lambda op: _has_bias(op, 3),
    "dilated, in float": lambda op: (
        op.outputs[0].dtype == "float32"
        and (op.options["dilation_h"], op.options["dilation_w"]) != (1, 1)
    ),
    "ellipsis or new axis": lambda op: op.options["ellipsis"] or op.options["new_axis"],
    "exactly 5 dimensions": lambda op: _rank(op) == 5,
    "fused activation": lambda op: op.options["activation"],
    "grouped": _is_grouped,
    "half-pixel centers": lambda op: op.options["half_pixel"],
    "half-pixel centers or aligned corners": lambda op: (
        op.options["half_pixel"] or op.options["align_corners"]
    ),
    "keeps dimensions": lambda op: op.options["keep_dims"],
    "large product of scales": _product_is_large,
    "more than 4 dimensions": lambda op: _rank(op) > 4,
    "more than 4 dimensions, broadcast": lambda op: _rank(op) > 4 and _broadcasts(op),
    "more than 5 dimensions": lambda op: _rank(op) > 5,
    "no bias": lambda op: not _has_bias(op, 2),
    "not 4 dimensions": lambda op: len(op.outputs[0].shape) != 4,
    "per channel": _is_per_channel,
}


def _versions(int8: int, int16: int | None = None, float32: int = 1) -> dict[str, int]:
    found = {"float32": float32, "int8": int8}
    return found if int16 is None else {**found, "int16": int16}


_LOGISTIC = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)}
_NO_KERNEL = {"int8": "there is no int8 kernel"}
_ROUNDED = "the kernel is off by up to {} of 65536 steps"

RULES: dict[str, OpRule] = {
    # Arithmetic.
    "ABS": OpRule(_versions(2, 3)),
    "ADD": OpRule(_versions(2, 3), data=(0, 1)),
    "BATCH_MATMUL": OpRule(_versions(2, 3), data=(0, 1)),
    "CEIL": OpRule({}, broken=_NO_KERNEL),
    "COS": OpRule({}, broken=_NO_KERNEL),
    "CUMSUM": OpRule({}, broken=_NO_KERNEL),
    "DIV": OpRule(_versions(1), data=(0, 1)),
    "ELU": OpRule(_versions(1)),
    "EXP": OpRule(_versions(2, 2), inexact={"int16": _ROUNDED.format(87)}),
    "FLOOR": OpRule({}, broken=_NO_KERNEL),
    "FLOOR_MOD": OpRule({}, data=(0, 1)),
    "FLOOR_DIV": OpRule(
        {}, data=(0, 1), broken={"int8": "the int8 kernel ignores scales and zero points"}
    ),
    "GELU": OpRule(_versions(2)),
    "HARD_SWISH": OpRule(_versions(1)),
    "L2_POOL_2D": OpRule({}, broken=_NO_KERNEL),
    "LEAKY_RELU": OpRule(_versions(1, 2)),
    "LOCAL_RESPONSE_NORMALIZATION": OpRule({}, broken=_NO_KERNEL),
    "LOG": OpRule(_versions(2, 2), inexact={"int16": _ROUNDED.format(37)}),
    "MEAN": OpRule(_versions(2, 3)),
    "MUL": OpRule(_versions(2, 4), later={"large product of scales": 3}, data=(0, 1)),
    # Right only where there is nothing to ignore.
    "NEG": OpRule(_versions(1), broken={"int8": "the int8 kernel ignores scales and zero points"}),
    "POW": OpRule({}, data=(0, 1), broken=_NO_KERNEL),
    "PRELU": OpRule(_versions(1), data=(0, 1)),
    "REDUCE_PROD": OpRule(_versions(2)),
    "RELU": OpRule(_versions(2, 3)),
    "RELU6": OpRule(_versions(2, 3)),
    "RELU_0_TO_1": OpRule(_versions(1)),
    "RELU_N1_TO_1": OpRule(_versions(1)),
    "ROUND": OpRule({}, broken=_NO_KERNEL),
    "RSQRT": OpRule(_versions(2, 3), inexact={"int16": _ROUNDED.format(611)}),
    "SIGN": OpRule({}, broken=_NO_KERNEL),
    "SIN": OpRule({}, broken=_NO_KERNEL),
    "SQRT": OpRule(_versions(2, 2)),
    "SQUARE": OpRule({}, broken=_NO_KERNEL),
    "SQUARED_DIFFERENCE": OpRule(_versions(2), data=(0, 1)),
    "SUB": OpRule(_versions(2, 5), later={"more than 4 dimensions, broadcast": 3}, data=(0, 1)),
    "SUM": OpRule(_versions(2)),
    # Comparisons, logic and indices.
    "ARG_MAX": OpRule({"float32": 1, "int8": 2, "uint8": 1}),
    "ARG_MIN": OpRule({"float32": 1, "int8": 2, "uint8": 1}),
    "CAST": OpRule({}),
    "EQUAL": OpRule(_versions(2, 4), data=(0, 1)),
    "GREATER": OpRule(_versions(2), data=(0, 1)),
    "GREATER_EQUAL": OpRule(_versions(2, 3), data=(0, 1)),
    "LESS": OpRule(_versions(2, 3), data=(0, 1)),
    "LESS_EQUAL": OpRule(_versions(2), data=(0, 1)),
    "LOGICAL_AND": OpRule({}, data=(0, 1)),
    "LOGICAL_NOT": OpRule({}),
    "LOGICAL_OR": OpRule({}, data=(0, 1)),
    "NOT_EQUAL": OpRule(_versions(2, 4), data=(0, 1)),
    "REDUCE_ALL": OpRule({}),
    "REDUCE_ANY": OpRule({}),
    # Sums of products.
    "CONV_3D": OpRule({"float32": 1}, broken=_NO_KERNEL),
    "CONV_3D_TRANSPOSE": OpRule({"float32": 1}, data=(2,), broken=_NO_KERNEL),
    "CONV_2D": OpRule(
        _versions(3),
        later={"grouped": 6, "4-bit weights": 7},
        weights=(0, 1, 2, 0),
        narrow=("int4",),
    ),
    "DEPTHWISE_CONV_2D": OpRule(
        _versions(3),
        later={"dilated, in float": 2, "4-bit weights": 7},
        weights=(0, 1, 2, 3),
        narrow=("int4",),
    ),
    "FULLY_CONNECTED": OpRule(
        _versions(4),
        later={"keeps dimensions": 5, "no bias": 6, "4-bit weights": 10, "2-bit weights": 14},
        # Needed by two inputs; writers differ over a third one that is left out.
        optional=("no bias",),
        weights=(0, 1, 2, 0),
        narrow=("int2", "int4"),
    ),
    # The weights of a gate have one scale.
    "UNIDIRECTIONAL_SEQUENCE_LSTM": OpRule(_versions(1), weights=(0, 1, 12, 0)),
    "TRANSPOSE_CONV": OpRule(
        _versions(2), later={"bias": 3, "fused activation": 4}, weights=(2, 1, 3, 0), data=(2,)
    ),
    # Fixed outputs.
    "L2_NORMALIZATION": OpRule(
        _versions(2), {"int8": (1 / 128, 0), "uint8": (1 / 128, 128)}, mismatch=REJECTED
    ),
    "LOGISTIC": OpRule(_versions(2, 3), _LOGISTIC, mismatch=REJECTED),
    "LOG_SOFTMAX": OpRule(
        _versions(2), {"int8": (16 / 256, 127), "uint8": (16 / 256, 255)}, mismatch=REJECTED
    ),
    "SOFTMAX": OpRule(_versions(2, 3), _LOGISTIC, mismatch=REJECTED),
    "TANH": OpRule(
        _versions(2, 3),
        {"int8": (1 / 128, 0), "uint8": (1 / 128, 128), "int16": (1 / 32768, 0)},
        mismatch=REQUANTIZED,
    ),
    # Ops that move values, or choose among them.
    "AVERAGE_POOL_2D": OpRule(_versions(2, 3), SAME),
    "BROADCAST_TO": OpRule(_versions(3, 3, float32=2), SAME),
    "CONCATENATION": OpRule(
        _versions(2, 3),
        ALL_SAME,
        data=(),
        mismatch={"int8": REJECTED, "uint8": REQUANTIZED, "int16": SILENT},
    ),
    # Converters write version 2 for int8, and LiteRT's reference kernels know version 1 alone.
    "DEPTH_TO_SPACE": OpRule(_versions(1), SAME, later={"8-bit data": 2}, optional=("8-bit data",)),
    "EXPAND_DIMS": OpRule(_versions(1), SAME, mismatch=REJECTED),
    "GATHER": OpRule(_versions(2, 4), SAME, later={"batch dimensions": 5, "16-bit indices": 6}),
    "GATHER_ND": OpRule(_versions(1, 3), SAME),
    "MAXIMUM": OpRule(_versions(2, 4), ALL_SAME, data=()),
    "MAX_POOL_2D": OpRule(_versions(2, 3), SAME),
    "MINIMUM": OpRule(_versions(2, 4), ALL_SAME, data=()),
    "MIRROR_PAD": OpRule(_versions(2, 3), SAME, mismatch=REJECTED),
    "PACK": OpRule(_versions(2, 3), ALL_SAME, data=(), mismatch=REJECTED),
    "PAD": OpRule(_versions(2, 3), SAME, later={"more than 4 dimensions": 4}),
    "PADV2": OpRule(_versions(2, 3), ALL_SAME, later={"more than 4 dimensions": 4}, data=(0, 2)),
    "REDUCE_MAX": OpRule(_versions(2, 3), SAME),
    "REDUCE_MIN": OpRule(_versions(2, 3), SAME),
    "RESHAPE": OpRule(_versions(1), SAME),
    "RESIZE_BILINEAR": OpRule(_versions(2, 4), SAME, later={"half-pixel centers": 3}),
    "RESIZE_NEAREST_NEIGHBOR": OpRule(
        _versions(2, 4), SAME, later={"half-pixel centers or aligned corners": 3}
    ),
    "REVERSE_V2": OpRule({"int8": 3}, SAME),
    "SELECT": OpRule({}, ALL_SAME, data=(1, 2)),
    "SELECT_V2": OpRule(_versions(1), ALL_SAME, data=(1, 2)),
    "SLICE": OpRule(_versions(2, 4), SAME, later={"more than 4 dimensions": 5}),
    "SPACE_TO_BATCH_ND": OpRule(
        _versions(2, 4), SAME, later={"not 4 dimensions": 3}, mismatch=REJECTED
    ),
    "SPACE_TO_DEPTH": OpRule(_versions(2), SAME),
    "SPLIT": OpRule(_versions(2, 4), SAME, data=(1,)),
    "SQUEEZE": OpRule(_versions(1), SAME),
    "STRIDED_SLICE": OpRule(
        _versions(2), SAME, later={"more than 4 dimensions": 4, "ellipsis or new axis": 6}
    ),
    "TILE": OpRule({"int8": 3}, SAME),
    "TRANSPOSE": OpRule(
        _versions(2, 5), SAME, later={"exactly 5 dimensions": 4, "more than 5 dimensions": 6}
    ),
    "UNPACK": OpRule(_versions(2, 4), SAME, mismatch=REJECTED),
    # Conversions.
    "DEQUANTIZE": OpRule({"uint8": 1, "int8": 2, "int16": 3}, later={"per channel": 5}),
    "QUANTIZE": OpRule({"float32": 1, "int8": 1, "int16": 2}, later={"per channel": 3}),
}

# Ops whose integers need no scale: they compare, count or convert.
UNSCALED = (
    "ABS",
    "CAST",
    "CUMSUM",
    "EQUAL",
    "FLOOR_DIV",
    "FLOOR_MOD",
    "GREATER",
    "GREATER_EQUAL",
    "LESS",
    "LESS_EQUAL",
    "NEG",
    "NOT_EQUAL",
    "POW",
    "SIGN",
)
