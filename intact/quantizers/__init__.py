"""Quantizers: the formulas by which real values become few whole numbers, times a scale.

A quantizer is a small frozen class, found by its `name`. What it computes for weights is the
same in training, in inference and in the file (`QuantizeContext.xp` is `keras.ops` or numpy). For
activations it gives a `Grid`, to which each kernel rounds in its own way.

Gradients need no formulas of their own for the scale: `values * scale` is differentiated by
both of its factors, and the straight-through gradient of `values` is that of `w / scale`.
Together these are LSQ's.
"""

from intact.quantizers import binary, lsq, pact, ternary  # each registers its formulas

__all__ = ["binary", "lsq", "pact", "ternary"]
