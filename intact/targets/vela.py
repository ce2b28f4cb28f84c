"""Vela, Arm's compiler for the Ethos-U NPUs: the real one, as a command."""

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from intact.errors import IntactError, MissingToolError
from intact.litert.reader import read

ACCELERATORS = {
    "ethos-u55": "ethos-u55-128",
    "ethos-u65": "ethos-u65-256",
    "ethos-u85": "ethos-u85-256",
}
"""Vela's names for NPUs that are named without their number of MACs."""

SECONDS = 600
"""Seconds that the compiler may take."""

FIGURES = {
    "sram_memory_used": ("sram_bytes", 1024),
    "dram_memory_used": ("dram_bytes", 1024),
    "off_chip_flash_memory_used": ("flash_bytes", 1024),
    "nn_macs": ("macs", 1),
    "inference_time": ("estimated_microseconds", 1e6),
}
"""Our name for a column of its summary, and the size of its unit."""

_SUMMARY = "*_summary_*.csv"
_NOISE = re.compile(r"^Warning: No |has a dynamic signature")
_REASON = re.compile(
    r"^Warning \(supported operators\) operator: \S+, ofm: '(.*)'\n"
    r"(?:Reason: )?(.*(?:\n(?!\n|Warning).+)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Compiled:
    """The result of Vela for a file.

    Args:
        left: Why an op stays on the CPU, by the name of its output.
        figures: Bytes of memory by kind, MACs, and the time it estimates.
        settings: The system and the memory that it assumes.
    """

    left: dict[str, str]
    figures: dict[str, float]
    settings: str


def command() -> list[str]:
    """The command that starts Vela, from this environment or from the path.

    Raises:
        MissingToolError: There is none.
    """
    if util.find_spec("ethosu") is not None:
        return [sys.executable, "-m", "ethosu.vela"]
    executable = shutil.which("vela")
    if executable is None:
        raise MissingToolError("Vela, the compiler for Ethos-U,", "ethos-u-vela")
    return [executable]


def version() -> str:
    """The version of Vela."""
    done = subprocess.run([*command(), "--version"], capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def compile_file(file: bytes, accelerator: str) -> Compiled:
    """Compile a file for an NPU.

    Args:
        file: The file's bytes.
        accelerator: Vela's name for the NPU with its number of MACs, such as "ethos-u55-128".

    Returns:
        The ops that stay on the CPU, and Vela's figures.

    Raises:
        MissingToolError: Vela is not installed.
        IntactError: Vela refuses the file, or takes longer than `SECONDS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(file)
        log = _run(path, accelerator)
        graphs = read(path.with_name("model_vela.tflite")).graphs
        with next(Path(folder).glob(_SUMMARY)).open(newline="") as lines:
            summary = next(csv.DictReader(lines))
    reasons = dict(_REASON.findall(log))
    remaining = [op for graph in graphs for op in graph.ops if op.name != "ethos-u"]
    names = [op.outputs[0].name for op in remaining if op.outputs]
    return Compiled(
        left={name: " ".join(reasons.get(name, "Vela does not say why").split()) for name in names},
        figures={
            name: float(summary[column]) * unit
            for column, (name, unit) in FIGURES.items()
            if float(summary[column])
        },
        settings=f"{summary['system_config']}, {summary['memory_mode']}",
    )


def _run(path: Path, accelerator: str) -> str:
    """Compile a file into its folder, and return the log."""
    options = ["--accelerator-config", accelerator, "--output-dir", str(path.parent)]
    try:
        done = subprocess.run(
            [*command(), str(path), *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise IntactError(f"Vela takes more than {SECONDS} s for this file.") from error
    compiled = path.with_name("model_vela.tflite").exists()
    if done.returncode or not compiled or not list(path.parent.glob(_SUMMARY)):
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        errors = [line for line in lines if line.strip() and not _NOISE.search(line)]
        raise IntactError(
            f"Vela cannot compile this file (it ends with code {done.returncode}): "
            + " ".join(errors[-3:])
        )
    return done.stdout + "\n" + done.stderr
