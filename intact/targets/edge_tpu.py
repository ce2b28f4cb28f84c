"""The rules of the Edge TPU, from the documentation of its compiler, which is not a package.

Source: "TensorFlow models on the Edge TPU", coral.ai/docs/edgetpu/models-intro.
"""

from collections.abc import Callable

import numpy as np

from intact.litert.kernels import get_kernel
from intact.litert.kernels.row import EdgeTpuLimit
from intact.litert.kernels.targets import TARGETS
from intact.litert.reader import FileOp, FileTensor


def _integers(op: FileOp, place: int) -> np.ndarray | None:
    """The values of a constant int32 input."""
    tensor = op.inputs[place] if len(op.inputs) > place else None
    if tensor is None or tensor.data is None or tensor.dtype != "int32" or len(tensor.data) % 4:
        return None
    return np.frombuffer(tensor.data, "<i4")


def _reduces_inside(op: FileOp) -> bool:
    """Whether a reduction is over height and width only, of (batch, height, width, channels)."""
    axes, x = _integers(op, 1), op.inputs[0]
    return axes is not None and x is not None and set(axes % max(len(x.shape), 1)) <= {1, 2}


def _pads_inside(op: FileOp) -> bool:
    pads = _integers(op, 1)
    return pads is not None and set(np.flatnonzero(pads) // 2) <= {1, 2}


def _joins_zeros(op: FileOp) -> bool:
    constants = [t for t in op.inputs if t is not None and t.data is not None]
    if not constants:
        return True
    stored = np.frombuffer(constants[0].data or b"", "u1")
    zero = int(constants[0].zero_points[0]) % 256 if len(constants[0].zero_points) else 0
    return len(op.inputs) == 2 and len(constants) == 1 and bool((stored == zero).all())


def _has_one_dimension(op: FileOp) -> bool:
    return all((n or 1) == 1 for n in op.outputs[0].shape[:-1])


def _has_steps_of_one(op: FileOp) -> bool:
    steps = _integers(op, 3)
    plain = not (op.options["ellipsisMask"] or op.options["newAxisMask"])
    return steps is not None and bool((steps == 1).all()) and plain


def _has_no_activation(op: FileOp) -> bool:
    return bool(op.options["fusedActivationFunction"] == "NONE")


def _has_one_alpha_per_channel(op: FileOp) -> bool:
    alpha = op.inputs[1] if len(op.inputs) > 1 else None
    return alpha is not None and all(n == 1 for n in alpha.shape[:-1])


def _dilations(op: FileOp) -> set[int]:
    return {op.options["dilationWFactor"], op.options["dilationHFactor"]}


def _has_few_values(op: FileOp) -> bool:
    return (op.outputs[0].shape[-1] or 0) <= 16000


LIMITS: dict[EdgeTpuLimit, tuple[Callable[[FileOp], bool], str]] = {
    "at most 16,000 values": (_has_few_values, "it has more than 16,000 values"),
    "equal dilations": (
        lambda op: len(_dilations(op)) == 1,
        "its dilations differ in width and height",
    ),
    "joins zeros": (_joins_zeros, "a constant that it joins must be zeros, beside one input"),
    "no dilation": (lambda op: _dilations(op) == {1}, "it is dilated"),
    "no fused activation": (_has_no_activation, "its activation is fused"),
    "one alpha per channel": (_has_one_alpha_per_channel, "it has more than one alpha per channel"),
    "one dimension": (_has_one_dimension, "its output has more than one dimension"),
    "pads height and width": (_pads_inside, "it pads more than height and width"),
    "plain weights": (lambda op: not op.options["weightsFormat"], "its weights are shuffled"),
    "reduces height and width": (_reduces_inside, "it reduces more than height and width"),
    "steps of one": (_has_steps_of_one, "its steps are not one"),
}
"""Per limit in `Kernel.edge_tpu`, whether an op keeps it, and the message if not."""


def refused(ops: tuple[FileOp, ...]) -> dict[int, str]:
    """Why some ops run on the CPU.

    The compiler makes one part for the Edge TPU. Ops behind that part run on the CPU, too.

    Args:
        ops: The ops in order.

    Returns:
        The reasons, by index of the op.
    """
    reasons: dict[int, str] = {}
    begun = ended = False
    for index, op in enumerate(ops):
        reason = why_not(op)
        ended = ended or (begun and bool(reason))
        begun = begun or not reason
        if reason or ended:
            reasons[index] = reason or "it stands behind an op that runs on the CPU"
    return reasons


def why_not(op: FileOp) -> str:
    """Why an op does not run on the Edge TPU; an empty text if it does.

    Args:
        op: The op.
    """
    limits = get_kernel(op.name).edge_tpu
    if limits is None or not op.inputs or not op.outputs or op.inputs[0] is None:
        return "it is not among the ops of the Edge TPU"
    for tensor in (*op.inputs, *op.outputs):
        reason = "" if tensor is None or tensor.data is not None else _why_not_tensor(tensor)
        if reason:
            return reason
    weights = op.inputs[1] if len(op.inputs) > 1 else None
    if weights is not None and weights.dtype in ("int2", "int4"):
        return f"its weights are {weights.dtype}"
    checks = (LIMITS[limit] for limit in limits)
    return next((reason for is_kept, reason in checks if not is_kept(op)), "")


def _why_not_tensor(tensor: FileTensor) -> str:
    if tensor.dtype not in TARGETS["edgetpu"].types:
        return f"{tensor.name!r} is {tensor.dtype}, and it takes 8 bits"
    if None in tensor.shape:
        return f"the sizes of {tensor.name!r} are open: export with `target='edgetpu'`"
    if any(n != 1 for n in tensor.shape[:-3]):
        return f"{tensor.name!r} has more than three dimensions over 1"
    return ""
