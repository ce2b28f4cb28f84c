"""The rules of `verify`: one function each, with its code, an example and a remedy as data.

`docs/verify_rules.md` is made from them.
"""

from intact.litert.rules import ops, tensors, weights
from intact.litert.rules.rule import FAMILIES, RULES, Fault, OpContext, Rule

__all__ = ["FAMILIES", "RULES", "Fault", "OpContext", "Rule", "ops", "tensors", "weights"]
