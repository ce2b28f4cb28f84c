"""Rebuilds a model from the config and the weights of its file."""

import contextlib
import inspect
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import h5py
import keras

from intact.errors import IntactError, InvalidModelError, UnsupportedLayerError
from intact.keras_files.activations import hard_sigmoid_keras_2
from intact.keras_files.calls import _Calls, _Entry, _name
from intact.keras_files.opening import _File, _text
from intact.keras_files.settings import CLASSES, LEFTOVERS, RENAMED
from intact.keras_files.tf_ops import _TF_MODULES, _TF_NODES, TF_OPS

_MODELS = ("Functional", "Sequential")


class _Rebuilder:
    """Builds the model of a file from its config, then loads the weights."""

    def __init__(self, file: _File) -> None:
        self.file = file
        # The layers of each model, in the order of the file.
        self.entries: dict[int, list[_Entry]] = {}

    def run(self) -> keras.Model:
        model = self.layer(self.file.config)
        if id(model) not in self.entries:
            raise UnsupportedLayerError(
                f"it is a {type(model).__name__}, which has no layers in its config."
            )
        if not model.built:
            raise InvalidModelError(f"model {model.name!r} was saved without an input shape.")
        if self.file.is_zip:
            self.load_tree(model, self.file.weights)
        else:
            self.load_layers(model, self.file.weights)
        return model

    # Layers ---------------------------------------------------------------------------

    def layer(self, data: dict[str, Any]) -> Any:
        """The layer, operation or function that stands for an entry of a config."""
        kind, config = data["class_name"], data["config"]
        if kind == "Sequential" and isinstance(config, list):
            config = {"layers": config}
        config = dict(config)
        name = str(data.get("name") or config.get("name") or kind)
        if kind in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
            return self.tf_op(kind, name, config)
        custom = keras.saving.get_registered_object(data.get("registered_name") or kind)
        if custom is not None:
            return self.deserialize(data, name)
        original, kind = kind, CLASSES.get(kind, kind)
        if kind == "Functional":
            return self.functional(config, name)
        if kind == "Sequential":
            return self.sequential(config, name)
        if str(data.get("module")).startswith("keras.src.ops."):
            return self.deserialize(data, name)
        if "module" not in data and not {"dtype", "trainable"} & set(config):
            # Only operations of Keras 3 have neither; an `.h5` file does not tell their module.
            for module in ("numpy", "nn", "core", "math", "linalg", "image"):
                with contextlib.suppress(UnsupportedLayerError):
                    return self.deserialize({**data, "module": f"keras.src.ops.{module}"}, name)
        cls = getattr(keras.layers, kind, None)
        if not inspect.isclass(cls):
            raise UnsupportedLayerError(
                f"{kind} {name!r} is unknown to Keras 3. If it is a layer of your own, register "
                "it by `keras.saving.register_keras_serializable` before."
            )
        for old, new in RENAMED.get(original, {}).items():
            if old in config:
                config[new] = config.pop(old)
        config = self.config(cls, config, name)
        return self.deserialize(
            {"module": "keras.layers", "class_name": kind, "config": config}, name
        )

    def deserialize(self, data: dict[str, Any], name: str) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return keras.saving.deserialize_keras_object(data, safe_mode=True)
        except IntactError:
            raise
        except Exception as error:
            raise UnsupportedLayerError(
                f"{data['class_name']} {name!r} cannot be rebuilt: "
                f"{' '.join(str(error).split())[-300:]}"
            ) from error

    def config(self, cls: type, config: dict[str, Any], name: str) -> dict[str, Any]:
        """The config of a layer as Keras 3 has it."""
        known = {"name", "dtype", "trainable"}
        for base in cls.__mro__:
            if "__init__" in vars(base):
                known |= set(inspect.signature(vars(base)["__init__"]).parameters)
        rebuilt = {}
        for key, value in config.items():
            if key not in known:
                harmless = LEFTOVERS.get(key, (None, False))
                if harmless is not None and value not in harmless:
                    raise UnsupportedLayerError(
                        f"{cls.__name__} {name!r} has the setting {key}={value!r}, which Keras 3 "
                        "does not have. Build the model without it, and save it again."
                    )
                continue
            rebuilt[key] = self.value(key, value)
        axis = rebuilt.get("axis")
        if cls is keras.layers.BatchNormalization and isinstance(axis, list):
            if len(axis) != 1:
                raise UnsupportedLayerError(
                    f"BatchNormalization {name!r} has the axes {axis}, and Keras 3 takes one."
                )
            rebuilt["axis"] = axis[0]
        if cls is keras.layers.GRU and self.file.keras_2:
            # Keras before 2.1.3 had no other.
            rebuilt.setdefault("reset_after", False)
        return rebuilt

    def value(self, key: str, value: Any) -> Any:
        """One setting of a layer as Keras 3 has it."""
        if key == "dtype":
            if isinstance(value, dict):
                value = value["config"]["name"]
            return None if value in ("infer", "_infer") else value
        if isinstance(value, list):
            return [self.value("", v) for v in value]
        if isinstance(value, str):
            old = key.endswith("activation") and self.file.keras_2 and value == "hard_sigmoid"
            return keras.saving.serialize_keras_object(hard_sigmoid_keras_2) if old else value
        if not isinstance(value, dict) or "class_name" not in value:
            return value
        if key.endswith("_initializer"):
            # The weights come from the file, so the default replaces an initializer that does not
            # load.
            return None if value.get("class_name") is None else self.initializer(value)
        kind = str(CLASSES.get(value["class_name"], value["class_name"]))
        if kind in _MODELS or inspect.isclass(getattr(keras.layers, kind, None)):
            return keras.saving.serialize_keras_object(self.layer(value))
        if not str(value.get("module", "")).startswith(("keras", "builtins")):
            value = {k: v for k, v in value.items() if k not in ("module", "registered_name")}
        return value

    def initializer(self, value: dict[str, Any]) -> Any:
        plain = {"class_name": value["class_name"], "config": value.get("config") or {}}
        plain["config"] = {k: v for k, v in plain["config"].items() if k != "dtype"}
        try:
            keras.initializers.get(plain)
        except Exception:  # It is not needed, whatever it lacks.
            return "zeros"
        return plain

    def tf_op(self, kind: str, name: str, config: dict[str, Any]) -> Callable:
        """The function of a TensorFlow op that Keras 2 wrapped into a layer."""
        if kind == "TensorFlowOpLayer":
            node = config.get("node_def") or {}
            node = node if isinstance(node, dict) else json.loads(node)
            full = str(node.get("op"))
            function = TF_OPS.get(_TF_NODES.get(full, ""))
        else:
            full = str(config.get("function"))
            module, _, last = full.rpartition(".")
            function = TF_OPS.get(last) if module in _TF_MODULES else None
        constants = {int(k): v for k, v in (config.get("constants") or {}).items()}

        def call(first: Any, **kwargs: Any) -> Any:
            kwargs.pop("name", None)
            try:
                if function is None:
                    raise TypeError("intact does not know it")
                known = inspect.signature(function).parameters
                # Switches that are off.
                kwargs = {k: v for k, v in kwargs.items() if k in known or v is not False}
                if not constants and kind != "TensorFlowOpLayer":
                    return function(first, **kwargs)
                args = list(first) if isinstance(first, list) else [first]
                for place in sorted(constants):
                    args.insert(place, constants[place])
                return function(*args)
            except (TypeError, ValueError) as error:
                raise UnsupportedLayerError(
                    f"{kind} {name!r} calls the TensorFlow op {full!r} with {sorted(kwargs)}, "
                    f"which cannot be turned into keras.ops: {error}. Put a Keras layer in its "
                    "place, and save the model again."
                ) from error

        return call

    # Models ---------------------------------------------------------------------------

    def inner(self, layers: list[dict[str, Any]]) -> list[_Entry]:
        """The layers of a model; their names lose slashes, which Keras 3 does not take."""
        taken = {_name(data) for data in layers}
        entries = []
        for data in layers:
            old = new = _name(data)
            if "/" in old:
                new, number = old.replace("/", "_"), 1
                while new in taken:
                    new, number = f"{old.replace('/', '_')}_{number}", number + 1
                taken.add(new)
                data = {**data, "name": new, "config": {**data["config"], "name": new}}
            entries.append(_Entry(old, new, data["class_name"], self.layer(data)))
        return entries

    def sequential(self, config: dict[str, Any], name: str) -> keras.Model:
        data = list(config["layers"])
        first = data[0]["config"] if data else {}
        shape = config.get("build_input_shape")
        for key in ("batch_input_shape", "batch_shape"):
            shape = first.get(key, shape) if isinstance(first, dict) else shape
        entries = self.inner(data)
        members = [e.built for e in entries]
        if shape and not isinstance(members[0], keras.layers.InputLayer):
            members.insert(0, keras.Input(batch_shape=shape, dtype=_input_dtype(first)))
        model = keras.Sequential(members, name=name.replace("/", "_"))
        return self.done(model, config, entries)

    def functional(self, config: dict[str, Any], name: str) -> keras.Model:
        entries = self.inner(config["layers"])
        graph = _Calls({entry.name: entry for entry in entries}, config)
        graph.run()
        model = keras.Model(
            graph.ends(config["input_layers"]),
            graph.ends(config["output_layers"]),
            name=name.replace("/", "_"),
        )
        return self.done(model, config, entries)

    def done(
        self, model: keras.Model, config: dict[str, Any], entries: list[_Entry]
    ) -> keras.Model:
        if config.get("trainable") is False:
            model.trainable = False
        self.entries[id(model)] = entries
        return model

    # Weights --------------------------------------------------------------------------

    def load_layers(self, model: keras.Model, group: h5py.Group) -> None:
        """Weights of an `.h5` file: a group per layer, by name."""
        for entry in self.entries[id(model)]:
            if not isinstance(entry.built, keras.Layer):
                continue
            names = _attribute(group[entry.name], "weight_names") if entry.name in group else []
            values = [group[entry.name][_text(n)] for n in names]
            trainable, others = self.variables(entry.built)
            _assign(entry.name, trainable + others, values)

    def variables(self, layer: keras.Layer) -> tuple[list, list]:
        """The weights that train and those that do not, in the order in which they are saved."""
        if id(layer) not in self.entries:
            return list(layer.trainable_weights), list(layer.non_trainable_weights)
        inner = [
            self.variables(e.built)
            for e in self.entries[id(layer)]
            if isinstance(e.built, keras.Layer)
        ]
        trainable, others = ([v for part in inner for v in part[i]] for i in (0, 1))
        return trainable, others

    def load_tree(self, layer: Any, group: h5py.Group) -> None:
        """Weights of a `.keras` file: groups as the objects are nested."""
        if id(layer) in self.entries:
            counts: dict[str, int] = {}
            layers = group.get("layers", group.get("_layer_checkpoint_dependencies", {}))
            for entry in self.entries[id(layer)]:
                kind = _snake(entry.kind)
                number = counts[kind] = counts.get(kind, -1) + 1
                if not isinstance(entry.built, keras.Layer):
                    continue
                key = f"{kind}_{number}" if number else kind
                if key in layers:
                    self.load_tree(entry.built, layers[key])
                elif entry.built.weights:
                    raise InvalidModelError(
                        f"it has no weights of layer {entry.name!r}. A layer that stands in "
                        "several models is saved in one of them only: save it as `.h5`."
                    )
            return
        self.load_parts(layer, group)

    def load_parts(self, layer: Any, group: h5py.Group) -> None:
        values = group.get("vars", {})
        own = layer._trainable_variables + layer._non_trainable_variables
        if own or len(values):
            _assign(layer.name, own, [values[str(i)] for i in range(len(values))])
        for key in group:
            part = None if key.startswith("__") else getattr(layer, key, None)
            if isinstance(part, keras.Layer):
                self.load_tree(part, group[key])
            elif isinstance(part, list | tuple):
                counts: dict[str, int] = {}
                for item in part:
                    if isinstance(item, keras.Layer):
                        kind = _snake(type(item).__name__)
                        number = counts[kind] = counts.get(kind, -1) + 1
                        name = f"{kind}_{number}" if number else kind
                        if name in group[key]:
                            self.load_tree(item, group[key][name])


def _input_dtype(config: dict[str, Any]) -> str:
    """The dtype of the input that stands for a first layer with a shape."""
    return "int32" if "input_dim" in config and "output_dim" in config else "float32"


def _snake(name: str) -> str:
    """The name of a class as `.keras` files write it."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _attribute(group: h5py.Group, name: str) -> list[Any]:
    """A list, which long ones are split."""
    if name in group.attrs:
        return list(group.attrs[name])
    parts, number = [], 0
    while f"{name}{number}" in group.attrs:
        parts += list(group.attrs[f"{name}{number}"])
        number += 1
    return parts


def _assign(name: str, variables: list[Any], values: list[Any]) -> None:
    expected, stored = [tuple(v.shape) for v in variables], [tuple(v.shape) for v in values]
    if expected != stored:
        raise InvalidModelError(
            f"layer {name!r} has weights of shapes {expected}, the file has {stored} for it."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value[()])
