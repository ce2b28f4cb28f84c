"""Whether a LiteRT file keeps the rules that the runtime does not check."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from intact.litert.reader import BITS, FileGraph, FileOp, FileTensor, read
from intact.litert.rules import (
    ALL_SAME,
    CONDITIONS,
    FREE,
    REQUANTIZED,
    RULES,
    SAME,
    SILENT,
    UNSCALED,
    OpRule,
)

ERROR, WARNING, INFO = "error", "warning", "info"
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int4": (-8, 7)}
LIMITS |= {"int2": (-2, 1), "uint4": (0, 15)}
_INTEGERS = ("int8", "uint8", "int16")


@dataclass(frozen=True)
class Finding:
    """A rule that a file breaks, or a kernel that has no rule.

    Args:
        severity: "error" where outputs are wrong or the file is refused; "warning" where that
            holds for some runtimes or is a matter of precision; "info" for what is not checked.
        graph: The subgraph.
        op: Index of the op; None for a tensor of its own.
        op_name: The name of the op.
        tensor: Name of the tensor, if it is about one.
        what: What is wrong.
        fix: What to do.

    Example:

    >>> print(Finding("error", 0, 3, "SOFTMAX", "probs", "its scale is 1", "Take 1/256"))
    error: op 3 SOFTMAX, tensor 'probs': its scale is 1. Take 1/256.
    """

    severity: str
    graph: int
    op: int | None
    op_name: str | None
    tensor: str | None
    what: str
    fix: str

    @property
    def where(self) -> str:
        """Graph (if not the first), op and tensor, in words."""
        graph = f"graph {self.graph}" if self.graph else ""
        op = "" if self.op is None else f"op {self.op} {self.op_name}"
        tensor = "" if self.tensor is None else f"tensor {self.tensor!r}"
        return ", ".join(part for part in (graph, op, tensor) if part)

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}. {self.fix}."


class Findings(list[Finding]):
    """What `verify` returns: a list; printing it gives a line for each.

    Example:

    >>> found = Findings([Finding("error", 0, 3, "SOFTMAX", "probs", "its scale is 1", "Mend it")])
    >>> len(found.errors)
    1
    """

    @property
    def errors(self) -> list[Finding]:
        """Those that make outputs wrong, or the file unusable."""
        return [f for f in self if f.severity == ERROR]

    @property
    def unchecked(self) -> list[Finding]:
        """The kernels that have no rule, one finding for each."""
        return [f for f in self if f.severity == INFO]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        findings = [{**asdict(f), "where": f.where} for f in self]
        unchecked = [f.op_name for f in self.unchecked]
        return {"errors": len(self.errors), "not_checked": unchecked, "findings": findings}

    def __str__(self) -> str:
        errors, unchecked = len(self.errors), len(self.unchecked)
        warnings = len(self) - errors - unchecked
        total = f"{errors} errors, {warnings} warnings" if errors or warnings else ""
        if not total:
            where = ", where it was checked" if unchecked else ""
            total = f"The file keeps all rules{where}."
        return "\n".join([*map(str, self), total])


def verify(file: str | os.PathLike | bytes) -> Findings:
    """Check a LiteRT file of any origin against the rules of the integer kernels.

    LiteRT runs many a broken file without a word, and computes something else. The rules
    are data, in `intact.litert.rules`.

    Args:
        file: Path of a `.tflite` file, or its bytes.

    Returns:
        The findings. A file without fault has none, but for one "info" per kernel that has no
        rule, and was not checked. Print them.

    Raises:
        IntactError: There is no such file, or it is damaged, or no LiteRT file.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> print(verify(intact.export(model)))
    The file keeps all rules.
    """
    findings = Findings()
    for number, graph in enumerate(read(file).graphs):
        findings += _Checker(number, graph).run()
    return findings


class _Checker:
    """Checks one graph; its methods yield findings."""

    def __init__(self, number: int, graph: FileGraph) -> None:
        self.number, self.graph = number, graph
        self.op: FileOp | None = None

    def run(self) -> Iterator[Finding]:
        for tensor in self.graph.tensors:
            yield from self.tensor(tensor)
        unchecked = Counter(op.name for op in self.graph.ops if op.name not in RULES)
        for op in self.graph.ops:
            self.op = op
            if op.name in RULES:
                yield from self.check(op, RULES[op.name])
            elif op.name in unchecked:
                yield self.unchecked(unchecked.pop(op.name))

    def unchecked(self, count: int) -> Finding:
        """Says that a kernel has no rule; once for all ops that take it."""
        ops = "1 op takes this kernel" if count == 1 else f"{count} ops take this kernel"
        what = f"not checked: {ops}, and there is no rule for it"
        return self.found(INFO, None, what, "Compare its outputs with the model's")

    def found(self, severity: str, tensor: FileTensor | None, what: str, fix: str) -> Finding:
        index, name = (None, None) if self.op is None else (self.op.index, self.op.name)
        label = None if tensor is None else tensor.name or f"#{tensor.index}"
        return Finding(severity, self.number, index, name, label, what, fix)

    # Tensors --------------------------------------------------------------------------

    def tensor(self, t: FileTensor) -> Iterator[Finding]:
        yield from self.packing(t)
        if not t.quantized:
            return
        scales = t.scales
        bad = scales[~(np.isfinite(scales) & (scales > 0))]
        if len(bad):
            yield self.found(
                ERROR,
                t,
                f"{len(bad)} of its {len(scales)} scales are no positive numbers, such as {bad[0]}",
                "Calibrate on data that is finite, and export again",
            )
        elif (scales < np.finfo("float32").tiny).any():
            yield self.found(
                ERROR,
                t,
                f"its scale {scales.min()} is smaller than normal numbers, and kernels refuse it",
                "Take a larger range",
            )
        zero_points = t.zero_points
        if len(zero_points) != len(scales):
            yield self.found(
                ERROR,
                t,
                f"it has {len(scales)} scales and {len(zero_points)} zero points",
                "Write one zero point for each scale",
            )
        low, high = LIMITS.get(t.dtype, (-(2**63), 2**63 - 1))
        outside = zero_points[(zero_points < low) | (zero_points > high)]
        if len(outside):
            yield self.found(
                ERROR,
                t,
                f"its zero point {outside[0]} is not in {low} to {high}, where those of {t.dtype} "
                "are",
                "Widen the range to hold zero, and export again",
            )
        elif t.dtype == "int16" and zero_points.any():
            yield self.found(
                ERROR,
                t,
                f"its zero point is {zero_points[0]}, and int16 kernels take zero for it",
                "Make the range symmetric",
            )
        if len(scales) > 1:
            size = t.shape[t.axis] if 0 <= t.axis < len(t.shape) else None
            if size != len(scales):
                yield self.found(
                    ERROR,
                    t,
                    f"its {len(scales)} scales are for dimension {t.axis} of shape {t.shape}",
                    "Write one scale for each index of that dimension",
                )

    def packing(self, t: FileTensor) -> Iterator[Finding]:
        bits = BITS.get(t.dtype)
        if t.data is None or bits is None or None in t.shape:
            return
        count = 1
        for size in t.shape:
            count *= size or 0
        expected = (count * bits + 7) // 8
        if len(t.data) == expected:
            return
        hint = "Export the model again"
        if bits < 8:
            hint = f"Pack {8 // bits} values into a byte, the first one lowest, over all dimensions"
        yield self.found(
            ERROR,
            t,
            f"{count} values of {t.dtype} take {expected} bytes, and it has {len(t.data)}",
            hint,
        )

    # Ops ------------------------------------------------------------------------------

    def check(self, op: FileOp, rule: OpRule) -> Iterator[Finding]:
        places = rule.data or tuple(range(len(op.inputs)))
        data = [op.inputs[i] if i < len(op.inputs) else None for i in places]
        inputs = [t for t in data if t is not None]
        if not op.outputs or len(inputs) < (len(rule.data) or 1) or not self.has_weights(op, rule):
            yield self.found(ERROR, None, "inputs or outputs are missing", "Export the model again")
            return
        yield from self.version(op, rule, inputs)
        kind = inputs[0].dtype
        if op.outputs[0].dtype not in _INTEGERS and kind not in _INTEGERS:
            return
        yield from self.kernels(op, rule, inputs)
        if rule.weights is not None:
            yield from self.weights(op, rule)
        if op.name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
            yield from self.state(op)
        if rule.scales == FREE:
            yield from self.present(op, [*inputs, *op.outputs])
        elif rule.scales in (SAME, ALL_SAME):
            yield from self.same(inputs, rule)
        else:
            yield from self.present(op, inputs)
            yield from self.fixed(rule)

    def has_weights(self, op: FileOp, rule: OpRule) -> bool:
        if rule.weights is None:
            return True
        return all(len(op.inputs) > i and op.inputs[i] is not None for i in rule.weights[:2])

    def version(self, op: FileOp, rule: OpRule, inputs: list[FileTensor]) -> Iterator[Finding]:
        kind = inputs[0].dtype
        base = rule.versions.get(kind)
        second = op.inputs[rule.weights[1]] if rule.weights else None
        if base is None or (kind == "float32" and second is not None and second.quantized):
            return
        if op.name == "QUANTIZE" and op.outputs[0].dtype == "int16":
            base = rule.versions["int16"]
        use = {name: v for name, v in rule.later.items() if v > base and CONDITIONS[name](op)}
        # Where several conditions hold, writers differ in which of them counts.
        needed = [v for name, v in use.items() if name not in rule.optional]
        lowest, highest = min(needed, default=base), max(use.values(), default=base)
        if not lowest <= op.version <= highest:
            reason = f" ({', '.join(use)})" if use else ""
            yield self.found(
                WARNING,
                None,
                f"its version is {op.version}, and its use on {kind}{reason} needs {highest}",
                "Write that version: some runtimes refuse any other",
            )

    def kernels(self, op: FileOp, rule: OpRule, inputs: list[FileTensor]) -> Iterator[Finding]:
        kind = inputs[0].dtype
        tensors = [*inputs, *op.outputs]
        if kind in rule.broken and any(t.quantized for t in tensors):
            nothing_to_ignore = op.name == "NEG" and all(
                t.quantized and not t.zero_points.any() and t.scales[0] == tensors[0].scales[0]
                for t in tensors
            )
            if not nothing_to_ignore:
                remedy = "Write it as SUB or MUL" if op.name == "NEG" else "Keep the op in float"
                yield self.found(ERROR, op.outputs[0], rule.broken[kind], remedy)
        if kind in rule.inexact:
            yield self.found(WARNING, op.outputs[0], rule.inexact[kind], "Keep the op in float")
        if op.name == "BATCH_MATMUL":
            right = op.inputs[1]
            if right is not None and right.data is not None and len(right.scales) > 1:
                yield self.found(
                    ERROR,
                    right,
                    "LiteRT returns zeros for a constant right side with scales per channel",
                    "Quantize it with one scale, or write FULLY_CONNECTED",
                )

    def state(self, op: FileOp) -> Iterator[Finding]:
        """An LSTM's hidden state is its output; each of its weights has one scale."""
        for w in op.inputs[1:9]:
            if w is not None and len(w.scales) > 1:
                yield self.found(
                    ERROR,
                    w,
                    f"it has {len(w.scales)} scales, and the kernel takes the first for all",
                    "Quantize each weight of a gate with one scale",
                )
        hidden, output = op.inputs[18], op.outputs[0]
        if hidden is not None and _params(hidden) != _params(output):
            yield self.found(
                ERROR,
                hidden,
                f"the state {_show(hidden)} and the output {_show(output)} must have one scale and "
                f"zero point: {SILENT}",
                "Give both the same",
            )

    def present(self, op: FileOp, tensors: list[FileTensor]) -> Iterator[Finding]:
        for t in tensors:
            if t.dtype in _INTEGERS and not t.quantized and op.name not in UNSCALED:
                yield self.found(
                    ERROR, t, f"it is {t.dtype} and has no scale", "Write its scale and zero point"
                )

    def same(self, inputs: list[FileTensor], rule: OpRule) -> Iterator[Finding]:
        assert self.op is not None
        mismatch = rule.on_mismatch(inputs[0].dtype)
        for output in self.op.outputs:
            for t in inputs if rule.scales == ALL_SAME else inputs[:1]:
                if _params(t) != _params(output):
                    yield self.found(
                        WARNING if mismatch == REQUANTIZED else ERROR,
                        output if rule.scales == SAME else t,
                        f"input {_show(t)} and output {_show(output)} must have one scale and "
                        f"zero point: {mismatch}",
                        "Give both the same, or put a QUANTIZE between",
                    )

    def fixed(self, rule: OpRule) -> Iterator[Finding]:
        assert self.op is not None and isinstance(rule.scales, dict)
        output = self.op.outputs[0]
        want = rule.scales.get(output.dtype)
        if want is None or _params(output) == ((float(np.float32(want[0])),), (want[1],)):
            return
        mismatch = rule.on_mismatch(output.dtype)
        yield self.found(
            WARNING if mismatch == REQUANTIZED else ERROR,
            output,
            f"its output has {_show(output)}, and the op prescribes 1/{1 / want[0]:g} and "
            f"{want[1]}: {mismatch}",
            "Write these, and a QUANTIZE behind it for others",
        )

    def weights(self, op: FileOp, rule: OpRule) -> Iterator[Finding]:
        assert rule.weights is not None
        at, weight_at, bias_at, axis = rule.weights
        x, w = op.inputs[at], op.inputs[weight_at]
        bias = op.inputs[bias_at] if len(op.inputs) > bias_at else None
        assert x is not None and w is not None
        if not w.quantized:
            yield self.found(ERROR, w, "the weights have no scale", "Write their scales")
            return
        if w.dtype in ("int2", "int4") and w.dtype not in rule.narrow:
            yield self.found(
                ERROR, w, f"{op.name} has no kernel for {w.dtype} weights", "Take 8 bits"
            )
        if w.dtype in ("int8", "int4", "int2") and w.data is not None and w.zero_points.any():
            yield self.found(
                ERROR,
                w,
                "the weights have a zero point, which kernels take to be zero",
                "Quantize weights symmetrically",
            )
        if len(w.scales) > 1 and w.axis != axis:
            yield self.found(
                ERROR,
                w,
                f"the weights' scales are for dimension {w.axis}, and the kernel takes them for "
                f"dimension {axis}",
                "Quantize per output channel",
            )
        low = w.dtype == "int8" and w.data is not None and np.frombuffer(w.data, "int8") == -128
        if np.any(low):
            yield self.found(
                WARNING,
                w,
                "weights of -128 are outside the symmetric range, and some runtimes overflow",
                "Quantize weights to -127 to 127",
            )
        if bias is not None:
            yield from self.bias(x, w, bias)

    def bias(self, x: FileTensor, w: FileTensor, bias: FileTensor) -> Iterator[Finding]:
        kinds = {"int16": ("int32", "int64")}.get(x.dtype, ("int32",))
        if bias.dtype not in kinds:
            yield self.found(
                ERROR, bias, f"the bias is {bias.dtype}", f"Write it as {' or '.join(kinds)}"
            )
            return
        if bias.zero_points.any():
            yield self.found(
                ERROR,
                bias,
                f"the bias has the zero point {bias.zero_points[0]}, and kernels take zero for it",
                "Quantize biases symmetrically",
            )
        if not bias.quantized or not x.quantized:
            yield self.found(
                WARNING,
                bias,
                "the bias has no scale",
                "Write those of the sums: the input's times the weights'",
            )
            return
        with np.errstate(all="ignore"):
            want = x.scales[0].astype("float64") * w.scales.astype("float64")
            if len(bias.scales) not in (1, len(want)):
                yield self.found(
                    ERROR,
                    bias,
                    f"the bias has {len(bias.scales)} scales, and the weights have {len(want)}",
                    "Write one scale for each channel of the weights",
                )
                return
            error = np.abs(bias.scales / want - 1)
        # Biases of zero are zero by any scale.
        if not (error <= 1e-5).all() and (bias.data is None or any(bias.data)):
            channel = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
            had = bias.scales[min(channel, len(bias.scales) - 1)]
            yield self.found(
                ERROR,
                bias,
                f"the bias has the scale {had:.6g} in channel {channel}, and kernels take that of "
                f"the input times that of the weights, {want[min(channel, len(want) - 1)]:.6g}",
                "Quantize the bias by that scale",
            )


def _params(t: FileTensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scales and zero points, for comparisons."""
    return tuple(t.scales.tolist()), tuple(t.zero_points.tolist())


def _show(t: FileTensor) -> str:
    if len(t.scales) != 1 or len(t.zero_points) != 1:
        return f"{t.name!r} ({len(t.scales)} scales)"
    return f"{t.name!r} ({t.scales[0]:.6g}, {t.zero_points[0]})"
