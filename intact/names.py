"""The names that users pass as strings, as types for editors and type checkers.

The command line reads them, too, without importing Keras.
"""

from typing import Literal

SchemeName = Literal[
    "int8",
    "int8_dense_per_tensor",
    "int4",
    "int16x8",
    "uint8",
    "dynamic_range",
    "dynamic_range_4_blocks",
    "weight_only_8",
    "weight_only_4",
    "weight_only_4_blocks",
    "float16",
    "float32",
]
"""A preset of `intact.schemes`."""

ObserverName = Literal["min_max", "moving_average", "percentile", "entropy", "mse"]
"""How a range is chosen from data: an observer of `intact.quantizers.observers`."""

IODtype = Literal["float32", "int8", "uint8", "int16"]
"""The type of a file's inputs or outputs."""

Kernels = Literal["default", "builtin", "reference"]
"""The kernels that run a file: XNNPACK where it has one, LiteRT's own, or the plain ones."""

TargetName = Literal["xnnpack", "tflite-micro", "ethos-u55", "ethos-u65", "ethos-u85", "edgetpu"]
"""A target: a runtime or an accelerator."""

Target = Literal[
    TargetName,
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]
"""A target; an Ethos-U also with its number of MACs."""

ADVICE_OPTIONS = (
    "float32",
    "float16",
    "dynamic_range",
    "weight_only_8",
    "int8",
    "int8+recover",
    "int16x8",
)
"""What `advise` tries by default: presets, with or without `recover`."""

DatasetName = Literal["digits", "fashion_mnist"]
"""A data set of `intact demo`."""
