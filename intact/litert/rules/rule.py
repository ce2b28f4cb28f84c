"""What a rule of `verify` is: a function that yields faults, and the data of its page."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from intact.litert.kernels.row import Kernel
from intact.litert.reader import FileOp, FileTensor

Severity = Literal["error", "warning", "info"]
Scope = Literal["tensor", "op", "integer op", "kernel"]
ERROR: Severity = "error"
WARNING: Severity = "warning"
INFO: Severity = "info"

INTEGERS = ("int8", "uint8", "int16")
"""The types of quantized activations."""


@dataclass(frozen=True)
class Fault:
    """One place where a file breaks a rule.

    Args:
        what: What is wrong.
        tensor: The tensor that it is about; None for the op.
        remedy: What to do, where that is not the rule's remedy.
    """

    what: str
    tensor: FileTensor | None = None
    remedy: str = ""


@dataclass(frozen=True)
class OpContext:
    """An op with the row of its kernel: what a rule for ops looks at.

    Args:
        op: The op.
        kernel: Its row in the kernel table.
    """

    op: FileOp
    kernel: Kernel

    @property
    def data(self) -> list[FileTensor]:
        """The inputs that the kernel's scales are about."""
        places = self.kernel.data or tuple(range(len(self.op.inputs)))
        tensors = (self.input(place) for place in places)
        return [tensor for tensor in tensors if tensor is not None]

    @property
    def dtype(self) -> str:
        """The type of the data."""
        return self.data[0].dtype

    @property
    def output(self) -> FileTensor:
        """The first output."""
        return self.op.outputs[0]

    @property
    def weights(self) -> FileTensor | None:
        """The weights, if the kernel has some."""
        return self.kernel.weights and self.input(self.kernel.weights.weights)

    @property
    def bias(self) -> FileTensor | None:
        """The bias, if there is one."""
        return self.kernel.weights and self.input(self.kernel.weights.bias)

    @property
    def is_integer(self) -> bool:
        """Whether the kernel computes with quantized activations."""
        return self.output.dtype in INTEGERS or self.dtype in INTEGERS

    def input(self, place: int) -> FileTensor | None:
        """An input by its place; None if it is left out."""
        return self.op.inputs[place] if place < len(self.op.inputs) else None


@dataclass(frozen=True)
class Rule:
    """A rule of `verify`.

    Args:
        code: Its short code. The letter tells the family, as `FAMILIES` has it.
        severity: "error" where outputs are wrong or the file is refused; "warning" where that
            holds for some runtimes, or is a matter of precision; "info" for what is not checked.
        example: A fault, as data of a file.
        remedy: What to do.
        check: Yields the faults of a tensor or of an op. Its docstring says what is wrong in the
            first line, and why that matters below.
        scope: What it looks at: each tensor, each op, each op of an integer kernel, or each kernel
            that has no row in the table.
    """

    code: str
    severity: Severity
    example: str
    remedy: str
    check: Callable[[Any], Iterator[Fault]]
    scope: Scope

    @property
    def name(self) -> str:
        """Its name in words, with hyphens."""
        return getattr(self.check, "__name__", "").replace("_", "-")

    @property
    def summary(self) -> str:
        """What is wrong, in a sentence."""
        return (inspect.getdoc(self.check) or "").split("\n")[0]

    @property
    def cause(self) -> str:
        """Why it is wrong."""
        return " ".join((inspect.getdoc(self.check) or "").split("\n")[1:]).strip()


FAMILIES = {
    "T": "Tensors",
    "O": "Ops",
    "K": "Kernels",
    "S": "Scales of activations",
    "W": "Weights",
    "B": "Biases",
    "N": "Not checked",
}
"""The title of each family of rules, by the first letter of its codes."""

RULES: dict[str, Rule] = {}
"""The rules by code."""


def rule(
    code: str, severity: Severity, scope: Scope, *, example: str, remedy: str
) -> Callable[[Callable], Callable]:
    """Register a function as a rule; the arguments are those of `Rule`."""

    def register(check: Callable[[Any], Iterator[Fault]]) -> Callable:
        RULES[code] = Rule(code, severity, example, remedy, check, scope)
        return check

    return register


def parameters(t: FileTensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scales and zero points of a tensor, to compare."""
    return tuple(t.scales.tolist()), tuple(t.zero_points.tolist())


def describe(t: FileTensor) -> str:
    """A tensor's name with its scale and zero point."""
    if len(t.scales) != 1 or len(t.zero_points) != 1:
        return f"{t.name!r} ({len(t.scales)} scales)"
    return f"{t.name!r} ({t.scales[0]:.6g}, {t.zero_points[0]})"
