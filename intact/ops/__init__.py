"""The ops: one class each, one file a family."""

from intact.ops import activation, conv, dense, elementwise, norm, pool, shape
from intact.ops.base import (
    ALL_SAME,
    OBSERVED,
    REGISTRY,
    SAME_AS_INPUT,
    Case,
    Fixed,
    Op,
    Weight,
    find_op,
    get_op,
    register_op,
)

__all__ = [
    "ALL_SAME",
    "OBSERVED",
    "REGISTRY",
    "SAME_AS_INPUT",
    "Case",
    "Fixed",
    "Op",
    "Weight",
    "activation",
    "conv",
    "dense",
    "elementwise",
    "find_op",
    "get_op",
    "norm",
    "pool",
    "register_op",
    "shape",
]
