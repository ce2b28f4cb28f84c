"""Values of tensors, picked by their indices."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor, is_symbolic, is_trainable, is_whole, to_numpy
from intact.ops import constant
from intact.ops.base import ANY_WHOLE, FIXED_BATCH, INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.shape import reshaped
from intact.ops.slicing import Take, taken
from intact.ops.whole import whole_indices

BATCH_AXIS = (
    "it takes from the batch axis, and a file computes each sample alone; give its input an axis "
    f"of samples before, and take from the axis behind it, or {FIXED_BATCH}"
)


@register_op
class Taking(Op):
    """`keras.ops.take` with constant indices, or of a constant by indices in a tensor."""

    operations = ("Take",)
    litert = ("STRIDED_SLICE", "CONCATENATION", "GATHER", "RESHAPE")
    cases = (
        Case(lambda: lambda x: ops.take(x, [3, 0, -1, 3, 2], axis=1), (5, 3)),
        Case(lambda: lambda x: ops.take(x, 2, axis=-1), (4, 3)),
        Case(lambda: lambda x: ops.take(x, np.array([[0, 2], [1, 1]]), axis=2), (2, 3, 2)),
        Case(lambda: lambda x: ops.take(x, [1, 2, 3], axis=1), (5, 3)),
        Case(
            lambda: lambda x: ops.take(np.eye(4, 3, dtype="float32"), x, axis=0),
            (5,),
            low=0,
            high=3,
            dtype="int32",
        ),
        Case(
            lambda: lambda x: ops.take(np.linspace(-1, 1, 6, dtype="float32"), x),
            (5,),
            low=0,
            high=5,
            dtype="int32",
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, indices = (*args, *kwargs.values())
        if not is_symbolic(x) and is_symbolic(indices):
            return self.rows(layer, x, indices, tracer)
        values = keras.tree.flatten([x, indices])
        if any(isinstance(v, keras.KerasTensor) for v in values[1:]):
            tracer.refuse(layer, "its indices are a tensor, not constants")
        if layer.axis is None or layer.axis % len(x.shape) == 0:
            tracer.refuse(layer, BATCH_AXIS)
        axis = layer.axis % len(x.shape)
        size, indices = x.shape[axis], np.asarray(to_numpy(indices))
        if size is None:
            tracer.refuse(layer, f"the size of axis {axis} of shape {x.shape} is unknown")
        y = taken(tracer, layer, x, axis, np.ravel(indices) % size)
        if indices.ndim == 1:
            return y
        return reshaped(tracer, layer, y, [*x.shape[1:axis], *indices.shape, *x.shape[axis + 1 :]])

    def rows(self, layer: Any, table: Any, indices: Any, tracer: Any) -> Any:
        """The rows of a constant or weight, by a tensor."""
        if layer.axis is None and not is_trainable(table):
            table = to_numpy(table).reshape(-1)
        elif layer.axis is None or layer.axis % len(table.shape):
            tracer.refuse(
                layer,
                f"axis {layer.axis} of a constant comes before the batch of its indices; take "
                "from axis 0, and move the axes behind it",
            )
        dtype = "int32" if is_whole(table) else "float32"
        is_matrix = dtype == "float32" and len(table.shape) == 2
        kind = constant.EmbeddingTable if is_matrix else constant.Constant
        table = tracer.constant(table, f"{layer.name}_table", dtype=dtype, kind=kind)
        rows = whole_indices(indices, layer, tracer)
        return tracer.emit(constant.Gather(name=layer.name), [table, rows])


@keras.saving.register_keras_serializable("intact")
class GatherAlong(FunctionLayer):
    """Values of one axis, with separate indices for each position of the axes before it.

    Args:
        axis: The axis; the indices have all axes up to it.

    Example:

    >>> x, indices = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1], [0]])
    >>> np.asarray(GatherAlong(1)([x, indices])).tolist()
    [[2.0], [3.0]]
    """

    axis: int

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`(x, indices)`: the values."""
        x, indices = inputs
        behind = len(x.shape) - self.axis - 1
        indices = ops.cast(indices, "int32")
        for _ in range(behind):
            indices = ops.expand_dims(indices, -1)
        if behind:
            indices = ops.broadcast_to(
                indices, (*indices.shape[: self.axis + 1], *x.shape[-behind:])
            )
        return ops.take_along_axis(x, indices, self.axis)

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, ...]:
        x, indices = shapes
        return (*x[: self.axis], indices[self.axis], *x[self.axis + 1 :])


@register_op
class TakeAlongAxis(Op):
    """Values of one axis, with separate indices for each position: a batched gather."""

    keras_layers = (GatherAlong,)
    operations = ("TakeAlongAxis",)
    litert = ("GATHER", "TRANSPOSE", "RESHAPE")
    dtypes = INTEGERS
    plain = (1,)
    whole = ANY_WHOLE
    output = SAME_AS_INPUT
    notes = "Not along the batch. Indices count from the start of the axis."
    cases = (
        Case(
            lambda: lambda x: ops.take_along_axis(x, ops.expand_dims(ops.argmax(x, 1), 1), axis=1),
            (4, 3),
        ),
        Case(
            lambda: (
                lambda x: ops.take_along_axis(
                    layers.Dense(3)(x), ops.argmax(x, 2, keepdims=True), axis=1
                )
            ),
            (4, 3),
        ),
        Case(
            lambda: lambda x: ops.take_along_axis(x, np.array([[[2, 0, 1], [1, 1, 3]]]), axis=1),
            (4, 3),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, indices = (*args, *kwargs.values())
        rank = len(x.shape)
        if layer.axis is None or layer.axis % rank == 0:
            tracer.refuse(layer, BATCH_AXIS)
        axis = layer.axis % rank
        if not (is_symbolic(x) and None not in x.shape[1:]):
            tracer.refuse(layer, f"it takes from a tensor of known size, received shape {x.shape}")
        if not is_symbolic(indices):
            return self.from_constant(layer, x, np.asarray(to_numpy(indices)), axis, tracer)
        indices = whole_indices(indices, layer, tracer)
        for a in range(1, rank):
            if a != axis and x.shape[a] == 1 != indices.shape[a]:
                x = taken(tracer, layer, x, a, np.zeros(indices.shape[a], int))
        # Axes that the indices lack move to the end.
        behind = [a for a in range(1, rank) if a != axis and indices.shape[a] != x.shape[a]]
        order = [a for a in range(1, rank) if a not in (axis, *behind)]
        dims = (*order, axis, *behind)
        x, indices = (
            tracer.emit_new(layers.Permute(dims, name=f"{layer.name}_{name}"), t)
            for t, name in ((x, "ordered"), (indices, "indices"))
        )
        place = len(order) + 1
        if behind:
            indices = reshaped(tracer, layer, indices, indices.shape[1 : place + 1])
        y = tracer.emit(GatherAlong(place, name=layer.name), [x, indices])
        back = tuple(int(a) + 1 for a in np.argsort(dims))
        return tracer.emit_new(layers.Permute(back, name=f"{layer.name}_back"), y)

    def from_constant(self, layer: Any, x: Any, indices: np.ndarray, axis: int, tracer: Any) -> Any:
        """Values by constant indices: places of all values in a row."""
        if indices.shape[0] != 1:
            tracer.refuse(layer, f"its indices of shape {indices.shape} are not those of any batch")
        sizes = x.shape[1:]
        shape = np.broadcast_shapes(
            *((*s[: axis - 1], 1, *s[axis:]) for s in (sizes, indices.shape[1:]))
        )
        places = np.arange(int(np.prod(sizes))).reshape(sizes)
        places, indices = (
            np.broadcast_to(t, (*shape[: axis - 1], t.shape[axis - 1], *shape[axis:]))
            for t in (places, indices[0])
        )
        picked = np.take_along_axis(places, indices, axis - 1)
        x = reshaped(tracer, layer, x, [int(np.prod(sizes))])
        y = tracer.emit(Take(picked.ravel().tolist(), 1, name=layer.name), x)
        return reshaped(tracer, layer, y, picked.shape)

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        x, indices = inputs
        return x._replace(values=layer([x.values, indices]))

    def lower(self, node: Any, builder: Any) -> None:
        constant.add_gather(node, builder, {"axis": node.layer.axis, "batchDims": node.layer.axis})
