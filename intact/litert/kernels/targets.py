"""The targets, and which kernels run on them."""

import re
from dataclasses import dataclass

from intact.errors import IntactError
from intact.litert.kernels import get_kernel


@dataclass(frozen=True)
class Target:
    """A place where files run.

    Args:
        title: What it is called in sentences.
        fixed_sizes: Whether it takes files of fixed sizes alone.
        host: The target that runs what this one does not take: "litert" runs everything, and
            none nothing.
        never: What its compiler takes no file with.
        types: What it works on; none stands for what the table says of each kernel.
    """

    title: str
    fixed_sizes: bool
    host: str
    never: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    "xnnpack": Target("XNNPACK", fixed_sizes=False, host="litert"),
    "tflite-micro": Target("TFLite Micro", fixed_sizes=True, host=""),
    "ethos-u55": Target("Ethos-U55", True, host="tflite-micro", never=("int2", "int4")),
    "ethos-u65": Target("Ethos-U65", True, host="tflite-micro", never=("int2", "int4")),
    "ethos-u85": Target("Ethos-U85", True, host="tflite-micro", never=("int2", "int4")),
    "edgetpu": Target("Edge TPU", fixed_sizes=True, host="litert", types=("int8", "uint8")),
}
"""The targets; LiteRT itself runs every op that intact writes."""


def get_target(name: str) -> str:
    """The name of a target in `TARGETS`.

    Args:
        name: That name; an Ethos-U may have its number of MACs behind it.

    Returns:
        The name.

    Raises:
        IntactError: There is no such target.

    Example:

    >>> get_target("ethos-u55-128")
    'ethos-u55'
    """
    base = re.sub(r"^(ethos-u\d+)-\d+$", r"\1", str(name))
    if base not in TARGETS:
        raise IntactError(
            f"There is no target {name!r}. Known targets: {', '.join(TARGETS)}; an Ethos-U with "
            "its number of MACs, too, as in 'ethos-u55-128'."
        )
    return base


def runs(kernel: str, dtype: str, target: str, host: bool = True) -> bool:
    """Whether a target has a kernel.

    Args:
        kernel: The op's name in the schema.
        dtype: What it works on, a key of `Kernel.runs_on`.
        target: The target, as for `get_target`.
        host: Whether the processor beside it counts, too.

    Returns:
        Whether there is one, for some shapes at least.

    Example:

    >>> runs("GATHER", "int8", "ethos-u55"), runs("GATHER", "int8", "ethos-u55", host=False)
    (True, False)
    """
    base = get_target(target)
    if dtype in TARGETS[base].never:
        return False
    row = get_kernel(kernel)
    if base == "edgetpu":
        runs_there = row.edge_tpu is not None and dtype in TARGETS[base].types
    else:
        runs_there = base in (row.runs_on or {}).get(dtype, ())
    beside = TARGETS[base].host if host else ""
    return runs_there or beside == "litert" or (bool(beside) and runs(kernel, dtype, beside))
