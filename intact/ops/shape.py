"""Ops that move values and change none."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.numerics import QTensor, is_integer, straight_through
from intact.ops.base import ALL_SAME, SAME_AS_INPUT, Case, Op, register_op
from intact.ops.conv import channels_first


class Moving(Op):
    """Base of the ops whose Keras layer can be applied to whole numbers as it is."""

    output = SAME_AS_INPUT

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(values=layer(x.values))


@register_op
class Reshape(Moving):
    """A new shape for the same values."""

    keras_layers = (layers.Reshape, layers.Flatten)
    litert = ("RESHAPE",)
    cases = (
        Case(lambda: layers.Reshape((6, -1)), (4, 6)),
        Case(lambda: layers.Flatten(), (3, 4, 2)),
    )

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        if None in shapes[0][1:]:
            return f"all sizes but the batch must be known, received shape {shapes[0]}"
        if isinstance(layer, layers.Flatten):
            return channels_first(layer)
        return None

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        builder.reshape(node.input, node.output.shape, node.output)


@register_op
class Permute(Moving):
    """Axes in another order."""

    keras_layers = (layers.Permute,)
    litert = ("TRANSPOSE",)
    cases = (Case(lambda: layers.Permute((3, 1, 2)), (3, 4, 2)),)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        order = builder.constant(np.array([0, *node.layer.dims], "int32"))
        builder.add("TRANSPOSE", [node.input, order], [node.output])


@register_op
class ZeroPadding2D(Moving):
    """Zeros around the edges; part of a convolution's SAME padding where that is the same."""

    keras_layers = (layers.ZeroPadding2D,)
    litert = ("PAD",)
    cases = (
        Case(lambda: layers.ZeroPadding2D(((1, 2), (0, 3))), (4, 5, 2)),
        Case(
            lambda: (
                lambda x: layers.Conv2D(3, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
            ),
            (8, 8, 2),
        ),
        Case(
            lambda: lambda x: layers.Conv2D(3, 3, strides=2)(layers.ZeroPadding2D(1)(x)), (8, 8, 2)
        ),
    )

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        return channels_first(layer)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        pads = np.array([(0, 0), *node.layer.padding, (0, 0)], "int32")
        builder.add("PAD", [node.input, builder.constant(pads)], [node.output])


@register_op
class Cropping2D(Moving):
    """Edges cut off."""

    keras_layers = (layers.Cropping2D,)
    litert = ("STRIDED_SLICE",)
    cases = (
        Case(lambda: layers.Cropping2D(((1, 2), (0, 1))), (6, 5, 2)),
        Case(lambda: layers.Cropping2D(1), (6, 5, 2)),
    )

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        return channels_first(layer)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        (top, bottom), (left, right) = node.layer.cropping
        # Batch and channels whole, and a side without a crop to its end: by the masks.
        end = (0, -bottom, -right, 0)
        mask = sum(1 << axis for axis, stop in enumerate(end) if stop == 0)
        constants = [
            builder.constant(np.array(values, "int32"))
            for values in ((0, top, left, 0), end, (1, 1, 1, 1))
        ]
        options = {"beginMask": 0b1001, "endMask": mask}
        builder.add("STRIDED_SLICE", [node.input, *constants], [node.output], options)


@register_op
class UpSampling2D(Op):
    """Values repeated, or interpolated between their neighbours."""

    keras_layers = (layers.UpSampling2D,)
    litert = ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR")
    output = SAME_AS_INPUT
    notes = "Interpolation 'nearest' or 'bilinear'; spatial sizes must be known."
    cases = (
        Case(lambda: layers.UpSampling2D(), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D((3, 2)), (3, 4, 2)),
        Case(lambda: layers.UpSampling2D(interpolation="bilinear"), (3, 4, 2), exact=False),
        Case(lambda: layers.UpSampling2D((2, 3), interpolation="bilinear"), (3, 4, 2), exact=False),
    )

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        if layer.interpolation not in ("nearest", "bilinear"):
            return f"interpolation {layer.interpolation!r} has no kernel"
        if None in shapes[0][1:]:
            return f"the input's spatial size must be known, received shape {shapes[0]}"
        return channels_first(layer)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        y = layer(x.values)
        if layer.interpolation == "bilinear":
            # The kernel rounds half up.
            y = straight_through(ops.where(is_integer(x), ops.floor(y + 0.5), y), y)
        return x._replace(values=y)

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        size = builder.constant(np.array(node.output.shape[1:3], "int32"))
        if node.layer.interpolation == "nearest":
            name, options = "RESIZE_NEAREST_NEIGHBOR", {}
        else:
            name, options = "RESIZE_BILINEAR", {"halfPixelCenters": True}
        builder.add(name, [node.input, size], [node.output], options)


@register_op
class Concatenate(Op):
    """Tensors side by side; all share one range."""

    keras_layers = (layers.Concatenate,)
    operations = ("Concatenate",)
    litert = ("CONCATENATION",)
    output = ALL_SAME
    cases = (
        Case(lambda: layers.Concatenate(), [(3, 4), (3, 2)]),
        Case(lambda: layers.Concatenate(axis=1), [(3, 2, 2), (1, 2, 2), (4, 2, 2)]),
        Case(
            lambda: (
                lambda a, b: layers.Concatenate()(
                    [layers.Conv2D(3, 1)(a), layers.Conv2D(2, 3, padding="same")(b), a]
                )
            ),
            [(4, 4, 2), (4, 4, 2)],
        ),
        Case(
            lambda: (
                lambda a, b: layers.Concatenate()(
                    [layers.Activation("sigmoid")(a), layers.ReLU(0.3)(b), b]
                )
            ),
            [(5,), (4,)],
            exact=False,
        ),
    )

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        if isinstance(layer, layers.Concatenate):
            return tracer.emit(layer, args[0])
        return tracer.emit(layers.Concatenate(axis=layer.axis, name=layer.name), args[0])

    @classmethod
    def refuse(cls, layer: Any, shapes: list) -> str | None:
        return "the batch axis cannot be concatenated" if layer.axis == 0 else None

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        # In inference all scales are one and the same, and the ratios are 1.
        # While ranges move, the inputs of a step may differ a little.
        last = inputs[-1]
        values = [x.values * (x.scale / last.scale) for x in inputs]
        return last._replace(values=ops.concatenate(values, axis=layer.axis))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        rank = len(node.output.shape)
        options = {"axis": node.layer.axis % rank, "fusedActivationFunction": "NONE"}
        builder.add("CONCATENATION", node.inputs, [node.output], options)


@register_op
class Dropout(Op):
    """At work while training; nothing in inference and in the file."""

    keras_layers = (
        layers.Dropout,
        layers.SpatialDropout1D,
        layers.SpatialDropout2D,
        layers.SpatialDropout3D,
        layers.GaussianDropout,
        layers.AlphaDropout,
        layers.GaussianNoise,
    )
    output = SAME_AS_INPUT
    cases = (Case(lambda: layers.Dropout(0.5), (6,)),)

    @classmethod
    def call(cls, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(values=layer(x.values, training=training))

    @classmethod
    def lower(cls, node: Any, builder: Any) -> None:
        node.alias(node.input)


@register_op
class Identity(Op):
    """Nothing at all: traced away."""

    keras_layers = (layers.Identity, layers.ActivityRegularization)
    operations = ("Identity",)
    activations = ("linear",)
    cases = (Case(lambda: lambda x: layers.Identity()(layers.Dense(3, "linear")(x)), (6,)),)

    @classmethod
    def trace(cls, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return keras.tree.flatten(args)[0]
