"""Any Keras model to a flat functional model of known layers.

Nested models are inlined, composite and unknown layers traced into what they are made
of, inline activations split off, `keras.ops` and Python operators turned into layers.
The result has copies of the layers, so that the user's model stays as it is.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras

from intact.errors import InvalidModelError, UnsupportedLayerError
from intact.graph.displaced import Displaced, joined
from intact.graph.empty import is_empty
from intact.graph.ruling import RuleOf
from intact.graph.tracer import Tracer
from intact.graph.view import (
    all_layers,
    deep_graphs,
    has_graph,
    in_float32,
    input_structure,
    is_graph,
    is_named,
    made_by,
)


def canonicalize(
    model: keras.Model, rule_of: RuleOf | None = None, loops: bool = True
) -> keras.Model:
    """Rewrite a model into a flat functional model of known layers.

    Args:
        model: A built Functional, Sequential or subclassed model.
        rule_of: Returns the rule for a user's layer that an op handles as a whole, or for an
            operation between layers; it receives the custom layer for anything inside its `call`.
            All layers that a layer becomes have its rule, as `own_rule`.
        loops: Whether equal steps of a recurrent layer become one layer that repeats a step.

    Returns:
        A functional model that computes the same; weights are copied, names kept. Its
        `output_names` are those of the model, its `not_kept` names the layers whose losses
        it does not have, and its `named` those that the user has given a name.

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
    return trace_whole(model, lambda shared: Tracer(rule_of, shared if loops else None))


def trace_whole(model: keras.Model, make_tracer: Callable[[set[int]], Tracer]) -> keras.Model:
    """Rewrite a whole model by a tracer.

    Args:
        model: A built model.
        make_tracer: Makes the tracer, of the ids of cells whose steps are to be written out.

    Returns:
        The new model.
    """
    _refuse_foreign(model)
    inputs = _input_structure(model)
    with deep_graphs(len(model.layers) + 1000), in_float32():
        tracer, new_inputs, outputs = _trace(model, inputs, make_tracer, set())
        if tracer.looped_twice:
            shared = tracer.looped_twice
            tracer, new_inputs, outputs = _trace(model, inputs, make_tracer, shared)
        flat_outputs = enumerate(keras.tree.flatten(outputs))
        parts = [_first(tracer, _output(model, i), part) for i, part in flat_outputs]
        outputs = keras.tree.pack_sequence_as(outputs, parts)
        flat = keras.Model(new_inputs, outputs, name=model.name)
        flat.output_names = tracer.output_names.get(id(model), flat.output_names)
        flat.named = {layer.name for layer in all_layers(model) if is_named(layer)}
        flat.not_trained = sorted(set(tracer.not_trained))
        flat.not_kept = sorted({*tracer.not_kept, *_lost_regularizers(model, flat)})
        return flat


def _output(model: keras.Model, index: int) -> str:
    """The name of a model's output, for errors."""
    name = f"output {index} of model {model.name!r}"
    if not is_graph(model):
        return name
    return f"{name}, which {made_by(model.outputs[index]).layer.name!r} computes,"


def _first(tracer: Tracer, name: str, tensor: Any) -> Any:
    """An output of a model, which must have the batch as its first axis."""
    if isinstance(tensor, Displaced) and tensor.tensor.shape[0] != 1:
        raise UnsupportedLayerError(
            f"The batch must stay the first axis: {name} has it as axis {tensor.axis}. Transpose "
            "it to the front."
        )
    if is_empty(tensor):
        raise UnsupportedLayerError(
            f"A model's output must have values: {name} selects nothing, and has shape "
            f"{tensor.shape}. Leave it out."
        )
    return joined(tracer, tensor)


def _trace(
    model: keras.Model, inputs: Any, make_tracer: Callable[[set[int]], Tracer], shared: set[int]
) -> tuple[Tracer, Any, Any]:
    """The tracer of a model, and the new inputs and outputs."""
    tracer = make_tracer(shared)
    new_inputs = keras.tree.map_structure(tracer.new_input, inputs)
    outputs = tracer.trace_model(model, (new_inputs,), {})
    if tracer.integer_inputs:
        # The input of an embedding: its type is not known of a subclassed model.
        wanted, tracer = tracer.integer_inputs, make_tracer(shared)
        new_inputs = keras.tree.map_structure(
            lambda t: tracer.new_input(t, "int32" if t.name in wanted else None), inputs
        )
        outputs = tracer.trace_model(model, (new_inputs,), {})
    return tracer, new_inputs, outputs


def _lost_regularizers(model: keras.Model, flat: keras.Model) -> set[str]:
    """The names of layers whose weights are regularized, and have no counterpart that is."""
    kept = Counter(_key_of(variable.regularizer) for variable in flat.variables)
    lost = set()
    for layer in all_layers(model):
        for variable in layer._trainable_variables:
            key = _key_of(variable.regularizer)
            if variable.regularizer is not None and not kept[key]:
                lost.add(layer.name)
            kept[key] -= 1
    return lost


def _key_of(regularizer: Any) -> Any:
    """What identifies a regularizer: its settings, or the object itself if it has none."""
    try:
        return type(regularizer), repr(sorted(regularizer.get_config().items()))
    except (AttributeError, NotImplementedError):
        return id(regularizer)


def _refuse_foreign(model: keras.Model) -> None:
    """Refuse what Keras' own `quantize` has made of a model: the float weights are gone."""
    for layer in all_layers(model):
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise InvalidModelError(
                f"{type(layer).__name__} {layer.name!r} was quantized by Keras' own "
                f"`quantize({mode!r})`: its float weights are gone, and what is left would be "
                "rounded twice. Load the float model again, and call `intact.quantize_model` on it."
            )


def _input_structure(model: keras.Model) -> Any:
    """Symbolic inputs that a model can be called with."""
    if has_graph(model):
        return input_structure(model)
    if not model.built:
        raise InvalidModelError(
            f"Model {model.name!r} is not built, so the shapes of its inputs are unknown. "
            "Call it on data once, or give its first layer a `keras.Input`."
        )
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) != 1 or _arguments(model) > 1:
        # Keras remembers only the shape of the first argument.
        raise InvalidModelError(
            f"Cannot tell the input shapes of model {model.name!r} from its build. "
            "Wrap it: `keras.Model(inputs, model(*inputs))` with `keras.Input`s of yours."
        )
    (shape,) = shapes.values()
    return _inputs_of(shape, "input")


def _arguments(model: keras.Model) -> int:
    """The number of tensors that a model's `call` requires."""
    parameters = inspect.signature(model.call).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _inputs_of(shape: Any, name: str) -> Any:
    """Inputs of the shapes that a model was built with, nested as they were."""
    if isinstance(shape, dict):
        return {key: _inputs_of(part, key) for key, part in shape.items()}
    if isinstance(shape, list | tuple) and shape and isinstance(shape[0], list | tuple):
        return [_inputs_of(part, f"{name}_{i}") for i, part in enumerate(shape)]
    return keras.Input(batch_shape=(None, *tuple(shape)[1:]), name=name)
