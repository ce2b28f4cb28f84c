"""The calls of layers in a saved graph, as Keras 2 and 3 wrote them."""

from dataclasses import dataclass, field
from typing import Any

import keras

from intact.errors import InvalidModelError
from intact.graph.view import made_by


@dataclass(eq=False)
class _Entry:
    """A layer of a model in the file, and the layer that it became.

    Args:
        name: Its name in the file.
        new_name: Its name now.
        kind: Its class in the file, by which `.keras` files name its weights.
        built: The layer, or a function of a TensorFlow op.
        outputs: What each of its calls returned, flat.
    """

    name: str
    new_name: str
    kind: str
    built: Any
    outputs: list[list[Any]] = field(default_factory=list)


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
        """Find the lowest index by which the config refers to each layer's calls."""
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
            if isinstance(entry.built, keras.layers.InputLayer):
                entry.outputs.append(keras.tree.flatten(entry.built.output))
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
        """Whether all tensors that a call needs exist."""
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
        if isinstance(entry.built, keras.layers.RNN | keras.layers.Bidirectional) and isinstance(
            args[0], list
        ):
            args, kwargs["initial_state"] = args[0][:1], args[0][1:]
        outputs = entry.built(*args, **kwargs)
        if not isinstance(entry.built, keras.Layer) and isinstance(outputs, keras.KerasTensor):
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
        ends = [self.ends(v) for v in value]
        return ends[0] if len(ends) == 1 else ends


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
