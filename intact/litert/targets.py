"""The targets, and which kernels are there: measured on the real runtimes and compilers.

One op at a time, by `benchmarks/targets.py kernels`; that of the Edge TPU by its documentation.
"""

import re
from dataclasses import dataclass

from intact.errors import IntactError
from intact.litert import edge_tpu


@dataclass(frozen=True)
class Target:
    """A place where files run.

    Args:
        title: What it is called in sentences.
        fixed_sizes: Whether it takes files of fixed sizes alone.
        host: The target that runs what this one does not take: "litert" runs everything, and
            none nothing.
        never: What its compiler takes no file with.
    """

    title: str
    fixed_sizes: bool
    host: str
    never: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    "xnnpack": Target("XNNPACK", fixed_sizes=False, host="litert"),
    "tflite-micro": Target("TFLite Micro", fixed_sizes=True, host=""),
    "ethos-u55": Target("Ethos-U55", True, host="tflite-micro", never=("int2", "int4")),
    "ethos-u65": Target("Ethos-U65", True, host="tflite-micro", never=("int2", "int4")),
    "ethos-u85": Target("Ethos-U85", True, host="tflite-micro", never=("int2", "int4")),
    "edgetpu": Target("Edge TPU", fixed_sizes=True, host="litert"),
}
"""The targets; LiteRT itself runs every op that intact writes."""

_LETTERS = {
    "X": "xnnpack",
    "M": "tflite-micro",
    "5": "ethos-u55",
    "6": "ethos-u65",
    "8": "ethos-u85",
}


def _on(**letters: str) -> dict[str, frozenset[str]]:
    """Per type, the targets, each a letter."""
    return {dtype: frozenset(_LETTERS[one] for one in found) for dtype, found in letters.items()}


RUNS_ON: dict[str, dict[str, frozenset[str]]] = {
    "ABS": _on(int8="M568", int16="M568", float32="XM"),
    "ADD": _on(int8="XM568", int16="M568", uint8="X568", int32="M568", float32="XM"),
    "ARG_MAX": _on(int8="M568", uint8="568", float32="M"),
    "AVERAGE_POOL_2D": _on(int8="M568", int16="M568", uint8="568", float32="XM"),
    "BATCH_MATMUL": _on(int8="XM568", int16="M8", float32="XM"),
    "BROADCAST_TO": _on(int8="M", int16="M"),
    "CAST": _on(int8="M8", int32="M", bool="M", float32="M"),
    "CEIL": _on(float32="XM"),
    "CONCATENATION": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "CONV_2D": _on(int8="XM568", int16="M568", uint8="X568", int4="M", float32="XM", hybrid="X"),
    "COS": _on(float32="XM"),
    "CUMSUM": _on(float32="M"),
    "DEPTHWISE_CONV_2D": _on(int8="XM568", int16="M568", uint8="568", int4="M", float32="XM"),
    "DEPTH_TO_SPACE": _on(int8="XM", uint8="X", float32="XM"),
    "DEQUANTIZE": _on(int8="XM", int16="M", uint8="XM", float16="X", int8_per_channel="X"),
    "DIV": _on(float32="XM"),
    "ELU": _on(int8="XM568", float32="XM"),
    "EQUAL": _on(int32="M8", bool="M", float32="M"),
    "EXP": _on(int8="568", float32="XM"),
    "EXPAND_DIMS": _on(int8="M568", int16="M568"),
    "FLOOR": _on(float32="XM"),
    "FLOOR_DIV": _on(),
    "FLOOR_MOD": _on(),
    "FULLY_CONNECTED": _on(
        int8="XM568", int16="M568", uint8="X568", int4="X", int2="X", float32="XM", hybrid="X"
    ),
    "GATHER": _on(int8="M8", int16="8", uint8="8", int32="M8", float32="M"),
    "GELU": _on(int8="568", float32="X"),
    "GREATER": _on(int32="M8", float32="M"),
    "GREATER_EQUAL": _on(int8="M8", int32="M8", float32="M"),
    "HARD_SWISH": _on(int8="M568", uint8="568", float32="XM"),
    "LEAKY_RELU": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "LESS": _on(int8="M8", int32="M8", float32="M"),
    "LESS_EQUAL": _on(int32="M8", float32="M"),
    "LOG": _on(int8="568", float32="XM"),
    "LOGICAL_AND": _on(bool="M8"),
    "LOGICAL_NOT": _on(bool="M8"),
    "LOGICAL_OR": _on(bool="M8"),
    "LOGISTIC": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "LOG_SOFTMAX": _on(int8="M", float32="M"),
    "MAXIMUM": _on(int8="M568", int16="M568", uint8="568", float32="XM"),
    "MAX_POOL_2D": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "MEAN": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "MINIMUM": _on(int8="M568", int16="M568", uint8="568", float32="XM"),
    "MIRROR_PAD": _on(int8="M568", int16="568"),
    "MUL": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "NEG": _on(float32="XM"),
    "NOT_EQUAL": _on(int32="M8", bool="M", float32="M"),
    "PAD": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "POW": _on(),
    "PRELU": _on(int8="M568", int16="568"),
    "QUANTIZE": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "REDUCE_ALL": _on(),
    "REDUCE_ANY": _on(),
    "REDUCE_MAX": _on(int8="XM568", int16="568", uint8="X568", float32="XM"),
    "REDUCE_MIN": _on(int8="XM568", int16="568", uint8="X568", float32="XM"),
    "RELU": _on(int8="M568", int16="M568", float32="XM"),
    "RELU6": _on(int8="M568", int16="M568", float32="XM"),
    "RESHAPE": _on(int8="XM568", int16="M568", uint8="XM568", int32="M568", float32="XM"),
    "RESIZE_BILINEAR": _on(int8="XM568", int16="568", uint8="X568", float32="XM"),
    "RESIZE_NEAREST_NEIGHBOR": _on(int8="M568", int16="M568", uint8="568", float32="M"),
    "REVERSE_V2": _on(int8="M8", int16="M8"),
    "ROUND": _on(float32="XM"),
    "RSQRT": _on(float32="XM"),
    "SELECT_V2": _on(int8="M8", int16="M8", bool="M8"),
    "SIGN": _on(),
    "SIN": _on(float32="XM"),
    "SLICE": _on(int8="XM568", int16="M568"),
    "SOFTMAX": _on(int8="M568", int16="M568", uint8="568", float32="XM"),
    "SPACE_TO_DEPTH": _on(int8="XM", uint8="X", float32="XM"),
    "SPLIT": _on(int8="XM568", int16="M568"),
    "SQRT": _on(float32="XM"),
    "SQUARE": _on(float32="XM"),
    "SQUEEZE": _on(int8="M568", int16="M568"),
    "STRIDED_SLICE": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "SUB": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "SUM": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "TANH": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "TILE": _on(int8="568", int16="568"),
    "TRANSPOSE": _on(int8="XM568", int16="M568", uint8="X568", float32="XM"),
    "TRANSPOSE_CONV": _on(int8="XM568", int16="M568", uint8="X568", float32="XM", hybrid="X"),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _on(int8="M568", int16="M568"),
}
"""Per op of LiteRT and what it works on, the targets that take it; some with limits on shapes.

That is the type of its data, but "int2" and "int4" for weights of these widths, "hybrid" for float
data and integer weights, and "int8_per_channel" for constants with many scales (which TFLite Micro
takes, and gets wrong).
"""


def get_target(name: str) -> str:
    """The name of a target in `TARGETS`.

    Args:
        name: That name; an Ethos-U may have its number of MACs behind it.

    Returns:
        The name.

    Raises:
        IntactError: There is no such target.

    Example:

    >>> get_target("ethos-u55-128")
    'ethos-u55'
    """
    found = re.sub(r"^(ethos-u\d+)-\d+$", r"\1", str(name))
    if found not in TARGETS:
        raise IntactError(
            f"There is no target {name!r}. Known targets: {', '.join(TARGETS)}; an Ethos-U with "
            "its number of MACs, too, as in 'ethos-u55-128'."
        )
    return found


def runs(kernel: str, dtype: str, target: str, host: bool = True) -> bool:
    """Whether a target has a kernel.

    Args:
        kernel: The op's name in the schema.
        dtype: What it works on, as in `RUNS_ON`.
        target: The target, as for `get_target`.
        host: Whether the processor beside it counts, too.

    Returns:
        Whether there is one, for some shapes at least.

    Example:

    >>> runs("GATHER", "int8", "ethos-u55"), runs("GATHER", "int8", "ethos-u55", host=False)
    (True, False)
    """
    base = get_target(target)
    if dtype in TARGETS[base].never:
        return False
    if base == "edgetpu":
        taken = kernel in edge_tpu.OPS and dtype in edge_tpu.TYPES
    else:
        taken = base in RUNS_ON.get(kernel, {}).get(dtype, ())
    beside = TARGETS[base].host if host else ""
    return taken or beside == "litert" or (bool(beside) and runs(kernel, dtype, beside))
