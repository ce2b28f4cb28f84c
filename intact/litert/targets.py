"""Where the int8 kernels run: measured on the real runtimes and compilers, one op at a time."""

TARGETS = ("xnnpack", "tflite-micro", "ethos-u55", "ethos-u85")
"""The targets of the table; LiteRT itself runs every op that intact writes."""

_ALL = frozenset(TARGETS)
_XNNPACK, _MICRO, _U55, _U85 = (frozenset([name]) for name in TARGETS)
_ETHOS = _U55 | _U85

RUNS_ON: dict[str, frozenset[str]] = {
    "ABS": _MICRO | _ETHOS,
    "ADD": _ALL,
    "ARG_MAX": _MICRO | _U85,
    "AVERAGE_POOL_2D": _MICRO | _ETHOS,
    "BATCH_MATMUL": _ALL,
    "BROADCAST_TO": _MICRO,
    "CAST": _MICRO,
    "CONCATENATION": _ALL,
    "CONV_2D": _ALL,
    "DEPTHWISE_CONV_2D": _ALL,
    "ELU": _ALL,
    "EXP": _ETHOS,
    "EXPAND_DIMS": _MICRO | _ETHOS,
    "FULLY_CONNECTED": _ALL,
    "GATHER": _MICRO | _U85,
    "GELU": _ETHOS,
    "GREATER_EQUAL": _MICRO,
    "HARD_SWISH": _MICRO | _ETHOS,
    "LEAKY_RELU": _ALL,
    "LESS": _MICRO,
    "LOG": _ETHOS,
    "LOGISTIC": _ALL,
    "LOG_SOFTMAX": _MICRO,
    "MAXIMUM": _MICRO | _ETHOS,
    "MAX_POOL_2D": _ALL,
    "MEAN": _ALL,
    "MINIMUM": _MICRO | _ETHOS,
    "MIRROR_PAD": _MICRO | _ETHOS,
    "MUL": _ALL,
    "PAD": _ALL,
    "PRELU": _MICRO | _ETHOS,
    "QUANTIZE": _ALL,
    "RELU": _MICRO | _ETHOS,
    "REDUCE_MAX": _ALL,
    "REDUCE_MIN": _ALL,
    "RESHAPE": _ALL,
    "RESIZE_BILINEAR": _ALL,
    "RESIZE_NEAREST_NEIGHBOR": _MICRO | _ETHOS,
    "REVERSE_V2": _MICRO | _U85,
    "SELECT_V2": _MICRO,
    "SLICE": _ALL,
    "SOFTMAX": _MICRO | _ETHOS,
    "SPLIT": _ALL,
    "SQUEEZE": _MICRO | _ETHOS,
    "STRIDED_SLICE": _ALL,
    "SUB": _ALL,
    "SUM": _ALL,
    "TANH": _ALL,
    "TILE": _ETHOS,
    "TRANSPOSE": _ALL,
    "TRANSPOSE_CONV": _ALL,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _MICRO | _ETHOS,
}
"""Per op of LiteRT, the targets that take its int8 form; some with limits on shapes."""
