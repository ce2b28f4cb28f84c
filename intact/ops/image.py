"""Images: colours, crops and patches."""

from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import Tensor
from intact.ops.base import Case, Op
from intact.ops.blocks import SpaceToDepth
from intact.ops.conv import same_padding
from intact.ops.padding import Pad
from intact.ops.registry import register_op
from intact.ops.resize import known_size, ratio_cropped
from intact.ops.shape import reshaped
from intact.ops.slicing import Take, sliced

GREY = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in a grey value, on all backends of Keras."""


@register_op
class Grayscale(Op):
    """A weighted mean of the colours, one matrix product."""

    operations = ("RGBToGrayscale",)
    litert = ("FULLY_CONNECTED",)
    cases = (
        Case(lambda: lambda x: ops.image.rgb_to_grayscale(x), (4, 5, 3)),
        Case(lambda: lambda x: ops.image.rgb_to_grayscale(x, "channels_first"), (3, 4, 5)),
        Case(lambda: lambda x: ops.image.rgb_to_grayscale(layers.Conv2D(1, 1)(x)), (4, 5, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        axis = len(x.shape) - (1 if layer.data_format == "channels_last" else 3)
        if axis == 0:
            tracer.refuse(layer, f"it takes a batch of images, received shape {x.shape}")
        if x.shape[axis] == 1:
            return x

        def grey(x: Tensor) -> Tensor:
            colours = ops.moveaxis(x, axis, -1)
            return ops.moveaxis(colours @ np.array(GREY, "float32")[:, None], -1, axis)

        return tracer.expand(layer, grey, x)


@register_op
class CenterCrop(Op):
    """The centre of images; smaller images are enlarged first."""

    keras_layers = (layers.CenterCrop,)
    litert = ("STRIDED_SLICE", "RESIZE_BILINEAR")
    cases = (
        Case(lambda: layers.CenterCrop(3, 4), (6, 7, 2)),
        Case(lambda: layers.CenterCrop(3, 4, data_format="channels_first"), (2, 6, 7)),
        Case(lambda: layers.CenterCrop(8, 4), (6, 7, 2)),
        Case(lambda: lambda x: layers.Conv2D(2, 3)(layers.CenterCrop(5, 5)(x)), (6, 5, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        *image, _ = known_size(layer, x, tracer)
        size = (layer.height, layer.width)
        starts = [(old - new) // 2 for old, new in zip(image, size, strict=True)]
        if min(starts) < 0:
            x = ratio_cropped(layer, x, size, tracer)
            resizing = layers.Resizing(*size, data_format="channels_last", name=layer.name)
            return tracer.trace(resizing, (x,), {})
        key = [slice(start, start + new) for start, new in zip(starts, size, strict=True)]
        return sliced(tracer, layer, x, [slice(None), *key])


@register_op
class RandomCrop(Op):
    """Images that have the size already, in training and in inference: traced away."""

    keras_layers = (layers.RandomCrop,)
    notes = "Images of the size that it crops to."
    cases = (Case(lambda: lambda x: layers.Dense(2)(layers.RandomCrop(4, 5)(x)), (4, 5, 3)),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        first = 1 if layer.data_format == "channels_last" else 2
        if x.shape[first : first + 2] != (layer.height, layer.width):
            tracer.refuse(
                layer,
                f"it crops images in training alone, and leaves images of shape {x.shape} whole in "
                "inference; apply it to the training data, and use `CenterCrop` or `Resizing` here",
            )
        return x


@register_op
class AutoContrast(Op):
    """The values of each channel of an image, stretched to the whole range."""

    keras_layers = (layers.AutoContrast,)
    litert = ("REDUCE_MIN", "REDUCE_MAX", "SUB", "MUL", "GREATER", "SELECT_V2")
    cases = (
        Case(lambda: layers.AutoContrast((0, 1)), (6, 5, 3), low=0.2, high=0.9),
        Case(lambda: layers.AutoContrast((-1, 1)), (4, 4, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        low, high = map(float, layer.value_range)

        def stretched(x: Tensor) -> Tensor:
            least = ops.min(x, axis=(1, 2), keepdims=True)
            span = ops.max(x, axis=(1, 2), keepdims=True) - least
            factor = (high - low) / ops.where(span > 0.0, span, 1.0)
            return ops.where(span > 0.0, (x - least) * factor + low, x)

        return tracer.expand(layer, stretched, args[0])


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


@register_op
class ExtractPatches(Op):
    """The values of each window of an image as channels: blocks of pixels, or a gather."""

    operations = ("ExtractPatches",)
    litert = ("SPACE_TO_DEPTH", "GATHER", "RESHAPE", "PAD")
    notes = "Of two spatial axes, of known size."
    cases = (
        Case(lambda: lambda x: ops.image.extract_patches(x, 2), (4, 6, 3)),
        Case(lambda: lambda x: ops.image.extract_patches(x, (2, 3)), (5, 6, 2)),
        Case(lambda: lambda x: ops.image.extract_patches(x, 3, 2, padding="same"), (5, 6, 2)),
        Case(lambda: lambda x: ops.image.extract_patches(x, 2, 1, dilation_rate=2), (5, 6, 2)),
        Case(
            lambda: lambda x: ops.image.extract_patches(x, 2, data_format="channels_first"),
            (3, 4, 6),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        # Older versions of Keras take images only.
        if getattr(layer, "is_3d", False):
            tracer.refuse(layer, "patches of volumes have no kernel")
        if layer.data_format == "channels_last":
            return self.patches(layer, x, tracer)
        x = tracer.emit_new(layers.Permute((2, 3, 1), name=f"{layer.name}_channels_last"), x)
        y = self.patches(layer, x, tracer)
        return tracer.emit_new(layers.Permute((3, 1, 2), name=f"{layer.name}_channels_back"), y)

    def patches(self, layer: Any, x: Any, tracer: Any) -> Any:
        """The patches of images with their channels last."""
        *image, channels = known_size(layer, x, tracer)
        size, strides, rates = map(
            _pair, (layer.size, layer.strides or layer.size, layer.dilation_rate)
        )
        if layer.padding == "same":
            pads = same_padding(tuple(image), size, strides, rates)
            if any(map(any, pads)):
                x = tracer.emit(Pad([*pads, (0, 0)], name=f"{layer.name}_pad"), x)
            image = list(x.shape[1:3])
        counts = [
            (n - (k - 1) * rate - 1) // stride + 1
            for n, k, stride, rate in zip(image, size, strides, rates, strict=True)
        ]
        if size == strides and rates == (1, 1) and size[0] == size[1]:
            key = [slice(0, count * size[0]) for count in counts]
            x = sliced(tracer, layer, x, [slice(None), *key])
            return x if size[0] == 1 else tracer.emit(SpaceToDepth(size[0], name=layer.name), x)
        rows, columns = (
            np.arange(count)[:, None] * stride + np.arange(k) * rate
            for count, stride, k, rate in zip(counts, strides, size, rates, strict=True)
        )
        pixels = rows[:, None, :, None] * image[1] + columns[None, :, None, :]
        x = reshaped(tracer, layer, x, [image[0] * image[1], channels])
        y = tracer.emit(Take(pixels.ravel().tolist(), 1, name=layer.name), x)
        return reshaped(tracer, layer, y, [*counts, size[0] * size[1] * channels])
