"""The class of a quantized model, which keeps names and class of the float model."""

import contextlib
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn

import keras

from intact.errors import ExportError, IntactError, NotKeptWarning
from intact.graph.view import Functional, all_layers, is_graph
from intact.layers.base import QuantizedLayer, is_own_model
from intact.layers.direct_calls import can_call_directly, run_directly
from intact.layers.outline import outline
from intact.layers.sharing import SharedWeight, find_shared_weights, share_gradients
from intact.numerics.forward import forward_only

TRAINING = (
    "compile",
    "compute_loss",
    "compute_metrics",
    "evaluate",
    "fit",
    "metrics",
    "predict",
    "predict_step",
    "test_step",
    "train_step",
)
"""The methods with which a class changes how its models train and predict."""


@dataclass(frozen=True)
class Origin:
    """What a quantized model keeps from the float model.

    Args:
        names: The names of its outputs, in the order in which Keras flattens them.
        base: Its class, if the user wrote it and it can be called with a graph.
        settings: What the constructor of `base` takes beside the graph.
        shared: Its weights that several layers have a copy of.
    """

    names: tuple[str, ...] = ()
    base: type[keras.Model] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    shared: tuple[SharedWeight, ...] = ()


@keras.saving.register_keras_serializable("intact")
class QuantizedModel(Functional):
    """A functional model with the float model's output names, and its class if possible.

    A quantized model is an instance of a subclass that `model_class` makes. What it keeps stands
    in that subclass, because Keras' `clone_model` reads nothing but a model's class and graph.

    Example:

    >>> inputs = keras.Input((4,))
    >>> model = model_class(Origin(("scores",)))(inputs, keras.layers.Dense(2)(inputs))
    >>> model.output_names
    ['scores']
    """

    _origin: ClassVar[Origin] = Origin()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= dict(zip(("inputs", "outputs", "name"), args, strict=False))
        super().__init__(**_accepted(self._origin.base, {**kwargs, **self._origin.settings}))
        if kwargs.get("name"):
            self.name = kwargs["name"]
        if kwargs.get("trainable") is not None:
            self.trainable = kwargs["trainable"]
        if len(self._origin.names) == len(self.outputs):
            self.output_names = list(self._origin.names)
        share_gradients(self, self._origin.shared)

    def share_weights(self, float_model: keras.Model) -> tuple[SharedWeight, ...]:
        """Let the copies of a float model's weights train as one, also after loading.

        Args:
            float_model: The model that this one was made of.

        Returns:
            The weights that several layers have a copy of.
        """
        shared = tuple(find_shared_weights(self, float_model, linked=True))
        if shared:
            self.__class__ = model_class(replace(self._origin, shared=shared))
            share_gradients(self, shared)
        return shared

    @property
    def layers(self) -> list[Any]:
        """Its layers, and those of the steps of its loops."""
        result: list[Any] = []
        for layer in super().layers:
            # PyTorch's modules take long to say that they lack an attribute.
            inside = layer.step_layers if hasattr(type(layer), "step_layers") else ()
            result += (layer, *inside)
        return result

    @layers.setter
    def layers(self, _: Any) -> NoReturn:
        raise AttributeError("The layers of a quantized model are those of its graph.")

    def _run_through_graph(
        self, inputs: Any, operation_fn: Any = lambda layer: layer, **kwargs: Any
    ) -> Any:
        if not kwargs and can_call_directly(inputs):
            return run_directly(self, inputs, operation_fn)
        return super()._run_through_graph(inputs, operation_fn, **kwargs)

    def outline(self) -> keras.Model:
        """A plain model to look at, for `keras.utils.plot_model(q.outline())`.

        Its layers are called what they are, such as "Conv2D, int8", and have one output each.
        """
        return outline(self)

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Print the layers, as Keras does, with what they are.

        Args:
            *args: As for Keras' `summary`.
            **kwargs: Likewise.
        """
        self.outline().summary(*args, **kwargs)

    def predict_step(self, *args: Any) -> Any:
        """Keras' step of `predict`, without what gradients need."""
        with self._forward_only():
            return super().predict_step(*args)

    def test_step(self, *args: Any) -> Any:
        """Keras' step of `evaluate`, without what gradients need."""
        with self._forward_only():
            return super().test_step(*args)

    def _forward_only(self) -> contextlib.AbstractContextManager:
        # A step of the user's may ask for gradients.
        return forward_only() if self._origin.base is None else contextlib.nullcontext()

    def quantize(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse Keras' own quantization, which would round the rounded weights again."""
        raise IntactError(
            f"Model {self.name!r} is quantized by intact already. Keras' `quantize` would round "
            "its weights a second time, in another way. Use the model as it is; for other bits, "
            "call `intact.quantize_model` on the float model with another scheme."
        )

    def export(self, filepath: Any, format: str = "tf_saved_model", **kwargs: Any) -> Any:
        """Export as Keras does, except to LiteRT: Keras would write a float file.

        Args:
            filepath: The path to write.
            format: A format of Keras' `export`.
            **kwargs: More arguments of Keras' `export`.

        Raises:
            ExportError: The format is LiteRT's.
        """
        if format in ("litert", "tflite") or str(filepath).endswith(".tflite"):
            raise ExportError(
                f"Keras' `export` would write model {self.name!r} as a float file that imitates "
                "its rounding. Call `intact.export(model, path)`: it writes integer kernels."
            )
        return super().export(filepath, format=format, **kwargs)

    def __reduce__(self) -> Any:
        # Pickle looks classes up by name, and finds only this one.
        function, arguments = super().__reduce__()
        return getattr(QuantizedModel, function.__name__), arguments

    def get_config(self) -> dict[str, Any]:
        """The graph, the names of the outputs, and the registered name of the user's class."""
        config = Functional.get_config(self)
        config["output_names"] = list(self.output_names)
        if self._origin.base is not None:
            config["base"] = keras.saving.get_registered_name(self._origin.base)
            config["settings"] = keras.saving.serialize_keras_object(self._origin.settings)
        if self._origin.shared:
            config["shared"] = [weight.get_config() for weight in self._origin.shared]
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> keras.Model:
        """The model of a config; Keras' own where the user's class is unknown here.

        Args:
            config: What `get_config` returned.
            custom_objects: Classes by the names under which they were registered.

        Warns:
            NotKeptWarning: The user's class is unknown here.
        """
        config = dict(config)
        names, base = tuple(config.pop("output_names", ())), config.pop("base", None)
        settings = keras.saving.deserialize_keras_object(config.pop("settings", {}))
        shared = tuple(map(SharedWeight.from_config, config.pop("shared", ())))
        origin = Origin(names, shared=shared)
        known = keras.saving.get_registered_object(base, custom_objects) if base else None
        if known is not None:
            origin = Origin(names, known, settings, shared)
        elif base:
            warnings.warn(
                f"Model {config.get('name')!r} was of the class {base!r}, and no class is "
                "registered under this name: it trains as Keras' models do. Decorate the class by "
                "`keras.saving.register_keras_serializable`, or pass it in `custom_objects`.",
                NotKeptWarning,
                stacklevel=2,
            )
        return Functional.from_config.__func__(model_class(origin), config, custom_objects)


# An `.h5` file has the plain name of a model's class.
keras.saving.get_custom_objects()["QuantizedModel"] = QuantizedModel


def model_class(origin: Origin) -> type[QuantizedModel]:
    """The class of the models that keep something of a float model.

    Args:
        origin: What they keep.

    Returns:
        The class; it is called as `keras.Model` is, with inputs, outputs and a name.
    """
    parents = (QuantizedModel,) if origin.base is None else (QuantizedModel, origin.base)
    return type("QuantizedModel", parents, {"_origin": origin, "__module__": __name__})


def class_like(model: keras.Model, names: Iterable[str]) -> type[QuantizedModel]:
    """The class for the quantized model of a float one.

    Args:
        model: The float model.
        names: The names of its outputs.

    Returns:
        A subclass of the float model's class, where that can be called with a graph.

    Warns:
        NotKeptWarning: The class has its own way to train, and cannot be called with a graph.
    """
    base, names = type(model), tuple(names)
    if issubclass(base, QuantizedModel):
        # A quantized model without anything to quantize is rebuilt for its file.
        return model_class(base._origin)
    if base in (Functional, keras.Sequential, keras.Model):
        return model_class(Origin(names))
    settings = _settings(model)
    if settings is not None:
        return model_class(Origin(names, base, settings))
    static = inspect.getattr_static
    own = [name for name in TRAINING if static(base, name) is not static(keras.Model, name)]
    if own:
        warnings.warn(
            f"Model {model.name!r} is a {base.__name__}, which has its own {', '.join(own)}. The "
            "quantized model does not: it trains as Keras' models do. To keep them, let the class "
            "be called with a graph, `Class(inputs, outputs, name=...)`, and have its other "
            "arguments in its `get_config`; or let a model of the class call the quantized one.",
            NotKeptWarning,
            stacklevel=3,
        )
    return model_class(Origin(names))


def is_quantized(model: keras.Model) -> bool:
    """Whether `quantize_model` made a model, or a model inside it."""
    return isinstance(model, keras.Model) and any(
        isinstance(layer, QuantizedLayer) for layer in all_layers(model)
    )


def refuse_quantized(model: keras.Model) -> None:
    """Make sure that a model is a float one.

    Args:
        model: The model.

    Raises:
        IntactError: It is quantized, or calls a quantized model.
    """
    if not is_quantized(model):
        return
    parts = [p.name for p in all_layers(model) if is_own_model(p) and is_quantized(p)]
    what = f"calls the quantized model {parts[0]!r}" if parts else "is quantized already"
    raise IntactError(
        f"Model {model.name!r} {what}. Pass the whole float model, which is quantized in one "
        "step. To write the quantized model to a file, call `intact.export`."
    )


def like(model: keras.Model, inputs: Any, outputs: Any) -> keras.Model:
    """A model with another graph, and everything else from a quantized model.

    Args:
        model: The quantized model, or a part of one.
        inputs: The inputs of the other graph.
        outputs: Its outputs.
    """
    kind = type(model) if isinstance(model, QuantizedModel) else keras.Model
    return kind(inputs, outputs, name=model.name)


def _settings(model: keras.Model) -> dict[str, Any] | None:
    """What a model's constructor took beside the graph; None if it cannot be called with one."""
    base = type(model)
    if not is_graph(model):
        return None
    if _constructor(base) is _constructor(keras.Sequential):
        return {}
    names, any_positional, any_keyword = _parameters(base)
    if not ({"inputs", "outputs"} <= names or (any_positional and any_keyword)):
        return None
    others = names - {"inputs", "outputs", "name", "trainable"}
    config: dict[str, Any] = {}
    with contextlib.suppress(NotImplementedError):
        config = model.get_config() if others else {}
    if not all(name in config or hasattr(model, name) for name in others):
        return None
    settings = {name: config.get(name, getattr(model, name, None)) for name in others}
    parts = keras.tree.flatten(settings)
    # A layer would be the float model's own.
    return None if any(isinstance(part, keras.Layer) for part in parts) else settings


def _constructor(kind: type) -> Any:
    return inspect.getattr_static(kind, "__init__")


def _parameters(kind: type) -> tuple[set[str], bool, bool]:
    """The names that a constructor takes, and whether it takes `*args` and `**kwargs`."""
    parameters = list(inspect.signature(_constructor(kind)).parameters.values())[1:]
    kinds = {p.kind for p in parameters}
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = {p.name for p in parameters if p.kind not in open_ended}
    return names, open_ended[0] in kinds, open_ended[1] in kinds


def _accepted(base: type | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments, among some, that a class's constructor takes."""
    if base is None or _constructor(base) is _constructor(keras.Sequential):
        return kwargs
    names, _, any_keyword = _parameters(base)
    return {k: v for k, v in kwargs.items() if any_keyword or k in names}
