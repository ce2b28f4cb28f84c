"""The ops: one class each, one file a family. Every file here is imported."""

import importlib
import pkgutil

from intact.ops.base import ALL_SAME, OBSERVED, SAME_AS_INPUT, Case, Fixed, Op, Weight, Weighted
from intact.ops.registry import REGISTRY, find_op, get_op, register_op

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ALL_SAME",
    "OBSERVED",
    "REGISTRY",
    "SAME_AS_INPUT",
    "Case",
    "Fixed",
    "Op",
    "Weight",
    "Weighted",
    "find_op",
    "get_op",
    "register_op",
]
