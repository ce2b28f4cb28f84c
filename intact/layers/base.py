"""The base of a quantized model's layers, and the layer that returns to real values."""

import functools
import warnings
from typing import Any, Literal, NoReturn

import keras

from intact.errors import FusedLayerWarning, IntactError
from intact.graph.view import Functional, Node, first_call, keras_counts_outputs, readers
from intact.numerics.affine import QTensor
from intact.numerics.light_ops import ops
from intact.numerics.tensors import Tensor

Gives = Literal["integers", "sums", "real"]
"""What a call returns: a `QTensor`, what its quantizer rounds, or real values and indices."""


class QuantizedLayer(keras.layers.Layer):
    """Base of the layers that a quantized model is made of."""

    def unrounded(self, *args: Any, **kwargs: Any) -> Any:
        """The result of a call without any rounding; it takes the same arguments."""
        return self(*args, **kwargs)

    @property
    def gives(self) -> Gives:
        """What a call returns."""
        return "real"

    @property
    def label(self) -> str:
        """What it is, for people: the user's layer, and what it computes with."""
        return type(self).__name__

    @property
    def output(self) -> Any:
        """The real values that the layer's kernel computes, of its first call.

        `keras.Model(q.inputs, q.get_layer(name).output)` is a part of a quantized model, and a
        quantized model itself. A batch norm and a ReLU that are part of the layer's kernel are
        in its output.

        Warns:
            FusedLayerWarning: Layers behind this one are part of its kernel.
        """
        return super().output if keras_counts_outputs() else real_output(first_call(self))

    def quantize(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse Keras' own quantization.

        Raises:
            IntactError: Always.
        """
        raise IntactError(
            f"Layer {self.name!r} is quantized by intact already, and Keras' `quantize` would "
            "round it a second time, in another way. Use the model as it is; for other bits, call "
            "`intact.quantize_model` on the float model with another scheme."
        )


@functools.cache
def class_for(kind: type[QuantizedLayer], layer: str) -> type[QuantizedLayer]:
    """The class of the quantized layers that hold a user's layer of some class.

    Its name says what it holds: `keras.utils.plot_model`, a layer's `repr` and Keras' errors
    show nothing else. The name has no types in it, because files of weights have it in their
    paths. Configs have the name of `kind`, so that a model loads before any such class is made.

    Args:
        kind: The registered class.
        layer: The name of the class of the user's layer.

    Returns:
        A subclass of `kind`, the same one for the same arguments.

    Example:

    >>> class_for(Dequantize, "Conv2D").__name__
    'DequantizeConv2D'
    """
    body = {"__module__": kind.__module__, "registered": kind}
    named = type(f"{kind.__name__}{layer}", (kind,), body)
    register = keras.saving.register_keras_serializable("intact", kind.__name__)
    register(named)
    register(kind)  # It is again what the name stands for.
    return named


@keras.saving.register_keras_serializable("intact")
class StepModel(Functional):
    """The model of a loop's step, whose layers are those of the model around it."""


def is_own_model(layer: Any) -> bool:
    """Whether a layer is a model, and not one that intact has made for a loop."""
    return isinstance(layer, keras.Model) and not isinstance(layer, StepModel)


@keras.saving.register_keras_serializable("intact")
class Dequantize(QuantizedLayer):
    """Integer values to real ones: `values * scale`.

    Example:

    >>> import numpy as np
    >>> scale, zero_point, whole = np.float32(0.5), np.float32(0.0), np.array(True)
    >>> x = QTensor(np.array([[3.0]], "float32"), scale, zero_point, whole)
    >>> float(Dequantize()(x)[0, 0])
    1.5
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.built = True

    def call(self, inputs: Any) -> Tensor:
        """Real values of a `QTensor`."""
        x = QTensor(*inputs)
        return x.values * x.scale

    def compute_output_spec(self, inputs: Any) -> Any:
        """The symbolic form of the real values."""
        return keras.KerasTensor(inputs[0].shape, "float32")


@keras.saving.register_keras_serializable("intact")
class Together(keras.regularizers.Regularizer):
    """The sum of several regularizers.

    Args:
        parts: The regularizers.

    Example:

    >>> both = Together([keras.regularizers.L1(1.0), keras.regularizers.L1(2.0)])
    >>> float(both(ops.ones(1)))
    3.0
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = [keras.regularizers.get(part) for part in parts]

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of their losses.

        Args:
            x: What is regularized.
        """
        return sum(part(x) for part in self.parts)

    def get_config(self) -> dict[str, Any]:
        """The regularizers."""
        return {"parts": [keras.saving.serialize_keras_object(part) for part in self.parts]}


def activity_loss(regularizer: Any, real: Tensor) -> Tensor:
    """The loss that a regularizer of a layer's output adds, as Keras has it: per sample.

    Args:
        regularizer: What the user's layer has as `activity_regularizer`.
        real: The real values of the output.
    """
    loss = regularizer(real)
    return ops.divide_no_nan(loss, ops.cast(ops.shape(real)[0], loss.dtype))


def real_output(node: Node) -> keras.KerasTensor:
    """The real values that a call of a quantized layer computes.

    Args:
        node: The call.

    Returns:
        A tensor of the same graph.

    Warns:
        FusedLayerWarning: Other layers are part of the same kernel.
    """
    layer, others = node.layer, []
    while node.layer.gives == "sums":
        node = readers(node.outputs[0])[0]
        # A range of one tensor is named after the last layer of its kernel.
        if node.kwargs.get("folds") or getattr(node.layer, "slots", 0) == 1:
            others.append(getattr(node.layer, "range_name", node.layer.name))
    # An activation inside the layer has the layer's name before its own.
    others = [name for name in others if not name.startswith(layer.name)]
    if others:
        warnings.warn(
            f"The output of layer {layer.name!r} is that of {others[-1]!r}, because on the device "
            "they are one kernel, which rounds once, at its end.",
            FusedLayerWarning,
            stacklevel=3,
        )
    if node.layer.gives == "real":
        return node.outputs[0]
    for reader in readers(node.outputs[0]):
        if isinstance(reader.layer, Dequantize):
            return reader.outputs[0]
    slot = node.kwargs.get("slot", 0)
    name = getattr(node.layer, "range_name", node.layer.name) + (f"_{slot}" if slot else "")
    return Dequantize(name=f"{name}_dequantize")(node.outputs)
