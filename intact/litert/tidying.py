"""Takes ops out of a graph that only change the shape of what other ops read.

Each op is lowered by itself, with the shapes that its kernel wants. So a reshape may follow another
one. The values are the same without the first, and a kernel that takes any shape needs neither.
"""

from collections.abc import Callable, Sequence

from intact.litert.kernels import get_kernel
from intact.litert.writing import Operator, Tensor

RESHAPES = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")
"""The kernels that change a shape and no value."""

PACKED = ("int8", "uint8", "int16", "int32", "int64", "float32")
"""What PACK takes."""


def tidy(operators: Sequence[Operator], has: Callable[[str, str], bool]) -> None:
    """Reconnect the ops of a graph, so that nothing reads its needless reshapes.

    Args:
        operators: The ops, in their order; they are changed.
        has: Whether the target of the file has a kernel, by its name and what it works on.
    """
    maker = {id(tensor): op for op in operators for tensor in op.outputs}
    for op in operators:
        source = _reshaped(op.inputs[0], maker) if op.inputs else None
        if op.name == "RESHAPE":
            while source is not None:
                op.inputs[0], source = source, _reshaped(source, maker)
        elif op.name == "FULLY_CONNECTED" and source is not None:
            if not op.options.get("keepNumDims") and source.shape[-1] == op.inputs[0].shape[-1]:
                op.inputs[0] = source
        elif op.name == "CONCATENATION" and has("PACK", op.outputs[0].dtype):
            _pack(op, maker)


def without_unread(operators: Sequence[Operator], ends: Sequence[Tensor]) -> list[Operator]:
    """The ops of a graph without those whose outputs nothing reads.

    Args:
        operators: The ops, in their order.
        ends: The outputs of the graph.
    """
    read = {id(tensor) for tensor in ends}
    kept = []
    for op in reversed(operators):
        if not op.outputs or any(id(tensor) in read for tensor in op.outputs):
            read.update(map(id, op.inputs))
            kept.append(op)
        elif op.name in RESHAPES:
            source, tensor = op.inputs[0], op.outputs[0]
            if "/part_" in source.name and "/part_" not in tensor.name:
                # Who looks for the values of a layer finds them in another shape.
                source.name, tensor.name = tensor.name, source.name
    return kept[::-1]


def _reshaped(tensor: Tensor | None, maker: dict[int, Operator]) -> Tensor | None:
    """The tensor that a reshape makes another one from; None if no reshape makes it."""
    op = maker.get(id(tensor))
    return op.inputs[0] if op is not None and op.name in RESHAPES else None


def _pack(op: Operator, maker: dict[int, Operator]) -> None:
    """Make a PACK of a CONCATENATION of tensors that have a new axis for it."""
    rank, dtype = len(op.outputs[0].shape), op.outputs[0].dtype
    axis = op.options.get("axis", 0) % rank
    plain = op.options.get("fusedActivationFunction", "NONE") == "NONE"
    sources = [_reshaped(tensor, maker) for tensor in op.inputs]
    shapes = {(*t.shape[:axis], 1, *t.shape[axis:]) for t in sources if t is not None}
    if None in sources or {t.shape for t in op.inputs} != shapes or len(shapes) > 1:
        return
    if plain and dtype in PACKED:
        op.name, op.inputs = "PACK", sources
        op.options = {"axis": axis, "valuesCount": len(sources)}
        op.version = get_kernel("PACK").version(op)
