"""What to quantize and how: frozen data, read by the plan."""

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from intact.errors import IntactError
from intact.observers import Observer, get_observer


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is quantized.

    Args:
        bits: Width in bits. Files store 2 to 4 bits as int4, more as int8, activations of
            9 to 16 bits as int16.
        symmetric: Zero point 0.
        per_axis: A scale per output channel (weights only).
        kind: "int"; "uint" for the older unsigned files; "float" for float16 (weights only).
        dynamic: The range is that of each row or sample, found at run time (activations
            only): the tensor stays in float, and sums of products are computed on integers.
        observer: How `calibrate` finds the range, if it is not told (activations only): an
            `Observer`, or the name of one.
        momentum: Share of the old range that a training step keeps (activations only).

    Raises:
        IntactError: A width, kind or observer that there is not.

    Example:

    >>> TensorSpec(bits=4, symmetric=True, per_axis=True).dtype
    'int4'
    """

    bits: int = 8
    symmetric: bool = False
    per_axis: bool = False
    kind: str = "int"
    dynamic: bool = False
    observer: str | Observer | dict[str, Any] = "min_max"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        widths: dict[str, Iterable[int]] = {"int": range(2, 17), "uint": (8,), "float": (16,)}
        if self.bits not in widths.get(self.kind, ()):
            raise IntactError(
                "Expected kind 'int' with 2 to 16 bits, 'uint' with 8 or 'float' with 16. "
                f"Received: kind={self.kind!r}, bits={self.bits!r}."
            )
        # From its name, or from what a saved model has of it.
        object.__setattr__(self, "observer", get_observer(self.observer))

    @property
    def dtype(self) -> str:
        """The type that stores it: "int4", "int8", "uint8", "int16" or "float16"."""
        return f"{self.kind}{next(n for n in (4, 8, 16) if n >= self.bits)}"


@dataclass(frozen=True)
class Rule:
    """What happens to the layers that match.

    Args:
        match: A layer class, a name pattern (`"block_*"`), or a callable that takes the
            layer and returns a bool. None matches every layer.
        weights: How the weights are quantized; None keeps them, and the layer, in float.
        activations: How the layer's output is quantized; None keeps it in float, and
            quantizes the weights alone.

    Example:

    >>> Rule("head_*", weights=None, activations=None).matches(keras.layers.Add(name="head_1"))
    True
    """

    match: type | str | Callable[[keras.layers.Layer], bool] | None = None
    weights: TensorSpec | None = TensorSpec(symmetric=True, per_axis=True)
    activations: TensorSpec | None = TensorSpec()

    @property
    def integer(self) -> bool:
        """Whether layers under this rule become integer."""
        weights, activations = self.weights, self.activations
        return weights is not None and activations is not None and not activations.dynamic

    def matches(self, layer: keras.layers.Layer) -> bool:
        """Whether the rule speaks of this layer."""
        if self.match is None:
            return True
        if isinstance(self.match, str):
            return fnmatch.fnmatchcase(layer.name, self.match)
        if isinstance(self.match, type):
            return isinstance(layer, self.match)
        return bool(self.match(layer))


@dataclass(frozen=True)
class Scheme:
    """An ordered list of rules; the first that matches a layer counts.

    Args:
        name: What tables and errors call it.
        rules: The rules.

    Example:

    >>> scheme = Scheme("head in float", (Rule("head", None, None), Rule()))
    >>> scheme.rule_for(keras.layers.Dense(2, name="head")).integer
    False
    """

    name: str
    rules: tuple[Rule, ...] = field(default=(Rule(),))

    def rule_for(self, layer: keras.layers.Layer) -> Rule:
        """The first rule that matches a layer; layers without one stay in float."""
        for rule in self.rules:
            if rule.matches(layer):
                return rule
        return FLOAT_RULE

    def unused_rules(self, layers: Iterable[keras.layers.Layer]) -> list[Rule]:
        """The rules with a `match` that count for none of some layers.

        Args:
            layers: The layers.
        """
        used = [self.rule_for(layer) for layer in layers]
        return [
            rule
            for rule in self.rules
            if rule.match is not None and not any(rule is found for found in used)
        ]


FLOAT_RULE = Rule(weights=None, activations=None)
