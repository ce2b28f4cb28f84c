"""Layers of one or three spatial axes, traced into layers of two."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor
from intact.ops.base import Case, Op
from intact.ops.conv import same_padding
from intact.ops.moves import reshape, twin
from intact.ops.registry import known_class, register_op


def _pair(value: Any, first: Any) -> tuple:
    """A setting of one axis as one of two axes."""
    return (first, *value) if isinstance(value, list | tuple) else (first, value)


def _constraints(layer: Any) -> dict[str, Any]:
    """A 1D layer's constraints on its kernels, which have one axis more in 2D."""
    moved = {}
    for key, constraint in vars(layer).items():
        config = constraint.get_config() if key.endswith("_constraint") and constraint else {}
        if "axis" in config and key != "bias_constraint":
            axes = np.atleast_1d(config["axis"]).tolist()
            config["axis"] = [axis + 1 if axis >= 0 else axis for axis in axes]
            moved[key] = type(constraint).from_config(config)
    return moved


@register_op
class OneDimensional(Op):
    """Layers of one spatial axis, as layers of two on images of one row."""

    kinds: ClassVar[dict[type, type]] = {
        layers.Conv1D: layers.Conv2D,
        layers.DepthwiseConv1D: layers.DepthwiseConv2D,
        layers.SeparableConv1D: layers.SeparableConv2D,
        layers.Conv1DTranspose: layers.Conv2DTranspose,
        layers.MaxPooling1D: layers.MaxPooling2D,
        layers.AveragePooling1D: layers.AveragePooling2D,
        layers.GlobalMaxPooling1D: layers.GlobalMaxPooling2D,
        layers.GlobalAveragePooling1D: layers.GlobalAveragePooling2D,
        layers.ZeroPadding1D: layers.ZeroPadding2D,
        layers.UpSampling1D: layers.UpSampling2D,
        layers.SpatialDropout1D: layers.SpatialDropout2D,
    }
    keras_layers = tuple(kinds)
    litert = ("RESHAPE",)
    masks = True
    notes = "A mask: in the mean over all steps."
    cases = (
        Case(lambda: layers.Conv1D(6, 3, dilation_rate=2, groups=2), (9, 4)),
        Case(lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2), (9, 4)),
        Case(lambda: layers.Conv1D(6, 3, strides=2, padding="same", activation="relu"), (9, 4)),
        Case(
            lambda: (
                lambda x: layers.Conv1D(3, 2, padding="causal", activation="relu6")(
                    layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(6, 3)(x)))
                )
            ),
            (9, 4),
        ),
        Case(lambda: lambda x: x + layers.Conv1D(4, 3, padding="same")(x), (9, 4)),
        Case(lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 4)),
        Case(lambda: layers.SeparableConv1D(6, 3, activation="relu"), (9, 4)),
        Case(lambda: layers.Conv1DTranspose(5, 3, strides=2, padding="same"), (5, 3)),
        Case(lambda: layers.Conv1DTranspose(5, 3, 2, "same", output_padding=0), (5, 3)),
        Case(lambda: layers.MaxPooling1D(2), (8, 3)),
        Case(lambda: layers.AveragePooling1D(3, strides=2, padding="valid"), (9, 3)),
        Case(lambda: layers.GlobalAveragePooling1D(), (9, 5)),
        Case(lambda: lambda x: layers.GlobalAveragePooling1D()(x, mask=x[:, :, 0] > -0.5), (9, 5)),
        Case(lambda: layers.GlobalMaxPooling1D(keepdims=True), (9, 5)),
        Case(lambda: layers.ZeroPadding1D((1, 3)), (5, 2)),
        Case(lambda: layers.UpSampling1D(3), (4, 2)),
        Case(lambda: lambda x: layers.Conv1D(2, 1)(layers.SpatialDropout1D(0.1)(x)), (4, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if kwargs.get("mask") is not None:
            return tracer.expand(layer, _masked_mean(layer), args[0], kwargs["mask"])
        x = reshape(args[0], (1, *args[0].shape[1:]), f"{layer.name}_2d", tracer)
        changes = _constraints(layer)
        for key in ("kernel_size", "strides", "dilation_rate", "pool_size", "size"):
            if hasattr(layer, key):
                changes[key] = _pair(getattr(layer, key), 1)
        if getattr(layer, "output_padding", None) is not None:
            changes["output_padding"] = _pair(layer.output_padding, 0)
        for key in ("padding", "cropping"):
            if isinstance(getattr(layer, key, None), list | tuple):
                changes[key] = ((0, 0), tuple(getattr(layer, key)))
        if getattr(layer, "padding", None) == "causal":
            past = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            pad = layers.ZeroPadding2D(
                ((0, 0), (past, 0)), data_format="channels_last", name=f"{layer.name}_causal"
            )
            x = tracer.emit(pad, x)
            changes["padding"] = "valid"
        flat = twin(layer, self.kinds[known_class(layer)], x.shape, tracer, **changes)
        y = tracer.trace(flat, (x,), {})
        if len(y.shape) == 4:
            y = reshape(y, y.shape[2:], f"{layer.name}_1d", tracer)
        return tracer.activation(getattr(layer, "activation", None), y, layer)


def _masked_mean(layer: layers.GlobalAveragePooling1D) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of the steps that are not masked."""

    def mean(x: Tensor, mask: Tensor) -> Tensor:
        seen = ops.expand_dims(mask, -1)
        kept, ones = ops.where(seen, x, 0.0), ops.where(seen, 1.0, 0.0)
        mean, share = (ops.mean(t, axis=1, keepdims=layer.keepdims) for t in (kept, ones))
        return mean * (1.0 / share)

    return mean


def _known(layer: Any, x: Any, tracer: Any) -> tuple[int, int, int, int]:
    """Depth, height, width and channels, all of which must be known."""
    if None in x.shape[1:]:
        tracer.refuse(layer, f"all sizes but the batch must be known, received shape {x.shape}")
    return x.shape[1:]


@register_op
class Conv3D(Op):
    """A 2D convolution of every slice together with those beside it.

    The slices that the kernel covers are concatenated along the channels; each position of the
    kernel along the depth becomes one image.
    """

    keras_layers = (layers.Conv3D,)
    litert = ("STRIDED_SLICE", "CONCATENATION", "CONV_2D")
    notes = "No groups, unless the kernel has a depth of 1."
    cases = (
        Case(lambda: layers.Conv3D(5, 3), (5, 6, 7, 2)),
        Case(lambda: layers.Conv3D(5, 3, padding="same", activation="relu"), (4, 5, 6, 2)),
        Case(lambda: layers.Conv3D(5, 3, strides=2, padding="same"), (6, 5, 6, 2)),
        Case(lambda: layers.Conv3D(5, 2, strides=(3, 1, 1)), (8, 5, 6, 2)),
        Case(lambda: layers.Conv3D(5, (2, 3, 1), dilation_rate=(2, 1, 1)), (5, 5, 6, 2)),
        Case(lambda: layers.Conv3D(4, (1, 3, 3), groups=2, use_bias=False), (3, 5, 6, 2)),
        Case(
            lambda: (
                lambda x: layers.ReLU(6.0)(
                    layers.BatchNormalization()(layers.Conv3D(5, 2, padding="same")(x))
                )
            ),
            (4, 5, 6, 2),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        depth, height, width, channels = _known(layer, args[0], tracer)
        (size, *kernel), (stride, *strides) = layer.kernel_size, layer.strides
        rate, *dilation = layer.dilation_rate
        if layer.groups > 1 and size > 1:
            tracer.refuse(layer, f"groups={layer.groups} has no integer form")
        if "axis" in (layer.kernel_constraint.get_config() if layer.kernel_constraint else {}):
            tracer.refuse(layer, "its kernel_constraint is along axes that are not those in 2D")
        before, after = 0, 0
        if layer.padding == "same":
            ((before, after),) = same_padding((depth,), (size,), (stride,), (rate,))
        places = (depth + before + after - (size - 1) * rate - 1) // stride + 1
        # In rows of as many slices as the stride, each slice of the kernel is a block.
        starts = [divmod(i * rate, stride) for i in range(size)]
        rows = starts[-1][0] + places
        area = height * width
        x = reshape(args[0], (depth, area, channels), f"{layer.name}_slices", tracer)
        x = _fit(x, before, rows * stride - before - depth, layer, tracer)
        x = reshape(x, (rows, stride * area, channels), f"{layer.name}_rows", tracer)
        slices = []
        for i, (row, place) in enumerate(starts):
            crop = ((row, rows - row - places), (place * area, (stride - 1 - place) * area))
            slices.append(_crop(x, crop, f"{layer.name}_slice_{i}", tracer))
        if size > 1:
            joined = layers.Concatenate(name=f"{layer.name}_joined")
            x = tracer.emit(joined, slices)
        else:
            (x,) = slices
        x = reshape(x, (height, width, size * channels), f"{layer.name}_images", tracer)

        def kernel_2d(value: np.ndarray) -> np.ndarray:
            return value.transpose(1, 2, 0, 3, 4) if value.ndim == 5 else value

        changes = {"kernel_size": kernel, "strides": strides, "dilation_rate": dilation}
        flat = twin(layer, layers.Conv2D, x.shape, tracer, kernel_2d, **changes)
        y = tracer.trace(flat, (x,), {})
        y = reshape(y, (places, *y.shape[1:]), f"{layer.name}_3d", tracer)
        return tracer.activation(layer.activation, y, layer)


def _fit(x: Any, before: int, after: int, layer: Any, tracer: Any) -> Any:
    """Zeros before and after the first axis; a negative number crops."""
    x = _crop(x, ((0, max(-after, 0)), (0, 0)), f"{layer.name}_fit", tracer)
    after = max(after, 0)
    if before or after:
        pad = ((before, after), (0, 0))
        name = f"{layer.name}_pad"
        x = tracer.emit_new(layers.ZeroPadding2D(pad, data_format="channels_last", name=name), x)
    return x


def _crop(x: Any, crop: tuple, name: str, tracer: Any) -> Any:
    if crop == ((0, 0), (0, 0)):
        return x
    cropping = layers.Cropping2D(crop, data_format="channels_last", name=name)
    return tracer.trace(cropping, (x,), {})


@register_op
class ThreeDimensional(Op):
    """Layers of three spatial axes that work on each alone: first in each slice, then in depth."""

    parts: ClassVar[dict[type, tuple[type, dict[str, Any]]]] = {
        layers.MaxPooling3D: (layers.MaxPooling2D, {"pool_size": 1, "strides": 1}),
        layers.AveragePooling3D: (layers.AveragePooling2D, {"pool_size": 1, "strides": 1}),
        layers.ZeroPadding3D: (layers.ZeroPadding2D, {"padding": (0, 0)}),
        layers.UpSampling3D: (layers.UpSampling2D, {"size": 1}),
    }
    keras_layers = tuple(parts)
    litert = ("RESHAPE",)
    notes = "Average pooling rounds twice."
    cases = (
        Case(lambda: layers.MaxPooling3D((2, 3, 2), padding="same"), (5, 7, 6, 2)),
        Case(lambda: layers.MaxPooling3D((1, 2, 2)), (3, 6, 6, 2)),
        Case(lambda: layers.MaxPooling3D((2, 1, 1), strides=(1, 1, 1)), (4, 5, 6, 2)),
        Case(lambda: layers.AveragePooling3D((2, 3, 2)), (5, 7, 6, 2)),
        Case(lambda: layers.ZeroPadding3D(((1, 2), (0, 1), (2, 0))), (3, 4, 5, 2)),
        Case(lambda: layers.UpSampling3D((2, 1, 3)), (3, 4, 5, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        depth, *image, channels = _known(layer, args[0], tracer)
        kind, idle = self.parts[known_class(layer)]
        in_slice = {key: tuple(getattr(layer, key)[1:]) for key in idle}
        in_depth = {key: (getattr(layer, key)[0], value) for key, value in idle.items()}

        def apply(x: Any, name: str, changes: dict[str, Any]) -> Any:
            if all(value == (idle[key], idle[key]) for key, value in changes.items()):
                return x
            flat = twin(layer, kind, x.shape, tracer, name=name, **changes)
            return tracer.trace(flat, (x,), {})

        x = reshape(args[0], (*image, channels), f"{layer.name}_slices", tracer)
        x = apply(x, f"{layer.name}_in_slice", in_slice)
        image = x.shape[1:3]
        x = reshape(x, (depth, math.prod(image), channels), f"{layer.name}_rows", tracer)
        x = apply(x, layer.name, in_depth)
        return reshape(x, (x.shape[1], *image, channels), f"{layer.name}_3d", tracer)


@register_op
class GlobalPooling3D(Op):
    """The mean or maximum over three spatial axes, two of which are joined first."""

    kinds: ClassVar[dict[type, type]] = {
        layers.GlobalAveragePooling3D: layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling3D: layers.GlobalMaxPooling2D,
    }
    keras_layers = tuple(kinds)
    litert = ("MEAN", "REDUCE_MAX")
    cases = (
        Case(lambda: layers.GlobalAveragePooling3D(), (4, 5, 6, 3)),
        Case(lambda: layers.GlobalMaxPooling3D(keepdims=True), (4, 5, 6, 3)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        depth, height, width, channels = _known(layer, args[0], tracer)
        x = reshape(args[0], (depth, height * width, channels), f"{layer.name}_rows", tracer)
        y = tracer.trace(twin(layer, self.kinds[known_class(layer)], x.shape, tracer), (x,), {})
        shape = (1, 1, 1, channels)
        return reshape(y, shape, f"{layer.name}_3d", tracer) if layer.keepdims else y
