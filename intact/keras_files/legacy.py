"""Opens model files of Keras 2 and Keras 3, also those that Keras 3 refuses for small reasons.

Keras itself is asked first. What it refuses is rebuilt here from its config, layer by layer
through Keras' public functions, and the weights are put in by layer. Nothing in a file is
ever executed, and no weights are made that the file has no numbers for.
"""

import contextlib
import inspect
import json
import os
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import keras
from keras import ops

from intact.errors import IntactError, InvalidModelError, UnsupportedLayerError
from intact.graph.view import made_by
from intact.keras_files.h5check import SLACK
from intact.keras_files.opening import _File, _limited_weights, _open, _refuse_code, _text
from intact.keras_files.settings import CLASSES, LEFTOVERS, RENAMED
from intact.keras_files.tf_ops import _TF_MODULES, _TF_NODES, TF_OPS
from intact.keras_files.activations import hard_sigmoid_keras_2
from intact.paths import check_model_path

# Threads would undo each other's limits of weights.
_ONE_AT_A_TIME = threading.RLock()


def load_keras(path: str | os.PathLike) -> keras.Model:
    """Open a `.keras` or `.h5` file of a whole model, written by Keras 3 or Keras 2.

    Files of Keras 2 compute what they computed there. No code in a file is executed.
    Custom layers must be registered (`keras.saving.register_keras_serializable`) before.

    Args:
        path: The file.

    Returns:
        The model, not compiled.

    Raises:
        InvalidModelError: There is no such file, or it is damaged or not a whole model.
        UnsupportedLayerError: A layer cannot be rebuilt: a `Lambda` with Python bytecode, an
            unknown layer or TensorFlow op, or a setting that Keras 3 does not have.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "model.keras"
    >>> model.save(path)
    >>> load_keras(path).output_shape
    (None, 2)
    """
    path = Path(path)
    check_model_path(path)
    try:
        with contextlib.ExitStack() as stack:
            file = _open(path, stack)
            _refuse_code(file.config)
            stack.enter_context(_ONE_AT_A_TIME)
            stack.enter_context(_limited_weights(2 * file.elements + SLACK))
            if not _means_something_else(file):
                try:
                    return _load_as_it_is(path)
                except IntactError:
                    raise
                except Exception:  # Keras 3 refuses it, in one of many ways.
                    pass
            return _Rebuilder(file).run()
    except IntactError as error:
        raise type(error)(f"Cannot open {str(path)!r}: {error}") from error
    # Libraries raise all kinds of errors for damaged files; none of them may pass as it is.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidModelError(
            f"Cannot open {str(path)!r}: {type(error).__name__}: {reason}. The file is damaged, "
            "or made by something that Keras 3 cannot follow. Save the model again, as `.keras`."
        ) from error


# Reading ------------------------------------------------------------------------------


def _load_as_it_is(path: Path) -> keras.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Layers whose weights are not in the file would stay as they were initialized.
        warnings.filterwarnings("error", message="Skipping nested container")
        return keras.saving.load_model(path, compile=False, safe_mode=True)


# Repairs ------------------------------------------------------------------------------


def _means_something_else(file: _File) -> bool:
    """Whether Keras 3 would load it without a word, and compute something else."""
    return file.keras_2 and '"hard_sigmoid"' in json.dumps(file.config)


_MODELS = ("Functional", "Sequential")


@dataclass(eq=False)
class _Entry:
    """A layer of a model in the file, and what it became.

    Args:
        name: Its name in the file.
        new_name: Its name now.
        kind: Its class in the file, by which `.keras` files name its weights.
        made: The layer, or a function of a TensorFlow op.
        outputs: What each of its calls returned, flat.
    """

    name: str
    new_name: str
    kind: str
    made: Any
    outputs: list[list[Any]] = field(default_factory=list)


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
        made = {}
        for key, value in config.items():
            if key not in known:
                harmless = LEFTOVERS.get(key, (None, False))
                if harmless is not None and value not in harmless:
                    raise UnsupportedLayerError(
                        f"{cls.__name__} {name!r} has the setting {key}={value!r}, which Keras 3 "
                        "does not have. Build the model without it, and save it again."
                    )
                continue
            made[key] = self.value(key, value)
        axis = made.get("axis")
        if cls is keras.layers.BatchNormalization and isinstance(axis, list):
            if len(axis) != 1:
                raise UnsupportedLayerError(
                    f"BatchNormalization {name!r} has the axes {axis}, and Keras 3 takes one."
                )
            made["axis"] = axis[0]
        if cls is keras.layers.GRU and self.file.keras_2:
            # Keras before 2.1.3 had no other.
            made.setdefault("reset_after", False)
        return made

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
            # The weights come from the file: what would not load is as good as the default.
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
        except Exception:  # Whatever it lacks: it is not needed.
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
        made = [e.made for e in entries]
        if shape and not isinstance(made[0], keras.layers.InputLayer):
            made.insert(0, keras.Input(batch_shape=shape, dtype=_input_dtype(first)))
        model = keras.Sequential(made, name=name.replace("/", "_"))
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
            if not isinstance(entry.made, keras.Layer):
                continue
            names = _attribute(group[entry.name], "weight_names") if entry.name in group else []
            values = [group[entry.name][_text(n)] for n in names]
            trainable, others = self.variables(entry.made)
            _assign(entry.name, trainable + others, values)

    def variables(self, layer: keras.Layer) -> tuple[list, list]:
        """The weights that train and those that do not, in the order in which they are saved."""
        if id(layer) not in self.entries:
            return list(layer.trainable_weights), list(layer.non_trainable_weights)
        inner = [
            self.variables(e.made)
            for e in self.entries[id(layer)]
            if isinstance(e.made, keras.Layer)
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
                if not isinstance(entry.made, keras.Layer):
                    continue
                key = f"{kind}_{number}" if number else kind
                if key in layers:
                    self.load_tree(entry.made, layers[key])
                elif entry.made.weights:
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


class _Calls:
    """The calls of a functional config, made one after the other.

    Args:
        entries: The layers by name.
        config: The config of the model.
    """

    def __init__(self, entries: dict[str, _Entry], config: dict[str, Any]) -> None:
        self.entries = entries
        self.config = config
        # Models start with a call of their own, which is not in the file, but is counted.
        self.first: dict[str, int] = {}
        nodes = [layer.get("inbound_nodes", []) for layer in config["layers"]]
        self.count([nodes, config["input_layers"], config["output_layers"]])

    def count(self, value: Any) -> None:
        """Find the lowest number by which each layer's calls are referred to."""
        todo = [value]
        while todo:
            value = todo.pop()
            reference = _reference(value)
            if reference is not None and reference[0] in self.entries:
                name, node, _ = reference
                self.first[name] = min(self.first.get(name, node), node)
            if isinstance(value, dict):
                todo += value.values()
            elif isinstance(value, list):
                todo += value

    def run(self) -> None:
        waiting = []
        for data in self.config["layers"]:
            entry, nodes = self.entries[_name(data)], data.get("inbound_nodes", [])
            if isinstance(entry.made, keras.layers.InputLayer):
                entry.outputs.append(keras.tree.flatten(entry.made.output))
            else:
                waiting.append((entry, list(nodes)))
        while waiting:
            left = []
            for entry, nodes in waiting:
                while nodes and self.ready(nodes[0]):
                    self.call(entry, nodes.pop(0))
                if nodes:
                    left.append((entry, nodes))
            if len(left) == len(waiting) and all(not self.ready(nodes[0]) for _, nodes in left):
                names = ", ".join(repr(entry.name) for entry, _ in left[:5])
                raise InvalidModelError(f"the layers {names} wait for each other.")
            waiting = left

    def ready(self, value: Any) -> bool:
        """Whether all tensors that a call needs are there."""
        reference = _reference(value)
        if reference is not None and reference[0] in self.entries:
            name, node, _ = reference
            if node - self.first[name] >= len(self.entries[name].outputs):
                return False
        if isinstance(value, dict):
            return all(self.ready(v) for v in value.values())
        return not isinstance(value, list) or all(self.ready(v) for v in value)

    def call(self, entry: _Entry, node: Any) -> None:
        if isinstance(node, dict) and "args" in node:
            args, kwargs = self.value(node["args"]), self.value(node["kwargs"])
        else:
            leaf = node
            while isinstance(leaf, list | dict) and not _is_leaf(leaf):
                leaf = next(iter(leaf.values())) if isinstance(leaf, dict) else leaf[0]
            kwargs = self.value(leaf[3]) if isinstance(leaf, list) and len(leaf) > 3 else {}
            single = isinstance(node, list) and not _is_leaf(node) and len(node) == 1
            args = [self.structure(node[0] if single else node)]
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
        if isinstance(entry.made, keras.layers.RNN | keras.layers.Bidirectional) and isinstance(
            args[0], list
        ):
            args, kwargs["initial_state"] = args[0][:1], args[0][1:]
        outputs = entry.made(*args, **kwargs)
        if not isinstance(entry.made, keras.Layer) and isinstance(outputs, keras.KerasTensor):
            operation = made_by(outputs).layer
            if not isinstance(operation, keras.Layer):
                # Else it has a name that some layer of the file may have.
                operation.name = entry.new_name
        entry.outputs.append(keras.tree.flatten(outputs))

    def structure(self, value: Any) -> Any:
        """The first argument of a call as Keras 2 writes it."""
        if _is_leaf(value):
            return value[2] if value[0] == "_CONSTANT_VALUE" else self.tensor(*value[:3])
        if isinstance(value, dict):
            return {k: self.structure(v) for k, v in value.items()}
        return [self.structure(v) for v in value]

    def value(self, value: Any) -> Any:
        """Other arguments, whose tensors are references."""
        reference = _reference(value)
        if reference is not None and reference[0] in self.entries:
            return self.tensor(*reference)
        if isinstance(value, dict):
            if "class_name" in value:
                return keras.saving.deserialize_keras_object(value, safe_mode=True)
            return {k: self.value(v) for k, v in value.items()}
        return [self.value(v) for v in value] if isinstance(value, list) else value

    def tensor(self, name: str, node: int, index: int) -> Any:
        return self.entries[name].outputs[node - self.first[name]][index]

    def ends(self, value: Any) -> Any:
        """The inputs or outputs of the model."""
        if _is_leaf(value):
            return self.tensor(*value[:3])
        if isinstance(value, dict):
            return {k: self.ends(v) for k, v in value.items()}
        made = [self.ends(v) for v in value]
        return made[0] if len(made) == 1 else made


def _is_leaf(value: Any) -> bool:
    """Whether this is a tensor as Keras 2 writes it: layer, call, output, and settings."""
    return isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str)


def _reference(value: Any) -> tuple[str, int, int] | None:
    """Layer, call and output of a tensor, as Keras 2 or 3 writes it."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        value = value["config"]["keras_history"]
    if _is_leaf(value) and all(type(v) is int for v in value[1:3]):
        return value[0], value[1], value[2]
    return None


def _name(data: dict[str, Any]) -> str:
    config = data["config"]
    inner = config.get("name") if isinstance(config, dict) else None
    return str(data.get("name") or inner or data["class_name"])


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
    expected, found = [tuple(v.shape) for v in variables], [tuple(v.shape) for v in values]
    if expected != found:
        raise InvalidModelError(
            f"layer {name!r} has weights of shapes {expected}, the file has {found} for it."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value[()])
