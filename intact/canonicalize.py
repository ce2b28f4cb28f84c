"""Any Keras model to a flat functional model of known layers.

Nested models are inlined, composite and unknown layers traced into what they are made
of, inline activations split off, `keras.ops` and Python operators turned into layers.
The result has copies of the layers, so that the user's model stays as it is.
"""

from typing import Any

import keras
import numpy as np

from intact.errors import IntactError, InvalidModelError, UnsupportedLayerError
from intact.graph import deep_graphs, is_graph, structure, view
from intact.numerics import to_numpy
from intact.ops.base import find_op


def canonicalize(model: keras.Model) -> keras.Model:
    """Rewrite a model into a flat functional model of known layers.

    Args:
        model: A built Functional, Sequential or subclassed model.

    Returns:
        A functional model that computes the same; weights are copied, names kept.

    Raises:
        InvalidModelError: Not a model, not built, or weights that are not finite.
        UnsupportedLayerError: A layer or op that intact does not know.

    Example:

    >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu", name="a")])
    >>> flat = canonicalize(keras.Sequential([keras.Input((4,)), inner]))
    >>> [layer.name for layer in flat.layers][1:]
    ['a', 'a_relu']
    """
    if not isinstance(model, keras.Model):
        raise InvalidModelError(
            f"Expected a keras.Model. Received: {model!r} of type {type(model).__name__}."
        )
    inputs, outputs = _model_structure(model)
    tracer = Tracer()
    with deep_graphs(len(model.layers) + 1000):
        new_inputs = keras.tree.map_structure(tracer.new_input, inputs)
        new_outputs = tracer.trace_model(model, new_inputs, inputs, outputs)
        return keras.Model(new_inputs, new_outputs, name=model.name)


def _model_structure(model: keras.Model) -> tuple[Any, Any]:
    if is_graph(model):
        return structure(model)
    if not model.built:
        raise InvalidModelError(
            f"Model {model.name!r} is not built, so the shapes of its inputs are unknown. "
            "Call it on data once, or give its first layer a `keras.Input`."
        )
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) != 1:
        raise InvalidModelError(
            f"The input shapes of model {model.name!r} cannot be told from its build. "
            "Wrap it: `keras.Model(inputs, model(inputs))` with `keras.Input`s of yours."
        )
    (shape,) = shapes.values()
    inputs = keras.Input(batch_shape=(None, *tuple(shape)[1:]), name="input")
    return inputs, None


class Tracer:
    """Builds the canonical graph; ops' `trace` methods get it as an argument."""

    def __init__(self) -> None:
        self._copies: dict[int, keras.layers.Layer] = {}
        self._names: set[str] = set()
        self._path: list[str] = []
        # Layers made in passing must outlive the tracing, for their ids are keys.
        self._kept: list[Any] = []

    def new_input(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        """An input of the new model, like one of the old."""
        return keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=self.unique(tensor.name)
        )

    def unique(self, name: str) -> str:
        """A layer name that is not taken yet, like the one wished for."""
        name = name.replace("/", "_")
        candidate, n = name, 1
        while candidate in self._names:
            candidate, n = f"{name}_{n}", n + 1
        self._names.add(candidate)
        return candidate

    def where(self, layer: Any) -> str:
        """A layer's path, for errors."""
        return "/".join([*self._path, str(getattr(layer, "name", layer))])

    def trace_model(self, model: Any, args: Any, inputs: Any = None, outputs: Any = None) -> Any:
        """Inline a model that is called on tensors of the new graph."""
        if not is_graph(model):
            return self.trace_into(model, (args,), {})
        if inputs is None:
            inputs, outputs = structure(model)
        graph = view(model)
        tensors: dict[int, Any] = {}
        flat_args = keras.tree.flatten(args)
        for old, arg in zip(graph.inputs, flat_args, strict=True):
            tensors[id(old)] = arg

        def new(value: Any) -> Any:
            return tensors[id(value)] if isinstance(value, keras.KerasTensor) else value

        for node in graph.nodes:
            if node.is_input or any(id(t) not in tensors for t in node.inputs):
                continue
            node_args = keras.tree.map_structure(new, node.args)
            node_kwargs = keras.tree.map_structure(new, node.kwargs)
            result = self.trace(node.layer, node_args, node_kwargs)
            for old, out in zip(node.outputs, keras.tree.flatten(result), strict=True):
                tensors[id(old)] = out
        return keras.tree.map_structure(new, outputs)

    def trace(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        """Rewrite one call of a layer or operation."""
        kwargs = {
            k: v for k, v in kwargs.items() if k not in ("training", "mask") and v is not None
        }
        op = find_op(layer)
        if op is not None:
            return op.trace(layer, args, kwargs, self)
        if isinstance(layer, keras.Model):
            self._path.append(layer.name)
            outputs = self.trace_model(layer, args[0] if len(args) == 1 else args)
            self._path.pop()
            return outputs
        if isinstance(layer, keras.layers.Activation):
            self.refuse(layer, f"the activation {layer.activation!r} is unknown")
        if isinstance(layer, keras.layers.Layer):
            return self.trace_into(layer, args, kwargs)
        self.refuse(layer, "there is no integer form of this operation")

    def trace_into(self, layer: keras.layers.Layer, args: tuple, kwargs: dict) -> Any:
        """Rewrite a layer that nobody registered, by what its `call` does."""
        if type(layer).__module__.startswith("keras.src.layers"):
            self.refuse(layer, "there is no integer form of this layer")
        inputs = keras.tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype), args
        )
        try:
            outputs = layer.call(*inputs, **kwargs)
            inner = keras.Model(keras.tree.flatten(inputs), outputs)
        except IntactError:
            raise
        except Exception as error:
            self.refuse(layer, f"its `call` cannot be traced with symbolic tensors ({error})")
        used = {id(v) for sub in inner.layers for v in sub.variables}
        loose = [v.path for v in layer.variables if id(v) not in used]
        if loose:
            self.refuse(layer, f"its weights {', '.join(loose)} are not those of a Keras layer")
        self._kept.append(inner)
        self._path.append(layer.name)
        outputs = self.trace_model(inner, keras.tree.flatten(args))
        self._path.pop()
        return outputs

    def refuse(self, layer: Any, reason: str) -> None:
        """Raise the error for a layer that cannot be handled."""
        raise UnsupportedLayerError(
            f"{type(layer).__name__} {self.where(layer)!r} is not supported: {reason}. "
            "Replace it by supported layers (see the list in README.md), or register an op of "
            "your own with `intact.register_op`."
        )

    def emit(self, layer: keras.layers.Layer, inputs: Any, **overrides: Any) -> Any:
        """Call a copy of a layer in the new graph; an inline activation becomes its own.

        Args:
            layer: The user's layer, or one that a `trace` has just made.
            inputs: Tensors of the new graph.
            **overrides: Changes to the layer's config.

        Returns:
            The output tensor.
        """
        config = {**layer.get_config(), **overrides}
        activation = None
        if not isinstance(layer, keras.layers.Activation) and "activation" in config:
            activation = layer.activation
            config["activation"] = "linear"
        if id(layer) not in self._copies:
            self._check_finite(layer)
            config["name"] = self.unique(config["name"])
            copy = type(layer).from_config(config)
            outputs = copy(inputs)
            if layer.built:
                for new, old in zip(copy.variables, layer.variables, strict=True):
                    # By value: backends may give away the memory of a model that trains.
                    new.assign(to_numpy(old))
            self._copies[id(layer)] = copy
            self._kept.append(layer)
        else:
            outputs = self._copies[id(layer)](inputs)
        return self.activation(activation, outputs, layer)

    def activation(self, function: Any, x: Any, layer: keras.layers.Layer) -> Any:
        """Apply an activation function that stood inside a layer.

        Args:
            function: The function, an activation layer, or None.
            x: A tensor of the new graph.
            layer: The layer that it stood in, for names.

        Returns:
            The output tensor.
        """
        if function is None or function is keras.activations.linear:
            return x
        if isinstance(function, keras.layers.Layer):
            return self.trace(function, (x,), {})
        name = getattr(function, "__name__", type(function).__name__)
        made = keras.layers.Activation(function, name=f"{layer.name}_{name}")
        return self.trace(made, (x,), {})

    def _check_finite(self, layer: keras.layers.Layer) -> None:
        for variable in layer.variables:
            value = to_numpy(variable.value)
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                bad = int((~np.isfinite(value)).sum())
                raise InvalidModelError(
                    f"Weight {variable.path!r} of {type(layer).__name__} {self.where(layer)!r} "
                    f"has {bad} of {value.size} values that are NaN or infinite. "
                    "Retrain the model, or repair the weight before quantizing."
                )
