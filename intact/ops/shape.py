"""Ops that move values without changing them."""

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from intact.litert.builder import is_row
from intact.numerics.affine import QTensor
from intact.numerics.tensors import Tensor
from intact.ops.base import ALL_SAME, ANY_WHOLE, FIXED_BATCH, INTEGERS, SAME_AS_INPUT, Case, Op
from intact.ops.moves import RESHAPES, reshape
from intact.ops.registry import register_op


class Moving(Op):
    """Base of the ops whose Keras layer works on whole numbers, too."""

    dtypes = INTEGERS
    whole = ANY_WHOLE
    output = SAME_AS_INPUT


def reshaped(tracer: Any, layer: Any, x: Any, sizes: Iterable[int | None]) -> Any:
    """A tensor in another shape; one size may be unknown, or as many as of the tensor.

    Args:
        tracer: Makes the new graph.
        layer: The layer or operation that reshapes, for names and errors.
        x: A tensor of the new graph.
        sizes: The new sizes, without the batch.

    Returns:
        The output tensor.
    """
    sizes = tuple(sizes)
    if sizes.count(None) > 1:
        if sizes.count(None) != x.shape[1:].count(None):
            tracer.refuse(layer, f"too many sizes of shape {x.shape} are unknown")
        return reshape(x, sizes, layer.name, tracer)
    target = tuple(-1 if n is None else n for n in sizes)
    return tracer.emit_new(layers.Reshape(target, name=layer.name), x)


def of_one_rank(tensors: list[Any], layer: Any, tracer: Any) -> list[Any]:
    """The inputs of a merging layer, with axes of size 1 behind the batch where one has fewer.

    Args:
        tensors: Tensors of the new graph.
        layer: The layer that merges them, for names and errors.
        tracer: Makes the new graph.
    """
    rank = max(len(x.shape) for x in tensors)
    return [
        x
        if len(x.shape) == rank
        else reshaped(tracer, layer, x, (*(1,) * (rank - len(x.shape)), *x.shape[1:]))
        for x in tensors
    ]


@register_op
class Reshape(Moving):
    """A new shape for the same values."""

    keras_layers = RESHAPES
    operations = ("Reshape", "ExpandDims", "Squeeze")
    litert = ("RESHAPE",)
    notes = "Beside the batch, one size of the output may be unknown."
    cases = (
        Case(lambda: layers.Reshape((6, -1)), (4, 6)),
        Case(lambda: layers.Flatten(), (3, 4, 2)),
        Case(lambda: lambda x: ops.reshape(x, (-1, 2, 12)), (4, 6)),
        Case(lambda: lambda x: ops.expand_dims(ops.expand_dims(x, -1), (1, -2)), (4, 3)),
        Case(lambda: lambda x: layers.Dense(3)(ops.squeeze(x, axis=-2)), (4, 1, 3)),
        Case(lambda: lambda x: ops.squeeze(x), (1, 4, 1)),
        Case(lambda: layers.Reshape((-1, 2, 3)), (None, 6)),
        Case(lambda: layers.Reshape((-1, 2)), (None, None, 6)),
        # Windows join the batch, and leave it again.
        Case(
            lambda: (
                lambda x: ops.reshape(layers.Dense(4)(ops.reshape(x, (-1, 2, 3))), (-1, 3, 2, 4))
            ),
            (6, 3),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x = args[0]
        if isinstance(layer, layers.Layer):
            return tracer.emit(layer, x)
        batch, *sizes = layer.compute_output_spec(x).shape
        if None in x.shape[1:]:
            if type(layer).__name__ == "Reshape":
                tracer.refuse(
                    layer,
                    f"sizes of its input are unknown, received shape {x.shape}, and so it may join "
                    "samples; use `keras.layers.Reshape`, which keeps the batch",
                )
            return reshaped(tracer, layer, x, sizes)
        before, after = (math.prod(n or 1 for n in shape) for shape in (x.shape[1:], sizes))
        if batch == x.shape[0] and (None in sizes or before == after):
            return reshaped(tracer, layer, x, sizes)
        if None in sizes or (batch is not None and x.shape[0] is None) or after == 0:
            tracer.refuse(
                layer,
                "the batch axis must stay the first, and values of several samples would mix; "
                "build the model for one sample (`batch_size=1` of `keras.Input`) if that is meant",
            )
        if before % after and after % before:
            tracer.refuse(layer, f"a sample has {before} values and a row of its output {after}")
        # Other axes join the batch, or leave it.
        return reshape(x, tuple(sizes), layer.name, tracer)

    def refuse(self, layer: Any, shapes: list) -> str | None:
        after = layer.compute_output_shape(shapes[0])
        rows = is_row(shapes[0], after) or is_row(after, shapes[0])
        if after[1:].count(None) > 1 and not rows:
            return f"one size of its output may be unknown beside the batch, not {after}"
        return None

    def lower(self, node: Any, builder: Any) -> None:
        builder.reshape(node.input, node.output.shape, node.output)


@register_op
class Permute(Moving):
    """Axes in another order."""

    keras_layers = (layers.Permute,)
    operations = ("Transpose", "Swapaxes", "Moveaxis")
    litert = ("TRANSPOSE",)
    cases = (
        Case(lambda: layers.Permute((3, 1, 2)), (3, 4, 2)),
        Case(lambda: lambda x: ops.transpose(x, (0, 2, 1)), (3, 4)),
        Case(lambda: lambda x: ops.swapaxes(x, 1, -1), (3, 4, 2)),
        Case(lambda: lambda x: ops.moveaxis(x, -1, 1), (3, 4, 2, 2)),
        # Pixels from channels.
        Case(
            lambda: (
                lambda x: ops.reshape(
                    ops.transpose(ops.reshape(x, (-1, 3, 4, 2, 2, 5)), (0, 1, 3, 2, 4, 5)),
                    (-1, 6, 8, 5),
                )
            ),
            (3, 4, 20),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x = args[0]
        if isinstance(layer, layers.Permute):
            return tracer.emit(layer, x)
        # The sizes 0, 1, 2, ... come out in the order of the axes.
        order = layer.compute_output_spec(keras.KerasTensor(range(len(x.shape)))).shape
        if order[0] != 0:
            tracer.refuse(layer, f"the batch axis must stay the first, received order {order}")
        return tracer.emit_new(layers.Permute(order[1:], name=layer.name), x)

    def lower(self, node: Any, builder: Any) -> None:
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

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return tracer.emit(layer, args[0]) if np.any(layer.padding) else args[0]

    def lower(self, node: Any, builder: Any) -> None:
        pads = np.array([(0, 0), *node.layer.padding, (0, 0)], "int32")
        builder.add("PAD", [node.input, builder.constant(pads)], [node.output])


@register_op
class Concatenate(Op):
    """Tensors side by side; all share one range."""

    dtypes = INTEGERS
    whole = ANY_WHOLE
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
        Case(lambda: lambda a: layers.Concatenate()([a, layers.ReLU(1e-3)(a)]), (5, 20)),
        Case(lambda: lambda a: ops.concatenate([layers.Concatenate()([a * 2.0])]), (5,)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        tensors = args[0]
        if len(tensors) == 1:
            return tensors[0]
        if isinstance(layer, layers.Concatenate):
            return tracer.emit(layer, tensors)
        return tracer.emit_new(layers.Concatenate(axis=layer.axis, name=layer.name), tensors)

    def before_move(self, layer: Any, move: Any) -> Any:
        if not isinstance(move.layer, layers.Permute):
            return None
        axis = layer.axis % len(move.outputs[0].shape)
        return layers.Concatenate(axis=move.layer.dims[axis - 1], name=layer.name)

    def refuse(self, layer: Any, shapes: list) -> str | None:
        if layer.axis == 0:
            return f"the batch axis cannot be concatenated; {FIXED_BATCH}"
        return None

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        # In inference all scales are one and the same, and the ratios are 1.
        # While ranges move, the inputs of a step may differ a little.
        last = inputs[-1]
        values = [x.values * (x.scale / last.scale) for x in inputs]
        return last._replace(values=ops.concatenate(values, axis=layer.axis))

    def lower(self, node: Any, builder: Any) -> None:
        rank = len(node.output.shape)
        options = {"axis": node.layer.axis % rank, "fusedActivationFunction": "NONE"}
        builder.add("CONCATENATION", node.inputs, [node.output], options)


@register_op
class Stack(Op):
    """Tensors side by side along a new axis."""

    operations = ("Stack",)
    litert = ("RESHAPE", "CONCATENATION")
    cases = (
        Case(lambda: lambda a, b: ops.stack([a, b], axis=1), [(3, 4), (3, 4)]),
        Case(lambda: lambda a, b, c: ops.stack([a, b, c], axis=-1), [(5,), (5,), (5,)]),
        Case(lambda: lambda a: ops.stack([a], axis=1), (3, 4)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        tensors = args[0]
        axis = layer.axis % (len(tensors[0].shape) + 1)
        if axis == 0:
            tracer.refuse(layer, "the new axis would come before the batch")
        sizes = list(tensors[0].shape[1:])
        sizes.insert(axis - 1, 1)
        parts = [reshaped(tracer, layer, x, sizes) for x in tensors]
        if len(parts) == 1:
            return parts[0]
        return tracer.emit_new(layers.Concatenate(axis=axis, name=layer.name), parts)


@register_op
class Dropout(Op):
    """Active in training only; nothing in inference and in the file."""

    dtypes = INTEGERS
    keras_layers = (
        layers.Dropout,
        layers.SpatialDropout2D,
        layers.SpatialDropout3D,
        layers.GaussianDropout,
        layers.AlphaDropout,
        layers.GaussianNoise,
    )
    output = SAME_AS_INPUT
    cases = (Case(lambda: layers.Dropout(0.5), (6,)),)

    def before_move(self, layer: Any, move: Any) -> Any:
        # Whole channels are dropped if there is a noise shape, or "Spatial" in the name.
        shared = type(layer).__name__.startswith("Spatial") or getattr(layer, "noise_shape", None)
        return None if shared else layer

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        return x._replace(values=layer(x.values, training=training))

    def lower(self, node: Any, builder: Any) -> None:
        node.alias(node.input)


AUGMENTATIONS = tuple(
    getattr(layers, name)
    for name in dir(layers)
    if (name.startswith("Random") and name != "RandomCrop")
    or name in ("AugMix", "CutMix", "MixUp", "RandAugment", "Solarization")
)
"""Layers that change images in training, but not their sizes."""


@register_op
class Augmentation(Op):
    """Active in training only, on real values; nothing in inference and in the file."""

    dtypes = INTEGERS
    keras_layers = AUGMENTATIONS
    output = SAME_AS_INPUT
    cases = (Case(lambda: layers.RandomFlip(), (4, 4, 3)),)

    def call(self, layer: Any, inputs: list[QTensor], weights: dict, training: bool) -> Any:
        (x,) = inputs
        if not training:
            return x
        return x._replace(values=layer(x.values * x.scale, training=True) / x.scale)

    def lower(self, node: Any, builder: Any) -> None:
        node.alias(node.input)


@register_op
class Identity(Op):
    """Does nothing: traced away."""

    keras_layers = (layers.Identity, layers.ActivityRegularization)
    operations = ("Identity", "ConvertToTensor")
    activations = ("linear",)
    cases = (Case(lambda: lambda x: layers.Identity()(layers.Dense(3, "linear")(x)), (6,)),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        return keras.tree.flatten(args)[0]


@register_op
class Masking(Op):
    """Passes its input on, or writes zeros where its mask, a comparison, says so."""

    keras_layers = (layers.Masking,)
    notes = "Those who read the mask say whether they can."
    cases = (
        Case(lambda: lambda x: layers.Masking()(x) * 2.0, (3, 4)),
        Case(lambda: lambda x: layers.Masking(-1.0)(ops.maximum(x, -1.0)) * 2.0, (3, 1), low=-2.0),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        if layer.mask_value == 0:
            return x

        def zeroed(x: Tensor) -> Tensor:
            seen = ops.any(ops.not_equal(x, layer.mask_value), axis=-1, keepdims=True)
            return ops.where(seen, x, 0.0)

        return tracer.expand(layer, zeroed, x)
