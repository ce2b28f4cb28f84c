"""TFLite Micro: the real interpreter, in a process of its own.

It aborts on some files, and only its log says how much memory it needs.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from math import prod
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from intact.errors import IntactError, MissingToolError
from intact.litert.dtypes import BITS
from intact.litert.reader import FileGraph, LiteRTFile, read
from intact.litert.writing import pack, unpack

SECONDS = 600
"""Seconds that the interpreter may take."""

_ARENA = re.compile(r"Arena allocation total (\d+) bytes")
_KILLED = "it ends the process"
_NOISE = ("TFLM failed to", "[RecordingMicroAllocator]", "Output index")


@dataclass(frozen=True)
class MicroRun:
    """The result of a file on TFLite Micro.

    Args:
        outputs: Per output, its values (samples, *shape); None if it does not run.
        arena_bytes: Bytes of the arena, with pointers of 64 bits.
        reason: Why it does not run.
    """

    outputs: list[np.ndarray] | None
    arena_bytes: int
    reason: str = ""


def version() -> str:
    """The version of the installed interpreter.

    Raises:
        MissingToolError: There is none.
    """
    if util.find_spec("tflite_micro") is None:
        raise MissingToolError("TFLite Micro", "tflite-micro")
    return metadata.version("tflite-micro")


def run_micro(file: bytes, inputs: list[np.ndarray]) -> MicroRun:
    """Run a file on TFLite Micro.

    Args:
        file: The file's bytes.
        inputs: Per input, stored values (samples, *shape).

    Returns:
        Its outputs and needs, or why it does not run.

    Raises:
        MissingToolError: TFLite Micro is not installed.
        IntactError: It takes longer than `SECONDS`.
    """
    return run_files([file], [inputs])[0]


def run_files(files: Sequence[bytes], inputs: Sequence[list[np.ndarray]]) -> list[MicroRun]:
    """Run several files on TFLite Micro.

    Args:
        files: The bytes of each file.
        inputs: Per file and input, stored values (samples, *shape); none stand for zeros.

    Returns:
        For each file its outputs and needs, or why it does not run.

    Raises:
        MissingToolError: TFLite Micro is not installed.
        IntactError: A file takes longer than `SECONDS`.
    """
    version()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index:06}.tflite" for index in range(len(files))]
        for path, file, arrays in zip(paths, files, inputs, strict=True):
            path.write_bytes(file)
            if arrays:
                np.savez(path.with_suffix(".in.npz"), *arrays)
        logs = _run(folder, max(_arena(read(file)) for file in files))
        return [_result(path, logs[path.stem]) for path in paths]


def _run(folder: str, arena: int) -> dict[str, str]:
    """The log of each file. A run that a file killed starts again behind that file."""
    runner = Path(__file__).with_name("micro_runner.py")
    command = [sys.executable, "-P", str(runner), folder, str(arena)]
    logs: dict[str, str] = {}
    count = len(list(Path(folder).glob("*.tflite")))
    while len(logs) < count:
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise IntactError(f"TFLite Micro takes more than {SECONDS} s for this file.") from error
        parts = re.split(r"(?m)^@(\w+)$", done.stderr.decode(errors="replace"))
        new = dict(zip(parts[1::2], parts[2::2], strict=True))
        if not new:
            raise IntactError(f"TFLite Micro does not start: {parts[0].strip()[-500:]}")
        if done.returncode:
            new[parts[-2]] += f"\n{_KILLED} (code {done.returncode})"
        logs |= new
    return logs


def _result(place: Path, log: str) -> MicroRun:
    outputs = place.with_suffix(".npz")
    arena = _ARENA.search(log)
    if outputs.exists() and arena:
        return MicroRun(list(np.load(outputs).values()), int(arena[1]))
    lines = [line.strip().removeprefix("RuntimeError: ") for line in log.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NOISE)]
    killed = [line for line in lines[1:] if line.startswith(_KILLED)]
    return MicroRun(None, 0, "; ".join(lines[:1] + killed) or "it gives no reason")


def _arena(file: LiteRTFile) -> int:
    """A sufficient arena size: all tensors side by side, and as much for the kernels."""
    return 2 * sum(map(_bytes, file.graphs)) + file.size + 2**20


def _bytes(graph: FileGraph) -> int:
    moving = (t for t in graph.tensors if t.data is None)
    return sum(prod(n or 1 for n in t.shape) * BITS.get(t.dtype, 64) // 8 for t in moving)


def single_ops(file: bytes) -> Iterator[bytes]:
    """Each op of a file's first graph as a file."""
    model = unpack(file)
    graph, buffers, operators = model.subgraphs[0], model.buffers, model.subgraphs[0].operators
    model.signatureDefs = []
    model.metadata = []
    constant = {
        i for i, t in enumerate(graph.tensors) if t.buffer and buffers[t.buffer].data is not None
    }
    for op in operators:
        graph.operators = [op]
        used = [int(i) for i in op.inputs if i != -1]
        graph.inputs = [i for i in dict.fromkeys(used) if i not in constant]
        graph.outputs = list(op.outputs)
        if len(model.subgraphs) == 1:
            own = {graph.tensors[i].buffer for i in used}
            model.buffers = [b if i in own else schema.BufferT() for i, b in enumerate(buffers)]
        yield pack(model)
