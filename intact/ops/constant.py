"""Constants, and rows looked up in them."""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import layers, ops

from intact.layers.sharing import SharesWeights, Siblings
from intact.litert.dtypes import BITS
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import ANY_WHOLE, COUNTS, INTEGERS, SAME_AS_INPUT, Case, Op, Weight
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.whole import whole_indices


@keras.saving.register_keras_serializable("intact")
class Constant(keras.layers.Layer, SharesWeights):
    """A weight as a tensor of the graph, for ops that take two tensors.

    Args:
        shape: Its shape; the first size is 1 in place of the batch.
        broadcast: Whether the first size, 1, goes with any number of samples. Keras would take it
            for the size of the batch.

    Example:

    >>> layer = Constant((1, 2))
    >>> layer(np.zeros((5, 3))).shape == (1, 2)
    True
    """

    def __init__(self, shape: tuple[int, ...], broadcast: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.broadcast = broadcast
        # Whole numbers have no gradient.
        trains = self.trainable and "float" in self.variable_dtype
        self.value = self.add_weight(
            name="value", shape=self.shape, initializer="zeros", trainable=trains
        )
        self.siblings: dict[str, Siblings] = {}
        self.built = True

    def shareable(self) -> dict[str, Any]:
        """The weight, if it trains."""
        return {"value": self.value} if self.value.trainable else {}

    def call(self, anchor: Tensor, training: bool | None = None) -> Tensor:
        """The weight; the first argument only ties it to a graph."""
        value = ops.convert_to_tensor(self.value)
        siblings = self.siblings.get("value") if training else None
        return value if siblings is None else siblings.with_gradients(value)

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        return (None, *self.shape[1:]) if self.broadcast else self.shape

    def compute_output_spec(self, anchor: Any, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(self.compute_output_shape(None), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "shape": list(self.shape), "broadcast": self.broadcast}


@register_op
class ConstantTensor(Op):
    """A weight that an op takes as a tensor: a constant of the file."""

    keras_layers = (Constant,)
    plain = (0,)
    kernel_rounding = "real"
    dtypes = INTEGERS
    weights = {"value": Weight(kernels=(), dynamic=())}
    cases: ClassVar[tuple[Case, ...]] = (
        Case(lambda: lambda x: x + ops.convert_to_tensor([[0.5, -1.0], [0.1, 2.0]]), (2, 2)),
        Case(lambda: lambda x: ops.convert_to_tensor([[0.5], [-1.0]]) * x, (2, 3)),
    )

    def refuse(self, layer: Any, shapes: list) -> str | None:
        bad = int((~np.isfinite(to_numpy(layer.value))).sum())
        return f"{bad} of its values are infinite, and a range is finite" if bad else None

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        return layer(inputs[0], training=bool(training))

    def real(self, layer: Any, inputs: list[Any], weights: dict) -> Tensor:
        return weights["value"]

    def lower(self, node: Any, builder: Any) -> None:
        values, y = to_numpy(node.layer.value), node.output
        if y.quantized:
            node.alias(builder.quantized_constant(values, y, y.name))
        elif node.weights:
            (axis,) = self.weights["value"].layout.axes
            node.alias(node.stored("value", axis=axis % values.ndim))
        else:
            node.alias(builder.constant(values.astype(y.dtype), y.name))


@keras.saving.register_keras_serializable("intact")
class EmbeddingTable(Constant):
    """A matrix of which an op looks up rows.

    Example:

    >>> EmbeddingTable((7, 3)).value.shape
    (7, 3)
    """


@register_op
class EmbeddingTensor(ConstantTensor):
    """A table: a constant of the file, with a scale for each row where it is stored alone."""

    keras_layers = (EmbeddingTable,)
    weights = {
        "value": Weight(
            ScaleLayout((0,)),
            kernels=(),
            dynamic=(),
            alone=("int2", "int4", "int8", "int2 blocks", "int4 blocks"),
        )
    }
    cases = (Case(lambda: layers.Embedding(9, 4), (5,), low=0, high=8, dtype="int32"),)


@keras.saving.register_keras_serializable("intact")
class Gather(FunctionLayer):
    """Rows of a table, by their indices.

    Example:

    >>> np.asarray(Gather()([np.array([[1.0], [2.0]]), np.array([1])])).tolist()
    [[2.0]]
    """

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`(table, indices)`: a matrix, and whole numbers of any shape."""
        table, indices = inputs
        return ops.take(table, ops.cast(indices, "int32"), axis=0)

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, ...]:
        table, indices = shapes
        return (*indices, *table[1:])


@register_op
class Embedding(Op):
    """Rows of a weight, by indices: with integers, the whole table has one scale."""

    keras_layers = (layers.Embedding,)
    litert = ("GATHER", "EMBEDDING_LOOKUP")
    notes = "With integer activations, the table has one scale; else each row has its own."
    cases = (
        Case(lambda: layers.Embedding(7, 3), (5,), low=0, high=6, dtype="int32"),
        Case(
            lambda: lambda x: layers.Dense(4)(layers.Flatten()(layers.Embedding(7, 3)(x))),
            (2, 5),
            low=0,
            high=6,
            dtype="int32",
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        indices = whole_indices(args[0], layer, tracer)
        table = tracer.constant(layer.embeddings, f"{layer.name}_table", kind=EmbeddingTable)
        return tracer.emit(Gather(name=layer.name), [table, indices])


@register_op
class Lookup(Op):
    """Rows of a table of integers."""

    dtypes = INTEGERS
    keras_layers = (Gather,)
    litert = ("GATHER", "EMBEDDING_LOOKUP")
    plain = (1,)
    reads_stored = (0,)
    whole = ANY_WHOLE
    output = SAME_AS_INPUT
    cases = (Case(lambda: layers.Embedding(4, 2), (), low=0, high=3, dtype="int32"),)

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        table, indices = inputs
        return table._replace(values=layer([table.values, indices]))

    def lower(self, node: Any, builder: Any) -> None:
        (table, indices), y = node.inputs, node.output
        if table.dtype == y.dtype:
            add_gather(node, builder, {"axis": 0})
            return
        # EMBEDDING_LOOKUP takes rows that begin with a byte, and scales of rows.
        whole_bytes = table.shape[-1] * BITS[table.dtype] % 8 == 0
        takes = table.quantized and table.groups.axis == 0 and len(table.shape) > 1 and whole_bytes
        if not takes or y.shape.count(None) > 1:
            node.inputs[0] = builder.dequantized(table)
            add_gather(node, builder, {"axis": 0})
            return
        rows = builder.reshape(_counted(indices, builder, COUNTS[:1]), (None,))
        flat = builder.like(y, (None, table.shape[-1]))
        builder.add("EMBEDDING_LOOKUP", [rows, table], [flat])
        builder.reshape(flat, y.shape, y)


def _counted(indices: Any, builder: Any, dtypes: tuple[str, ...]) -> Any:
    """Indices in a type that a kernel takes."""
    if indices.dtype in dtypes:
        return indices
    whole = builder.like(indices, indices.shape, "int32")
    builder.convert(indices, whole)
    return whole


def add_gather(node: Any, builder: Any, options: dict[str, Any]) -> None:
    """Write a GATHER of an op's first input by its second, in integers that the kernel takes.

    Args:
        node: The op on its way into the file.
        builder: The builder of the file.
        options: The options of the kernel.
    """
    table, indices = node.inputs
    builder.add("GATHER", [table, _counted(indices, builder, COUNTS)], [node.output], options)
