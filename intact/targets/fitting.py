"""Adapts files to a target: fixes their sizes if it needs that, and refuses what it cannot run."""

from intact.errors import ExportError, IntactError, TargetError
from intact.litert.dtypes import BITS
from intact.litert.kernels import get_kernel
from intact.litert.kernels.targets import TARGETS, get_target, runs
from intact.litert.reader import FileOp, read
from intact.litert.runtime import fix_sizes


def keep_to(file: bytes, target: str) -> bytes:
    """Fix a file's sizes if a target needs that, and refuse files that it cannot run.

    Args:
        file: The file's bytes.
        target: The target, as for `get_target`.

    Returns:
        The bytes of the file for the target.

    Raises:
        TargetError: Neither the target nor its host runs an op, or no op runs on the target.
        ExportError: Sizes other than the batch are open.
    """
    title = TARGETS[get_target(target)].title
    if TARGETS[get_target(target)].fixed_sizes:
        try:
            file = fix_sizes(file)
        except IntactError as error:
            raise ExportError(f"{title} takes fixed sizes alone. {error}") from error
    ops = [op for graph in read(file).graphs for op in graph.ops]
    kinds = [(op.name, working_type(op)) for op in ops]
    left = [
        f"{op.outputs[0].name} ({', '.join(kind)})"
        for op, kind in zip(ops, kinds, strict=True)
        if not runs(*kind, target)
    ]
    if left:
        raise TargetError(
            f"{title} has no kernel for these ops:\n  " + "\n  ".join(left) + "\nReplace the "
            "layers that they are named after, or quantize them in another way. `intact.check` "
            "shows all ops."
        )
    if not any(runs(*kind, target, host=False) for kind in kinds):
        raise TargetError(
            f"{title} would run none of the {len(ops)} ops of this file"
            + (f", such as {' of '.join(kinds[0])}" if kinds else "")
            + ". Quantize the model with the scheme 'int8'."
        )
    return file


def working_type(op: FileOp) -> str:
    """The type that an op works on, a key of `Kernel.runs_on`.

    Args:
        op: The op.
    """
    inputs = [t for t in op.inputs if t is not None]
    places = get_kernel(op.name).data
    data = [t for i, t in enumerate(op.inputs) if t is not None and (i in places or not places)]
    data = data or inputs or list(op.outputs)
    first = next((t for t in data if t.data is None), data[0])
    weights = [t.dtype for t in inputs if t.data is not None and t is not first and t.quantized]
    narrow = next((dtype for dtype in weights if BITS[dtype] < 8), None)
    if narrow:
        return narrow
    if first.dtype == "float32" and weights:
        return "hybrid"
    return f"{first.dtype}_per_channel" if len(first.scales) > 1 else first.dtype
