"""The base of layers that are a function of tensors with settings."""

import inspect
from typing import Any, ClassVar

import keras


class FunctionLayer(keras.layers.Layer):
    """Base of the layers without weights: a function of tensors, and its settings.

    A subclass annotates its settings, in the order of its arguments, and defines `call`. The
    settings become attributes, with tuples in the place of lists, and Keras saves them. The
    output has the layer's type and the input's shape, unless `output_dtype` and
    `compute_output_shape` say otherwise.

    Args:
        *settings: The settings, in order.
        **kwargs: The settings by name, and what any layer takes.

    Example:

    >>> class Power(FunctionLayer):
    ...     exponent: int = 2
    ...
    ...     def call(self, x):
    ...         return x**self.exponent
    >>> layer = Power(3, name="cube")
    >>> float(layer(np.array([2.0]))[0]), layer.get_config()["exponent"]
    (8.0, 3)
    """

    output_dtype: ClassVar[str] = ""
    _names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What is annotated as a `ClassVar` is no setting.
        own = inspect.get_annotations(cls).items()
        cls._names += tuple(name for name, kind in own if "ClassVar" not in str(kind))

    def __init__(self, *settings: Any, **kwargs: Any) -> None:
        values = dict(zip(self._names[: len(settings)], settings, strict=True))
        values |= {name: kwargs.pop(name) for name in self._names if name in kwargs}
        super().__init__(**kwargs)
        for name in self._names:
            value = values[name] if name in values else getattr(type(self), name)
            setattr(self, name, _frozen(value))
        self.built = True

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        shapes = keras.tree.map_structure(lambda tensor: tensor.shape, inputs)
        dtype = self.output_dtype or self.compute_dtype
        return keras.KerasTensor(self.compute_output_shape(shapes), dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in self._names}}


def _frozen(value: Any) -> Any:
    """A setting with tuples in the place of lists, which Keras would wrap."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
