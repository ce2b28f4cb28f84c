"""Operations that are formulas of other operations."""

from typing import Any

from keras import ops

from intact.ops import formula_axes, formula_images, formula_moves, formula_signals, formula_values
from intact.ops.base import Op
from intact.ops.registry import register_op

TABLES = (formula_axes, formula_values, formula_moves, formula_signals, formula_images)
"""The modules with formulas, their limits and their cases."""

FORMULAS = {name: formula for table in TABLES for name, formula in table.FORMULAS.items()}
LIMITS = {name: limit for table in TABLES for name, limit in table.LIMITS.items()}
CASES = tuple(
    case
    for table in TABLES
    for names, case in table.CASES.items()
    if all(hasattr(ops, name) or hasattr(ops.image, name) for name in names.split())
)


@register_op
class Formula(Op):
    """An operation that a formula rewrites as other operations."""

    operations = tuple(FORMULAS)
    notes = " ".join(f"`{name}`: {reason}." for name, (_, reason) in LIMITS.items())
    cases = CASES

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        name = type(layer).__name__
        holds, reason = LIMITS.get(name, (lambda *args, **kwargs: True, ""))
        if not holds(layer, *args, **kwargs):
            tracer.refuse(layer, reason)
        formula = FORMULAS[name]
        return tracer.expand(layer, lambda *a, **k: formula(layer, *a, **k), *args, **kwargs)
