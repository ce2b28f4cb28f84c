"""Writes LiteRT flatbuffers, through the schema classes of `ai-edge-litert`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from intact.litert.reader import BITS, IDENTIFIER
from intact.litert.targets import runs

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

Shape = tuple[int | None, ...]


@dataclass(eq=False)
class Tensor:
    """A tensor of the file.

    Args:
        shape: Sizes; None where they may be resized.
        dtype: Its type.
        name: Its name.
        scale: Scale, per tensor or per channel; None if it is not quantized.
        zero_point: Zero point, likewise.
        axis: The axis of the channels' scales.
        buffer: Index of its constant data; 0 for none.
        variable: Whether the runtime keeps its values from one call to the next.
        index: Its place in the file.
    """

    shape: Shape
    dtype: str
    name: str
    scale: Any = None
    zero_point: Any = 0
    axis: int = 0
    buffer: int = 0
    variable: bool = False
    index: int = -1

    @property
    def quantized(self) -> bool:
        """Whether its integers stand for real values."""
        return self.scale is not None


@dataclass(eq=False)
class Operator:
    """An op of the file."""

    name: str
    version: int
    inputs: list[Any]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    inside: list[Tensor] = field(default_factory=list)


# The version that a reader must at least know, by what the op is used for. LiteRT
# itself checks only that a version is not too high for it; other compilers are strict.
VERSIONS: dict[str, Callable[["Operator"], int]] = {
    "ADD": lambda op: _by_type(op, 2, 3),
    "ARG_MAX": lambda op: _by_input_type(op, 2, 1),
    "AVERAGE_POOL_2D": lambda op: _by_type(op, 2, 3),
    "BATCH_MATMUL": lambda op: _by_type(op, 2, 3),
    "CONCATENATION": lambda op: _by_type(op, 2, 3),
    "CONV_2D": lambda op: (
        7
        if _is_int4(op)
        else 6
        if _is_grouped(op)
        else 5
        if _is_dynamic(op)
        else _by_type(op, 3, 4)
    ),
    "DEPTHWISE_CONV_2D": lambda op: (
        7 if _is_int4(op) else 6 if _is_dynamic(op) else _by_type(op, 3, 5, 1 + _is_dilated(op))
    ),
    "DEQUANTIZE": lambda op: (
        6
        if BITS[op.inputs[0].dtype] < 8
        else 5
        if np.size(op.inputs[0].scale) > 1
        else {"uint8": 1, "int8": 2}.get(op.inputs[0].dtype, 3)
    ),
    "EQUAL": lambda op: _by_input_type(op, 2, 4),
    "EXP": lambda op: _by_type(op, 2, 2),
    "FULLY_CONNECTED": lambda op: (
        14
        if op.inputs[1].dtype == "int2"
        else 10
        if _is_int4(op)
        else (12 if np.size(op.inputs[1].scale) > 1 else 9)
        if _is_dynamic(op)
        else 7
        if op.outputs[0].dtype == "int16"
        else 5
        if op.options["keepNumDims"]
        else 6
        if op.inputs[2] is None
        else _by_type(op, 4, 7)
    ),
    "GATHER": lambda op: _by_type(op, 2, 4),
    "GELU": lambda op: _by_type(op, 2, 2),
    "GREATER": lambda op: _by_input_type(op, 2, 2),
    "GREATER_EQUAL": lambda op: _by_input_type(op, 2, 3),
    "LESS": lambda op: _by_input_type(op, 2, 3),
    "LESS_EQUAL": lambda op: _by_input_type(op, 2, 2),
    "LOG": lambda op: _by_type(op, 2, 2),
    "LOG_SOFTMAX": lambda op: _by_type(op, 2, 2),
    "LOGISTIC": lambda op: _by_type(op, 2, 3),
    "MAX_POOL_2D": lambda op: _by_type(op, 2, 3),
    "MAXIMUM": lambda op: _by_type(op, 2, 4),
    "MEAN": lambda op: _by_type(op, 2, 3),
    "MINIMUM": lambda op: _by_type(op, 2, 4),
    "MUL": lambda op: (
        3
        if _is_int8(op) and op.inputs[0].scale * op.inputs[1].scale >= op.outputs[0].scale
        else _by_type(op, 2, 4)
    ),
    "NOT_EQUAL": lambda op: _by_input_type(op, 2, 4),
    "PAD": lambda op: 4 if _rank(op) > 4 else _by_type(op, 2, 3),
    "LEAKY_RELU": lambda op: _by_type(op, 1, 2),
    "QUANTIZE": lambda op: 2 if "int16" in (op.inputs[0].dtype, op.outputs[0].dtype) else 1,
    "REDUCE_MAX": lambda op: _by_type(op, 2, 3),
    "REDUCE_MIN": lambda op: _by_type(op, 2, 3),
    "RELU": lambda op: _by_type(op, 2, 3),
    "RELU6": lambda op: _by_type(op, 2, 3),
    "RESIZE_BILINEAR": lambda op: (
        3
        if op.options.get("halfPixelCenters") and op.outputs[0].dtype != "int16"
        else _by_type(op, 2, 4, 2)
    ),
    "RESIZE_NEAREST_NEIGHBOR": lambda op: (
        3
        if op.options.get("halfPixelCenters") and op.outputs[0].dtype != "int16"
        else _by_type(op, 2, 4)
    ),
    "SOFTMAX": lambda op: _by_type(op, 2, 3),
    "SPACE_TO_DEPTH": lambda op: _by_type(op, 2, 1),
    "STRIDED_SLICE": lambda op: 4 if _rank(op) > 4 else 2 if _is_int8(op) else 1,
    "SUB": lambda op: (
        3
        if _is_int8(op) and _rank(op) > 4 and op.inputs[0].shape != op.inputs[1].shape
        else _by_type(op, 2, 5)
    ),
    "SUM": lambda op: _by_type(op, 2, 2),
    "TANH": lambda op: _by_type(op, 2, 3),
    "TRANSPOSE": lambda op: 6 if _rank(op) > 5 else 4 if _rank(op) > 4 else _by_type(op, 2, 5),
    "TRANSPOSE_CONV": lambda op: (
        4
        if op.options["fusedActivationFunction"] != "NONE"
        else 3
        if op.inputs[3] is not None
        else _by_type(op, 2, 3)
    ),
}


def _by_type(op: Operator, int8: int, int16: int, other: int = 1) -> int:
    """The version by the type of the output."""
    return {"int8": int8, "int16": int16}.get(op.outputs[0].dtype, other)


def _by_input_type(op: Operator, int8: int, int16: int) -> int:
    """The version by the type of the first input, for ops that return indices or truth values."""
    return {"int8": int8, "int16": int16}.get(op.inputs[0].dtype, 1)


def _is_int4(op: Operator) -> bool:
    return op.inputs[1].dtype == "int4"


def _is_dynamic(op: Operator) -> bool:
    return op.outputs[0].dtype == "float32" and op.inputs[1].dtype != "float32"


def _is_int8(op: Operator) -> bool:
    return op.outputs[0].dtype == "int8"


def _has_short_indices(op: Operator) -> bool:
    return any(t.dtype == "int16" for t in op.inputs[1:])


def _rank(op: Operator) -> int:
    return len(op.inputs[0].shape)


def _broadcasts(op: Operator) -> bool:
    return op.inputs[0].shape != op.inputs[1].shape


def _is_grouped(op: Operator) -> bool:
    x, kernel = op.inputs[:2]
    return x.shape[-1] != kernel.shape[-1]


def _is_dilated(op: Operator) -> bool:
    return (op.options["dilationHFactor"], op.options["dilationWFactor"]) != (1, 1)


# Which options class belongs to an op, where its name does not tell.
OPTIONS = {
    "CONV_3D_TRANSPOSE": "Conv3DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "REDUCE_ALL": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
}
_ENUMS = {
    "padding": schema.Padding,
    "fusedActivationFunction": schema.ActivationFunctionType,
}


class Builder:
    """Collects tensors and ops, then packs them into a file.

    Equal constants share a buffer, and the same calls make the same bytes.

    Args:
        description: What wrote the file.
        target: Where it is to run; None for LiteRT on any processor.
    """

    def __init__(self, description: str, target: str | None = None) -> None:
        self.description = description
        self.target = target
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.buffers: list[np.ndarray | None] = [None]
        self._buffer_of: dict[tuple[str, bytes], int] = {}
        self._constant_of: dict[tuple[Any, ...], Tensor] = {}

    def tensor(self, shape: Shape, dtype: str, name: str, **fields: Any) -> Tensor:
        """A new tensor.

        Args:
            shape: Sizes; None where they may be resized.
            dtype: Its type.
            name: Its name; where several tensors have one, all but the first get another.
            **fields: More fields of `Tensor`.

        Returns:
            The tensor.
        """
        made = Tensor(tuple(shape), dtype, name, index=len(self.tensors), **fields)
        self.tensors.append(made)
        return made

    def like(self, tensor: Tensor, shape: Shape, dtype: str | None = None) -> Tensor:
        """A new tensor with another's quantization, or of another dtype without one."""
        name = f"{tensor.name}/part_{len(self.tensors)}"
        if dtype is not None:
            return self.tensor(shape, dtype, name)
        fields = {"scale": tensor.scale, "zero_point": tensor.zero_point}
        return self.tensor(shape, tensor.dtype, name, **fields)

    def constant(
        self, values: np.ndarray, name: str = "", dtype: str = "", **fields: Any
    ) -> Tensor:
        """A tensor with constant data; equal constants of the same name, or none, are one.

        Args:
            values: The data.
            name: Its name.
            dtype: Its type in the file; by default, that of the data.
            **fields: More fields of `Tensor`.

        Returns:
            The tensor.
        """
        dtype = dtype or str(values.dtype)
        bits = BITS[dtype]
        data = np.ascontiguousarray(values, "int8" if bits < 8 else dtype)
        key = (dtype, hashlib.sha256(data.data).digest())
        if key not in self._buffer_of:
            self._buffer_of[key] = len(self.buffers)
            self.buffers.append(_packed(data, bits) if bits < 8 else _bytes(data))
        buffer = self._buffer_of[key]
        shared = (buffer, values.shape, name, *(np.asarray(v).tobytes() for v in fields.values()))
        if shared in self._constant_of:
            return self._constant_of[shared]
        name = name or f"constant_{len(self.tensors)}"
        made = self.tensor(values.shape, dtype, name, buffer=buffer, **fields)
        self._constant_of[shared] = made
        return made

    def quantized_constant(self, values: np.ndarray, like: Tensor, name: str = "") -> Tensor:
        """Real values as an integer constant, of the type and scale of another tensor."""
        stored = np.rint(values * (np.float32(1) / np.float32(like.scale))) + like.zero_point
        limits = np.iinfo(like.dtype)
        stored = np.clip(stored, limits.min, limits.max).astype(like.dtype)
        scale, zero_point = like.scale, like.zero_point
        name = name or f"constant_{len(self.tensors)}"
        return self.constant(stored, name, scale=scale, zero_point=zero_point)

    def add(
        self,
        name: str,
        inputs: list[Tensor | None],
        outputs: list[Tensor],
        options: dict[str, Any] | None = None,
        inside: list[Tensor] | None = None,
    ) -> None:
        """Add an op.

        Args:
            name: Its name in the schema, such as "CONV_2D".
            inputs: Its inputs; None for an optional one.
            outputs: Its outputs.
            options: Fields of its options table, by the schema's names.
            inside: Tensors that only say what scales its kernel has inside.
        """
        op = Operator(name, 1, inputs, outputs, options or {}, inside or [])
        if name in VERSIONS:
            op.version = VERSIONS[name](op)
        self.operators.append(op)

    def has(self, kernel: str) -> bool:
        """Whether there is an int8 kernel where the file is to run.

        Args:
            kernel: Its name in the schema.
        """
        return self.target is None or runs(kernel, "int8", self.target)

    def reshape(self, x: Tensor, shape: Shape, output: Tensor | None = None) -> Tensor:
        """Reshape a tensor; one size may be unknown.

        Args:
            x: The tensor.
            shape: The new shape.
            output: The result, if there is one already.

        Returns:
            The result.
        """
        y = output or self.like(x, shape)
        sizes = np.array([-1 if size is None else size for size in shape], "int32")
        self.add("RESHAPE", [x, self.constant(sizes)], [y], {"newShape": sizes.tolist()})
        return y

    def convert(self, x: Tensor, output: Tensor) -> None:
        """Add a CAST: the same values in another type.

        Args:
            x: The tensor.
            output: The result.
        """
        types = {"inDataType": x.dtype, "outDataType": output.dtype}
        self.add("CAST", [x], [output], types)

    def copy(self, x: Tensor) -> Tensor:
        """The same values in a tensor of its own."""
        if x.shape.count(None) <= 1:
            return self.reshape(x, x.shape)
        y = self.like(x, x.shape)
        self.add("PAD", [x, self.constant(np.zeros((len(x.shape), 2), "int32"))], [y])
        return y

    def _drop_unused(self, kept: list[Tensor]) -> None:
        used = {id(tensor) for tensor in kept}
        for op in self.operators:
            used.update(id(tensor) for tensor in (*op.inputs, *op.outputs, *op.inside))
        self.tensors = [tensor for tensor in self.tensors if id(tensor) in used]
        names: set[str] = set()
        for index, tensor in enumerate(self.tensors):
            tensor.index = index
            if tensor.name in names:
                # Of a layer that is called twice; a layer's name has no slash.
                tensor.name = f"{tensor.name}/call_{index}"
            names.add(tensor.name)

    def finish(
        self,
        inputs: list[tuple[str, Tensor]],
        outputs: list[tuple[str, Tensor]],
    ) -> bytes:
        """Pack the file.

        Args:
            inputs: Name in the signature and tensor of each input.
            outputs: The same of each output.

        Returns:
            The bytes of the file.
        """
        self._drop_unused([t for _, t in inputs + outputs])
        codes = sorted({(op.name, op.version) for op in self.operators})
        graph = schema.SubGraphT(
            name="main",
            tensors=[_pack_tensor(t) for t in self.tensors],
            inputs=[t.index for _, t in inputs],
            outputs=[t.index for _, t in outputs],
            operators=[_pack_operator(op, codes) for op in self.operators],
        )
        signature = schema.SignatureDefT(
            inputs=[schema.TensorMapT(name, t.index) for name, t in inputs],
            outputs=[schema.TensorMapT(name, t.index) for name, t in outputs],
            signatureKey="serving_default",
            subgraphIndex=0,
        )
        return pack(
            schema.ModelT(
                version=3,
                operatorCodes=[_pack_code(*code) for code in codes],
                subgraphs=[graph],
                description=self.description,
                buffers=[schema.BufferT(data) for data in self.buffers],
                signatureDefs=[signature],
            )
        )


def _bytes(data: np.ndarray) -> np.ndarray:
    return data.reshape(-1).view("uint8")


def _packed(data: np.ndarray, bits: int) -> np.ndarray:
    """Several integers a byte, the first one in its lowest bits."""
    each = 8 // bits
    low = _bytes(data) & (2**bits - 1)
    low = np.append(low, np.zeros(-low.size % each, "uint8")).reshape(-1, each)
    return np.bitwise_or.reduce(low << np.arange(0, 8, bits, dtype="uint8"), axis=1)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal scales and zero points once: with one for each channel of every layer's
    weights and biases they are a tenth of a small network's file."""

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


def pack(model: schema.ModelT) -> bytes:
    """The bytes of a file, from its object form."""
    size = sum(0 if b.data is None else len(b.data) + 64 for b in model.buffers)
    builder = _SharingBuilder(size + 65536)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _pack_code(name: str, version: int) -> schema.OperatorCodeT:
    code = getattr(schema.BuiltinOperator, name)
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version
    )


def _pack_tensor(tensor: Tensor) -> schema.TensorT:
    quantization = None
    if tensor.quantized:
        scales = np.atleast_1d(np.asarray(tensor.scale, "float32"))
        quantization = schema.QuantizationParametersT(
            scale=scales,
            zeroPoint=np.broadcast_to(tensor.zero_point, scales.shape).astype("int64"),
            quantizedDimension=tensor.axis,
        )
    shape = [1 if size is None else size for size in tensor.shape]
    return schema.TensorT(
        shape=shape,
        shapeSignature=(
            [-1 if s is None else s for s in tensor.shape] if None in tensor.shape else None
        ),
        type=DTYPES[tensor.dtype],
        buffer=tensor.buffer,
        name=tensor.name,
        quantization=quantization,
        isVariable=tensor.variable,
        hasRank=True,
    )


def _pack_operator(op: Operator, codes: list[tuple[str, int]]) -> schema.OperatorT:
    title = OPTIONS.get(op.name, "".join(w.capitalize() for w in op.name.split("_")) + "Options")
    made = None
    if op.options or hasattr(schema, f"{title}T"):
        options = getattr(schema, f"{title}T")
        values = dict(op.options)
        for key, enum in _ENUMS.items():
            if key in values:
                values[key] = getattr(enum, values[key])
        for key in ("inDataType", "outDataType", "outputType"):
            if key in values:
                values[key] = DTYPES[values[key]]
        made = options(**values)
    return schema.OperatorT(
        opcodeIndex=codes.index((op.name, op.version)),
        inputs=[-1 if t is None else t.index for t in op.inputs],
        outputs=[t.index for t in op.outputs],
        intermediates=[t.index for t in op.inside] or None,
        builtinOptionsType=getattr(schema.BuiltinOptions, title, 0) if made else 0,
        builtinOptions=made,
    )
