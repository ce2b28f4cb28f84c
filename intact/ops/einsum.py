"""Einsums of any number of tensors and constants."""

import math
import string
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from intact.numerics.tensors import is_symbolic, is_trainable
from intact.ops.base import Case, Op
from intact.ops.matmul import contract, expand_ellipsis, weight_settings
from intact.ops.registry import register_op


def _numbers(*shape: int) -> np.ndarray:
    """A constant for cases."""
    return np.linspace(-1, 1, math.prod(shape), dtype="float32").reshape(shape)


@register_op
class Einsum(Op):
    """An einsum of tensors and constants, two at a time."""

    operations = ("Einsum",)
    litert = ("BATCH_MATMUL", "FULLY_CONNECTED", "SUM")
    notes = "The equation keeps the batch first."
    cases = (
        Case(
            lambda: lambda a, b: ops.einsum("btnh,bsnh->bnts", a, b),
            [(4, 2, 3), (5, 2, 3)],
        ),
        Case(
            lambda: lambda a, b: ops.einsum("bnts,bsnh->btnh", a, b),
            [(2, 4, 5), (5, 2, 3)],
        ),
        Case(lambda: lambda a: ops.einsum("btc,cd->btd", a, np.eye(3, 2, dtype="float32")), (4, 3)),
        # Several axes of one operand alone: those of the constant, and those of the tensor.
        Case(lambda: lambda a: ops.einsum("btc,tncd->bntd", a, _numbers(4, 2, 3, 5)), (4, 3)),
        Case(lambda: lambda a, b: ops.einsum("bhqk,bq->bhk", a, b), [(2, 4, 3), (4,)]),
        # Three operands, a diagonal, and sums over axes of one operand.
        Case(
            lambda: lambda a, b: ops.einsum("ij,bj,bttic->bc", _numbers(4, 5), a, b),
            [(5,), (3, 3, 4, 2)],
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        operands = args[0] if isinstance(args[0], list | tuple) else args
        operands = [x for x in operands if not isinstance(x, str)]
        equation = expand_ellipsis(layer.subscripts, [len(x.shape) for x in operands])
        parts, out = _labels(equation)
        reduced = list(map(_reduced_labels, parts, _others(parts, out)))
        if len(operands) != 2 or any(reduced):
            # Sums and diagonals of a weight are constants.
            tracer.not_trained += [
                x.path
                for x, labels in zip(operands, reduced, strict=True)
                if labels and is_trainable(x)
            ]
            return tracer.expand(layer, partial(_pairwise, parts, out), *operands)
        constants = [x for x in operands if not is_symbolic(x)]
        settings = weight_settings(constants[0]) if constants else {}
        a, b = operands
        return contract(a, b, f"{','.join(parts)}->{out}", layer, tracer, **settings)


def _labels(equation: str) -> tuple[list[str], str]:
    """The labels of an einsum's operands and of its output."""
    ins, _, out = equation.replace(" ", "").partition("->")
    if "->" not in equation:
        # Without an output, it has the labels that occur once.
        out = "".join(sorted(c for c in set(ins) - {","} if ins.count(c) == 1))
    return ins.split(","), out


def _others(parts: list[str], out: str) -> list[str]:
    """For each operand, the labels of the others and of the output."""
    return [out + "".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]


def _reduced_labels(labels: str, others: str) -> list[str]:
    """The labels that an operand has twice, or that no other has."""
    return [c for c in dict.fromkeys(labels) if labels.count(c) > 1 or c not in others]


def _reduced(x: Any, labels: str, others: str) -> tuple[Any, str]:
    """An operand with its diagonals taken, and its sums over axes that no other has."""
    while repeated := next((c for c in labels if labels.count(c) > 1), None):
        first = labels.index(repeated)
        second = labels.index(repeated, first + 1)
        x = ops.diagonal(x, axis1=first, axis2=second)
        labels = labels[:first] + labels[first + 1 : second] + labels[second + 1 :] + repeated
    lost = tuple(axis for axis, c in enumerate(labels) if c not in others)
    x = ops.sum(x, axis=lost) if lost else x
    return x, "".join(c for c in labels if c in others)


def _pairwise(parts: list[str], out: str, *operands: Any) -> Any:
    """An einsum of any number of operands, by einsums of two."""
    # Keras' shape formula knows small letters alone.
    letters = dict.fromkeys("".join(parts))
    small = str.maketrans(dict(zip(letters, string.ascii_lowercase, strict=False)))
    parts, out = [part.translate(small) for part in parts], out.translate(small)
    reduced = list(map(_reduced, operands, parts, _others(parts, out)))
    # A constant follows the tensors, whose batch comes first.
    (x, labels), *rest = sorted(reduced, key=lambda part: not is_symbolic(part[0]))
    while rest:
        (y, other), *rest = rest
        needed = out + "".join(part for _, part in rest)
        kept = "".join(dict.fromkeys(c for c in labels + other if c in needed)) if rest else out
        x, labels = ops.einsum(f"{labels},{other}->{kept}", x, y), kept
    return x if labels == out else ops.transpose(x, [labels.index(c) for c in out])
