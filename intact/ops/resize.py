"""Images of another size."""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import layers, ops

from intact.numerics.affine import QTensor, WideTensor
from intact.numerics.backend_kernels import wide_types
from intact.numerics.straight_through import straight_through
from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.function_layer import FunctionLayer
from intact.ops.registry import register_op
from intact.ops.slicing import sliced

ONE = 2048
"""A weight of 1 in the kernel: 11 fractional bits."""


def _library(size: Any) -> Any:
    """What computes places of pixels: on the host, where a size is a number."""
    return np if isinstance(size, int) else ops


def _centres(size: Any, new_size: Any) -> Tensor:
    """Where the centres of new pixels lie, in old ones."""
    xp = _library(size)
    old, new = (xp.array(n, "float32") for n in (size, new_size))
    return (xp.arange(new_size, dtype="float32") + np.float32(0.5)) * (old / new)


def _aligned(size: int, new_size: int) -> np.ndarray:
    """Where new pixels lie between old ones, if the outermost pixels stay where they are."""
    step = np.float32(size - 1) / np.float32(max(new_size - 1, 1))
    return np.arange(new_size, dtype="float32") * step


def _nearest(size: Any, new_size: Any) -> Tensor:
    """The pixel that each new one takes its value from."""
    xp = _library(size)
    last = xp.array(size - 1, "float32")
    return ops.cast(xp.clip(xp.floor(_centres(size, new_size)), np.float32(0), last), "int32")


def _neighbours(size: Any, new_size: Any, aligned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each new one lies between, and its place between them in `ONE`s."""
    xp = _library(size)
    last = xp.array(size - 1, "float32")
    centre = _aligned(size, new_size) if aligned else _centres(size, new_size) - np.float32(0.5)
    centre = xp.clip(centre, np.float32(0), last)
    low = xp.floor(centre)
    place = xp.round((centre - low) * np.float32(ONE))
    return low, xp.minimum(low + 1, last), place


def _along(values: Tensor, axis: int) -> Tensor:
    """Values along an axis of images."""
    return ops.reshape(values, [-1 if a == axis else 1 for a in range(4)])


def _blend(x: Tensor, new_size: Any, axis: int, dtype: str, aligned: bool = False) -> Tensor:
    """Values between neighbours along an axis, times `ONE`."""
    low, high, place = _neighbours(ops.shape(x)[axis], new_size, aligned)
    x = ops.cast(x, dtype)
    below, above = (ops.take(x, ops.cast(i, "int32"), axis=axis) for i in (low, high))
    return below * ONE + (above - below) * ops.cast(_along(place, axis), dtype)


def _blend_wide(x: Tensor, new_size: Any, axis: int) -> Tensor:
    """The same times 1024, as LiteRT's own kernels compute it in integers."""
    size = ops.shape(x)[axis]
    xp = _library(size)
    step = (1024 * size + new_size // 2) // new_size
    centre = xp.arange(new_size) * step + step // 2 - 512
    low = xp.maximum(centre, 0) // 1024
    high = xp.minimum((centre + 1023) // 1024, size - 1)
    place = ops.cast(_along(centre - 1024 * low, axis), "int64")
    below, above = (ops.take(x, ops.cast(i, "int32"), axis=axis) for i in (low, high))
    return below * 1024 + (above - below) * place


def _blended_wide(values: Tensor, new_size: tuple[Any, Any]) -> Tensor:
    """Whole numbers between pixels, as LiteRT's own kernels round them."""
    with wide_types():
        total = _blend_wide(ops.cast(values, "int64"), new_size[1], 2)
        total = _blend_wide(total, new_size[0], 1)
        size = ops.right_shift(ops.abs(total) + 2**19, 20)
        return ops.cast(ops.sign(total) * size, "float32")


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
        # The image of each single pixel: a column of pixels, with a channel for each.
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
    """Base of the ops that resize images, with half-pixel centers unless `aligned`."""

    aligned: ClassVar[bool] = False

    dtypes = INTEGERS
    litert: ClassVar[tuple[str, ...]] = ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR")
    output = SAME_AS_INPUT

    def new_size(self, layer: Any, x: Tensor) -> tuple[Any, Any]:
        """Height and width of the output: numbers, or tensors of a graph."""
        raise NotImplementedError

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        height, width = self.new_size(layer, x.values)
        if layer.interpolation == "nearest":
            _, old_height, old_width, _ = ops.shape(x.values)
            rows = ops.take(x.values, _nearest(old_height, height), axis=1)
            return x._replace(values=ops.take(rows, _nearest(old_width, width), axis=2))
        # Each row is exact in float32; two of them together need all of int32.
        rows = _blend(x.values, width, 2, "float32", self.aligned)
        smooth = _blend(rows, height, 1, "float32", self.aligned) * (1.0 / ONE**2)
        whole = self.blended(x, rows, (height, width))
        exact = ops.where(x.whole, ops.cast(whole, "float32"), smooth)
        return x._replace(values=straight_through(exact, smooth))

    def blended(self, x: QTensor, rows: Tensor, size: tuple[Any, Any]) -> Tensor:
        """Whole numbers between pixels, as the kernel rounds them.

        Args:
            x: The images.
            rows: What lies between them along their rows, times `ONE`.
            size: The new height and width.
        """
        if isinstance(x, WideTensor):
            return _blended_wide(x.values, size)
        half = ONE**2 // 2
        return ops.right_shift(_blend(rows, size[0], 1, "int32", self.aligned) + half, 22)

    def lower(self, node: Any, builder: Any) -> None:
        if node.layer.interpolation == "bilinear":
            kind = "alignCorners" if self.aligned else "halfPixelCenters"
            name, options = "RESIZE_BILINEAR", {kind: True}
        else:
            name, options = "RESIZE_NEAREST_NEIGHBOR", self.nearest_options(node)
        builder.add(name, [node.input, self.size(node, builder)], [node.output], options)

    def nearest_options(self, node: Any) -> dict[str, Any]:
        """The options of a file that takes the nearest pixels."""
        pairs = zip(node.output.shape[1:3], node.input.shape[1:3], strict=True)
        # Older readers handle pixels that are only repeated.
        repeats = all(old is not None and new % old == 0 for new, old in pairs)
        return {} if repeats else {"halfPixelCenters": True}

    def size(self, node: Any, builder: Any) -> Any:
        """The new height and width, as a tensor of the file."""
        return builder.constant(np.array(node.output.shape[1:3], "int32"))


@register_op
class UpSampling2D(Resampling):
    """Values repeated, or interpolated between their neighbours."""

    keras_layers = (layers.UpSampling2D,)
    notes = "Other interpolations than 'nearest' and 'bilinear' as products."
    cases: ClassVar[tuple[Case, ...]] = (
        Case(lambda: layers.UpSampling2D(), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D((3, 2)), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D(interpolation="bilinear"), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D((2, 3), interpolation="bilinear"), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D((2, 3)), (None, None, 2)),
        Case(lambda: layers.UpSampling2D((2, 1), interpolation="bicubic"), (4, 3, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if layer.interpolation not in ("nearest", "bilinear"):
            *image, _ = known_size(layer, x, tracer)
            height, width = (n * times for n, times in zip(image, layer.size, strict=True))
            how = {"interpolation": layer.interpolation, "data_format": "channels_last"}
            return tracer.trace(layers.Resizing(height, width, **how, name=layer.name), args, {})
        if None in x.shape[1:3] and layer.interpolation == "bilinear":
            layer = FreeUpSampling2D(layer.size, interpolation="bilinear", name=layer.name)
        return tracer.emit(layer, x)

    def new_size(self, layer: Any, x: Tensor) -> tuple[Any, Any]:
        height, width = (n * f for n, f in zip(ops.shape(x)[1:3], layer.size, strict=True))
        return height, width

    def nearest_options(self, node: Any) -> dict[str, Any]:
        return {}

    def size(self, node: Any, builder: Any) -> Any:
        if None not in node.output.shape[1:3]:
            return super().size(node, builder)
        return builder.scaled(builder.sizes(node.input, 1, 3), node.layer.size)


@keras.saving.register_keras_serializable("intact")
class FreeUpSampling2D(layers.UpSampling2D):
    """Images of unknown size, with the values between their neighbours."""


@register_op
class FreeUpSampling(UpSampling2D):
    """The same by LiteRT's own kernel: XNNPACK takes none whose output has no constant size."""

    keras_layers = (FreeUpSampling2D,)
    litert = ("SHAPE", "STRIDED_SLICE", "MUL", "RESIZE_BILINEAR")
    cases = (
        Case(lambda: layers.UpSampling2D((2, 3), interpolation="bilinear"), (None, None, 2)),
        Case(lambda: layers.UpSampling2D(3, interpolation="bilinear"), (None, 7, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return tracer.emit(layer, args[0])

    def blended(self, x: QTensor, rows: Tensor, size: tuple[Any, Any]) -> Tensor:
        # It rounds the stored integers.
        stored = ops.cast(x.values + x.zero_point, "int32")
        return _blended_wide(stored, size) - x.zero_point


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
        Case(lambda: layers.Resizing(8, 9), (None, None, 2)),
    )

    def new_size(self, layer: Any, x: Tensor) -> tuple[Any, Any]:
        return layer.height, layer.width

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


@keras.saving.register_keras_serializable("intact")
class AlignedResizing(FunctionLayer):
    """Images of another size whose corners stay where they are, interpolated between pixels.

    No function of Keras does this; those of the backends have `align_corners`.

    Args:
        height: The new height.
        width: The new width.

    Example:

    >>> x = np.array([0.0, 2.0], "float32").reshape(1, 1, 2, 1)
    >>> keras.ops.convert_to_numpy(AlignedResizing(1, 3)(x)).ravel().tolist()
    [0.0, 1.0, 2.0]
    """

    height: int
    width: int
    interpolation: ClassVar[str] = "bilinear"

    def call(self, x: Tensor) -> Tensor:
        """The images in the new size."""
        for axis, size in ((2, self.width), (1, self.height)):
            last = x.shape[axis] - 1
            places = np.minimum(_aligned(last + 1, size), np.float32(last))
            low = np.floor(places).astype("int32")
            below, above = (ops.take(x, np.minimum(low + i, last), axis=axis) for i in (0, 1))
            x = below + (above - below) * _along(places - low.astype("float32"), axis)
        return x

    def compute_output_shape(self, shape: tuple) -> tuple:
        return (shape[0], self.height, self.width, shape[3])


@register_op
class Aligned(Resampling):
    """Images of a given size whose corners stay where they are."""

    keras_layers = (AlignedResizing,)
    litert: ClassVar[tuple[str, ...]] = ("RESIZE_BILINEAR",)
    dtypes = ("int8", "uint8")
    aligned = True
    cases: ClassVar[tuple[Case, ...]] = (
        Case(lambda: AlignedResizing(7, 5), (5, 6, 3)),
        Case(lambda: AlignedResizing(8, 1), (4, 4, 2)),
    )

    def new_size(self, layer: Any, x: Tensor) -> tuple[Any, Any]:
        return layer.height, layer.width
