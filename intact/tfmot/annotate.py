"""Annotations: layers that are marked to be quantized, and the verbs that set and use them."""

from typing import Any

import keras

from intact import api
from intact.errors import IntactError, InvalidModelError
from intact.graph.canonicalize import canonicalize
from intact.graph.view import is_graph, view
from intact.layers.builder import build
from intact.layers.quantized_model import refuse_quantized
from intact.ops.base import Case, Op
from intact.ops.registry import register_op
from intact.plan.planner import make_plan
from intact.plan.scheme import FLOAT_RULE, Scheme
from intact.schemes import get_scheme
from intact.tfmot.config import QuantizeConfig, rule_of_config
from intact.tfmot.schemes import Preserving


@keras.saving.register_keras_serializable("intact.tfmot")
class QuantizeAnnotate(keras.layers.Layer):
    """A layer that is marked to be quantized; it computes what the layer inside computes.

    Args:
        layer: The layer, or a nested model.
        quantize_config: How it is quantized; None: as the scheme says.

    Example:

    >>> annotated = QuantizeAnnotate(keras.layers.Dense(2))
    >>> annotated(np.ones((1, 4), "float32")).shape[-1]
    2
    """

    def __init__(
        self, layer: Any, quantize_config: QuantizeConfig | None = None, **kwargs: Any
    ) -> None:
        shape = getattr(layer, "_input_shape_arg", None)
        if shape is not None:
            # The first layer of a Sequential model may declare the input.
            kwargs.setdefault("input_shape", shape)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.quantize_config = quantize_config
        self.supports_masking = layer.supports_masking

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer, and build it first: only it knows the names of its arguments."""
        if not self.layer.built:
            self.layer(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Do nothing, because a call of the layer inside builds it."""

    def call(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """What the layer inside returns."""
        # Keras looks for masks beside the first argument, so that it needs a name.
        first = () if inputs is None else (inputs,)
        return self.layer(*first, *args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask that the layer inside makes, or hands on."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """The layer and its `QuantizeConfig`, serialized."""
        config = super().get_config()
        for name in ("layer", "quantize_config"):
            config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeAnnotate":
        """An annotation of what `get_config` returned."""
        for name in ("layer", "quantize_config"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


@register_op
class Annotated(Op):
    """Replaced by the layer inside, under the rule of its annotation."""

    keras_layers = (QuantizeAnnotate,)
    masks = True
    cases = (Case(lambda: QuantizeAnnotate(keras.layers.Dense(3, activation="relu")), (6,)),)

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        """The layer inside."""
        config, masks = layer.quantize_config, tracer.masks
        with tracer.ruled(None if config is None else rule_of_config(config, layer.layer)):
            return tracer.trace(layer.layer, args, kwargs, masks)


def quantize_model(to_quantize: keras.Model) -> keras.Model:
    """Quantize a whole model with 8 bits: `intact.quantize_model`.

    Layers keep their names, without the toolkit's prefix "quant_".

    Args:
        to_quantize: A built model of any kind; layers in it may be annotated.

    Returns:
        A new model, with weights of its own that equal the given model's.

    Raises:
        InvalidModelError: It is no model, or is not built.
        UnsupportedLayerError: A layer has no integer form.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> quantize_model(model).output_shape
    (None, 2)
    """
    return api.quantize_model(to_quantize)


def quantize_annotate_layer(
    to_annotate: keras.layers.Layer, quantize_config: QuantizeConfig | None = None
) -> QuantizeAnnotate:
    """Mark a layer to be quantized by `quantize_apply`.

    Args:
        to_annotate: The layer, built or not.
        quantize_config: How it is quantized; None: as the scheme says.

    Returns:
        The layer in a `QuantizeAnnotate`, to be used in its place.

    Raises:
        IntactError: It is no layer, a model, or annotated already; or the config is none.

    Example:

    >>> layer = quantize_annotate_layer(keras.layers.Dense(2))
    >>> model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Flatten()])
    >>> [step.type for step in intact.explain(model).plan.steps]
    ['int8']
    """
    if not isinstance(to_annotate, keras.layers.Layer) or isinstance(to_annotate, keras.Model):
        raise IntactError(
            f"Expected a keras layer to annotate. Received: {to_annotate!r} of type "
            f"{type(to_annotate).__name__}. For a model there is `quantize_annotate_model`."
        )
    if isinstance(to_annotate, QuantizeAnnotate):
        raise IntactError(
            f"Layer {to_annotate.layer.name!r} is annotated already. To give it another config, "
            "annotate the layer inside (`annotated.layer`)."
        )
    if quantize_config is not None and not isinstance(quantize_config, QuantizeConfig):
        raise IntactError(
            "Expected `quantize_config` to be a `tfmot.quantization.keras.QuantizeConfig`. "
            f"Received: {quantize_config!r} of type {type(quantize_config).__name__}."
        )
    return QuantizeAnnotate(to_annotate, quantize_config)


def quantize_annotate_model(to_annotate: keras.Model) -> keras.Model:
    """Mark all layers of a model, but those that are marked already.

    Nested models are marked as a whole.

    Args:
        to_annotate: A Functional or Sequential model.

    Returns:
        A new model of the same layers, each in a `QuantizeAnnotate`.

    Raises:
        InvalidModelError: It is no model, or a subclassed one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> type(quantize_annotate_model(model).layers[0]).__name__
    'QuantizeAnnotate'
    """
    _check_model(to_annotate)

    def annotate(layer: Any) -> Any:
        own = isinstance(layer, QuantizeAnnotate) or not isinstance(layer, keras.layers.Layer)
        return layer if own else QuantizeAnnotate(layer)

    return keras.models.clone_model(to_annotate, clone_function=annotate)


def quantize_apply(model: keras.Model, scheme: str | Scheme = "int8") -> keras.Model:
    """Quantize the layers of a model that are annotated; the others stay in float.

    An operation between layers (`x + 1`) is quantized unless it reads a tensor that is not.

    Args:
        model: A built model with annotated layers, at any depth.
        scheme: How layers without a `QuantizeConfig` are quantized: the name of a preset, a
            `Scheme`, or one of the toolkit's, those of `tfmot.experimental.combine` included.

    Returns:
        A new model, with weights of its own that equal the given model's.

    Raises:
        InvalidModelError: It is no model, is not built, or no layer of it is annotated.
        UnsupportedLayerError: A layer has no integer form.

    Example:

    >>> dense = quantize_annotate_layer(keras.layers.Dense(4, name="dense"))
    >>> model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2, name="head")])
    >>> q = quantize_apply(model)
    >>> [layer.name for layer in q.layers if hasattr(layer, "quantized_weights")]
    ['dense']
    """
    refuse_quantized(model)
    operations = _between_annotated(model)
    canonical = canonicalize(model, lambda layer: None if layer in operations else FLOAT_RULE)
    inner = {
        part.name: part.layer.name for part in model.layers if isinstance(part, QuantizeAnnotate)
    }
    canonical.output_names = [inner.get(name, name) for name in canonical.output_names]
    scheme = get_scheme(scheme)
    # Inputs are quantized as the scheme says, whatever the config of their reader.
    rule = scheme.rules[-1]
    inputs = scheme.inputs or (rule.activations if rule.integer else None)
    plan = make_plan(canonical, Scheme(scheme.name, scheme.rules, inputs))
    if all(step.why_float or step.whole for step in plan.steps):
        raise InvalidModelError(
            f"No layer of model {model.name!r} is annotated, so there is nothing to quantize. Use "
            "`quantize_annotate_layer` for some of its layers, or `quantize_model` for all."
        )
    quantized = build(canonical, plan, float_model=model)
    for keep in scheme.keeps if isinstance(scheme, Preserving) else ():
        keep(quantized)
    return quantized


def _between_annotated(model: Any) -> set[Any]:
    """The operations of a model's graph that read nothing from layers without annotation."""
    between: set[Any] = set()
    bare: set[int] = set()
    for node in view(model).nodes if is_graph(model) else ():
        if isinstance(node.layer, keras.layers.Layer):
            reads_bare = not (node.is_input or isinstance(node.layer, QuantizeAnnotate))
        else:
            reads_bare = any(id(tensor) in bare for tensor in node.inputs)
        if reads_bare:
            bare.update(map(id, node.outputs))
        else:
            between.add(node.layer)
    return between


def quantize_scope(*args: dict[str, Any]) -> Any:
    """A scope in which models with a user's own classes are loaded.

    What intact brings is known without it, to `keras.models.load_model` also.

    Args:
        *args: Dicts of names and classes.

    Returns:
        The `keras.saving.custom_object_scope` of them all.

    Example:

    >>> class Mine(QuantizeConfig):
    ...     pass
    >>> with quantize_scope({"Mine": Mine}):
    ...     found = keras.saving.get_registered_object("Mine")
    >>> found is Mine
    True
    """
    return keras.saving.custom_object_scope({k: v for part in args for k, v in part.items()})


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise InvalidModelError(
            f"Expected a keras.Model. Received: {model!r} of type {type(model).__name__}. For "
            "a layer there is `quantize_annotate_layer`."
        )
    if not is_graph(model):
        raise InvalidModelError(
            f"Model {model.name!r} has no graph: it is subclassed, or not built. Pass a "
            "Functional or Sequential model, build it first, or quantize all of it with "
            "`quantize_model`, or parts with `intact.quantize_model(model, filters=...)`."
        )
