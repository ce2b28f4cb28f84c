"""Checks a LiteRT file against rules that the runtime does not check."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from intact.litert.kernels import KERNELS
from intact.litert.reader import FileGraph, FileOp, read
from intact.litert.rules import RULES, Fault, OpContext, Rule
from intact.litert.rules.ops import tensors_missing
from intact.litert.rules.rule import ERROR, INFO, Scope
from intact.tables import Report, Table


@dataclass(frozen=True)
class Finding:
    """A place where a file breaks a rule, or a kernel that has no rule.

    Args:
        severity: "error" where outputs are wrong or the file is refused; "warning" where that
            holds for some runtimes or is a matter of precision; "info" for what is not checked.
        graph: The subgraph.
        op: Index of the op; None for a tensor of its own.
        op_name: The name of the op.
        tensor: Name of the tensor, if it is about one.
        what: What is wrong.
        fix: What to do.
        code: The code of the rule, as in `docs/verify_rules.md`.

    Example:

    >>> print(Finding("error", 0, 3, "SOFTMAX", "probs", "its scale is 1", "Take 1/256", "S404"))
    error S404: op 3 SOFTMAX, tensor 'probs': its scale is 1. Take 1/256.
    """

    severity: str
    graph: int
    op: int | None
    op_name: str | None
    tensor: str | None
    what: str
    fix: str
    code: str

    @property
    def where(self) -> str:
        """Graph (if not the first), op and tensor, in words."""
        graph = f"graph {self.graph}" if self.graph else ""
        op = "" if self.op is None else f"op {self.op} {self.op_name}"
        tensor = "" if self.tensor is None else f"tensor {self.tensor!r}"
        return ", ".join(part for part in (graph, op, tensor) if part)

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.where}: {self.what}. {self.fix}."


class Findings(Report, list[Finding]):
    """What `verify` returns: a list; printing it gives a line for each.

    Example:

    >>> finding = Finding("error", 0, 3, "SOFTMAX", "probs", "its scale is 1", "Mend it", "S404")
    >>> len(Findings([finding]).errors)
    1
    """

    @property
    def errors(self) -> list[Finding]:
        """The findings of wrong outputs and unusable files."""
        return [f for f in self if f.severity == ERROR]

    @property
    def unchecked(self) -> list[Finding]:
        """The kernels that have no rule, one finding for each."""
        return [f for f in self if f.severity == INFO]

    def to_dict(self) -> dict[str, Any]:
        """The findings as data for JSON."""
        findings = [{**asdict(f), "where": f.where} for f in self]
        unchecked = [f.op_name for f in self.unchecked]
        return {"errors": len(self.errors), "not_checked": unchecked, "findings": findings}

    def parts(self) -> list[str | Table]:
        """A line for each finding, and their number."""
        return [*map(str, self), self.headline()]

    def headline(self) -> str:
        """How many findings there are."""
        errors, unchecked = len(self.errors), len(self.unchecked)
        warnings = len(self) - errors - unchecked
        total = f"{errors} errors, {warnings} warnings" if errors or warnings else ""
        if not total:
            where = ", where it was checked" if unchecked else ""
            total = f"The file keeps all rules{where}."
        return total


def verify(file: str | os.PathLike | bytes) -> Findings:
    """Check a LiteRT file of any origin against the rules of the integer kernels.

    LiteRT runs many broken files without an error, and computes something else. The rules stand in
    `intact.litert.rules`, what each kernel requires in `intact.litert.kernels`.

    Args:
        file: Path of a `.tflite` file, or its bytes.

    Returns:
        The findings; print them. A file without faults has none, except one "info" for each kernel
        that has no row in the kernel table and was not checked.

    Raises:
        IntactError: The file does not exist, is damaged, or is not a LiteRT file.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> print(verify(intact.export(model)))
    The file keeps all rules.
    """
    findings = Findings()
    for number, graph in enumerate(read(file).graphs):
        findings += _check_graph(number, graph)
    return findings


def _check_graph(number: int, graph: FileGraph) -> Iterator[Finding]:
    for tensor in graph.tensors:
        for rule in _of_scope("tensor"):
            yield from (_finding(rule, fault, number) for fault in rule.check(tensor))
    unknown = Counter(op.name for op in graph.ops if op.name not in KERNELS)
    for op in graph.ops:
        if op.name in KERNELS:
            faults = _check_op(OpContext(op, KERNELS[op.name]))
        else:
            # Once for all ops of this kernel, at the first.
            faults = _check_unknown(unknown.pop(op.name, 0))
        yield from (_finding(rule, fault, number, op) for rule, fault in faults)


def _check_op(context: OpContext) -> Iterator[tuple[Rule, Fault]]:
    for rule in _of_scope("op"):
        for fault in rule.check(context):
            yield rule, fault
            if rule.check is tensors_missing:
                return
    if context.is_integer:
        for rule in _of_scope("integer op"):
            yield from ((rule, fault) for fault in rule.check(context))


def _check_unknown(count: int) -> Iterator[tuple[Rule, Fault]]:
    for rule in _of_scope("kernel") if count else ():
        yield from ((rule, fault) for fault in rule.check(count))


def _of_scope(scope: Scope) -> list[Rule]:
    return [rule for rule in RULES.values() if rule.scope == scope]


def _finding(rule: Rule, fault: Fault, graph: int, op: FileOp | None = None) -> Finding:
    tensor = fault.tensor
    return Finding(
        severity=rule.severity,
        graph=graph,
        op=None if op is None else op.index,
        op_name=None if op is None else op.name,
        tensor=None if tensor is None else tensor.name or f"#{tensor.index}",
        what=fault.what,
        fix=fault.remedy or rule.remedy,
        code=rule.code,
    )
