"""Choices: comparisons, where, argmax."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.graph.view import listed_axes, with_attributes
from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import over
from intact.numerics.tensors import Tensor, broadcast_sizes, is_symbolic, is_whole, to_numpy
from intact.ops.base import ALL_SAME, ANY_WHOLE, INTEGERS, Case, NotQuantized, Op
from intact.ops.constant import Gather
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.steps import Step
from intact.ops.table import Elementwise
from intact.ops.whole import WholeNumber, common_type, truths, whole_indices

KINDS = {
    "Greater": (ops.greater, ops.floor, 1.0, "GREATER_EQUAL"),
    "GreaterEqual": (ops.greater_equal, ops.ceil, 0.0, "GREATER_EQUAL"),
    "Less": (ops.less, ops.ceil, 0.0, "LESS"),
    "LessEqual": (ops.less_equal, ops.floor, 1.0, "LESS"),
}
"""Per comparison: its function; how a limit becomes a whole number, and the kernel with it."""

EQUALITIES = {"Equal": "LessEqual", "NotEqual": "Greater"}
"""How a distance compares with 0."""

WHOLE_LIMITS = {
    "Greater": np.floor,
    "GreaterEqual": np.ceil,
    "Less": np.ceil,
    "LessEqual": np.floor,
}
"""Per comparison, the rounding of a limit of whole numbers."""

SWAPPED = {
    "Greater": "Less",
    "GreaterEqual": "LessEqual",
    "Less": "Greater",
    "LessEqual": "GreaterEqual",
}


@keras.saving.register_keras_serializable("intact")
class Comparison(FunctionLayer):
    """Where values are beyond a limit.

    Args:
        kind: A name in `KINDS`.
        limit: The limit.
    """

    kind: str
    limit: float
    output_dtype = "bool"

    def call(self, x: Tensor) -> Tensor:
        """Truth values."""
        return KINDS[self.kind][0](x, self.limit)


@register_op
class Compare(Op):
    """A comparison of whole numbers with the whole number next to the limit."""

    keras_layers = (Comparison,)
    operations = (*KINDS, *EQUALITIES)
    litert = ("CAST", "GREATER_EQUAL", "LESS")
    output = NotQuantized("bool")
    notes = "Two tensors are subtracted first. Equal is what rounds to the same integer."
    cases = (
        Case(lambda: lambda x: ops.where(x > 0.25, x, x * 0.5), (4, 5)),
        Case(lambda: lambda x: ops.where(x <= 0.25, x, x * 2.0), (6,)),
        Case(lambda: lambda a, b: ops.where(a < b, a, b), [(4, 5), (4, 5)]),
        Case(lambda: lambda x: ops.where(ops.not_equal(ops.relu(x), 0.0), 1.0, x), (4, 5)),
        Case(
            lambda: lambda a, b: ops.where(ops.equal(ops.relu(a), ops.relu(b)), a, -1.0),
            [(4, 5), (4, 5)],
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        a, b = (*args, *kwargs.values())
        kind = type(layer).__name__
        if is_symbolic(a) and is_symbolic(b):
            a, b = tracer.emit_new(layers.Subtract(name=f"{layer.name}_gap"), [a, b]), 0.0
        elif is_symbolic(b):
            a, b, kind = b, a, SWAPPED.get(kind, kind)
        limits = to_numpy(b)
        if is_whole(a):
            if kind in EQUALITIES and (limits != np.floor(limits)).any():
                tracer.refuse(layer, "whole numbers are compared with a number that is not whole")
            whole = WHOLE_LIMITS.get(kind, np.floor)(limits).astype("int64")
            return WholeNumber().emit(kind, layer, [a, whole], tracer)
        if limits.size != 1:
            others = tracer.constant(b, f"{layer.name}_limit", len(a.shape))
            a = tracer.emit_new(layers.Subtract(name=f"{layer.name}_gap"), [a, others])
            limits = np.zeros(1)
        if kind in EQUALITIES:
            steps: list[Step] = [
                ("Subtract", [0, float(limits.flat[0])], {}),
                ("Absolute", [1], {}),
            ]
            a = tracer.emit(Elementwise(steps, name=f"{layer.name}_distance"), a)
            kind, limits = EQUALITIES[kind], np.zeros(1)
        return tracer.emit(Comparison(kind, float(limits.flat[0]), name=layer.name), a)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        compare, whole, extra, kernel = KINDS[layer.kind]
        limit = over(layer.limit, x.scale)
        place = whole(limit) + extra
        exact = x.values >= place if kernel == "GREATER_EQUAL" else x.values < place
        return ops.where(x.whole, exact, compare(x.values, limit))

    def lower(self, node: Any, builder: Any) -> None:
        x, y = node.input, node.output
        _, whole, extra, kernel = KINDS[node.layer.kind]
        if not x.quantized:
            kernel = "".join(f"_{c}" if c.isupper() else c for c in node.layer.kind)[1:].upper()
            limit = builder.constant(np.array(node.layer.limit, "float32"))
            builder.add(kernel, [x, limit], [y])
            return
        wide = builder.like(x, x.shape, dtype="int32")
        builder.convert(x, wide)
        with np.errstate(over="ignore"):
            limit = np.float32(node.layer.limit) / np.float32(x.scale)
        place = to_numpy(whole(limit)) + extra
        place = np.clip(place + x.zero_point, -(2**17), 2**17)
        builder.add(kernel, [wide, builder.constant(place.astype("int32"))], [y])


TRUTHS = {"All": (ops.all, "REDUCE_ALL"), "Any": (ops.any, "REDUCE_ANY")}
"""Per operation: its function, and its kernel."""


@keras.saving.register_keras_serializable("intact")
class Truth(FunctionLayer):
    """Whether all, or any, truth values along axes hold.

    Args:
        kind: A name in `TRUTHS`.
        axis: The axes.
        keepdims: Whether they stay, with one value.
    """

    kind: str
    axis: tuple[int, ...]
    keepdims: bool
    output_dtype = "bool"

    def call(self, x: Tensor) -> Tensor:
        """Truth values."""
        return TRUTHS[self.kind][0](x, axis=self.axis, keepdims=self.keepdims)

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        sizes = (1 if a in self.axis else n for a, n in enumerate(shape))
        return tuple(n for a, n in enumerate(sizes) if self.keepdims or a not in self.axis)


@register_op
class ReduceTruth(Op):
    """Whether all, or any, truth values along axes hold."""

    keras_layers = (Truth,)
    operations = tuple(TRUTHS)
    litert = tuple(kernel for _, kernel in TRUTHS.values())
    plain = (0,)
    output = NotQuantized("bool")
    cases = (
        Case(lambda: lambda x: ops.where(ops.any(x > 0.5, axis=-1, keepdims=True), x, 0.0), (4, 5)),
        Case(lambda: lambda x: ops.where(ops.all(x > -0.5, axis=1), x[:, 0], 0.0), (3, 5)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        rank = len(x.shape)
        named_axes = listed_axes(layer)
        if layer.axis is None or any(axis % rank == 0 for axis in named_axes):
            tracer.refuse(layer, "it runs over the batch")
        axes = [axis % rank for axis in named_axes]
        truth = Truth(type(layer).__name__, axes, layer.keepdims, name=layer.name)
        return tracer.emit(truth, truths(x, layer.name, rank, tracer))

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        return layer(inputs[0])

    def lower(self, node: Any, builder: Any) -> None:
        kind, options = TRUTHS[node.layer.kind][1], {"keepDims": node.layer.keepdims}
        axes = builder.constant(np.array(node.layer.axis, "int32"))
        builder.add(kind, [node.input, axes], [node.output], options)


@keras.saving.register_keras_serializable("intact")
class Select(FunctionLayer):
    """`(a, b, condition)`: `a` where the condition holds, else `b`."""

    def call(self, inputs: list[Tensor]) -> Tensor:
        """The chosen values."""
        a, b, condition = inputs
        return ops.where(condition, a, b)

    def compute_output_shape(self, shapes: Any) -> Any:
        batch = next((s[0] for s in shapes if s[0] != 1), 1)
        return (batch, *broadcast_sizes(*(tuple(s)[1:] for s in shapes)))


@register_op
class Where(Op):
    """A choice between two tensors, or numbers, by truth values; all share one range."""

    keras_layers = (Select,)
    operations = ("Where",)
    litert = ("SELECT_V2",)
    output = ALL_SAME
    plain = (2,)
    dtypes = ("int8", "int16")
    whole = ANY_WHOLE
    cases = (
        Case(lambda: lambda x: ops.where(x > 0.0, x, -0.5), (4, 5)),
        Case(lambda: lambda x: ops.where(np.eye(4, dtype=bool), x, 0.25), (4, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        condition, a, b = (*args, *kwargs.values())
        rank = max(len(t.shape) for t in (condition, a, b) if is_symbolic(t))
        dtype = common_type([a, b]) if is_whole(a) and is_whole(b) else "float32"
        a, b = (
            t if is_symbolic(t) else tracer.constant(t, f"{layer.name}_{name}", rank, dtype)
            for t, name in ((a, "true"), (b, "false"))
        )
        condition = truths(condition, layer.name, rank, tracer)
        return tracer.emit(Select(name=layer.name), [a, b, condition])

    def call(self, layer: Any, inputs: list[Any], weights: dict, training: bool) -> Any:
        a, b, condition = inputs
        # In inference the scales are one and the same, and the ratio is 1.
        return b._replace(values=ops.where(condition, a.values * (a.scale / b.scale), b.values))

    def lower(self, node: Any, builder: Any) -> None:
        a, b, condition = node.inputs
        builder.add("SELECT_V2", [condition, a, b], [node.output])


@keras.saving.register_keras_serializable("intact")
class Place(FunctionLayer):
    """The index of the largest value along an axis.

    Args:
        axis: The axis.
    """

    axis: int
    output_dtype = "int32"

    def call(self, x: Tensor) -> Tensor:
        """The indices."""
        return ops.cast(ops.argmax(x, self.axis), "int32")

    def compute_output_shape(self, shape: Any) -> Any:
        axis = self.axis % len(shape)
        return (*shape[:axis], *shape[axis + 1 :])


@register_op
class ArgMax(Op):
    """The index of the largest value; of equal ones, the first."""

    keras_layers = (Place,)
    operations = ("Argmax",)
    litert = ("ARG_MAX",)
    output = NotQuantized("int32")
    dtypes = INTEGERS
    whole = ("bool", "int32")
    cases = (
        Case(
            lambda: lambda x: layers.Embedding(5, 3)(ops.argmax(x, axis=-1)),
            (4, 5),
        ),
        Case(lambda: lambda x: ops.one_hot(ops.argmax(x, axis=1, keepdims=True), 4) * 2.0, (4, 3)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if layer.axis is None or layer.axis % len(x.shape) == 0:
            tracer.refuse(layer, "it runs over the batch")
        axis = layer.axis % len(x.shape)
        y = tracer.emit(Place(axis, name=layer.name), x)
        if layer.keepdims:
            shape = tuple(1 if a == axis else n for a, n in enumerate(x.shape))
            target = tuple(-1 if n is None else n for n in shape[1:])
            y = tracer.emit_new(layers.Reshape(target, name=f"{layer.name}_kept"), y)
        return y

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        return layer(inputs[0].values)

    def lower(self, node: Any, builder: Any) -> None:
        x, axis = node.input, builder.constant(np.array(node.layer.axis, "int32"))
        if x.dtype == "int16":
            # There is no kernel; the integers have the same order.
            x = builder.like(x, x.shape, dtype="int32")
            builder.convert(node.input, x)
        builder.add("ARG_MAX", [x, axis], [node.output], {"outputType": "int32"})


@register_op
class OneHot(Op):
    """Rows of a unit matrix, by indices."""

    operations = ("OneHot",)
    litert = ("GATHER",)
    cases = tuple(
        Case(build, (4,), low=0, high=4, dtype="int32")
        for build in (
            lambda: lambda x: ops.one_hot(x, 5) * 0.5,
            lambda: lambda x: ops.one_hot(x, 5, axis=1) * 0.5,
        )
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if layer.axis not in (-1, len(x.shape)):
            last = with_attributes(layer, axis=-1)
            return tracer.expand(layer, lambda x: ops.moveaxis(last(x), -1, layer.axis), x)
        x = whole_indices(x, layer, tracer)
        dtype = "float32" if "float" in layer.dtype else layer.dtype
        rows = tracer.constant(np.eye(layer.num_classes), "one_hot_rows", dtype=dtype)
        return tracer.emit(Gather(name=layer.name), [rows, x])
