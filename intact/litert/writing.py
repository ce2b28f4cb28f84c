"""The tensors and ops to write, and their bytes."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from intact.litert.kernels import get_kernel
from intact.litert.quantization import WHOLE, Groups, pack_quantization
from intact.litert.reader import IDENTIFIER

DTYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int2": schema.TensorType.INT2,
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}

_TYPES = ("inDataType", "outDataType", "outputType", "outType")
_ENUMS = {"padding": schema.Padding, "fusedActivationFunction": schema.ActivationFunctionType}

Shape = tuple[int | None, ...]


@dataclass(eq=False)
class Tensor:
    """A tensor of the file.

    Args:
        shape: Sizes; None where they may be resized.
        dtype: Its type.
        name: Its name.
        scale: Its scale, or those of its groups; None if it is not quantized.
        zero_point: Zero point, likewise.
        groups: Which integers share a scale.
        buffer: Index of its constant data; 0 for none.
        variable: Whether the runtime keeps its values from one call to the next.
        index: Its place in the file.
    """

    shape: Shape
    dtype: str
    name: str
    scale: Any = None
    zero_point: Any = 0
    groups: Groups = WHOLE
    buffer: int = 0
    variable: bool = False
    index: int = -1

    @property
    def quantized(self) -> bool:
        """Whether its integers stand for real values."""
        return self.scale is not None

    @property
    def scales(self) -> np.ndarray:
        """The scales as the file has them: none, one, or those of all groups, in a row."""
        return np.asarray([] if self.scale is None else self.scale, "float32").reshape(-1)


@dataclass(eq=False)
class Operator:
    """An op of the file."""

    name: str
    version: int
    inputs: list[Any]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    inside: list[Tensor] = field(default_factory=list)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal scales and zero points once.

    Scales per channel of weights and biases are a tenth of a small network's file.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.known: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        if x.dtype.name not in ("float32", "int64"):
            return super().CreateNumpyVector(x)
        key = (x.dtype.name, x.tobytes())
        if key not in self.known:
            self.known[key] = super().CreateNumpyVector(x)
        return self.known[key]


LARGE = 2**20
"""Bytes above which a constant is written behind the tables of a file."""

MANY = 2**26
"""Bytes of the constants within the tables above which smaller ones are written behind, too."""

SMALL = 2**17
"""Bytes up to which a constant is within the tables, however many there are, and in the heap."""

OUTSIDE = 2**31 - 2**26
"""Bytes of constants that a flatbuffer holds; of more, `Buffer.offset` says where they are."""

ALIGNMENT = 64
"""Large constants begin at multiples of this."""

LENGTH = struct.Struct("<I")
"""What stands before the values of a vector."""

EMPTY = np.zeros(0, "uint8")


def unpack(content: bytes) -> schema.ModelT:
    """A file as objects that can be changed and packed again.

    Args:
        content: The bytes of a file.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, "uint8", buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: schema.ModelT, release: bool = False) -> bytes:
    """The bytes of a file, from its object form.

    A builder of flatbuffers copies a constant several times. So large constants are appended to
    what it has built, one by one, and the tables point to them.

    Args:
        model: The object form.
        release: Let go of large constants once they are written, so that memory holds them once.
            The object form then lacks them.

    Returns:
        The bytes.
    """
    sizes = [0 if b.data is None else len(b.data) for b in model.buffers]
    least = LARGE if sum(n for n in sizes if n <= LARGE) <= MANY else SMALL
    large = {index: model.buffers[index].data for index, n in enumerate(sizes) if n > least}
    kept = {} if release else dict(large)
    inside = sum(sizes) < OUTSIDE
    for index in large:
        buffer = model.buffers[index]
        # The length of the tables does not depend on where the constant is, unless that is 0 or 1.
        buffer.data, buffer.offset = (EMPTY, 0) if inside else (None, 2)
        buffer.size = 0 if inside else sizes[index]
    tables = _flatbuffer(model, sum(n + 64 for n in sizes if n <= least))
    places = _point(tables, {index: sizes[index] for index in large}, inside)
    file = io.BytesIO()
    file.write(tables)
    for index, place in places.items():
        file.write(bytes(place - LENGTH.size - file.tell()))
        file.write(LENGTH.pack(sizes[index]))
        file.write(np.asarray(large.pop(index), "uint8").data)
    for index, data in kept.items():
        buffer = model.buffers[index]
        buffer.data, buffer.offset, buffer.size = data, 0, 0
    return file.getvalue()


def _point(tables: bytearray, sizes: dict[int, int], inside: bool) -> dict[int, int]:
    """Make the tables of a file point to constants behind them.

    Args:
        tables: A flatbuffer of a model.
        sizes: Number of each buffer whose constant is large, and the constant's bytes.
        inside: Whether the constants belong to the flatbuffer: as a vector, by a relative offset.

    Returns:
        Number of each buffer, and where its constant begins.
    """
    model, end, places = schema.Model.GetRootAs(tables, 0), len(tables), {}
    for index, size in sizes.items():
        place = places[index] = -(-(end + LENGTH.size) // ALIGNMENT) * ALIGNMENT
        table = model.Buffers(index)._tab
        # In the schema, `Buffer` has the fields data, offset and size; slots have 2 bytes.
        field = table.Pos + table.Offset(4 if inside else 6)
        if inside:
            LENGTH.pack_into(tables, field, place - LENGTH.size - field)
        else:
            struct.pack_into("<Q", tables, field, place)
        end = place + size
    return places


def _flatbuffer(model: schema.ModelT, size: int) -> bytearray:
    """A flatbuffer of a model.

    Args:
        model: Its object form.
        size: Bytes of the constants in it.
    """
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    # A scale and a zero point per channel. A builder that is too small doubles, and is copied.
    size += sum(512 + 12 * len(_scales(tensor)) for tensor in tensors)
    builder = _SharingBuilder(size + 65536)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return builder.Bytes[builder.Head() :]


def _scales(tensor: schema.TensorT) -> Sequence[float]:
    scales = None if tensor.quantization is None else tensor.quantization.scale
    return () if scales is None else scales


@dataclass(eq=False)
class Subgraph:
    """A graph of a file: the main one, or what a loop repeats.

    Args:
        name: Its name.
        tensors: Its tensors, in order of their `index`.
        operators: Its ops, in order of execution.
        inputs: Its input tensors.
        outputs: Its output tensors.
    """

    name: str
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: list[Tensor]
    outputs: list[Tensor]


def describe(
    description: str,
    graphs: list[Subgraph],
    buffers: list[np.ndarray | None],
    inputs: list[tuple[str, Tensor]],
    outputs: list[tuple[str, Tensor]],
) -> schema.ModelT:
    """A file with one signature as objects, which `pack` makes bytes of.

    Args:
        description: What wrote the file.
        graphs: Its graphs, the main one first.
        buffers: The data of constants; None for the first, which holds none. The list is emptied.
        inputs: Name in the signature and tensor of each input.
        outputs: The same of each output.

    Returns:
        The object form.
    """
    codes = sorted({(op.name, op.version) for graph in graphs for op in graph.operators})
    packed_buffers: list[schema.BufferT] = [schema.BufferT(data) for data in buffers]
    buffers.clear()
    return schema.ModelT(
        version=3,
        operatorCodes=[_pack_code(*code) for code in codes],
        subgraphs=[_pack_graph(graph, codes, packed_buffers) for graph in graphs],
        description=description,
        buffers=packed_buffers,
        signatureDefs=[_pack_signature(inputs, outputs)],
    )


def _pack_graph(
    graph: Subgraph, codes: list[tuple[str, int]], buffers: list[schema.BufferT]
) -> schema.SubGraphT:
    tensors = [_pack_tensor(t) for t in graph.tensors]
    for tensor, packed in zip(graph.tensors, list(tensors), strict=True):
        if tensor.quantized:
            packed.quantization = pack_quantization(tensor, tensors, buffers)
    return schema.SubGraphT(
        name=graph.name,
        tensors=tensors,
        inputs=[t.index for t in graph.inputs],
        outputs=[t.index for t in graph.outputs],
        operators=[_pack_operator(op, codes) for op in graph.operators],
    )


def _pack_signature(
    inputs: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor]]
) -> schema.SignatureDefT:
    return schema.SignatureDefT(
        inputs=[schema.TensorMapT(name, t.index) for name, t in inputs],
        outputs=[schema.TensorMapT(name, t.index) for name, t in outputs],
        signatureKey="serving_default",
        subgraphIndex=0,
    )


def _pack_code(name: str, version: int) -> schema.OperatorCodeT:
    code = getattr(schema.BuiltinOperator, name)
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version
    )


def _pack_tensor(tensor: Tensor) -> schema.TensorT:
    shape = [1 if size is None else size for size in tensor.shape]
    return schema.TensorT(
        shape=shape,
        shapeSignature=(
            [-1 if s is None else s for s in tensor.shape] if None in tensor.shape else None
        ),
        type=DTYPES[tensor.dtype],
        buffer=tensor.buffer,
        name=tensor.name,
        isVariable=tensor.variable,
        hasRank=True,
    )


def _pack_operator(op: Operator, codes: list[tuple[str, int]]) -> schema.OperatorT:
    table = get_kernel(op.name).options_table
    options = None
    if op.options or hasattr(schema, f"{table}T"):
        values = {key: _coded(key, value) for key, value in op.options.items()}
        options = getattr(schema, f"{table}T")(**values)
    return schema.OperatorT(
        opcodeIndex=codes.index((op.name, op.version)),
        inputs=[-1 if t is None else t.index for t in op.inputs],
        outputs=[t.index for t in op.outputs],
        intermediates=[t.index for t in op.inside] or None,
        builtinOptionsType=getattr(schema.BuiltinOptions, table, 0) if options else 0,
        builtinOptions=options,
    )


def _coded(key: str, value: Any) -> Any:
    """The value of an option as the schema stores it: a number for a name."""
    if key in _ENUMS:
        return getattr(_ENUMS[key], value)
    return DTYPES[value] if key in _TYPES else value
