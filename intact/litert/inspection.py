"""The content of a LiteRT file, as a table or as data."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from intact.litert.kernels import get_kernel
from intact.litert.reader import FileGraph, FileOp, FileTensor, LiteRTFile, read
from intact.tables import Report, Table

_HEADING = (
    "",
    "op",
    "version",
    "input",
    "weights",
    "output",
    "scale",
    "zero point",
    "constants",
    "name",
)
_INDICES = ("int32", "int64", "bool")
"""The types of constants that are sizes, axes or biases, not weights."""


@dataclass(frozen=True, eq=False, repr=False)
class Inspection(Report):
    """What `inspect` returns; printing it gives a table.

    Args:
        file: What the file holds.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> inspect(intact.export(model)).float_ops
    ('FULLY_CONNECTED',)
    """

    file: LiteRTFile

    @property
    def float_ops(self) -> tuple[str, ...]:
        """The ops that compute in float, in order; conversions and hybrid ops do not count."""
        return self._names(is_float)

    @property
    def hybrid_ops(self) -> tuple[str, ...]:
        """The ops with float data and integer weights: they quantize their input at run time."""
        return self._names(is_hybrid)

    @property
    def float_places(self) -> tuple[tuple[str, str], ...]:
        """The ops that compute in float, each with the name of its output."""
        ops = (op for graph in self.file.graphs for op in graph.ops if is_float(op))
        return tuple((op.name, op.outputs[0].name) for op in ops)

    def _names(self, counts: Callable[[FileOp], bool]) -> tuple[str, ...]:
        return tuple(op.name for graph in self.file.graphs for op in graph.ops if counts(op))

    @property
    def op_counts(self) -> dict[str, int]:
        """How many there are of each op, the most frequent first."""
        ops = Counter(op.name for graph in self.file.graphs for op in graph.ops)
        return dict(ops.most_common())

    @property
    def constant_bytes(self) -> int:
        """Bytes of all constants; shared ones count once."""
        return sum(_constant_sizes(t for graph in self.file.graphs for t in graph.tensors).values())

    def to_dict(self) -> dict[str, Any]:
        """The content as data for JSON."""
        file = self.file
        return {
            "bytes": file.size,
            "constant_bytes": self.constant_bytes,
            "description": file.description,
            "version": file.version,
            "op_counts": self.op_counts,
            "float_ops": list(self.float_ops),
            "hybrid_ops": list(self.hybrid_ops),
            "signatures": [
                {
                    "name": s.name,
                    "graph": s.graph,
                    "inputs": {name: t.index for name, t in s.inputs.items()},
                    "outputs": {name: t.index for name, t in s.outputs.items()},
                }
                for s in file.signatures
            ],
            "graphs": [_graph_dict(graph) for graph in file.graphs],
        }

    def parts(self) -> list[str | Table]:
        """The signatures, a table for each graph, and the counts of ops."""
        file = self.file
        lines: list[str | Table] = [
            f"LiteRT file, {file.size} bytes, {self.constant_bytes} of them constants"
        ]
        for signature in file.signatures:
            sides = (
                ", ".join(f"{name}: {_kind(t)}" for name, t in side.items())
                for side in (signature.inputs, signature.outputs)
            )
            lines.append(f"{signature.name}: {' -> '.join(sides)}")
        for number, graph in enumerate(file.graphs):
            title = f"Graph {number} {graph.name!r}: " if len(file.graphs) > 1 else ""
            lines += ["", f"{title}{len(graph.ops)} ops, {len(graph.tensors)} tensors"]
            lines.append(Table([_HEADING, *map(_row, graph.ops)], None))
        lines += ["", "In all: " + ", ".join(f"{n} {op}" for op, n in self.op_counts.items())]
        if self.hybrid_ops:
            lines.append(f"Hybrid, float data and integer weights: {_counts(self.hybrid_ops)}")
        lines.append(f"In float: {_counts(self.float_ops) or 'none'}")
        return lines


def inspect(file: str | os.PathLike | bytes) -> Inspection:
    """List the content of a LiteRT file of any origin.

    Args:
        file: Path of a `.tflite` file, or its bytes.

    Returns:
        The ops in order with their versions, types, shapes, scales and bytes of constants, and
        the signatures; print it, or take its `to_dict()`.

    Raises:
        IntactError: There is no such file, or it is damaged, or no LiteRT file.

    Example:

    >>> import intact, keras
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> print(str(inspect(intact.export(model))).splitlines()[1])
    serving_default: x: float32 (?, 4) -> y: float32 (?, 2)
    """
    return Inspection(read(file))


def is_float(op: FileOp) -> bool:
    """Whether an op computes in float; conversions and hybrid ops do not count.

    Args:
        op: The op.
    """
    return _has_float_data(op) and not is_hybrid(op)


def is_hybrid(op: FileOp) -> bool:
    """Whether an op has float data and integer weights, and quantizes the data at run time.

    Args:
        op: The op.
    """
    weights = _weights(op)
    return weights is not None and weights.quantized and _has_float_data(op)


def _has_float_data(op: FileOp) -> bool:
    """Whether an op that is no conversion has a float tensor."""
    tensors = (*op.inputs, *op.outputs)
    has_float = any(t is not None and t.dtype.startswith(("float", "bfloat")) for t in tensors)
    return has_float and not get_kernel(op.name).converts


def _weights(op: FileOp) -> FileTensor | None:
    """The largest constant of an op that holds weights."""
    constants = [t for t in op.inputs if t is not None and t.data is not None]
    values = [t for t in constants if t.dtype not in _INDICES]
    return max(values, key=lambda t: t.bytes, default=None)


def _counts(names: Sequence[str]) -> str:
    return ", ".join(f"{n} {op}" for op, n in Counter(names).items())


def _constant_sizes(tensors: Any) -> dict[int, int]:
    """Bytes of the constants by their buffers."""
    return {t.buffer: t.bytes for t in tensors if t is not None and t.data is not None}


def _kind(tensor: FileTensor) -> str:
    return f"{tensor.dtype} ({', '.join('?' if n is None else str(n) for n in tensor.shape)})"


def _row(op: FileOp) -> tuple[str, ...]:
    first = next((t for t in op.inputs if t is not None and t.data is None), None)
    output = op.outputs[0] if op.outputs else None
    scale = zero_point = ""
    if output is not None and output.quantized:
        scale = f"{output.scales[0]:.6g}" if len(output.scales) == 1 else "per channel"
        zero_point = str(output.zero_points[0]) if len(output.zero_points) else ""
    weights = _weights(op)
    return (
        str(op.index),
        op.name,
        str(op.version),
        _kind(first) if first else "",
        weights.kind if weights else "",
        _kind(output) if output else "",
        scale,
        zero_point,
        str(sum(_constant_sizes(op.inputs).values())),
        output.name if output else "",
    )


def _graph_dict(graph: FileGraph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "inputs": [t.index for t in graph.inputs],
        "outputs": [t.index for t in graph.outputs],
        "ops": [
            {
                "index": op.index,
                "op": op.name,
                "version": op.version,
                "inputs": [None if t is None else t.index for t in op.inputs],
                "outputs": [t.index for t in op.outputs],
                "options": op.options,
                "constant_bytes": sum(_constant_sizes(op.inputs).values()),
                "float": is_float(op),
                "hybrid": is_hybrid(op),
            }
            for op in graph.ops
        ],
        "tensors": [
            {
                "index": t.index,
                "name": t.name,
                "dtype": t.dtype,
                "shape": list(t.shape),
                # JSON has no NaN: such a scale is a text.
                "scales": [s if abs(s) < float("inf") else str(s) for s in t.scales.tolist()],
                "zero_points": t.zero_points.tolist(),
                **t.groups._asdict(),
                "bytes": t.bytes,
            }
            for t in graph.tensors
        ],
    }
