"""Operations that are layers: convolutions with given kernels, and pooling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import layers, ops

from intact.numerics.tensors import is_symbolic, is_trainable, to_numpy
from intact.ops.base import Case, Op
from intact.ops.registry import register_op


class Form(NamedTuple):
    """How a function becomes a layer.

    Args:
        layer: The name of the layer's class, without its number of axes.
        attributes: Its settings from the operation.
        sizes: Its settings from the shapes of the kernels.
    """

    layer: str
    attributes: tuple[str, ...]
    sizes: Callable[..., dict[str, Any]] = dict


CONV = ("strides", "padding", "data_format", "dilation_rate")
POOL = ("pool_size", "strides", "padding", "data_format")

FORMS: dict[str, Form] = {
    "AveragePool": Form("AveragePooling", POOL),
    "Conv": Form("Conv", CONV, lambda k: {"filters": k[-1], "kernel_size": k[:-2]}),
    "ConvTranspose": Form(
        "Conv", (*CONV, "output_padding"), lambda k: {"filters": k[-2], "kernel_size": k[:-2]}
    ),
    "DepthwiseConv": Form(
        "DepthwiseConv", CONV, lambda k: {"depth_multiplier": k[-1], "kernel_size": k[:-2]}
    ),
    "MaxPool": Form("MaxPooling", POOL),
    "SeparableConv": Form(
        "SeparableConv",
        CONV,
        lambda k, p: {"depth_multiplier": k[-1], "filters": p[-1], "kernel_size": k[:-2]},
    ),
}
"""By the class name of an operation, the layer that computes the same."""

KERNEL = np.linspace(-0.5, 0.5, 54, dtype="float32").reshape(3, 3, 3, 2)


@register_op
class Functional(Op):
    """A layer whose weights, if it has any, are operands."""

    operations = tuple(FORMS)
    notes = "Kernels are weights or constants."
    cases = (
        Case(lambda: lambda x: ops.conv(x, KERNEL, 2, "same"), (5, 6, 3)),
        # In a functional model, Keras itself mixes up the arguments of this one.
        Case(lambda: layers.Lambda(lambda x: ops.conv_transpose(x, KERNEL, 2, "same")), (3, 4, 2)),
        Case(
            lambda: (
                lambda x: ops.separable_conv(x, KERNEL, np.eye(6, 2, dtype="float32")[None, None])
            ),
            (5, 6, 3),
        ),
        Case(lambda: lambda x: ops.max_pool(x, 2, 2) + ops.average_pool(x, 2, 2, "same"), (6, 2)),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        x, *kernels = (*args, *kwargs.values())
        if any(map(is_symbolic, kernels)) or not is_symbolic(x):
            tracer.refuse(layer, "its kernel must be a weight or a constant")
        form, kind = FORMS[type(layer).__name__], type(layer).__name__
        attributes = {name: getattr(layer, name) for name in form.attributes}
        rank, shape = len(x.shape) - 2, x.shape

        def make() -> layers.Layer:
            shapes = (tuple(kernel.shape) for kernel in kernels)
            settings = {**attributes, **form.sizes(*shapes)}
            if kernels:
                settings |= {"use_bias": False, "trainable": any(map(is_trainable, kernels))}
            suffix = "Transpose" if kind == "ConvTranspose" else ""
            keras_layer = getattr(layers, f"{form.layer}{rank}D{suffix}")(
                **settings, name=layer.name
            )
            keras_layer.build(shape)
            for weight, kernel in zip(keras_layer.variables, kernels, strict=True):
                weight.regularizer = getattr(kernel, "regularizer", None)
                weight.assign(to_numpy(kernel))
            return keras_layer

        key = (*kernels, kind, repr(sorted(attributes.items()))) if kernels else (layer, kind)
        return tracer.trace(tracer.once(key, make), (x,), {})
