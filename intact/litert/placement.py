"""Where the ops of a file run on a target: asked of the target's own tool, if it has one."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from intact.errors import ExportError, IntactError, TargetError
from intact.litert import edge_tpu, micro, vela
from intact.litert.inspection import columns
from intact.litert.reader import BITS, FileOp, read
from intact.litert.runtime import LiteRTModel, delegated, fix_sizes
from intact.litert.targets import TARGETS, get_target, runs

_HEADING = ("", "op", "output", "runs on", "why")


@dataclass(frozen=True)
class PlacedOp:
    """Where one op of a file runs.

    Args:
        index: Its place.
        op: What it is.
        output: The name of its output.
        taken: Whether the target takes it, rather than its host's processor, or nobody.
        where: What it runs on.
        reason: Why the target does not take it.

    Example:

    >>> PlacedOp(3, "GATHER", "y", taken=False, where="CPU", reason="Unsupported").where
    'CPU'
    """

    index: int
    op: str
    output: str
    taken: bool
    where: str
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """What `check` returns; printing it gives a table.

    Args:
        target: The target.
        tool: What was asked, with its version.
        ops: One entry per op of the file.
        runs: Whether the target with its host runs the file at all.
        figures: Numbers that the tool tells; the names say the unit.
        settings: What the tool took for granted.
        agrees: Whether the outputs are those of LiteRT's reference kernels, but for rounding.
        notes: What else is worth knowing, a sentence each.

    Example:

    >>> op = PlacedOp(0, "ADD", "y", taken=True, where="NPU")
    >>> Placement("ethos-u55", "Vela", (op,), runs=True, figures={}, settings="").share
    1.0
    """

    target: str
    tool: str
    ops: tuple[PlacedOp, ...]
    runs: bool
    figures: dict[str, float]
    settings: str
    agrees: bool = True
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the target runs the file and some of its ops, and computes what LiteRT does."""
        return self.runs and self.agrees and any(op.taken for op in self.ops)

    @property
    def share(self) -> float:
        """The share of the ops that run on the target."""
        return sum(op.taken for op in self.ops) / max(len(self.ops), 1)

    @property
    def left(self) -> tuple[PlacedOp, ...]:
        """The ops that do not run on the target."""
        return tuple(op for op in self.ops if not op.taken)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "share": self.share, "ok": self.ok}

    def __str__(self) -> str:
        settings = f", {self.settings}" if self.settings else ""
        rows = [(str(op.index), op.op, op.output, op.where, op.reason) for op in self.ops]
        taken = len(self.ops) - len(self.left)
        lines = [f"{self.target} ({self.tool}{settings})", "", *columns(_HEADING, rows), ""]
        title = TARGETS[get_target(self.target)].title
        lines.append(f"{taken} of {len(self.ops)} ops ({100 * self.share:.1f} %) run on {title}.")
        if not self.runs:
            lines.append(f"{title} does not run this file.")
        elif not self.agrees:
            lines.append(f"{title} runs this file, and computes other values than LiteRT.")
        elif not taken:
            lines.append("Quantize the model with the scheme 'int8'.")
        lines += self.notes
        lines += [f"{name.replace('_', ' ')}: {value:,.6g}" for name, value in self.figures.items()]
        return "\n".join(lines)


def place(file: bytes, target: str, data: Any = None, samples: int = 8) -> Placement:
    """Say where the ops of a file run on a target.

    Args:
        file: The file's bytes.
        target: A name in `intact.litert.targets.TARGETS`, or of an Ethos-U with its number of
            MACs, such as "ethos-u55-256".
        data: For "tflite-micro", the samples to run, as `LiteRTModel.predict` takes them;
            random ones by default.
        samples: How many random ones.

    Returns:
        The placement; print it.

    Raises:
        IntactError: There is no such target, or its tool is missing, or refuses the file.
    """
    base = get_target(target)
    ops = read(file).graphs[0].ops
    asked: Callable[..., Placement] = {
        "tflite-micro": _micro,
        "edgetpu": _edge_tpu,
        "xnnpack": _xnnpack,
    }.get(base, _ethos)
    return asked(file, ops, target, data, samples)


def _placed(
    ops: tuple[FileOp, ...], reasons: dict[int, str], where: str, otherwise: str
) -> tuple[PlacedOp, ...]:
    return tuple(
        PlacedOp(
            index=i,
            op=op.name,
            output=op.outputs[0].name if op.outputs else "",
            taken=i not in reasons,
            where=otherwise if i in reasons else where,
            reason=reasons.get(i, ""),
        )
        for i, op in enumerate(ops)
    )


def _micro(file: bytes, ops: tuple[FileOp, ...], target: str, data: Any, samples: int) -> Placement:
    tool = f"tflite-micro {micro.version()}"
    model = LiteRTModel(file, kernels="reference")
    inputs = _random(model, samples) if data is None else model.stored(data)
    ran = micro.run_micro(file, [_in_batches(model, name, x) for name, x in inputs.items()])
    if ran.outputs is None:
        faults = micro_faults(file)
        placed = _placed(ops, faults, "TFLite Micro", "nowhere")
        return Placement(target, tool, placed, False, {}, "" if faults else ran.reason)
    expected = _outputs(model, inputs)
    figures: dict[str, float] = {"arena_bytes": ran.arena_bytes}
    figures |= _difference(expected, ran.outputs)
    agrees = all(map(_agree, expected, ran.outputs))
    placed = _placed(ops, {} if agrees else micro_faults(file), "TFLite Micro", "nowhere")
    notes = tuple(filter(None, [dense_scales_note(file)]))
    return Placement(target, tool, placed, True, figures, "", agrees, notes)


def dense_scales_note(file: bytes) -> str:
    """What the scales per channel of FULLY_CONNECTED cost on TFLite Micro, and the remedy.

    Args:
        file: The file's bytes.

    Returns:
        Two sentences; none where the file has no such scales.
    """
    dense = [op.inputs[1] for op in read(file).graphs[0].ops if op.name == "FULLY_CONNECTED"]
    channels = sum(len(w.scales) for w in dense if w is not None and len(w.scales) > 1)
    if not channels:
        return ""
    # TFLite Micro keeps a 32-bit multiplier and a 32-bit shift for each.
    return (
        f"On TFLite Micro, the {channels} scales of FULLY_CONNECTED take {8 * channels} bytes of "
        "the arena. The scheme 'int8_dense_per_tensor' has one scale for each layer instead."
    )


def _outputs(model: LiteRTModel, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The stored outputs of a file for stored inputs, sample by sample."""
    if not inputs:
        # An op of constants alone.
        model.interpreter.invoke()
        details = model.interpreter.get_output_details()
        return [model.interpreter.get_tensor(detail["index"]) for detail in details]
    outputs = model.predict(inputs, batch_size=1, raw=True)
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def micro_faults(file: bytes) -> dict[int, str]:
    """Try the ops of a file's first graph on TFLite Micro, each alone, on random values.

    Args:
        file: The file's bytes.

    Returns:
        By index of the op, why it does not run or that it computes other values.

    Raises:
        MissingToolError: TFLite Micro is not installed.
    """
    files = list(micro.single_ops(file))
    models = [_reference(content) for content in files]
    inputs = [_random(model, 1) if model else {} for model in models]
    runs = micro.run_files(files, [[x[None] for x in arrays.values()] for arrays in inputs])
    faults = {}
    for index, (model, arrays, run) in enumerate(zip(models, inputs, runs, strict=True)):
        if run.outputs is None:
            faults[index] = run.reason
        elif model and not all(map(_agree, _outputs(model, arrays), run.outputs)):
            faults[index] = "it computes other values than LiteRT's kernel"
    return faults


def _reference(file: bytes) -> LiteRTModel | None:
    """A file on LiteRT's reference kernels; None if they do not run it by itself."""
    try:
        return LiteRTModel(file, kernels="reference")
    except IntactError:
        return None


def _agree(expected: np.ndarray, values: np.ndarray) -> bool:
    """Whether outputs are equal but for rounding: by one step, or by 20 dB."""
    gaps = _gaps(expected, values)
    finite = expected[np.isfinite(expected)].astype("float64")
    step = 1.0 if expected.dtype.kind != "f" else 1e-4 * np.abs(finite).max(initial=0)
    return bool(gaps.max(initial=0) <= step or (gaps**2).sum() <= 0.01 * finite.size * finite.var())


def _gaps(expected: np.ndarray, values: np.ndarray) -> np.ndarray:
    """By how much each value differs; the last batch may have been filled up."""
    a = expected.reshape(-1).astype("float64")
    b = values.reshape(-1)[: a.size].astype("float64")
    with np.errstate(invalid="ignore"):
        return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))


def _difference(expected: list[np.ndarray], outputs: list[np.ndarray]) -> dict[str, float]:
    """How outputs differ from those of LiteRT's reference kernels."""
    gaps = np.concatenate([_gaps(a, b) for a, b in zip(expected, outputs, strict=True)])
    return {
        "values_compared": gaps.size,
        "values_unlike_reference_kernels": int((gaps > 0).sum()),
        "largest_difference": float(gaps.max(initial=0)),
    }


def _in_batches(model: LiteRTModel, name: str, values: np.ndarray) -> np.ndarray:
    """Samples in batches of the file's fixed size, the last one filled up."""
    size = int(model.input_details[name]["shape"][0])
    short = -len(values) % size
    values = np.concatenate([values, np.repeat(values[-1:], short, 0)])
    return values.reshape(-1, size, *values.shape[1:])


def _random(model: LiteRTModel, samples: int) -> dict[str, np.ndarray]:
    """Random stored values for each input."""
    rng = np.random.default_rng(0)
    made = {}
    for name, detail in model.input_details.items():
        shape, dtype = (samples, *detail["shape"][1:]), np.dtype(detail["dtype"])
        if dtype.kind == "f":
            made[name] = rng.normal(size=shape).astype(dtype)
            continue
        # Of indices, the first two are everywhere.
        limits = (0, 1)
        if detail["quantization"][0]:
            limits = (np.iinfo(dtype).min, np.iinfo(dtype).max)
        made[name] = rng.integers(*limits, size=shape, endpoint=True).astype(dtype)
    return made


def _ethos(file: bytes, ops: tuple[FileOp, ...], target: str, data: Any, samples: int) -> Placement:
    accelerator = vela.ACCELERATORS.get(target, target)
    tool = f"ethos-u-vela {vela.version()}"
    made = vela.compile_file(file, accelerator)
    reasons = {
        i: made.left[op.outputs[0].name]
        for i, op in enumerate(ops)
        if op.outputs and op.outputs[0].name in made.left
    }
    placed = _placed(ops, reasons, "NPU", "CPU")
    return Placement(target, tool, placed, True, made.figures, f"{accelerator}, {made.settings}")


def _edge_tpu(
    file: bytes, ops: tuple[FileOp, ...], target: str, data: Any, samples: int
) -> Placement:
    placed = _placed(ops, edge_tpu.refused(ops), "Edge TPU", "CPU")
    return Placement(target, "rules of its documentation", placed, True, {}, "")


def _xnnpack(
    file: bytes, ops: tuple[FileOp, ...], target: str, data: Any, samples: int
) -> Placement:
    tool = f"ai-edge-litert {metadata.version('ai-edge-litert')}"
    reason = "the runtime keeps it on its own kernels"
    reasons = {i: reason for i, taken in enumerate(delegated(file)) if not taken}
    return Placement(target, tool, _placed(ops, reasons, "XNNPACK", "CPU"), True, {}, "")


def keep_to(file: bytes, target: str) -> bytes:
    """Fix a file's sizes where a target needs that, and refuse what it cannot run.

    Args:
        file: The file's bytes.
        target: The target, as for `place`.

    Returns:
        The bytes of the file for the target.

    Raises:
        TargetError: Neither the target nor its host runs an op; or the target takes none.
        ExportError: Sizes other than the batch are open.
    """
    found = TARGETS[get_target(target)]
    if found.fixed_sizes:
        try:
            file = fix_sizes(file)
        except IntactError as error:
            raise ExportError(f"{found.title} takes fixed sizes alone. {error}") from error
    ops = read(file).graphs[0].ops
    kinds = [(op.name, working_type(op)) for op in ops]
    left = [
        f"{op.outputs[0].name} ({', '.join(kind)})"
        for op, kind in zip(ops, kinds, strict=True)
        if not runs(*kind, target)
    ]
    if left:
        raise TargetError(
            f"{found.title} has no kernel for these ops:\n  " + "\n  ".join(left) + "\nReplace the "
            "layers that they are named after, or quantize them in another way. `intact.check` "
            "shows all ops."
        )
    if not any(runs(*kind, target, host=False) for kind in kinds):
        raise TargetError(
            f"{found.title} would take none of the {len(ops)} ops of this file"
            + (f", such as {' of '.join(kinds[0])}" if kinds else "")
            + ". Quantize the model with the scheme 'int8'."
        )
    return file


def working_type(op: FileOp) -> str:
    """What an op works on, as `intact.litert.targets.RUNS_ON` names it.

    Args:
        op: The op.
    """
    inputs = [t for t in op.inputs if t is not None]
    first = next((t for t in inputs if t.data is None), inputs[0] if inputs else op.outputs[0])
    weights = [t.dtype for t in inputs if t.data is not None and t is not first and t.quantized]
    narrow = next((dtype for dtype in weights if BITS[dtype] < 8), None)
    if narrow:
        return narrow
    if first.dtype == "float32" and weights:
        return "hybrid"
    return f"{first.dtype}_per_channel" if len(first.scales) > 1 else first.dtype
