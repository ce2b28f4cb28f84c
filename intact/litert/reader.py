"""Reads LiteRT files as they are, trusting nothing in them.

The runtime's own reader follows any offset; this one checks each of them, and reads no more
than a file of that size can hold.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from intact.errors import IntactError
from intact.litert.kernels import get_kernel
from intact.litert.quantization import Groups, read_quantization

IDENTIFIER = b"TFL3"


def _names(enum: type) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


OP_NAMES = _names(schema.BuiltinOperator)
DTYPE_NAMES = {code: name.lower() for code, name in _names(schema.TensorType).items()}

ACTIVATIONS = _names(schema.ActivationFunctionType)


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor of a file.

    Args:
        index: Its place.
        name: Its name.
        dtype: Its type.
        shape: Its sizes; None where they may be resized.
        scales: None, one, or those of all groups.
        zero_points: The same of zero points.
        groups: Which integers share a scale.
        data: The bytes of a constant, else None.
        buffer: Where they are.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    scales: np.ndarray
    zero_points: np.ndarray
    groups: Groups
    data: memoryview | None
    buffer: int

    @property
    def quantized(self) -> bool:
        """Whether its integers stand for real values."""
        return len(self.scales) > 0

    @property
    def kind(self) -> str:
        """Its type, and how its integers share scales where that is unusual."""
        return self.groups.describe(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of its data, 0 if it is no constant."""
        return 0 if self.data is None else len(self.data)


@dataclass(frozen=True, eq=False)
class FileOp:
    """An op of a file.

    Args:
        index: Its place.
        name: Its name in the schema; of a custom op, its own.
        version: Its version.
        inputs: Its inputs; None for an optional one.
        outputs: Its outputs.
        options: The options that its row in the kernel table names, by the schema's names.
    """

    index: int
    name: str
    version: int
    inputs: tuple[FileTensor | None, ...]
    outputs: tuple[FileTensor, ...]
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class FileGraph:
    """A subgraph of a file: tensors, ops, and the tensors that go in and out."""

    name: str
    tensors: tuple[FileTensor, ...]
    ops: tuple[FileOp, ...]
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]


@dataclass(frozen=True, eq=False)
class Signature:
    """A name for calling a subgraph, with names for its inputs and outputs."""

    name: str
    graph: int
    inputs: dict[str, FileTensor]
    outputs: dict[str, FileTensor]


@dataclass(frozen=True, eq=False)
class LiteRTFile:
    """What a LiteRT file holds."""

    size: int
    version: int
    description: str
    graphs: tuple[FileGraph, ...]
    signatures: tuple[Signature, ...]


def read(file: str | os.PathLike | bytes) -> LiteRTFile:
    """Read a LiteRT file without running it.

    Args:
        file: Path of a `.tflite` file, or its bytes.

    Returns:
        What it holds.

    Raises:
        IntactError: There is no such file, or it is damaged, or no LiteRT file.

    Example:

    >>> from intact.litert.builder import Builder
    >>> builder = Builder("an example")
    >>> x, y = (builder.tensor((None, 4), "float32", name) for name in "xy")
    >>> builder.add("RELU", [x], [y])
    >>> file = read(builder.finish([("x", x)], [("y", y)]))
    >>> [(op.name, op.inputs[0].shape) for op in file.graphs[0].ops]
    [('RELU', (None, 4))]
    """
    return _read_model(_Reader(read_bytes(file)))


def read_bytes(file: str | os.PathLike | bytes) -> bytes:
    """The bytes of a LiteRT file.

    Args:
        file: Its path, or its bytes already.

    Returns:
        The bytes.

    Raises:
        IntactError: There is no such file, or it is no LiteRT file.

    Example:

    >>> read_bytes(bytes(4) + b"TFL3")
    b'\\x00\\x00\\x00\\x00TFL3'
    """
    if isinstance(file, bytes | bytearray | memoryview):
        content, name = bytes(file), "This"
    else:
        path = Path(file)
        if not path.is_file():
            raise IntactError(f"There is no file {str(path)!r}. Export a model to it first.")
        content, name = path.read_bytes(), repr(str(path))
    if content[4:8] != IDENTIFIER:
        raise IntactError(f"{name} is not a LiteRT file: its identifier is not 'TFL3'.")
    return content


class _Reader:
    """Checked access to the bytes of a flatbuffer."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        # A damaged file may have tables that point to the same place without end.
        self.budget = 16 * len(content) + 100_000

    def get(self, kind: str, at: int) -> Any:
        size = struct.calcsize(kind)
        if at < 0 or at + size > len(self.content):
            raise damaged(f"something at byte {at} of {len(self.content)}")
        self.spend(size)
        return struct.unpack_from("<" + kind, self.content, at)[0]

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise damaged("the same bytes again and again")

    def follow(self, at: int) -> int:
        return at + self.get("I", at)

    def table(self, at: int) -> "_Table":
        return _Table(self, at)


class _Table:
    """A table of a flatbuffer; fields are numbered in the order of the schema."""

    def __init__(self, reader: _Reader, at: int) -> None:
        self.reader, self.at = reader, at
        self.fields = at - reader.get("i", at)
        self.size = reader.get("H", self.fields)
        reader.get("H", self.fields + max(self.size - 2, 0))

    def place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self.size:
            return None
        offset = self.reader.get("H", self.fields + entry)
        return self.at + offset if offset else None

    def scalar(self, field: int, kind: str, default: Any = 0) -> Any:
        at = self.place(field)
        return default if at is None else self.reader.get(kind, at)

    def vector(self, field: int, size: int) -> tuple[int, int]:
        """Where a vector starts, and its length."""
        at = self.place(field)
        if at is None:
            return 0, 0
        at = self.reader.follow(at)
        count = self.reader.get("I", at)
        if at + 4 + count * size > len(self.reader.content):
            raise damaged(f"a list of {count} entries at byte {at}")
        return at + 4, count

    def array(self, field: int, dtype: str) -> np.ndarray:
        start, count = self.vector(field, np.dtype(dtype).itemsize)
        self.reader.spend(count * np.dtype(dtype).itemsize)
        return np.frombuffer(self.reader.content, dtype, count, start)

    def text(self, field: int) -> str:
        start, count = self.vector(field, 1)
        self.reader.spend(count)
        text = self.reader.content[start : start + count].decode("utf-8", "replace")
        # Names are printed: no control characters.
        return "".join(c if c.isprintable() else "?" for c in text)

    def table(self, field: int) -> "_Table | None":
        at = self.place(field)
        return None if at is None else self.reader.table(self.reader.follow(at))

    def tables(self, field: int) -> Iterator["_Table"]:
        start, count = self.vector(field, 4)
        for i in range(count):
            at = start + 4 * i
            yield self.reader.table(self.reader.follow(at))


def damaged(what: str) -> IntactError:
    """The error for a file that points nowhere."""
    return IntactError(
        f"The LiteRT file is damaged: it refers to {what}. Export the model again, or fetch "
        "the file again if it was copied."
    )


def _pick(entries: Any, index: int, what: str) -> Any:
    if not 0 <= index < len(entries):
        raise damaged(f"{what} {index} of {len(entries)}")
    return entries[index]


def _read_model(reader: _Reader) -> LiteRTFile:
    model = reader.table(reader.get("I", 0))
    codes = [_read_code(code) for code in model.tables(1)]
    buffers = [_read_buffer(buffer) for buffer in model.tables(4)]
    graphs = tuple(_read_graph(graph, codes, buffers) for graph in model.tables(2))
    if not graphs:
        raise damaged("no graph at all")
    return LiteRTFile(
        size=len(reader.content),
        version=model.scalar(0, "I"),
        description=model.text(3),
        graphs=graphs,
        signatures=tuple(_read_signature(entry, graphs) for entry in model.tables(7)),
    )


def _read_code(code: _Table) -> tuple[str, int]:
    number = max(code.scalar(0, "b"), code.scalar(3, "i"))
    name = OP_NAMES.get(number, f"op {number}")
    return (code.text(1) or name) if name == "CUSTOM" else name, code.scalar(2, "i", 1)


def _read_buffer(buffer: _Table) -> memoryview | None:
    content = buffer.reader.content
    start, count = buffer.vector(0, 1)
    if not count:
        # Large files keep their data behind the flatbuffer.
        start, count = buffer.scalar(1, "Q"), buffer.scalar(2, "Q")
        if start <= 1 or not count:
            return None
        if start + count > len(content):
            raise damaged(f"data at byte {start}")
    return memoryview(content)[start : start + count]


def _read_graph(graph: _Table, codes: list, buffers: list) -> FileGraph:
    tables = list(graph.tables(0))
    tensors = tuple(_read_tensor(i, tables, buffers) for i in range(len(tables)))
    ops = tuple(_read_op(i, op, codes, tensors) for i, op in enumerate(graph.tables(3)))
    inputs, outputs = (
        tuple(_pick(tensors, int(i), "tensor") for i in graph.array(field, "<i4"))
        for field in (1, 2)
    )
    return FileGraph(graph.text(4), tensors, ops, inputs, outputs)


def _read_tensor(index: int, tables: list[_Table], buffers: list) -> FileTensor:
    def data(place: int) -> memoryview | None:
        number = _pick(tables, place, "tensor").scalar(2, "I")
        return _pick(buffers, number, "buffer") if number else None

    tensor = tables[index]
    shape = tensor.array(0, "<i4").tolist()
    signature = tensor.array(7, "<i4").tolist() or shape
    if len(signature) != len(shape) or any(size < 0 for size in shape):
        raise damaged(f"tensor {index} of shape {shape} and {signature}")
    code = tensor.scalar(1, "b")
    if code not in DTYPE_NAMES:
        raise damaged(f"type {code} of tensor {index}")
    scales, zero_points, groups = read_quantization(tensor.table(4), data)
    return FileTensor(
        index=index,
        name=tensor.text(3),
        dtype=DTYPE_NAMES[code],
        shape=tuple(None if s < 0 else n for s, n in zip(signature, shape, strict=True)),
        scales=scales,
        zero_points=zero_points,
        groups=groups,
        data=data(index),
        buffer=tensor.scalar(2, "I"),
    )


def _read_op(index: int, op: _Table, codes: list, tensors: tuple[FileTensor, ...]) -> FileOp:
    name, version = _pick(codes, op.scalar(0, "I"), "op code")
    inputs = tuple(
        None if i == -1 else _pick(tensors, int(i), "tensor") for i in op.array(1, "<i4")
    )
    outputs = tuple(_pick(tensors, int(i), "tensor") for i in op.array(2, "<i4"))
    return FileOp(index, name, version, inputs, outputs, _read_options(name, op.table(4)))


def _read_options(kernel: str, table: _Table | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, (number, stored, default) in get_kernel(kernel).options.items():
        value = default if table is None else table.scalar(number, stored, default)
        if name == "fusedActivationFunction":
            value = ACTIVATIONS.get(value, f"activation {value}")
        options[name] = value
    return options


def _read_signature(entry: _Table, graphs: tuple[FileGraph, ...]) -> Signature:
    number = entry.scalar(4, "I")
    tensors = _pick(graphs, number, "graph").tensors
    inputs, outputs = (
        {one.text(0): _pick(tensors, one.scalar(1, "I"), "tensor") for one in entry.tables(field)}
        for field in (0, 1)
    )
    return Signature(entry.text(2), number, inputs, outputs)
