"""Rules for ops and their kernels, and for the scales of activations."""

from collections.abc import Iterator

import numpy as np

from intact.litert.reader import FileTensor
from intact.litert.rules.rule import (
    ERROR,
    INFO,
    INTEGERS,
    WARNING,
    Fault,
    OpContext,
    describe,
    parameters,
    rule,
)

_MISMATCH = {
    "silent": "LiteRT computes wrong values, without an error",
    "rejected": "LiteRT refuses the file",
    "requantized": "LiteRT requantizes, other runtimes may not",
}


@rule("O201", ERROR, "op", example="an ADD with one input", remedy="Export the model again")
def tensors_missing(context: OpContext) -> Iterator[Fault]:
    """An op lacks inputs or outputs that its kernel needs.

    The runtime refuses the file, or reads what is not there. Nothing else of the op is checked.
    """
    kernel, op = context.kernel, context.op
    lacks_weights = kernel.weights is not None and context.weights is None
    if lacks_weights or not op.outputs or len(context.data) < (len(kernel.data) or 1):
        yield Fault("inputs or outputs are missing")


@rule(
    "O202",
    WARNING,
    "op",
    example="a FULLY_CONNECTED of int8 with version 1; it needs 4",
    remedy="Write that version: some runtimes refuse any other",
)
def version_does_not_fit(context: OpContext) -> Iterator[Fault]:
    """The version of an op is not the one that its types and options need.

    LiteRT only refuses versions that are too high for it. Other compilers and older runtimes look
    a kernel up by its version.
    """
    accepted = context.kernel.accepted_versions(context.op)
    if accepted is None:
        return
    lowest, highest, conditions = accepted
    if not lowest <= context.op.version <= highest:
        reason = f" ({', '.join(conditions)})" if conditions else ""
        yield Fault(
            f"its version is {context.op.version}, and its use on {context.dtype}{reason} needs "
            f"{highest}"
        )


@rule("K301", ERROR, "integer op", example="a SIN of int8", remedy="Keep the op in float")
def kernel_missing_or_wrong(context: OpContext) -> Iterator[Fault]:
    """LiteRT has no kernel for the type, or one that computes something else.

    Some kernels accept integers and ignore their scales. NEG is right where there is nothing to
    ignore: equal scales, and zero points of 0.
    """
    tensors = [*context.data, *context.op.outputs]
    reason = context.kernel.broken.get(context.dtype)
    if reason is None or not any(t.quantized for t in tensors):
        return
    is_negation = context.op.name == "NEG"
    plain = all(
        t.quantized and not t.zero_points.any() and t.scales[0] == tensors[0].scales[0]
        for t in tensors
    )
    if not (is_negation and plain):
        yield Fault(reason, context.output, "Write it as SUB or MUL" if is_negation else "")


@rule(
    "K302",
    WARNING,
    "integer op",
    example="an EXP of int16, which is off by up to 87 of 65536 steps",
    remedy="Keep the op in float",
)
def kernel_inexact(context: OpContext) -> Iterator[Fault]:
    """The kernel for this type is imprecise.

    It looks a function up in a coarse table, or rounds more than once.
    """
    if context.dtype in context.kernel.inexact:
        yield Fault(context.kernel.inexact[context.dtype], context.output)


@rule(
    "K303",
    ERROR,
    "integer op",
    example="a BATCH_MATMUL whose right side is a constant with 8 scales",
    remedy="Quantize it with one scale, or write FULLY_CONNECTED",
)
def constant_matrix_per_channel(context: OpContext) -> Iterator[Fault]:
    """The constant right side of a BATCH_MATMUL has a scale per channel.

    LiteRT returns zeros for it.
    """
    right = context.input(1) if context.op.name == "BATCH_MATMUL" else None
    if right is not None and right.data is not None and len(right.scales) > 1:
        yield Fault("LiteRT returns zeros for a constant right side with scales per channel", right)


@rule(
    "S401",
    ERROR,
    "integer op",
    example="an int8 input of ADD without a scale",
    remedy="Write its scale and zero point",
)
def scale_missing(context: OpContext) -> Iterator[Fault]:
    """A tensor of integers has no scale, and its kernel needs one.

    Without a scale, integers stand for no real values. Kernels that compare or count do without.
    """
    kernel = context.kernel
    outputs = context.op.outputs if kernel.scales == "free" else ()
    is_checked = kernel.scaled and kernel.scales in ("free", "fixed")
    for t in [*context.data, *outputs] if is_checked else ():
        if t.dtype in INTEGERS and not t.quantized:
            yield Fault(f"it is {t.dtype} and has no scale", t)


@rule(
    "S402",
    ERROR,
    "integer op",
    example="a RESHAPE from scale 0.5 to scale 0.25",
    remedy="Give both the same, or put a QUANTIZE between",
)
def scales_differ(context: OpContext) -> Iterator[Fault]:
    """Scales differ where a kernel moves integers as they are.

    The kernel copies or compares stored integers. With another scale or zero point at its output,
    they stand for other values.
    """
    if _on_mismatch(context) != "requantized":
        yield from _unequal(context)


@rule(
    "S403",
    WARNING,
    "integer op",
    example="a CONCATENATION of uint8 with an input of another scale",
    remedy="Give both the same, or put a QUANTIZE between",
)
def scales_differ_and_are_converted(context: OpContext) -> Iterator[Fault]:
    """Scales differ, and only some runtimes convert the values.

    LiteRT requantizes; other runtimes move the integers as they are.
    """
    if _on_mismatch(context) == "requantized":
        yield from _unequal(context)


@rule(
    "S404",
    ERROR,
    "integer op",
    example="a SOFTMAX of int8 with scale 1/128; it prescribes 1/256 and -128",
    remedy="Write these, and a QUANTIZE behind it for others",
)
def output_scale_not_as_prescribed(context: OpContext) -> Iterator[Fault]:
    """An op with a prescribed output scale has another one.

    The range of such an output is known, and the kernel writes integers of that scale.
    """
    if _on_mismatch(context) != "requantized":
        yield from _not_prescribed(context)


@rule(
    "S405",
    WARNING,
    "integer op",
    example="a TANH of int8 with scale 1/100; it prescribes 1/128 and 0",
    remedy="Write these, and a QUANTIZE behind it for others",
)
def output_scale_not_as_prescribed_and_converted(context: OpContext) -> Iterator[Fault]:
    """An op with a prescribed output scale has another one, and only some runtimes convert.

    LiteRT requantizes; other runtimes write integers of the prescribed scale.
    """
    if _on_mismatch(context) == "requantized":
        yield from _not_prescribed(context)


@rule(
    "S406",
    ERROR,
    "integer op",
    example="an LSTM with output scale 0.5 and hidden state scale 0.25",
    remedy="Give both the same",
)
def state_scale_differs(context: OpContext) -> Iterator[Fault]:
    """The hidden state of an LSTM has another scale than its output.

    The kernel copies each output into the state as it is.
    """
    hidden, output = context.input(18), context.output
    if context.op.name != "UNIDIRECTIONAL_SEQUENCE_LSTM" or hidden is None:
        return
    if parameters(hidden) != parameters(output):
        yield Fault(
            f"the state {describe(hidden)} and the output {describe(output)} must have one scale "
            f"and zero point: {_MISMATCH['silent']}",
            hidden,
        )


@rule("N701", INFO, "kernel", example="a UNIQUE", remedy="Compare its outputs with the model's")
def kernel_not_in_table(count: int) -> Iterator[Fault]:
    """The kernel table has no row for a kernel.

    Nothing is known of what it requires. Its ops were not checked, which is reported once.
    """
    ops = "1 op takes this kernel" if count == 1 else f"{count} ops take this kernel"
    yield Fault(f"not checked: {ops}, and there is no rule for it")


def _on_mismatch(context: OpContext) -> str:
    is_fixed = context.kernel.scales == "fixed"
    return context.kernel.on_mismatch(context.output.dtype if is_fixed else context.dtype)


def _unequal(context: OpContext) -> Iterator[Fault]:
    """The inputs whose scale and zero point are not those of the output."""
    scales = context.kernel.scales
    compared: dict[str, list[FileTensor]] = {"same": context.data[:1], "all same": context.data}
    for output in context.op.outputs:
        for t in compared.get(scales, []):
            # Places of values, an output of TOPK_V2, are of another type.
            if t.dtype == output.dtype and parameters(t) != parameters(output):
                yield Fault(
                    f"input {describe(t)} and output {describe(output)} must have one scale and "
                    f"zero point: {_MISMATCH[_on_mismatch(context)]}",
                    output if scales == "same" else t,
                )


def _not_prescribed(context: OpContext) -> Iterator[Fault]:
    output = context.output
    prescribed = context.kernel.fixed.get(output.dtype)
    if prescribed is None:
        return
    scale, zero_point = prescribed
    if parameters(output) != ((float(np.float32(scale)),), (zero_point,)):
        yield Fault(
            f"its output has {describe(output)}, and the op prescribes 1/{1 / scale:g} and "
            f"{zero_point}: {_MISMATCH[_on_mismatch(context)]}",
            output,
        )
