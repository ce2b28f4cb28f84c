"""Tells where the ops of a file run on a target, from the target's own tool if it has one."""

from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from intact.errors import IntactError
from intact.litert.kernels.targets import TARGETS, get_target
from intact.litert.reader import FileOp, read
from intact.litert.runtime import delegated
from intact.tables import Report, Table
from intact.targets import edge_tpu, micro, vela
from intact.targets.micro_trial import dense_scales_note, try_file

_HEADING = ("", "op", "output", "runs on", "why")


@dataclass(frozen=True)
class PlacedOp:
    """Where one op of a file runs.

    Args:
        index: Its place.
        op: Its name.
        output: The name of its output.
        on_target: Whether it runs on the target, and not on its host's processor or nowhere.
        where: What it runs on.
        reason: Why it does not run on the target.
        graph: Its graph; those after the first are the bodies and conditions of loops.

    Example:

    >>> PlacedOp(3, "GATHER", "y", on_target=False, where="CPU", reason="Unsupported").where
    'CPU'
    """

    index: int
    op: str
    output: str
    on_target: bool
    where: str
    reason: str = ""
    graph: int = 0

    @property
    def place(self) -> str:
        """Its place, behind that of its graph if this is not the first."""
        return f"{self.graph}:{self.index}" if self.graph else str(self.index)


@dataclass(frozen=True, repr=False)
class Placement(Report):
    """What `check` returns; printing it gives a table.

    Args:
        target: The target.
        tool: The target's tool, with its version.
        ops: One entry per op of the file.
        runs: Whether the target with its host runs the file at all.
        figures: Numbers from the tool, with their units in the names.
        settings: What the tool assumes.
        agrees: Whether the outputs equal those of LiteRT's reference kernels, except for rounding.
        notes: More to know, in sentences.

    Example:

    >>> op = PlacedOp(0, "ADD", "y", on_target=True, where="NPU")
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
        return self.runs and self.agrees and any(op.on_target for op in self.ops)

    @property
    def share(self) -> float:
        """The share of the ops that run on the target."""
        return sum(op.on_target for op in self.ops) / max(len(self.ops), 1)

    @property
    def left(self) -> tuple[PlacedOp, ...]:
        """The ops that do not run on the target."""
        return tuple(op for op in self.ops if not op.on_target)

    def to_dict(self) -> dict[str, Any]:
        """The placement as data for JSON."""
        return {**asdict(self), "share": self.share, "ok": self.ok}

    def parts(self) -> list[str | Table]:
        """The tool, a table of the ops, and the figures."""
        settings = f", {self.settings}" if self.settings else ""
        rows = [(op.place, op.op, op.output, op.where, op.reason) for op in self.ops]
        running = len(self.ops) - len(self.left)
        lines: list[str | Table] = [f"{self.target} ({self.tool}{settings})", ""]
        lines += [Table([_HEADING, *rows], None), ""]
        title = TARGETS[get_target(self.target)].title
        lines.append(f"{running} of {len(self.ops)} ops ({100 * self.share:.1f} %) run on {title}.")
        if not self.runs:
            lines.append(f"{title} does not run this file.")
        elif not self.agrees:
            lines.append(f"{title} runs this file, and computes other values than LiteRT.")
        elif not running:
            lines.append("Quantize the model with the scheme 'int8'.")
        lines += self.notes
        lines += [f"{name.replace('_', ' ')}: {value:,.6g}" for name, value in self.figures.items()]
        return lines


def place(file: bytes, target: str, data: Any = None, samples: int = 8) -> Placement:
    """Find where the ops of a file run on a target.

    Args:
        file: The file's bytes.
        target: A name in `intact.litert.kernels.targets.TARGETS`, or that of an Ethos-U with its
            number of MACs, such as "ethos-u55-256".
        data: For "tflite-micro", the samples to run, as `LiteRTModel.predict` takes them;
            random ones by default.
        samples: How many random ones.

    Returns:
        The placement; print it.

    Raises:
        IntactError: There is no such target, or its tool is missing, or refuses the file.
    """
    base = get_target(target)
    if base == "tflite-micro":
        return _micro(file, target, data, samples)
    if base == "edgetpu":
        return _edge_tpu(file, target)
    return _xnnpack(file, target) if base == "xnnpack" else _ethos(file, target)


Place = tuple[int, int]
"""A graph of a file, and the index of an op in it."""


def _ops(file: bytes) -> dict[Place, FileOp]:
    """The ops of all graphs of a file."""
    graphs = enumerate(read(file).graphs)
    return {(number, i): op for number, graph in graphs for i, op in enumerate(graph.ops)}


def _placed(
    file: bytes, reasons: dict[Place, str], where: str, otherwise: str
) -> tuple[PlacedOp, ...]:
    """The ops of a file, with the reasons of those that do not run on the target."""
    return tuple(
        PlacedOp(
            index=place[1],
            op=op.name,
            output=op.outputs[0].name if op.outputs else "",
            on_target=place not in reasons,
            where=otherwise if place in reasons else where,
            reason=reasons.get(place, ""),
            graph=place[0],
        )
        for place, op in _ops(file).items()
    )


def _micro(file: bytes, target: str, data: Any, samples: int) -> Placement:
    tool = f"tflite-micro {micro.version()}"
    trial = try_file(file, data, samples)
    return Placement(
        target,
        tool,
        _placed(file, {(0, i): why for i, why in trial.faults.items()}, "TFLite Micro", "nowhere"),
        trial.runs,
        trial.figures,
        "" if trial.faults else trial.reason,
        trial.agrees,
        notes=tuple(filter(None, [dense_scales_note(file)])) if trial.runs else (),
    )


def _ethos(file: bytes, target: str) -> Placement:
    accelerator = vela.ACCELERATORS.get(target, target)
    tool = f"ethos-u-vela {vela.version()}"
    try:
        compiled = vela.compile_file(file, accelerator)
    except IntactError as error:
        if len(read(file).graphs) == 1:
            raise
        remedy = "The file has loops: write it without, by `export(..., unroll=True)`."
        raise IntactError(f"{error}\n{remedy}") from error
    reasons = {
        place: compiled.left[op.outputs[0].name]
        for place, op in _ops(file).items()
        if op.outputs and op.outputs[0].name in compiled.left
    }
    placed = _placed(file, reasons, "NPU", "CPU")
    settings = f"{accelerator}, {compiled.settings}"
    return Placement(target, tool, placed, True, compiled.figures, settings)


def _edge_tpu(file: bytes, target: str) -> Placement:
    first, *others = read(file).graphs
    reasons = {(0, i): why for i, why in edge_tpu.refused(first.ops).items()}
    for number, graph in enumerate(others, 1):
        # A loop stays on the CPU with all that is in it.
        reasons |= {
            (number, i): edge_tpu.why_not(op) or "it is inside a loop, which runs on the CPU"
            for i, op in enumerate(graph.ops)
        }
    placed = _placed(file, reasons, "Edge TPU", "CPU")
    return Placement(target, "rules of its documentation", placed, True, {}, "")


def _xnnpack(file: bytes, target: str) -> Placement:
    tool = f"ai-edge-litert {metadata.version('ai-edge-litert')}"
    reason = "the runtime keeps it on its own kernels"
    reasons = {
        (number, i): reason
        for number in range(len(read(file).graphs))
        for i, is_delegated in enumerate(delegated(file, number))
        if not is_delegated
    }
    return Placement(target, tool, _placed(file, reasons, "XNNPACK", "CPU"), True, {}, "")
