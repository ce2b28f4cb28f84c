"""What the compiler of the Edge TPU takes, by its documentation: its tool is not a package.

Source: "TensorFlow models on the Edge TPU", coral.ai/docs/edgetpu/models-intro.
"""

from collections.abc import Callable

import numpy as np

from intact.litert.reader import FileOp, FileTensor

TYPES = ("int8", "uint8")
"""The types that it computes with."""


def _integers(op: FileOp, place: int) -> np.ndarray | None:
    """The values of an input that is a constant of int32."""
    tensor = op.inputs[place] if len(op.inputs) > place else None
    if tensor is None or tensor.data is None or tensor.dtype != "int32" or len(tensor.data) % 4:
        return None
    return np.frombuffer(tensor.data, "<i4")


def _inner(op: FileOp) -> bool:
    """Whether a reduction goes over height and width alone, of (batch, height, width, channels)."""
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


def _one_row(op: FileOp) -> bool:
    return all((n or 1) == 1 for n in op.outputs[0].shape[:-1])


def _steps_of_one(op: FileOp) -> bool:
    steps = _integers(op, 3)
    plain = not (op.options["ellipsis"] or op.options["new_axis"])
    return steps is not None and bool((steps == 1).all()) and plain


def _no_activation(op: FileOp) -> bool:
    return not op.options["activation"]


def _one_alpha_per_channel(op: FileOp) -> bool:
    alpha = op.inputs[1] if len(op.inputs) > 1 else None
    return alpha is not None and all(n == 1 for n in alpha.shape[:-1])


Limit = tuple[Callable[[FileOp], bool], str]
_NO_ACTIVATION: Limit = (_no_activation, "its activation is fused")
_INNER: Limit = (_inner, "it reduces more than height and width")

OPS: dict[str, tuple[Limit, ...]] = {
    "ADD": (),
    "AVERAGE_POOL_2D": (_NO_ACTIVATION,),
    "CONCATENATION": (
        _NO_ACTIVATION,
        (_joins_zeros, "of constants, it takes one of zeros beside one input"),
    ),
    "CONV_2D": (
        (
            lambda op: op.options["dilation_w"] == op.options["dilation_h"],
            "its dilations differ in width and height",
        ),
    ),
    "DEPTHWISE_CONV_2D": (
        (
            lambda op: op.options["dilation_w"] == op.options["dilation_h"] == 1,
            "it is dilated",
        ),
    ),
    "EXPAND_DIMS": (),
    "FULLY_CONNECTED": (
        (lambda op: not op.options["weights_format"], "its weights are shuffled"),
        (_one_row, "its output has more than one dimension"),
    ),
    "L2_NORMALIZATION": (),
    "LOGISTIC": (),
    "MAXIMUM": (),
    "MAX_POOL_2D": (_NO_ACTIVATION,),
    "MEAN": (_INNER,),
    "MINIMUM": (),
    "MUL": (),
    "PACK": (),
    "PAD": ((_pads_inside, "it pads more than height and width"),),
    "PRELU": ((_one_alpha_per_channel, "it has more than one alpha per channel"),),
    "QUANTIZE": (),
    "REDUCE_MAX": (),
    "REDUCE_MIN": (),
    "RELU": (),
    "RELU6": (),
    "RELU_N1_TO_1": (),
    "RESHAPE": (),
    "RESIZE_BILINEAR": (),
    "RESIZE_NEAREST_NEIGHBOR": (),
    "RSQRT": (),
    "SLICE": (),
    "SOFTMAX": (
        (_one_row, "its input has more than one dimension"),
        (lambda op: (op.outputs[0].shape[-1] or 0) <= 16000, "it has more than 16,000 values"),
    ),
    "SPACE_TO_DEPTH": (),
    "SPLIT": (),
    "SQUARED_DIFFERENCE": (),
    "SQUEEZE": (),
    "STRIDED_SLICE": ((_steps_of_one, "its steps are not one"),),
    "SUB": (),
    "SUM": (_INNER,),
    "TANH": (),
    "TRANSPOSE": (),
    "TRANSPOSE_CONV": (),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (),
}
"""The ops it takes, each with its limits: whether an op keeps one, and what to say if not."""


def refused(ops: tuple[FileOp, ...]) -> dict[int, str]:
    """Why ops run on the CPU, of those that do.

    The compiler makes one part for the Edge TPU, and what comes behind it stays out of it.

    Args:
        ops: The ops in order.

    Returns:
        The reasons, by index.
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
    """Why the Edge TPU does not take an op; nothing if it does.

    Args:
        op: The op.
    """
    if op.name not in OPS or not op.inputs or not op.outputs or op.inputs[0] is None:
        return "it is not among the ops of the Edge TPU"
    moving = [t for t in (*op.inputs, *op.outputs) if t is not None and t.data is None]
    for tensor in moving:
        reason = _about(tensor)
        if reason:
            return reason
    weights = op.inputs[1] if len(op.inputs) > 1 else None
    if weights is not None and weights.dtype in ("int2", "int4"):
        return f"its weights are {weights.dtype}"
    return next((text for kept, text in OPS[op.name] if not kept(op)), "")


def _about(tensor: FileTensor) -> str:
    if tensor.dtype not in TYPES:
        return f"{tensor.name!r} is {tensor.dtype}, and it takes 8 bits"
    if None in tensor.shape:
        return f"the sizes of {tensor.name!r} are open: export with `target='edgetpu'`"
    if any(n != 1 for n in tensor.shape[:-3]):
        return f"{tensor.name!r} has more than three dimensions over 1"
    return ""
