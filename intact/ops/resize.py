"""Images of another size."""

from typing import Any

import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.backend_kernels import wide_types
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.registry import register_op
from intact.ops.slicing import sliced

ONE = 2048
"""A weight of 1 in the kernel: 11 fractional bits."""


def _nearest(size: int, new_size: int) -> np.ndarray:
    """The pixel that each new one takes its value from."""
    scale = np.float32(size) / np.float32(new_size)
    centre = (np.arange(new_size, dtype="float32") + np.float32(0.5)) * scale
    return np.clip(np.floor(centre), 0, size - 1).astype("int32")


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each new one lies between, and its place between them in `ONE`s."""
    scale = np.float32(size) / np.float32(new_size)
    centre = (np.arange(new_size, dtype="float32") + np.float32(0.5)) * scale - np.float32(0.5)
    centre = np.clip(centre, np.float32(0), np.float32(size - 1))
    low = centre.astype("int32")
    place = np.rint((centre - low.astype("float32")) * np.float32(ONE))
    return low, np.minimum(low + 1, size - 1), place


def _blend(x: Tensor, new_size: int, axis: int, dtype: str) -> Tensor:
    """Values between neighbours along an axis, times `ONE`."""
    low, high, place = _neighbours(x.shape[axis], new_size)
    place = place.reshape([-1 if a == axis else 1 for a in range(4)])
    x = ops.cast(x, dtype)
    below = ops.take(x, low, axis=axis)
    return below * ONE + (ops.take(x, high, axis=axis) - below) * ops.convert_to_tensor(
        place, dtype
    )


def _blend_wide(x: Tensor, new_size: int, axis: int) -> Tensor:
    """The same times 1024, as the 16-bit kernel computes it in integers."""
    size = x.shape[axis]
    step = (1024 * size + new_size // 2) // new_size
    centre = np.arange(new_size) * step + step // 2 - 512
    low = np.maximum(centre, 0) // 1024
    high = np.minimum((centre + 1023) // 1024, size - 1)
    place = (centre - 1024 * low).reshape([-1 if a == axis else 1 for a in range(4)])
    below, above = (ops.take(x, i.astype("int32"), axis=axis) for i in (low, high))
    return below * 1024 + (above - below) * ops.convert_to_tensor(place, "int64")


def known_size(layer: Any, x: Any, tracer: Any) -> tuple[int, int, int]:
    """Height, width and channels of a batch of images; refused where one of them is unknown."""
    if len(x.shape) != 4 or None in x.shape[1:]:
        tracer.refuse(layer, f"it takes a batch of images of known size, received shape {x.shape}")
    return x.shape[1:]


def ratio_cropped(layer: Any, x: Any, size: tuple[int, int], tracer: Any) -> Any:
    """The largest part of images, around their centre, that has the aspect ratio of a new size.

    Args:
        layer: The layer or operation that resizes, for names and errors.
        x: A batch of images, channels last.
        size: The new height and width.
        tracer: Makes the new graph.

    Returns:
        The part.
    """
    *image, _ = known_size(layer, x, tracer)
    key = [slice(None)]
    for axis in range(2):
        fitting = int(image[1 - axis] * size[axis] / size[1 - axis])
        part = max(min(image[axis], fitting), 1)
        start = (image[axis] - part) // 2
        key.append(slice(start, start + part))
    return sliced(tracer, layer, x, key)


def resampled(layer: Any, x: Any, size: tuple[int, int], tracer: Any) -> Any:
    """Images of a new size by two matrix products, whatever the interpolation is.

    Args:
        layer: The layer or operation that resizes.
        x: A batch of images, channels last.
        size: The new height and width.
        tracer: Makes the new graph.
    """
    *image, _ = known_size(layer, x, tracer)
    matrices = []
    for old, new in zip(image, size, strict=True):
        # What becomes of each pixel alone: a column of pixels, and a channel for each.
        column = ops.image.resize(
            np.eye(old, dtype="float32").reshape(1, old, 1, old),
            (new, 1),
            interpolation=layer.interpolation,
            antialias=layer.antialias,
            data_format="channels_last",
        )
        matrices.append(to_numpy(column).reshape(new, old).T)

    def products(x: Tensor) -> Tensor:
        rows = ops.einsum("bhwc,ho->bowc", x, matrices[0])
        return ops.einsum("bhwc,wo->bhoc", rows, matrices[1])

    return tracer.expand(layer, products, x)


class Resampling(Op):
    """Base of what gives images another size; pixels count by their centres."""

    dtypes = INTEGERS
    litert = ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR")
    output = SAME_AS_INPUT

    def refuse(self, layer: Any, shapes: list) -> str | None:
        if layer.interpolation not in ("nearest", "bilinear"):
            return f"interpolation {layer.interpolation!r} has no kernel"
        if None in shapes[0][1:]:
            return f"the input's spatial size must be known, received shape {shapes[0]}"
        return None

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        _, height, width, _ = layer.compute_output_shape(x.values.shape)
        if layer.interpolation == "nearest":
            rows = ops.take(x.values, _nearest(x.values.shape[1], height), axis=1)
            return x._replace(values=ops.take(rows, _nearest(rows.shape[2], width), axis=2))
        # Each row is exact in float32; two of them together need all of int32.
        rows = _blend(x.values, width, 2, "float32")
        smooth = _blend(rows, height, 1, "float32") * (1.0 / ONE**2)
        if isinstance(x, WideTensor):
            with wide_types():
                total = _blend_wide(ops.cast(x.values, "int64"), width, 2)
                total = _blend_wide(total, height, 1)
                size = ops.right_shift(ops.abs(total) + 2**19, 20)
                whole = ops.cast(ops.sign(total) * size, "float32")
        else:
            half = ONE**2 // 2
            whole = ops.right_shift(_blend(rows, height, 1, "int32") + half, 22)
        exact = ops.where(x.whole, ops.cast(whole, "float32"), smooth)
        return x._replace(values=straight_through(exact, smooth))

    def lower(self, node: Any, builder: Any) -> None:
        new = node.output.shape[1:3]
        size = builder.constant(np.array(new, "int32"))
        if node.layer.interpolation == "bilinear":
            name, options = "RESIZE_BILINEAR", {"halfPixelCenters": True}
        else:
            name, options = "RESIZE_NEAREST_NEIGHBOR", {}
            if any(n % old for n, old in zip(new, node.input.shape[1:3], strict=True)):
                # Where pixels are just repeated, older readers know what to do.
                options = {"halfPixelCenters": True}
        builder.add(name, [node.input, size], [node.output], options)


@register_op
class UpSampling2D(Resampling):
    """Values repeated, or interpolated between their neighbours."""

    keras_layers = (layers.UpSampling2D,)
    notes = "Interpolation 'nearest' or 'bilinear'; spatial sizes must be known."
    cases = (
        Case(lambda: layers.UpSampling2D(), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D((3, 2)), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D(interpolation="bilinear"), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D((2, 3), interpolation="bilinear"), (3, 4, 2)),
    )


@register_op
class Resizing(Resampling):
    """Images of a given size, from the nearest pixels or interpolated between neighbours."""

    keras_layers = (layers.Resizing,)
    operations = ("Resize",)
    notes = "Antialiasing, and other interpolations than 'nearest' and 'bilinear', as products."
    cases = (
        Case(lambda: layers.Resizing(7, 5), (5, 6, 3)),
        Case(lambda: layers.Resizing(3, 12), (7, 6, 2)),
        Case(lambda: layers.Resizing(7, 4, interpolation="nearest"), (5, 8, 3)),
        Case(lambda: layers.Resizing(10, 6, interpolation="nearest"), (5, 3, 3)),
        Case(lambda: lambda x: ops.image.resize(x, (4, 9)), (6, 5, 2)),
        Case(lambda: layers.Resizing(4, 9, crop_to_aspect_ratio=True), (6, 5, 2)),
        Case(lambda: layers.Resizing(4, 9, interpolation="bicubic"), (6, 5, 2)),
        Case(lambda: lambda x: ops.image.resize(x, (3, 2), antialias=True), (7, 6, 2)),
        Case(
            lambda: (
                lambda x: ops.image.resize(
                    x, (5, 3), crop_to_aspect_ratio=True, data_format="channels_first"
                )
            ),
            (2, 7, 8),
        ),
        Case(lambda: lambda x: layers.Resizing(8, 8)(layers.Conv2D(3, 3)(x)), (5, 5, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if len(args[0].shape) != 4:
            tracer.refuse(layer, f"it takes a batch of images, received shape {args[0].shape}")
        if layer.pad_to_aspect_ratio:
            tracer.refuse(layer, "pad_to_aspect_ratio=True; pad the images by `ops.pad` before it")
        of_layer = isinstance(layer, layers.Layer)
        smooth = layer.antialias or layer.interpolation not in ("nearest", "bilinear")
        if of_layer and not (layer.crop_to_aspect_ratio or smooth):
            return tracer.emit(layer, args[0])
        height, width = (layer.height, layer.width) if of_layer else layer.size
        resizing = layers.Resizing(
            height,
            width,
            interpolation=layer.interpolation,
            data_format=layer.data_format,
            antialias=layer.antialias and not of_layer,
            crop_to_aspect_ratio=layer.crop_to_aspect_ratio and not of_layer,
            name=layer.name,
        )
        (x,) = args
        if of_layer and layer.crop_to_aspect_ratio:
            x = ratio_cropped(layer, x, (height, width), tracer)
        if of_layer and smooth:
            return resampled(layer, x, (height, width), tracer)
        return tracer.trace(resizing, (x,), {})
