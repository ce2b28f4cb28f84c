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
    """

    title: str
    fixed_sizes: bool
    host: str


TARGETS: dict[str, Target] = {
    "xnnpack": Target("XNNPACK", fixed_sizes=False, host="litert"),
    "tflite-micro": Target("TFLite Micro", fixed_sizes=True, host=""),
    "ethos-u55": Target("Ethos-U55", fixed_sizes=True, host="tflite-micro"),
    "ethos-u65": Target("Ethos-U65", fixed_sizes=True, host="tflite-micro"),
    "ethos-u85": Target("Ethos-U85", fixed_sizes=True, host="tflite-micro"),
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
    "ABS": _on(int8="M568", int16="M568"),
    "ADD": _on(int8="XM568", int16="M568", int32="M568"),
    "ARG_MAX": _on(int8="M568"),
    "AVERAGE_POOL_2D": _on(int8="M568", int16="M568"),
    "BATCH_MATMUL": _on(int8="XM568", int16="M8"),
    "BROADCAST_TO": _on(int8="M", int16="M"),
    "CAST": _on(int8="M8", int32="M8"),
    "CONCATENATION": _on(int8="XM568", int16="M568"),
    "CONV_2D": _on(int8="XM568", int16="M568"),
    "DEPTHWISE_CONV_2D": _on(int8="XM568", int16="M568"),
    "ELU": _on(int8="XM568"),
    "EXP": _on(int8="568"),
    "EXPAND_DIMS": _on(int8="M568", int16="M568"),
    "FULLY_CONNECTED": _on(int8="XM568", int16="M568"),
    "GATHER": _on(int8="M8", int16="8", int32="M8"),
    "GELU": _on(int8="568"),
    "GREATER_EQUAL": _on(int8="M8", int32="M8"),
    "HARD_SWISH": _on(int8="M568"),
    "LEAKY_RELU": _on(int8="XM568", int16="M568"),
    "LESS": _on(int8="M8", int32="M8"),
    "LOG": _on(int8="568"),
    "LOGISTIC": _on(int8="XM568", int16="M568"),
    "LOG_SOFTMAX": _on(int8="M"),
    "MAXIMUM": _on(int8="M568", int16="M568"),
    "MAX_POOL_2D": _on(int8="XM568", int16="M568"),
    "MEAN": _on(int8="XM568", int16="M568"),
    "MINIMUM": _on(int8="M568", int16="M568"),
    "MIRROR_PAD": _on(int8="M568", int16="568"),
    "MUL": _on(int8="XM568", int16="M568"),
    "PAD": _on(int8="XM568", int16="M568"),
    "PRELU": _on(int8="M568", int16="568"),
    "QUANTIZE": _on(int8="XM568", int16="M568", float32="XM"),
    "REDUCE_MAX": _on(int8="XM568", int16="568"),
    "REDUCE_MIN": _on(int8="XM568", int16="568"),
    "RELU": _on(int8="M568", int16="M568"),
    "RESHAPE": _on(int8="XM568", int16="M568", int32="M568"),
    "RESIZE_BILINEAR": _on(int8="XM568", int16="568"),
    "RESIZE_NEAREST_NEIGHBOR": _on(int8="M568", int16="M568"),
    "REVERSE_V2": _on(int8="M8", int16="M8"),
    "SELECT_V2": _on(int8="M8", int16="M8", bool="M8"),
    "SLICE": _on(int8="XM568", int16="M568"),
    "SOFTMAX": _on(int8="M568", int16="M568"),
    "SPLIT": _on(int8="XM568", int16="M568"),
    "SQUEEZE": _on(int8="M568", int16="M568"),
    "STRIDED_SLICE": _on(int8="XM568", int16="M568"),
    "SUB": _on(int8="XM568", int16="M568"),
    "SUM": _on(int8="XM568", int16="M568"),
    "TANH": _on(int8="XM568", int16="M568"),
    "TILE": _on(int8="568", int16="568"),
    "TRANSPOSE": _on(int8="XM568", int16="M568"),
    "TRANSPOSE_CONV": _on(int8="XM568", int16="M568"),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _on(int8="M568", int16="M568"),
}
"""Per op of LiteRT and type of its data, the targets that take it; some with limits on shapes."""


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
        dtype: The type of its data.
        target: The target, as for `get_target`.
        host: Whether the processor beside it counts, too.

    Returns:
        Whether there is one, for some shapes at least.

    Example:

    >>> runs("GATHER", "int8", "ethos-u55"), runs("GATHER", "int8", "ethos-u55", host=False)
    (True, False)
    """
    base = get_target(target)
    if base == "edgetpu":
        taken = kernel in edge_tpu.OPS and dtype in edge_tpu.TYPES
    else:
        taken = base in RUNS_ON.get(kernel, {}).get(dtype, ())
    beside = TARGETS[base].host if host else ""
    return taken or beside == "litert" or (bool(beside) and runs(kernel, dtype, beside))
