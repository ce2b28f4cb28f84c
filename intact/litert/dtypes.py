"""The types of tensors in a file."""

BITS = {"int2": 2, "int4": 4, "uint4": 4, "bool": 8, "int8": 8, "uint8": 8}
BITS |= {"int16": 16, "uint16": 16, "float16": 16, "bfloat16": 16}
BITS |= {"int32": 32, "uint32": 32, "float32": 32}
BITS |= {"int64": 64, "uint64": 64, "float64": 64, "complex64": 64, "complex128": 128}
"""Bits of one value."""

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int4": (-8, 7)}
LIMITS |= {"int2": (-2, 1), "uint4": (0, 15)}
"""The smallest and the largest integer of the types that quantized tensors have."""
