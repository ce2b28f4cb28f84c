"""Products of tensors: matmul, einsum, dot, and layers that are an einsum."""

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from intact.numerics.accumulator import digits
from intact.numerics.affine import Affine, QTensor, Scaled, WideTensor
from intact.numerics.backend_kernels import holds, round_clip, wide_types
from intact.numerics.exact import divide
from intact.numerics.fixed_point import multiplier, multiply, multiply_sums
from intact.numerics.integer_kernels import saturate
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor, is_symbolic, is_trainable, symbols, to_numpy
from intact.ops.axes import Shaper
from intact.ops.base import Case, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.rounding.kernel_rounding import KernelRounding

Labels = str


class MatMulSums(NamedTuple):
    """The sums of a matrix product of two activations.

    If float32 would round the sums of 16-bit inputs, `high`, `mixed` and `low` are the digits of
    the exact ones, to the base 256.
    """

    values: Tensor
    scale_a: Tensor
    scale_b: Tensor
    zero_point_b: Tensor
    high: Any = None
    mixed: Any = None
    low: Any = None

    @classmethod
    def symbolic(cls, shape: tuple[int | None, ...]) -> "MatMulSums":
        """Their form in a graph."""
        return cls(*symbols(shape, (), (), (), shape, shape, shape))

    def exact(self) -> Tensor:
        """The sums as int64; needs `wide_types`."""
        if self.high is None:
            return ops.cast(self.values, "int64")
        high, mixed, low = (ops.cast(x, "int64") for x in (self.high, self.mixed, self.low))
        return (high * 256 + mixed) * 256 + low


class MatMulRounding(KernelRounding):
    """Rounds half to even where XNNPACK takes the op, else twice, in fixed point.

    XNNPACK takes it where the zero point of the second operand is 0.
    """

    name = "matmul"
    takes = MatMulSums

    def real(self, pending: MatMulSums) -> Tensor:
        return pending.values * (pending.scale_a * pending.scale_b)

    def scaled(self, pending: MatMulSums) -> Scaled:
        return Scaled(pending.values, pending.scale_a * pending.scale_b)

    def quantize(self, pending: MatMulSums, params: Affine, low: Tensor, high: Tensor) -> Tensor:
        def smooth() -> Tensor:
            return pending.values * divide(pending.scale_a * pending.scale_b, params.scale)

        centred = pending.zero_point_b == 0
        if holds(centred):
            return round_clip(smooth(), low, high)
        by = multiplier(pending.scale_a, pending.scale_b, params.scale)
        exact = multiply(ops.cast(pending.values, "int32"), by)
        if not holds(pending.zero_point_b != 0):
            exact = ops.where(centred, ops.round(smooth()), ops.cast(exact, "float32"))
        return saturate(exact, smooth, low, high)

    def quantize_wide(
        self, pending: MatMulSums, params: Affine, low: Tensor, high: Tensor
    ) -> Tensor:
        unit = pending.scale_a * pending.scale_b
        smooth = pending.values * divide(unit, params.scale)
        with wide_types():
            exact = multiply_sums(pending.exact(), multiplier(unit, 1.0, params.scale))
            exact = ops.cast(exact, "float32")
        return saturate(exact, smooth, low, high)


@keras.saving.register_keras_serializable("intact")
class BatchMatMul(FunctionLayer):
    """The matrix products of two batches of matrices.

    Args:
        transpose_b: Whether the second matrices come transposed.

    Example:

    >>> a = np.ones((2, 3, 4), "float32")
    >>> BatchMatMul(transpose_b=True)([a, a]).shape[1:] == (3, 3)
    True
    """

    transpose_b: bool = False

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`(a, b)`: the axes before the last two are those of the batch."""
        a, b = inputs
        return ops.matmul(a, ops.swapaxes(b, -1, -2) if self.transpose_b else b)

    def compute_output_shape(self, shapes: Any) -> tuple[int | None, ...]:
        a, b = (tuple(shape) for shape in shapes)
        batch = tuple(
            y if x == 1 or (x is None and y not in (1, None)) else x
            for x, y in zip(a[:-2], b[:-2], strict=True)
        )
        return (*batch, a[-2], b[-2] if self.transpose_b else b[-1])


@register_op
class MatrixProduct(Op):
    """Matrix products of two tensors of activations."""

    keras_layers = (BatchMatMul,)
    litert = ("BATCH_MATMUL",)
    dtypes = ("int8", "int16")
    kernel_rounding = "matmul"
    cases = (
        Case(lambda: BatchMatMul(), [(4, 5), (5, 3)]),
        Case(lambda: BatchMatMul(transpose_b=True), [(2, 4, 5), (2, 3, 5)]),
    )

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        a, b = inputs
        values = layer([a.values, b.values])
        sums = MatMulSums(values, a.scale, b.scale, b.zero_point)
        if not isinstance(a, WideTensor):
            return sums
        (high_a, low_a), (high_b, low_b) = digits(a.values), digits(b.values)
        mixed = layer([high_a, low_b]) + layer([low_a, high_b])
        parts = layer([high_a, high_b]), mixed, layer([low_a, low_b])
        high, mixed, low = map(ops.stop_gradient, parts)
        return sums._replace(high=high, mixed=mixed, low=low)

    def accumulator_scale(self, node: Any) -> float:
        a, b = node.inputs
        return a.scale * b.scale

    def lower(self, node: Any, builder: Any) -> None:
        options = {"adjX": False, "adjY": node.layer.transpose_b}
        builder.add("BATCH_MATMUL", node.inputs, [node.output], options)


def contract(
    a: Any, b: Any, equation: str, layer: Any, tracer: Any, bias: Any = None, **dense: Any
) -> Any:
    """The einsum of two operands, as permutations, reshapes and one matrix product.

    Args:
        a: A tensor of the new graph, or a variable or array.
        b: Likewise; at most one of the two is not a tensor.
        equation: As for `keras.ops.einsum`, without an ellipsis.
        layer: The user's layer or operation, for names and errors.
        tracer: The tracer.
        bias: An array that is added along the axes that come from `b`, if `b` is constant.
        **dense: More arguments of the dense layer that a constant `b` becomes.

    Returns:
        The output tensor.
    """
    einsum = _Einsum.of(equation)
    if not is_symbolic(a):
        a, b, einsum = b, a, _Einsum(einsum.b, einsum.a, einsum.out)
    reason = einsum.refused()
    if reason is not None:
        tracer.refuse(layer, f"{equation!r} {reason}")
    sizes: dict[str, int | None] = dict(zip(einsum.b, b.shape, strict=True))
    sizes |= {k: v for k, v in zip(einsum.a, a.shape, strict=True) if not sizes.get(k)}
    first = einsum.a[0]
    shaper = Shaper(layer, tracer, sizes, first)
    if is_symbolic(b):
        if einsum.b[0] != first:
            tracer.refuse(layer, f"{equation!r} does not keep the batch of both operands")
        return _product(a, b, einsum, shaper)
    if first in einsum.b and b.shape[einsum.b.index(first)] == 1:
        # One constant for a single sample.
        b = ops.squeeze(b, einsum.b.index(first))
        einsum = einsum._replace(b=einsum.b.replace(first, ""))
    if not einsum.batch:
        return _dense(a, b, einsum, shaper, bias, dense)
    # A separate matrix for every position, the same for the whole batch.
    b = tracer.constant(b, f"{layer.name}_constant", b.ndim + 1)
    return _product(a, b, einsum._replace(b=first + einsum.b), shaper)


class _Einsum(NamedTuple):
    """An einsum of two operands: the labels of their axes, and of the output's."""

    a: Labels
    b: Labels
    out: Labels

    @classmethod
    def of(cls, equation: str) -> "_Einsum":
        """The labels of an equation without an ellipsis."""
        operands, out = equation.replace(" ", "").split("->")
        a, b = operands.split(",")
        return cls(a, b, out)

    @property
    def batch(self) -> list[str]:
        """The labels of both operands and of the output."""
        return [label for label in self.a if label in self.b and label in self.out]

    @property
    def summed(self) -> list[str]:
        """The labels of both operands that the output lacks."""
        return [label for label in self.a if label in self.b and label not in self.out]

    @property
    def free_a(self) -> list[str]:
        """The labels of the first operand alone."""
        return [label for label in self.a if label not in self.b]

    @property
    def free_b(self) -> list[str]:
        """The labels of the second operand alone."""
        return [label for label in self.b if label not in self.a]

    def refused(self) -> str | None:
        """Why the einsum is no matrix product of a batch, or None if it is one."""
        if any(len(set(labels)) < len(labels) for labels in self):
            return "takes a diagonal, which has no kernel"
        lost = [label for label in (*self.free_a, *self.free_b) if label not in self.out]
        if lost:
            return f"sums over {lost} of one operand alone; use `ops.sum`"
        if self.a[0] not in self.out:
            return "sums over the batch"
        return "moves the axis of the batch" if self.out[0] != self.a[0] else None


def _dense(
    a: Any, b: Any, einsum: _Einsum, shaper: "Shaper", bias: Any, settings: dict[str, Any]
) -> Any:
    """The product with a constant, as a dense layer."""
    layer, tracer, summed, free = shaper.layer, shaper.tracer, einsum.summed, einsum.free_b
    sizes = dict(zip(einsum.b, b.shape, strict=True))

    def make() -> layers.Dense:
        own = {"kernel_regularizer": getattr(b, "regularizer", None), **settings}
        units = math.prod(sizes[label] for label in free)
        dense = layers.Dense(units, use_bias=bias is not None, name=layer.name, **own)
        dense.build((None, math.prod(sizes[label] for label in summed)))
        order = [einsum.b.index(label) for label in (*summed, *free)]
        dense.kernel.assign(to_numpy(b).transpose(order).reshape(dense.kernel.shape))
        if bias is not None:
            dense.bias.assign(bias)
        return dense

    x = shaper.arrange(a, einsum.a, [[label] for label in einsum.free_a] + [summed])
    y = tracer.emit(tracer.once((b, *einsum), make), x)
    return shaper.restore(y, [*([label] for label in einsum.free_a), free], einsum.out)


def _product(a: Any, b: Any, einsum: _Einsum, shaper: "Shaper") -> Any:
    """The product of two tensors of the new graph."""
    batch, summed, free = einsum.batch, einsum.summed, einsum.free_b
    x = shaper.arrange(a, einsum.a, [[label] for label in batch] + [einsum.free_a, summed])
    natural = all(einsum.b.index(s) < einsum.b.index(f) for s in summed for f in free)
    right = [summed, free] if natural else [free, summed]
    y = shaper.arrange(b, einsum.b, [[label] for label in batch] + right)
    product = BatchMatMul(transpose_b=not natural, name=shaper.layer.name)
    z = shaper.tracer.emit(product, [x, y])
    groups = [*([label] for label in batch), einsum.free_a, free]
    return shaper.restore(z, groups, einsum.out)


def expand_ellipsis(equation: str, ranks: Sequence[int]) -> str:
    """An einsum's equation with letters instead of an ellipsis.

    Args:
        equation: With or without an ellipsis.
        ranks: How many axes each operand has.

    Example:

    >>> expand_ellipsis("...x,xy->...y", (3, 2))
    'ABx,xy->ABy'
    """
    equation = equation.replace(" ", "")
    ins = equation.split("->")[0].split(",")
    fill = max(
        (rank - len(part) + 3 for part, rank in zip(ins, ranks, strict=True) if "..." in part),
        default=0,
    )
    free = [c for c in string.ascii_uppercase if c not in equation]
    return equation.replace("...", "".join(free[:fill]))


@register_op
class EinsumDense(Op):
    """An einsum with a weight: a dense layer between reshapes."""

    keras_layers = (layers.EinsumDense,)
    litert = ("FULLY_CONNECTED",)
    notes = "The equation keeps the batch first."
    cases = (
        Case(lambda: layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d"), (4, 5)),
        Case(
            lambda: layers.EinsumDense(
                "abc,cde->abde", (None, 2, 3), bias_axes="de", activation="relu"
            ),
            (4, 5),
        ),
        Case(lambda: layers.EinsumDense("abde,dec->abc", (None, 6), bias_axes="c"), (4, 2, 3)),
        Case(lambda: layers.EinsumDense("...x,xy->...y", (2, 4, 3)), (2, 4, 5)),
        Case(lambda: layers.EinsumDense("abc,bd->adc", (3, None), bias_axes="d"), (4, 5)),
        # A separate matrix for each position, with one bias.
        Case(lambda: layers.EinsumDense("abc,bcd->abd", (4, 3), bias_axes="d"), (4, 5)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if not is_symbolic(x):
            # A weight that every sample shares, such as the query of a pooling head.
            x = tracer.constant(x, f"{layer.name}_input", broadcast=x.shape[0] == 1)
        ranks = (len(x.shape), len(layer.kernel.shape))
        equation = expand_ellipsis(layer.equation, ranks)
        la, lb, out = equation.replace("->", ",").split(",")
        bias = None if layer.bias is None else _fused_bias(layer, la, lb, out)
        y = contract(
            x,
            layer.kernel,
            equation,
            layer,
            tracer,
            bias,
            kernel_regularizer=layer.kernel_regularizer,
            kernel_constraint=layer.kernel_constraint,
            trainable=layer.trainable,
        )
        if layer.bias is not None and bias is None:
            other = tracer.constant(layer.bias, f"{layer.name}_bias", len(y.shape))
            y = tracer.emit_new(layers.Add(name=f"{layer.name}_add"), [y, other])
        return tracer.activation(layer.activation, y, layer)


def _fused_bias(
    layer: layers.EinsumDense, la: Labels, lb: Labels, out: Labels
) -> np.ndarray | None:
    """The bias of the dense layer that an einsum becomes; None if it has to be added behind.

    Args:
        layer: The user's layer.
        la: The labels of its input's axes.
        lb: Those of its kernel.
        out: Those of its output.
    """
    if any(label in la and label in out for label in lb):
        # Each position has a matrix of its own, and the product no bias.
        return None
    # Its axes are the last ones of the output, with sizes of 1 where it is the same.
    value = to_numpy(layer.bias)
    axes = out[len(out) - value.ndim :]
    size = dict(zip(lb, layer.kernel.shape, strict=True))
    free = [label for label in out if label in lb and label not in la]
    if not all(label in free or n == 1 for label, n in zip(axes, value.shape, strict=True)):
        return None
    index = [i for i, label in enumerate(axes) if label in free]
    shape = [value.shape[i] for i in index]
    full = value.reshape([1] * (len(free) - len(shape)) + shape)
    full = np.broadcast_to(full, [size[label] for label in free])
    order = [free.index(label) for label in lb if label in free]
    return full.transpose(order).reshape(-1)


def weight_settings(value: Any) -> dict[str, Any]:
    """The settings of a dense layer that a constant becomes."""
    return {"trainable": is_trainable(value)}


@register_op
class MatMul(Op):
    """A matrix product of two tensors, or of a tensor and a constant."""

    operations = ("Matmul",)
    litert = ("BATCH_MATMUL", "FULLY_CONNECTED")
    notes = "Both operands have two axes or more."
    cases = (
        Case(lambda: lambda a, b: ops.matmul(a, b), [(4, 5), (5, 3)]),
        Case(
            lambda: lambda a, b: a @ ops.transpose(b, (0, 1, 3, 2)),
            [(2, 4, 5), (2, 3, 5)],
        ),
        Case(lambda: lambda a: a @ np.eye(5, 3, dtype="float32"), (4, 5)),
        Case(lambda: lambda a: ops.matmul(np.eye(4, dtype="float32"), a), (4, 5)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        a, b = (*args, *kwargs.values())
        ranks = len(a.shape), len(b.shape)
        if min(ranks) < 2:
            tracer.refuse(layer, f"shapes {a.shape} and {b.shape} are not both matrices")
        if is_symbolic(a) and is_symbolic(b):
            if ranks[0] != ranks[1]:
                tracer.refuse(layer, f"shapes {a.shape} and {b.shape} differ in rank")
            return tracer.emit(BatchMatMul(name=layer.name), [a, b])
        rank = max(ranks)
        if is_symbolic(a) and ranks[1] == 2:
            letters = string.ascii_lowercase[: rank - 1]
            return contract(a, b, f"{letters}x,xy->{letters}y", layer, tracer, **weight_settings(b))
        name = f"{layer.name}_constant"
        a, b = (x if is_symbolic(x) else tracer.constant(x, name, rank) for x in (a, b))
        return tracer.emit(BatchMatMul(name=layer.name), [a, b])


@register_op
class Dot(Op):
    """Products of two tensors, summed along one axis of each."""

    keras_layers = (layers.Dot,)
    litert = ("BATCH_MATMUL",)
    cases = (
        Case(lambda: layers.Dot(axes=(2, 1)), [(3, 5), (5, 4)]),
        Case(lambda: layers.Dot(axes=1), [(6,), (6,)]),
        Case(lambda: layers.Dot(axes=(2, 1), normalize=True), [(3, 5), (5, 4)]),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        a, b = args[0]
        ranks = len(a.shape), len(b.shape)
        axes = layer.axes if isinstance(layer.axes, list | tuple) else (layer.axes, layer.axes)
        first, second = (axis % rank for axis, rank in zip(axes, ranks, strict=True))
        if layer.normalize:
            a, b = (
                tracer.trace(
                    layers.UnitNormalization(axis, name=f"{layer.name}_unit_{i}"), (x,), {}
                )
                for i, (x, axis) in enumerate(((a, first), (b, second)))
            )
        la = "b" + string.ascii_lowercase[2 : 1 + ranks[0]]
        lb = "b" + string.ascii_uppercase[: ranks[1] - 1]
        lb = lb[:second] + la[first] + lb[second + 1 :]
        out = la.replace(la[first], "") + lb[1:].replace(la[first], "")
        y = contract(a, b, f"{la},{lb}->{out}", layer, tracer)
        if len(out) == 1:
            y = tracer.emit_new(layers.Reshape((1,), name=f"{layer.name}_reshape"), y)
        return y
