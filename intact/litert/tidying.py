"""Takes needless ops out of a file.

Each op is lowered by itself, with the shapes that its kernel wants. So a reshape may follow another
one. The values are the same without the first, and a kernel that takes any shape needs neither.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from intact.litert.kernels import get_kernel
from intact.litert.writing import Operator, Tensor

if TYPE_CHECKING:
    from intact.litert.builder import Builder

RESHAPES = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")
"""The kernels that change a shape and no value."""

PACKED = ("int8", "uint8", "int16", "int32", "int64", "float32")
"""What PACK takes, and tables are made of."""

LARGEST = 4096
"""Bytes that a table may have that replaces two smaller ones."""


def tidy(builder: "Builder") -> None:
    """Reconnect the ops of a file's main graph, so that nothing reads its needless ops.

    Args:
        builder: The file's builder; its ops are changed.
    """
    graph = _Graph(builder)
    for op in builder.operators:
        source = graph.reshaped(op.inputs[0]) if op.inputs else None
        if op.name == "RESHAPE":
            while source is not None:
                op.inputs[0], source = source, graph.reshaped(source)
        elif op.name == "FULLY_CONNECTED" and source is not None:
            if not op.options.get("keepNumDims") and source.shape[-1] == op.inputs[0].shape[-1]:
                op.inputs[0] = source
        elif op.name == "CONCATENATION" and builder.has_own("PACK", op.outputs[0].dtype):
            graph.pack(op)
        elif op.name == "GATHER" and len(op.inputs) == 2:
            graph.merge_tables(op)


class _Graph:
    """The ops of a file by what they make and read."""

    def __init__(self, builder: "Builder") -> None:
        self.builder = builder
        self.maker = {id(tensor): op for op in builder.operators for tensor in op.outputs}
        self.readers = Counter(id(tensor) for op in builder.operators for tensor in op.inputs)

    def reshaped(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor that a reshape makes another one from; None if no reshape makes it."""
        op = self.maker.get(id(tensor))
        if op is None or op.name not in RESHAPES or op.inputs[0].variable:
            return None
        return op.inputs[0]

    def pack(self, op: Operator) -> None:
        """Make a PACK of a CONCATENATION of tensors that have a new axis for it."""
        rank, dtype = len(op.outputs[0].shape), op.outputs[0].dtype
        axis = op.options.get("axis", 0) % rank
        plain = op.options.get("fusedActivationFunction", "NONE") == "NONE"
        sources = [self.reshaped(tensor) for tensor in op.inputs]
        shapes = {(*t.shape[:axis], 1, *t.shape[axis:]) for t in sources if t is not None}
        if None in sources or {t.shape for t in op.inputs} != shapes or len(shapes) > 1:
            return
        if plain and dtype in PACKED:
            op.name, op.inputs = "PACK", sources
            op.options = {"axis": axis, "valuesCount": len(sources)}
            op.version = get_kernel("PACK").version(op)

    def merge_tables(self, op: Operator) -> None:
        """Look up in one table what a table finds in a table."""
        rows, index = op.inputs
        reshape = self.maker.get(id(index))
        inner = self.maker.get(id(self.reshaped(index) or index))
        if inner is None or inner.name != "GATHER" or not (_is_table(op) and _is_table(inner)):
            return
        if inner is not reshape and self.readers[id(index)] > 1:
            return
        first = self.values(inner.inputs[0])
        values = self.values(rows)
        if first.ndim > 1 or not 0 <= first.min() <= first.max() < len(values):
            return
        if len(first) * values[0].nbytes <= max(LARGEST, first.nbytes + values.nbytes):
            fields = {"scale": rows.scale, "zero_point": rows.zero_point, "groups": rows.groups}
            name = f"{op.outputs[0].name}/table"
            op.inputs[0] = self.builder.constant(values[first], name, **fields)
            if reshape is None or inner is reshape:
                op.inputs[1] = inner.inputs[1]
            else:
                reshape.inputs[0] = inner.inputs[1]

    def values(self, tensor: Tensor) -> np.ndarray:
        """The values of a constant."""
        stored = self.builder.buffers[tensor.buffer]
        assert stored is not None
        return stored.view(tensor.dtype).reshape([size or 1 for size in tensor.shape])


def _is_table(op: Operator) -> bool:
    """Whether a GATHER looks up rows of a constant of whole bytes, with one scale or none."""
    table, whole = op.inputs[0], not (op.options.get("axis") or op.options.get("batchDims"))
    return bool(whole and table.buffer and table.dtype in PACKED and table.scales.size < 2)


def without_unread(operators: Sequence[Operator], ends: Sequence[Tensor]) -> list[Operator]:
    """The ops of a graph without those whose outputs nothing reads.

    Args:
        operators: The ops, in their order.
        ends: The outputs of the graph.
    """
    read = {id(tensor) for tensor in ends}
    kept, unread = [], []
    for op in reversed(operators):
        if not op.outputs or any(id(tensor) in read for tensor in op.outputs):
            read.update(map(id, op.inputs))
            kept.append(op)
        elif op.name in RESHAPES:
            unread.append(op)
    for op in reversed(unread):
        # Who looks for the values of a layer finds them in another shape: under the name of the
        # first reshape behind them, which is the layer's.
        source, tensor = op.inputs[0], op.outputs[0]
        if "/part_" in source.name and "/part_" not in tensor.name:
            source.name, tensor.name = tensor.name, source.name
    return kept[::-1]
