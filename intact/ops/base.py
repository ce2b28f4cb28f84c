"""What an op is.

A new op is one subclass of `Op` in one file of this package: its constraints are
class data, read by the plan, the documentation and the tests; its methods say how it
is traced, what it computes on integer values, and what it becomes in LiteRT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np

from intact.numerics.accumulator import Accumulator, accumulator, add_bias, exact_sums, rescaled
from intact.numerics.affine import QTensor
from intact.numerics.backend_kernels import exact_convolution, shared, with_shape
from intact.numerics.light_ops import ops
from intact.numerics.scale_layout import PER_CHANNEL, ScaleLayout
from intact.numerics.tensors import Tensor, is_whole, to_numpy
from intact.rounding.kernel_rounding import KernelRounding

if TYPE_CHECKING:
    from intact.graph.tracer import Tracer
    from intact.lowering.node import LoweringNode
    from intact.plan.scheme import TensorSpec


@dataclass(frozen=True)
class Weight:
    """A weight that is quantized.

    Args:
        layout: Which of its values share a scale, where each output channel has its own.
        kernels: The types that the integer kernels take.
        dynamic: The types that kernels take if they quantize their input at run time.
        alone: The types that files hold for float kernels, which read real values.
    """

    layout: ScaleLayout = PER_CHANNEL
    kernels: tuple[str, ...] = ("int8", "uint8")
    dynamic: tuple[str, ...] = ("int8",)
    alone: tuple[str, ...] = ("int2", "int4", "int8")


@dataclass(frozen=True)
class Observed:
    """The output's range is observed."""


@dataclass(frozen=True)
class SameAsInput:
    """The output has the scale and zero point of the (first) input."""


@dataclass(frozen=True)
class AllSame:
    """All inputs and the output share one scale and zero point."""


@dataclass(frozen=True)
class Fixed:
    """The output's scale and zero point are prescribed."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class NotQuantized:
    """The output is not quantized: indices, or truth values."""

    dtype: str


ANY_WHOLE: tuple[str, ...] = ("bool", "uint8", "int16", "int32", "int64")
"""The types of whole numbers that layers have; Keras has no layers of type int8."""

COUNTS: tuple[str, ...] = ("int32", "int64")
"""The types of whole numbers that LiteRT's kernels compute in."""

INT8: tuple[str, ...] = ("int8",)
BYTES: tuple[str, ...] = ("int8", "uint8")
INTEGERS: tuple[str, ...] = ("int8", "uint8", "int16")
OBSERVED, SAME_AS_INPUT, ALL_SAME = Observed(), SameAsInput(), AllSame()
Output = Observed | SameAsInput | AllSame | Fixed | NotQuantized


FIXED_BATCH = (
    "build the model for a known number of rows (`batch_size` of `keras.Input`) if these belong "
    "together"
)
"""What helps where an operation mixes the samples of a batch."""


@dataclass(frozen=True)
class Case:
    """A model that tests an op.

    Args:
        build: Returns a layer, or a function that makes the output from the inputs.
        shape: The input's shape without the batch, or a list of several; None is a size that the
            model does not know.
        exact: Whether Keras and LiteRT agree in every value; else within 1 LSB.
        low: Smallest value of the test data.
        high: Largest value of the test data.
        dtype: Type of the test data.
        batch: The size of the batch, where it must be known.
    """

    build: Callable[[], Any]
    shape: tuple[int | None, ...] | list[tuple[int | None, ...]]
    exact: bool = True
    low: float = -1.0
    high: float = 1.0
    dtype: str = "float32"
    batch: int | None = None


class Op:
    """One op: what it is in Keras, in integers, and in LiteRT.

    Class data:

    * `keras_layers`: the Keras layer classes that it stands for.
    * `operations`: class names of `keras.ops` operations that it stands for.
    * `activations`: names of activation functions that it stands for.
    * `litert`: the LiteRT ops that it lowers to, for the documentation.
    * `weights`: the layer's attributes that are quantized.
    * `output`: where the output's scale comes from.
    * `masks`: whether `trace` takes masks that depend on the inputs, by Keras' names for them.
    * `plain`: which inputs are not quantized (indices, truth values).
    * `reads_stored`: which weights among its inputs the float kernel reads as stored.
    * `whole`: the types of whole numbers that the layer and its kernel take as they are, where
      all inputs are whole; other layers read whole numbers as real values.
    * `dtypes`: the types of integer activations for which there are kernels.
    * `wide`: how it computes with activations of 16 bits, if not by the kernels of `litert`.
    * `kernel_rounding`: how the kernel rounds (`intact.rounding.kernel_rounding.KernelRounding`).
    * `fuses`: whether the kernel can clamp like a ReLU at the end.
    * `folds_batch_norm`: whether a batch norm can follow into the weights.
    * `clamps_by_range`: whether it relies on its output's range to saturate.
    * `own_range`: whether nothing else may share its output's range, because a state has that
    range.
    * `pointwise`: whether it is elementwise, wherever a value stands.
    * `max_accumulator_scale`: the largest ratio of the scale of its sums to that of the output,
      before kernels refuse it or overflow.
    * `fit_accumulator_scale`: the ratio to which the output's range is widened to stay below that.
    * `notes`: constraints in words.
    * `cases`: models that test it.
    * `float_cases`: models that test an op that computes in float only.

    Example:

    >>> from keras import layers
    >>> class DenseRelu(Op):
    ...     "A composite: it is only traced, into other ops."
    ...
    ...     def trace(self, layer, args, kwargs, tracer):
    ...         return tracer.emit(layers.ReLU(), tracer.emit(layer.dense, args[0]))
    """

    keras_layers: ClassVar[tuple[type, ...]] = ()
    operations: ClassVar[tuple[str, ...]] = ()
    activations: ClassVar[tuple[str, ...]] = ()
    litert: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[dict[str, Weight]] = {}
    output: ClassVar[Output] = OBSERVED
    masks: ClassVar[bool] = False
    plain: ClassVar[tuple[int, ...]] = ()
    reads_stored: ClassVar[tuple[int, ...]] = ()
    whole: ClassVar[tuple[str, ...]] = ()
    dtypes: ClassVar[tuple[str, ...]] = INT8
    wide: ClassVar[str] = ""
    kernel_rounding: ClassVar[str] = "accumulator"
    fuses: ClassVar[bool] = False
    folds_batch_norm: ClassVar[bool] = False
    clamps_by_range: ClassVar[bool] = False
    own_range: ClassVar[bool] = False
    pointwise: ClassVar[bool] = False
    max_accumulator_scale: ClassVar[float] = 256
    fit_accumulator_scale: ClassVar[float] = 128
    notes: ClassVar[str] = ""
    cases: ClassVar[tuple[Case, ...]] = ()
    float_cases: ClassVar[tuple[Case, ...]] = ()

    @property
    def name(self) -> str:
        """What plans and reports call the op."""
        return type(self).__name__

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: "Tracer") -> Any:
        """Rewrite a call into known layers.

        Args:
            layer: The user's layer or operation.
            args: The call's arguments, with the new graph's tensors.
            kwargs: The call's keyword arguments.
            tracer: Makes the new graph.

        Returns:
            The output tensor of the new graph.
        """
        return tracer.emit(layer, args[0])

    def before_move(self, layer: Any, move: Any) -> Any:
        """The layer that before a reshape or permutation does what this one does behind it.

        Args:
            layer: The layer.
            move: The call (`intact.graph.view.Node`) that moves its input's values.

        Returns:
            A layer, usually the same one; None if there is none.
        """
        return layer if self.pointwise else None

    def refuse(self, layer: Any, shapes: list[tuple[int | None, ...]]) -> str | None:
        """Why this layer has no integer form, or None if it has one.

        Args:
            layer: The canonical layer.
            shapes: The shapes of its inputs.

        Returns:
            A clause that completes "cannot be quantized: ...".
        """
        return None

    def folds_into_weights(self, layer: Any, shape: tuple[int | None, ...]) -> bool:
        """Whether the layer only scales and shifts the channels of the op before it.

        Such an op has a method `fold` that applies it to the sums of the op before it.

        Args:
            layer: The canonical layer.
            shape: The shape of its input.
        """
        return False

    def fold(self, layer: Any, acc: Accumulator, training: bool, xp: Any = ops) -> Accumulator:
        """Apply an op that folds into weights to the sums of the op before it.

        Args:
            layer: The canonical layer.
            acc: The sums; their values are only needed while training.
            training: Whether the model trains; a truth value of the graph where a schedule
                freezes batch norms.
            xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.

        Returns:
            The sums, with another bias and weight scale.
        """
        raise NotImplementedError

    def shift(self, layer: Any, amount: np.ndarray) -> None:
        """Make the layer add an amount to its sums, if it has a weight for it.

        Args:
            layer: The canonical layer.
            amount: Real values per channel.
        """
        raise NotImplementedError

    def factors(self, layer: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The real factor and offset of each channel, for an op that scales and shifts channels."""
        raise NotImplementedError

    def call(
        self, layer: Any, inputs: list[QTensor], weights: dict[str, Any], training: bool
    ) -> Any:
        """Compute on integer values.

        Args:
            layer: The canonical layer.
            inputs: The quantized inputs, and the plain ones as they are.
            weights: Per name of `weights`, whole numbers and their scale.
            training: Whether the model trains.

        Returns:
            What the rounding of its kernel `takes`; a `QTensor` where the output shares the
            input's scale. By default, the layer moves or picks whole numbers.
        """
        (x,) = inputs
        return x._replace(values=layer(x.values))

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        """The `KernelRounding` of the kernel that takes weights of a type.

        Args:
            layer: The canonical layer.
            dtype: The type of its weights; "int8" where it has none.
            inputs: The tensors that it reads.
        """
        return self.kernel_rounding

    def stores(self, layer: Any, spec: "TensorSpec") -> bool:
        """Whether the kernel takes the weights of a layer as a spec has them.

        Args:
            layer: The canonical layer.
            spec: The spec; `spec.dtype` is one of the types that the kernel takes.
        """
        return True

    def real(self, layer: Any, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        """Compute in float, with given values of the weights.

        Args:
            layer: The canonical layer.
            inputs: The inputs.
            weights: Per name of `weights`, its values.

        Returns:
            The output.
        """
        raise NotImplementedError

    def pending_spec(self, layer: Any, inputs: Any, shape: tuple[int | None, ...]) -> Any:
        """The symbolic form of what `call` returns.

        Args:
            layer: The canonical layer.
            inputs: The symbolic inputs: a `QTensor`, or a list of them.
            shape: The output's shape.

        Returns:
            `KerasTensor`s, nested like the result of `call`.
        """
        if isinstance(self.output, NotQuantized):
            return keras.KerasTensor(shape, self.output.dtype)
        if isinstance(self.output, SameAsInput | AllSame):
            return QTensor.symbolic(shape)
        return KernelRounding.registry.find(self.kernel_rounding).symbolic(shape)

    def accumulator_scale(self, node: "LoweringNode") -> float:
        """The real size of one step of the op's sums; 0 if it may be any."""
        return 0.0

    def lower(self, node: "LoweringNode", builder: Any) -> None:
        """Add the LiteRT ops that compute `node.output` from `node.inputs`.

        The same for float and integer: the tensors know their types.
        """
        raise NotImplementedError


class Weighted(Op):
    """Base of the ops that sum products with weights; they have an int32 bias.

    Attribute `input_axis`: the kernel's axis of input channels, where a norm before the layer can
    become part of the kernel (`intact.graph.input_norms`).
    """

    weights = {"kernel": Weight()}
    input_axis: ClassVar[int | None] = None
    dtypes = INTEGERS
    fuses = True
    folds_batch_norm = True

    def products(self, layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
        """The sums of products, without bias.

        Args:
            layer: The canonical layer.
            x: The input: whole numbers (or, for `real` use, real ones).
            kernel: The weights, likewise.
        """
        raise NotImplementedError

    def patches(self, layer: Any, x: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
        """The im2col patches that the kernel is multiplied with at some positions, on the host.

        Sums of products are `einsum("nkg,kgm->ngm", patches, kernel.reshape(k, g, m))`.

        Args:
            layer: The canonical layer.
            x: Inputs, real values.
            positions: Where to look: a row per patch, of numbers from 0 to 1 for the sample and
                the two axes of space.

        Returns:
            `(patches, taps, groups)`; None if the op has no such form.
        """
        return None

    def unit(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The kernel of an op without `weights`: whole numbers and their scales."""
        raise NotImplementedError

    def shift(self, layer: Any, amount: np.ndarray) -> None:
        if layer.bias is not None:
            layer.bias.assign(to_numpy(layer.bias) + amount)

    def accumulator(self, layer: Any, acc: Accumulator, xp: Any = ops) -> Accumulator:
        """Sums with the layer's bias.

        Args:
            layer: The canonical layer.
            acc: The sums without it; their values may be yet to be filled in.
            xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.
        """
        return acc if layer.bias is None else add_bias(acc, layer.bias, xp)

    def rows(self, layer: Any, rank: int, dtype: str) -> tuple[int, ...]:
        """The axes over which kernels look for the range of an input at run time.

        Args:
            layer: The canonical layer.
            rank: How many axes the input has.
            dtype: The type of the weights.
        """
        return tuple(range(1, rank))

    def real(self, layer: Any, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        y = self.products(layer, inputs[0], weights["kernel"])
        return y if layer.bias is None else y + layer.bias

    def accumulator_scale(self, node: "LoweringNode") -> float:
        return float(np.max(np.abs(node.sums.input_scale * node.sums.weight_scale)))

    def call(
        self, layer: Any, inputs: list[QTensor], weights: dict[str, Any], training: bool
    ) -> Any:
        (x,), (kernel, scale) = inputs, weights["kernel"]
        acc = accumulator(None, x.scale, scale, whole=x.whole)
        kernel, acc = self.with_bias(layer, kernel, acc, shares=training is False)
        with exact_convolution():
            values, high, low = exact_sums(lambda v: self.products(layer, v, kernel), x)
        return acc._replace(values=values, high=high, low=low)

    def with_bias(
        self, layer: Any, kernel: Tensor, acc: Accumulator, shares: bool
    ) -> tuple[Tensor, Accumulator]:
        """Sums with the layer's bias, and the kernel of their scales.

        Args:
            layer: The canonical layer.
            kernel: Whole numbers.
            acc: The sums without bias, whose values are yet to be filled in.
            shares: Whether all layers may share one graph.
        """
        before = acc.weight_scale
        layout = self.weights["kernel"].layout
        own = type(self).accumulator is not Weighted.accumulator
        if own or not shares or layer.bias is None:
            acc = self.accumulator(layer, acc)
            return rescaled(kernel, before, acc, layout), acc

        def biased(kernel: Tensor, acc: Any, bias: Tensor) -> tuple[Tensor, ...]:
            acc = Accumulator(*acc)
            sums = add_bias(acc, bias)
            kernel = rescaled(kernel, acc.weight_scale, sums, layout)
            return kernel, sums.bias, sums.weight_scale

        bias = ops.convert_to_tensor(layer.bias)
        new, units, scale = shared(("biased", layout), biased, kernel, tuple(acc), bias)
        acc = acc._replace(
            bias=with_shape(units, bias.shape), weight_scale=with_shape(scale, before.shape)
        )
        return with_shape(new, kernel.shape), acc


def computes_whole(
    op: Op, inputs: Sequence[keras.KerasTensor], outputs: Sequence[keras.KerasTensor]
) -> bool:
    """Whether a call makes whole numbers of whole numbers, so that nothing in it is quantized.

    Args:
        op: The op of the layer that is called.
        inputs: The tensors that it is called on.
        outputs: The tensors that it returns.
    """
    read = [tensor for index, tensor in enumerate(inputs) if index not in op.plain]
    return bool(op.whole or not read) and all(map(is_whole, (*read, *outputs)))
