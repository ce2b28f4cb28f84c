"""A row of the kernel table."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from intact.litert.kernels.conditions import CONDITIONS, AnyOp

ScaleRule = Literal["free", "same", "all same", "fixed"]
"""What a kernel requires of the scales and zero points of its data.

* "free": inputs and output are independent;
* "same": the output has those of the data input;
* "all same": all data inputs have those of the output;
* "fixed": the output has those that `Kernel.fixed` prescribes.
"""

Mismatch = Literal["silent", "rejected", "requantized"]
"""What happens where the scales are others.

* "silent": LiteRT computes wrong values, without an error;
* "rejected": LiteRT refuses the file;
* "requantized": LiteRT converts, other runtimes may not.
"""

EdgeTpuLimit = Literal[
    "at most 16,000 values",
    "equal dilations",
    "no dilation",
    "no fused activation",
    "one alpha per channel",
    "one dimension",
    "pads height and width",
    "plain weights",
    "reduces height and width",
    "steps of one",
    "joins zeros",
]
"""Limits of the Edge TPU; `intact.targets.edge_tpu.LIMITS` has their checks."""


class Places(NamedTuple):
    """Which inputs of an op are its weights and its bias; and the channel axis of the weights."""

    weights: int
    bias: int
    axis: int


class OptionField(NamedTuple):
    """Where a field stands in an options table: its number, how it is stored, its default."""

    number: int
    stored: str
    default: int = 0


@dataclass(frozen=True)
class Kernel:
    """The facts about one kernel of LiteRT.

    Args:
        name: Its name in the schema.
        versions: The lowest version of the op by what it works on: the type of its data, or
            "hybrid" for float data and integer weights. Types that are not here are written as
            version 1 and not checked.
        later: Later versions by the condition that needs them, a key of `CONDITIONS`. Where
            several conditions hold, the first counts.
        optional: The conditions of `later` that allow their version, and do not need it.
        accepted: Versions that other writers use without need, by condition.
        data: Places of the inputs that `scales` is about; none stands for all.
        scales: What the kernel requires of scales and zero points.
        fixed: The scale and zero point of the output by type, if they are prescribed.
        mismatch: What happens where scales are others; by type, where that depends on it.
        scaled: Whether integers need a scale; they need none to be compared or counted.
        weights: Places of weights and bias, if it has weights.
        narrow: The types of less than 8 bits that weights may have.
        broken: Types for which the kernel is wrong or missing, and why.
        inexact: Types for which it is imprecise, and how much.
        converts: Whether it only converts between real values and integers.
        table: Name of its options table, where it does not follow from the kernel's name.
        options: The fields of that table that are read from files.
        runs_on: The targets that run it, by what it works on (see `on`); None if that was not
            measured.
        edge_tpu: The limits of the Edge TPU; None if it does not run there.

    Example:

    >>> Kernel("RESIZE_BILINEAR").options_table
    'ResizeBilinearOptions'
    """

    name: str
    versions: dict[str, int] = field(default_factory=dict)
    later: dict[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    accepted: dict[str, int] = field(default_factory=dict)
    data: tuple[int, ...] = (0,)
    scales: ScaleRule = "free"
    fixed: dict[str, tuple[float, int]] = field(default_factory=dict)
    mismatch: Mismatch | dict[str, Mismatch] = "silent"
    scaled: bool = True
    weights: Places | None = None
    narrow: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)
    converts: bool = False
    table: str = ""
    options: dict[str, OptionField] = field(default_factory=dict)
    runs_on: dict[str, frozenset[str]] | None = None
    edge_tpu: tuple[EdgeTpuLimit, ...] | None = None

    @property
    def options_table(self) -> str:
        """The name of the options table in the schema."""
        return self.table or "".join(map(str.capitalize, self.name.split("_"))) + "Options"

    def on_mismatch(self, dtype: str) -> Mismatch:
        """What happens where the scales of a type are others."""
        return self.mismatch if isinstance(self.mismatch, str) else self.mismatch[dtype]

    def version(self, op: AnyOp) -> int:
        """The version to write: the lowest one with what an op needs."""
        base = self.versions.get(self._works_on(op), 1)
        return next(iter(_met(self.later, op, base).values()), base)

    def accepted_versions(self, op: AnyOp) -> tuple[int, int, list[str]] | None:
        """The versions that an op of a file may have.

        Where several conditions hold, writers differ in which of them counts.

        Args:
            op: The op.

        Returns:
            The lowest and the highest version, and the conditions that the op meets. None if the
            type is not checked; a hybrid op's version depends on how it quantizes its input.
        """
        dtype = self._works_on(op)
        if dtype == "hybrid" or dtype not in self.versions:
            return None
        base = self.versions[dtype]
        later = _met({**self.later, **self.accepted}, op, base)
        optional = (*self.optional, *self.accepted)
        needed = [version for name, version in later.items() if name not in optional]
        return min(needed, default=base), max(later.values(), default=base), list(later)

    def _works_on(self, op: AnyOp) -> str:
        places = self.data or range(len(op.inputs))
        tensors = [op.inputs[i] for i in places if i < len(op.inputs) and op.inputs[i] is not None]
        if not tensors:
            return ""
        dtype = str(tensors[0].dtype)
        weights = op.inputs[self.weights.weights] if self.weights else None
        is_hybrid = dtype == "float32" and weights is not None and len(weights.scales) > 0
        return "hybrid" if is_hybrid else dtype


def _met(later: dict[str, int], op: AnyOp, base: int) -> dict[str, int]:
    """The conditions that an op meets, with their versions beyond the base version."""
    return {
        name: version for name, version in later.items() if version > base and CONDITIONS[name](op)
    }


_LETTERS = {
    "X": "xnnpack",
    "M": "tflite-micro",
    "5": "ethos-u55",
    "6": "ethos-u65",
    "8": "ethos-u85",
}


def on(**letters: str) -> dict[str, frozenset[str]]:
    """The targets that run a kernel, by what it works on.

    A key is the type of the data; "int2" and "int4" stand for weights of these types, "hybrid"
    for float data and integer weights, "int8_per_channel" for constants with many scales.

    Args:
        **letters: For each key, a letter for each target: X for XNNPACK, M for TFLite Micro, and
            5, 6 and 8 for Ethos-U55, U65 and U85.

    Example:

    >>> sorted(on(int8="M8")["int8"])
    ['ethos-u85', 'tflite-micro']
    """
    return {dtype: frozenset(_LETTERS[one] for one in word) for dtype, word in letters.items()}


def versions(int8: int, int16: int | None = None, float32: int = 1) -> dict[str, int]:
    """Versions by type, for kernels that only have these types.

    Args:
        int8: The version for int8.
        int16: The version for int16; None if it is not checked.
        float32: The version for float32.
    """
    integers = {"int8": int8} if int16 is None else {"int8": int8, "int16": int16}
    return {"float32": float32, **integers}


def activation(number: int) -> dict[str, OptionField]:
    """The one option field of a kernel that only has a fused activation.

    Args:
        number: The number of the field.
    """
    return {"fusedActivationFunction": OptionField(number, "b")}


NO_INT8 = {"int8": "there is no int8 kernel"}
IGNORES_SCALES = {"int8": "the int8 kernel ignores scales and zero points"}
