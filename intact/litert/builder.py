"""Builds LiteRT files: the ops and tensors, one call at a time."""

import hashlib
import mmap
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from intact.litert.dtypes import BITS
from intact.litert.kernels import get_kernel
from intact.litert.kernels.targets import runs
from intact.litert.tidying import tidy, without_unread
from intact.litert.writing import SMALL, Operator, Shape, Subgraph, Tensor, describe, pack


class Builder:
    """Collects tensors and ops, then packs them into a file.

    Equal constants share a buffer, and the same calls make the same bytes.

    Args:
        description: What wrote the file.
        target: The target that is to run it; None for LiteRT on any processor.
    """

    def __init__(self, description: str, target: str | None = None) -> None:
        self.description = description
        self.target = target
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.buffers: list[np.ndarray | None] = [None]
        self._buffer_of: dict[tuple[str, bytes], int] = {}
        self._constant_of: dict[tuple[Any, ...], Tensor] = {}
        self._computed: dict[Hashable, Tensor] = {}

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
        tensor = Tensor(tuple(shape), dtype, name, index=len(self.tensors), **fields)
        self.tensors.append(tensor)
        return tensor

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
        data = _stored(values, "int8" if bits < 8 else dtype)
        key = (dtype, hashlib.sha256(data.data).digest())
        if key not in self._buffer_of:
            self._buffer_of[key] = len(self.buffers)
            self.buffers.append(_packed(data, bits) if bits < 8 else _bytes(data))
        buffer = self._buffer_of[key]
        shared = (buffer, values.shape, name, *(np.asarray(v).tobytes() for v in fields.values()))
        if shared in self._constant_of:
            return self._constant_of[shared]
        name = name or f"constant_{len(self.tensors)}"
        constant = self.tensor(values.shape, dtype, name, buffer=buffer, **fields)
        self._constant_of[shared] = constant
        return constant

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
            inside: Tensors that only hold the scales inside its kernel.
        """
        op = Operator(name, 1, inputs, outputs, options or {}, inside or [])
        op.version = get_kernel(name).version(op)
        self.operators.append(op)

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """A tensor that several ops read, computed at the first request.

        Args:
            key: A hashable key.
            compute: Adds the ops that compute it.

        Returns:
            The tensor.
        """
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def has(self, kernel: str) -> bool:
        """Whether an int8 kernel runs on the target of the file.

        Args:
            kernel: Its name in the schema.
        """
        return self.target is None or runs(kernel, "int8", self.target)

    def has_own(self, kernel: str, dtype: str) -> bool:
        """Whether a kernel runs on the target of the file itself, not on a processor beside it.

        Args:
            kernel: Its name in the schema.
            dtype: What it works on.
        """
        return self.target is None or runs(kernel, dtype, self.target, host=False)

    def reshape(self, x: Tensor, shape: Shape, output: Tensor | None = None) -> Tensor:
        """Reshape a tensor. If two sizes are unknown, the first stays as it is.

        Args:
            x: The tensor.
            shape: The new shape.
            output: The result, if there is one already.

        Returns:
            The result.
        """
        y = output or self.like(x, shape)
        sizes = np.array([-1 if size is None else size for size in shape], "int32")
        if tuple(shape).count(None) <= 1:
            self.add("RESHAPE", [x, self.constant(sizes)], [y], {"newShape": sizes.tolist()})
        elif is_row(shape, x.shape):
            self.add("EXPAND_DIMS", [x, self.constant(np.array(1, "int32"))], [y])
        elif is_row(x.shape, shape):
            self.add("SQUEEZE", [x], [y], {"squeezeDims": [1]})
        else:
            new = self.joined([self.sizes(x, 0, 1), self.constant(sizes[1:])])
            self.add("RESHAPE", [x, new], [y])
        return y

    def dequantized(self, constant: Tensor) -> Tensor:
        """The real values of a constant, computed in the file.

        Args:
            constant: The constant.
        """
        real = self.tensor(constant.shape, "float32", f"{constant.name}_float")
        if constant.groups.dequantize:
            self.add("DEQUANTIZE", [constant], [real])
        else:
            rows = self.constant(np.arange(constant.shape[0] or 0, dtype="int32"))
            self.add("EMBEDDING_LOOKUP", [rows, constant], [real])
        return real

    def sizes(self, x: Tensor, first: int, last: int) -> Tensor:
        """Sizes of a tensor, of type int32, as the runtime finds them.

        Args:
            x: The tensor.
            first: The first axis.
            last: The axis behind the last.
        """
        for op in self.operators:
            if op.name == "DEQUANTIZE" and op.outputs[0] is x and op.inputs[0] is not None:
                # The integers have the sizes of the real values.
                x = op.inputs[0]

        def whole() -> Tensor:
            shape = self.tensor((len(x.shape),), "int32", f"{x.name}/shape")
            self.add("SHAPE", [x], [shape], {"outType": "int32"})
            return shape

        def part() -> Tensor:
            sizes = self.tensor((last - first,), "int32", f"{x.name}/sizes_{first}_{last}")
            bounds = [self.constant(np.array([n], "int32")) for n in (first, last, 1)]
            shape = self.once(("shape", id(x)), whole)
            self.add("STRIDED_SLICE", [shape, *bounds], [sizes])
            return sizes

        return self.once(("sizes", id(x), first, last), part)

    def joined(self, parts: list[Tensor]) -> Tensor:
        """A shape, of parts of type int32."""
        shape = self.tensor((sum(p.shape[0] or 0 for p in parts),), "int32", f"{parts[0].name}/all")
        self.add(
            "CONCATENATION", list(parts), [shape], {"axis": 0, "fusedActivationFunction": "NONE"}
        )
        return shape

    def scaled(self, sizes: Tensor, factors: Sequence[int], extra: Sequence[int] = ()) -> Tensor:
        """Sizes multiplied by whole numbers, with whole numbers added.

        Args:
            sizes: What `sizes` returned.
            factors: A factor for each.
            extra: What is added to each.
        """
        for name, numbers, nothing in (("MUL", factors, 1), ("ADD", extra, 0)):
            if any(number != nothing for number in numbers):
                other = self.constant(np.array(numbers, "int32"))
                new = self.like(sizes, sizes.shape, "int32")
                self.add(name, [sizes, other], [new], {"fusedActivationFunction": "NONE"})
                sizes = new
        return sizes

    def convert(self, x: Tensor, output: Tensor) -> None:
        """Add a CAST: the same values in another type.

        Args:
            x: The tensor.
            output: The result.
        """
        types = {"inDataType": x.dtype, "outDataType": output.dtype}
        self.add("CAST", [x], [output], types)

    def real(self, constant: Tensor) -> Tensor:
        """The real values of a quantized constant as a float constant.

        Args:
            constant: The constant; one scale for all its values.
        """
        stored = self.buffers[constant.buffer]
        assert stored is not None and constant.scale is not None
        shape = tuple(size or 1 for size in constant.shape)
        values = stored.view(constant.dtype).reshape(shape).astype("float32")
        values = (values - np.float32(constant.zero_point)) * np.float32(constant.scale)
        return self.constant(values, f"{constant.name}_float")

    def copy(self, x: Tensor) -> Tensor:
        """The same values in a tensor of its own."""
        if x.shape.count(None) <= 1:
            return self.reshape(x, x.shape)
        y = self.like(x, x.shape)
        self.add("PAD", [x, self.constant(np.zeros((len(x.shape), 2), "int32"))], [y])
        return y

    def _drop_unused(self, ends: list[Tensor]) -> None:
        """Drop the tensors that no op uses, and give each of the others its own name."""
        used = {id(tensor) for tensor in ends}
        for op in self.operators:
            used.update(id(tensor) for tensor in (*op.inputs, *op.outputs, *op.inside))
        self.tensors = [tensor for tensor in self.tensors if id(tensor) in used]
        names: set[str] = set()
        for index, tensor in enumerate(self.tensors):
            tensor.index = index
            if tensor.name in names:
                # A layer that is called twice; a layer's name has no slash.
                tensor.name = f"{tensor.name}/call_{index}"
            names.add(tensor.name)

    def finish(
        self,
        inputs: list[tuple[str, Tensor]],
        outputs: list[tuple[str, Tensor]],
        loops: Sequence[Subgraph] = (),
    ) -> bytes:
        """Pack the file.

        Args:
            inputs: Name in the signature and tensor of each input.
            outputs: The same for each output.
            loops: The graphs that loops repeat.

        Returns:
            The bytes of the file.
        """
        return pack(self.describe(inputs, outputs, loops), release=True)

    def describe(
        self,
        inputs: list[tuple[str, Tensor]],
        outputs: list[tuple[str, Tensor]],
        loops: Sequence[Subgraph] = (),
    ) -> schema.ModelT:
        """The file as objects that can be changed before they are packed.

        Args:
            inputs: As for `finish`, like the other arguments.
        """
        tidy(self)
        self.operators = without_unread(self.operators, [t for _, t in outputs])
        self._drop_unused([t for _, t in inputs + outputs])
        ends = [t for _, t in inputs], [t for _, t in outputs]
        main = Subgraph("main", self.tensors, self.operators, *ends)
        return describe(self.description, [main, *loops], self.buffers, inputs, outputs)


def is_row(a: Shape, b: Shape) -> bool:
    """Whether a shape is another with one row: no size needs to be known for that."""
    return tuple(a) == (b[0], 1, *b[1:])


def _bytes(data: np.ndarray) -> np.ndarray:
    return data.reshape(-1).view("uint8")


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in the order and type of the file.

    Large ones have pages of their own, which go back to the system when they are freed. The C
    library would keep them for later arrays, and a large model's constants would be there twice.
    """
    size = values.size * np.dtype(dtype).itemsize
    if size <= SMALL:
        return np.ascontiguousarray(values, dtype)
    data = np.frombuffer(mmap.mmap(-1, size), dtype).reshape(values.shape)
    np.copyto(data, values, casting="unsafe")
    return data


def _packed(data: np.ndarray, bits: int) -> np.ndarray:
    """Several integers a byte, the first one in its lowest bits."""
    each = 8 // bits
    low = _bytes(data) & (2**bits - 1)
    low = np.append(low, np.zeros(-low.size % each, "uint8")).reshape(-1, each)
    return np.bitwise_or.reduce(low << np.arange(0, 8, bits, dtype="uint8"), axis=1)
