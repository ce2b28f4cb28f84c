"""Convolutions."""

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import layers

from intact.graph.view import is_shared, made_by
from intact.numerics.light_ops import ops
from intact.numerics.scale_layout import ScaleLayout
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import Case, Op, Weight, Weighted
from intact.ops.moves import twin
from intact.ops.registry import register_op

FIRST = "channels_first"
WEIGHTS = ("int4", "int8", "uint8")


def same_padding(sizes: Any, kernel: Any, strides: Any, dilation: Any) -> list[tuple[int, int]]:
    """The zeros that SAME padding puts before and after each spatial axis.

    Args:
        sizes: Spatial sizes of the input.
        kernel: Sizes of the kernel.
        strides: Strides.
        dilation: Dilation rates.

    Returns:
        `(before, after)` per axis.

    Example:

    >>> same_padding((8,), (3,), (2,), (1,))
    [(0, 1)]
    """
    pads = []
    for size, k, stride, rate in zip(sizes, kernel, strides, dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * rate + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


class Convolution(Weighted):
    """Base of the convolutions, which absorb a zero padding that equals SAME."""

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        before = made_by(args[0])
        if isinstance(before.layer, layers.ZeroPadding2D) and not is_shared(layer):
            (x,) = before.inputs
            sizes = x.shape[1:3]
            if layer.padding == "valid" and None not in sizes:
                same = same_padding(sizes, layer.kernel_size, layer.strides, layer.dilation_rate)
                if same == [tuple(pair) for pair in before.layer.padding]:
                    return tracer.emit(layer, x, padding="same")
        return tracer.emit(layer, args[0])

    def patches(self, layer: Any, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        window = layer.kernel_size, layer.strides, layer.dilation_rate
        if layer.padding == "same":
            x = np.pad(x, [(0, 0), *same_padding(x.shape[1:3], *window), (0, 0)])
        sample = (positions[:, 0] * len(x)).astype(int)
        rows, columns = (
            _places(share, *sizes)
            for share, *sizes in zip(positions[:, 1:].T, x.shape[1:3], *window, strict=True)
        )
        # Indices of shape (patches, 1, 1), (patches, height, 1) and (patches, 1, width).
        patches = x[sample[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self.grouped(layer, patches)

    def grouped(self, layer: Any, patches: np.ndarray) -> np.ndarray:
        """Patches of `(patches, height, width, channels)` by groups of channels."""
        raise NotImplementedError


def _places(share: np.ndarray, size: int, kernel: int, stride: int, rate: int) -> np.ndarray:
    """Where windows read along one axis.

    Args:
        share: Which window, as a share of all of them, `(patches,)`.
        size: The size of the padded axis.
        kernel: The size of the kernel.
        stride: The stride.
        rate: The dilation rate.

    Returns:
        Indices of shape `(patches, kernel)`.
    """
    count = (size - (kernel - 1) * rate - 1) // stride + 1
    first = (share * count).astype(int) * stride
    return first[:, None] + np.arange(kernel) * rate


def conv_cases(layer: type, **extra: Any) -> tuple[Case, ...]:
    """Cases that every convolution with these arguments has."""
    return (
        Case(lambda: layer(**extra, kernel_size=3), (8, 9, 4)),
        Case(lambda: layer(**extra, kernel_size=3, padding="same", strides=2), (8, 9, 4)),
        Case(lambda: layer(**extra, kernel_size=(1, 3), use_bias=False), (8, 9, 4)),
        Case(lambda: layer(**extra, kernel_size=3, activation="relu"), (8, 9, 4)),
        Case(lambda: layer(**extra, kernel_size=3, activation="relu6"), (8, 9, 4), high=2.0),
        Case(
            lambda: (
                lambda x: layers.ReLU(5.0)(
                    layers.BatchNormalization()(layer(**extra, kernel_size=3, padding="same")(x))
                )
            ),
            (6, 6, 4),
        ),
    )


@register_op
class Conv2D(Convolution):
    """A convolution, also strided, dilated or grouped."""

    keras_layers = (layers.Conv2D,)
    litert = ("CONV_2D",)
    weights = {"kernel": Weight(kernels=WEIGHTS, dynamic=("int4", "int8"))}
    input_axis = -2
    cases = (
        *conv_cases(layers.Conv2D, filters=6),
        Case(lambda: layers.Conv2D(6, 3, groups=2), (8, 8, 4)),
        Case(lambda: layers.Conv2D(6, 3, dilation_rate=2, padding="same"), (8, 8, 4)),
        Case(lambda: layers.Conv2D(6, 3, dilation_rate=(1, 2)), (8, 8, 4)),
        Case(lambda: layers.Conv2D(6, 3, activation="relu", data_format=FIRST), (4, 8, 9)),
        Case(
            lambda: (
                lambda x: layers.Flatten(data_format=FIRST)(
                    layers.MaxPooling2D(data_format=FIRST)(
                        layers.ReLU()(
                            layers.BatchNormalization(axis=1)(
                                layers.Conv2D(6, 3, padding="same", data_format=FIRST)(x)
                            )
                        )
                    )
                )
            ),
            (4, 6, 6),
        ),
    )

    def grouped(self, layer: Any, patches: np.ndarray) -> np.ndarray:
        n, h, w, _ = patches.shape
        parts = patches.reshape(n, h * w, layer.groups, -1)
        return parts.swapaxes(2, 3).reshape(n, -1, layer.groups)

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        if dtype != "int4":
            return self.kernel_rounding
        return "fixed_point" if layer.groups > 1 else "fixed_point_vector"

    def rows(self, layer: Any, rank: int, dtype: str) -> tuple[int, ...]:
        # XNNPACK computes such a convolution as a matrix product, if its weights have 8 bits.
        one = (*layer.kernel_size, *layer.strides, layer.groups) == (1, 1, 1, 1, 1)
        return (rank - 1,) if one and dtype == "int8" else super().rows(layer, rank, dtype)

    def products(self, layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
        return ops.conv(
            x,
            kernel,
            strides=list(layer.strides),
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format="channels_last",
        )

    def lower(self, node: Any, builder: Any) -> None:
        layer = node.layer
        kernel = node.constant("kernel", (3, 0, 1, 2), axis=0)
        options = _options(layer, node.activation)
        builder.add("CONV_2D", [node.input, kernel, node.bias()], [node.output], options)


@register_op
class DepthwiseConv2D(Convolution):
    """A convolution of each channel alone; every output channel has its own scale."""

    keras_layers = (layers.DepthwiseConv2D,)
    litert = ("DEPTHWISE_CONV_2D",)
    weights = {"kernel": Weight(ScaleLayout((-2, -1)), kernels=WEIGHTS)}
    input_axis = -2
    cases = (
        *conv_cases(layers.DepthwiseConv2D),
        *conv_cases(layers.DepthwiseConv2D, depth_multiplier=3),
        Case(lambda: layers.DepthwiseConv2D(3, dilation_rate=2, padding="same"), (8, 8, 4)),
    )

    def grouped(self, layer: Any, patches: np.ndarray) -> np.ndarray:
        return patches.reshape(len(patches), -1, patches.shape[-1])

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        kernels = {"int4": "fixed_point_blocks", "uint8": "fixed_point"}
        return kernels.get(dtype, self.kernel_rounding)

    def products(self, layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
        return ops.depthwise_conv(
            x,
            kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format="channels_last",
        )

    def lower(self, node: Any, builder: Any) -> None:
        layer = node.layer
        h, w = layer.kernel_size
        kernel = node.constant("kernel", shape=(1, h, w, -1), axis=3)
        options = _options(layer, node.activation) | {"depthMultiplier": layer.depth_multiplier}
        builder.add("DEPTHWISE_CONV_2D", [node.input, kernel, node.bias()], [node.output], options)


def _options(layer: Any, activation: str) -> dict[str, Any]:
    return {
        "padding": layer.padding.upper(),
        "strideH": layer.strides[0],
        "strideW": layer.strides[1],
        "dilationHFactor": layer.dilation_rate[0],
        "dilationWFactor": layer.dilation_rate[1],
        "fusedActivationFunction": activation,
    }


@register_op
class SeparableConv2D(Op):
    """A depthwise convolution, then a pointwise one."""

    keras_layers = (layers.SeparableConv2D,)
    litert = ("DEPTHWISE_CONV_2D", "CONV_2D")
    cases = (
        *conv_cases(layers.SeparableConv2D, filters=6),
        Case(lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2), (8, 8, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        depthwise = layers.DepthwiseConv2D(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_initializer=layer.depthwise_initializer,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            trainable=layer.trainable,
            name=f"{layer.name}_depthwise",
        )
        pointwise = layers.Conv2D(
            layer.filters,
            1,
            data_format=layer.data_format,
            use_bias=layer.use_bias,
            kernel_initializer=layer.pointwise_initializer,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_initializer=layer.bias_initializer,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            trainable=layer.trainable,
            name=f"{layer.name}_pointwise",
        )
        shape = args[0].shape
        depthwise.build(shape)
        pointwise.build(depthwise.compute_output_shape(shape))
        depthwise.kernel.assign(to_numpy(layer.depthwise_kernel))
        pointwise.kernel.assign(to_numpy(layer.pointwise_kernel))
        if layer.use_bias:
            pointwise.bias.assign(to_numpy(layer.bias))
        x = tracer.emit(depthwise, args[0])
        return tracer.activation(layer.activation, tracer.emit(pointwise, x), layer)


@register_op
class Conv2DTranspose(Weighted):
    """A transposed convolution."""

    keras_layers = (layers.Conv2DTranspose,)
    litert: ClassVar[tuple[str, ...]] = ("TRANSPOSE_CONV",)
    weights = {"kernel": Weight(ScaleLayout((-2,)))}
    notes = "No dilation."
    cases: ClassVar[tuple[Case, ...]] = (
        Case(lambda: layers.Conv2DTranspose(5, 3), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 2, strides=2, use_bias=False), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 4, strides=2, activation="relu"), (4, 4, 3)),
        # A kernel smaller than the strides leaves gaps.
        Case(lambda: layers.Conv2DTranspose(13, 2, strides=3, padding="same"), (9, 7, 4)),
        Case(lambda: layers.Conv2DTranspose(5, (3, 1), strides=2, padding="same"), (9, 7, 4)),
        Case(lambda: layers.Conv2DTranspose(5, 2, strides=3), (9, 7, 4)),
        Case(lambda: layers.Conv2DTranspose(5, 3, 2, output_padding=1), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 3, 2, "same", output_padding=0), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 3, 2, "same", output_padding=1), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 2, 2, "same", output_padding=1), (4, 5, 3)),
        Case(lambda: layers.Conv2DTranspose(5, (2, 3), 3, "valid", (1, 2)), (4, 5, 3)),
        Case(
            lambda: (
                lambda x: layers.ReLU()(
                    layers.BatchNormalization()(layers.Conv2DTranspose(5, 3, strides=2)(x))
                )
            ),
            (4, 4, 3),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if tuple(layer.dilation_rate) != (1, 1):
            tracer.refuse(layer, f"its kernel has no dilation_rate {layer.dilation_rate}")
        if None not in x.shape[1:]:
            return tracer.emit(layer, x)
        free = twin(layer, FreeConv2DTranspose, x.shape, tracer)
        return tracer.activation(layer.activation, tracer.emit(free, x), layer)

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        # XNNPACK refuses strides that leave gaps between windows (CalculateTransposeConvPaddings).
        gaps = any(k < s for k, s in zip(layer.kernel_size, layer.strides, strict=True))
        return "fixed_point_blocks" if gaps and layer.padding == "same" else self.kernel_rounding

    def products(self, layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
        return ops.conv_transpose(
            x,
            kernel,
            strides=list(layer.strides),
            padding=layer.padding,
            output_padding=layer.output_padding,
            data_format="channels_last",
        )

    def lower(self, node: Any, builder: Any) -> None:
        layer = node.layer
        kernel = node.constant("kernel", (2, 0, 1, 3), axis=0)
        options = {
            "padding": layer.padding.upper(),
            "strideH": layer.strides[0],
            "strideW": layer.strides[1],
            "fusedActivationFunction": node.activation,
        }
        inputs = [self.size(node, builder), kernel, node.input, node.bias()]
        builder.add("TRANSPOSE_CONV", inputs, [node.output], options)

    def size(self, node: Any, builder: Any) -> Any:
        """The shape of the output, as a tensor of the file."""
        return builder.constant(np.array([1, *node.output.shape[1:]], "int32"))


def _over(layer: layers.Conv2DTranspose) -> list[int]:
    """How many rows and columns the output has beyond those of its strides."""
    same = layer.padding == "same"
    sizes = list(zip(layer.kernel_size, layer.strides, strict=True))
    if layer.output_padding is None:
        return [0 if same else max(k - s, 0) for k, s in sizes]
    # As in Keras, which pads each side by half of the kernel.
    cut = [2 * (k // 2) if same else 0 for k, _ in sizes]
    rows = zip(sizes, cut, layer.output_padding, strict=True)
    return [k - s - gone + more for (k, s), gone, more in rows]


@keras.saving.register_keras_serializable("intact")
class FreeConv2DTranspose(layers.Conv2DTranspose):
    """A transposed convolution of images of unknown size."""


@register_op
class FreeConv2DTransposeOp(Conv2DTranspose):
    """The same by LiteRT's own kernel: XNNPACK takes none whose output has no constant size."""

    keras_layers = (FreeConv2DTranspose,)
    litert = ("SHAPE", "STRIDED_SLICE", "MUL", "ADD", "CONCATENATION", "TRANSPOSE_CONV")
    cases = (
        Case(lambda: layers.Conv2DTranspose(9, 3), (None, None, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (None, None, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 2, 3, activation="relu"), (None, None, 3)),
        Case(lambda: layers.Conv1DTranspose(5, 3, 2), (None, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 3, 2, "same", 0), (None, None, 3)),
        Case(lambda: layers.Conv2DTranspose(5, 4, 3, "valid", 2), (None, None, 3)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return tracer.emit(layer, args[0])

    def rounding(self, layer: Any, dtype: str, inputs: Sequence[Any] = ()) -> str:
        return "fixed_point_blocks"

    def size(self, node: Any, builder: Any) -> Any:
        layer, x = node.layer, node.input
        image = builder.scaled(builder.sizes(x, 1, 3), layer.strides, _over(layer))
        channels = builder.constant(np.array([layer.filters], "int32"))
        return builder.joined([builder.sizes(x, 0, 1), image, channels])
