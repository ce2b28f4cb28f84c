"""A layer whose integer weights and bias are constants."""

from typing import Any

import keras
import numpy as np

from intact.layers.quantized import Quantized
from intact.numerics.accumulator import Accumulator, exact_sums
from intact.numerics.backend_kernels import exact_convolution
from intact.numerics.light_ops import ops
from intact.ops.registry import get_op, known_config


@keras.saving.register_keras_serializable("intact")
class Frozen(Quantized):
    """A layer with the integers of the file: what `intact.freeze` puts in place of another.

    Args:
        layer: The Keras layer; its own weights are not used.
        stored: The type that the file stores the weights in.
        shapes: The shapes of the kernel, of its scale and of the bias.
        input_shapes: The shapes of the layer's inputs.
        wide: Whether its inputs have 16 bits.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        stored: str,
        shapes: Any,
        input_shapes: Any = None,
        wide: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs["trainable"] = False
        keras.layers.Layer.__init__(self, autocast=False, **kwargs)
        # In a tuple, for Keras would track the layer and its weights.
        self._held = (layer,)
        self.spec = self.schedule = self.clock = self.norm = None
        self.stored = stored
        self.wide = wide
        self.own_shapes = [tuple(shape) for shape in shapes]
        self.shapes = [tuple(shape) for shape in input_shapes]

        def weight(name: str, shape: Any, dtype: str = "float32") -> Any:
            return self.add_weight(
                name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False
            )

        kernel, scale, zero_point, bias = self.own_shapes
        self.kernel = weight("kernel", kernel, "int16" if stored == "uint8" else "int8")
        self.kernel_scale = weight("kernel_scale", scale)
        self.kernel_zero_point = weight("kernel_zero_point", zero_point)
        self.bias = weight("bias", bias)
        self.built = True

    @classmethod
    def of(cls, written: Any, input_shapes: Any, name: str) -> "Frozen":
        """The layer that computes what was written.

        Args:
            written: The `LoweringNode`, after it was written.
            input_shapes: The shapes of the layer's inputs.
            name: Its name.
        """
        kernel, sums = written.weights["kernel"], written.sums
        values = [kernel.values, sums.weight_scale, np.asarray(kernel.zero_point), sums.bias]
        layer = type(written.layer).from_config(known_config(written.layer))
        shapes = [np.shape(v) for v in values]
        wide = written.input.dtype == "int16"
        frozen = cls(layer, kernel.dtype, shapes, input_shapes, wide, name=name)
        variables = (frozen.kernel, frozen.kernel_scale, frozen.kernel_zero_point, frozen.bias)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return frozen

    @property
    def layer(self) -> keras.layers.Layer:
        """The Keras layer, for its settings."""
        return self._held[0]

    def sums(self, values: Any, input_scale: Any, xp: Any = ops) -> Accumulator:
        """Sums with the bias and scales of the file.

        Args:
            values: The sums.
            input_scale: Scale of the input.
            xp: `keras.ops`, or `intact.numerics.numpy_ops.numpy_ops`.
        """
        bias, scale = (xp.convert_to_tensor(v) for v in (self.bias, self.kernel_scale))
        return Accumulator(values, bias, input_scale, scale)

    def call(
        self,
        inputs: Any,
        folds: bool = False,
        again: bool = False,
        training: bool | None = None,
    ) -> Any:
        op: Any = get_op(self.layer)
        x, kernel = self._operand(inputs, False), ops.cast(self.kernel, "float32")
        if not op.weights:
            return self.sums(x.values * kernel, x.scale)._replace(whole=x.whole)
        with exact_convolution():
            values, high, low = exact_sums(lambda v: op.products(self.layer, v, kernel), x)
        return self.sums(values, x.scale)._replace(whole=x.whole, high=high, low=low)

    def get_config(self) -> dict[str, Any]:
        return {
            **keras.layers.Layer.get_config(self),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "stored": self.stored,
            "shapes": [list(shape) for shape in self.own_shapes],
            "input_shapes": [list(shape) for shape in self.shapes],
            "wide": self.wide,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Frozen":
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)
