"""What to quantize and how: frozen data, read by the plan."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field

import keras

from intact.errors import IntactError


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is quantized.

    Args:
        bits: Width in bits.
        symmetric: Zero point 0.
        per_axis: A scale per output channel (weights only).
        momentum: Share of the old range that a training step keeps (activations only).

    Example:

    >>> TensorSpec(bits=8, symmetric=True, per_axis=True).bits
    8
    """

    bits: int = 8
    symmetric: bool = False
    per_axis: bool = False
    momentum: float = 0.99


@dataclass(frozen=True)
class Rule:
    """What happens to the layers that match.

    Args:
        match: A layer class, a name pattern (`"block_*"`), or a callable that takes the
            layer and returns a bool. None matches every layer.
        weights: How the weights are quantized; None keeps the layer in float.
        activations: How the layer's output is quantized; None keeps the layer in float.

    Example:

    >>> Rule("head_*", weights=None, activations=None).matches(keras.layers.Add(name="head_1"))
    True
    """

    match: type | str | Callable[[keras.layers.Layer], bool] | None = None
    weights: TensorSpec | None = TensorSpec(symmetric=True, per_axis=True)
    activations: TensorSpec | None = TensorSpec()

    @property
    def quantizes(self) -> bool:
        """Whether layers under this rule become integer."""
        return self.weights is not None and self.activations is not None

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
    >>> scheme.rule_for(keras.layers.Dense(2, name="head")).quantizes
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


FLOAT_RULE = Rule(weights=None, activations=None)

SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8"),
    "float32": Scheme("float32", (FLOAT_RULE,)),
}
"""The presets by name."""


def get_scheme(scheme: str | Scheme) -> Scheme:
    """A scheme by name, or the scheme itself.

    Args:
        scheme: A name in `SCHEMES` or a `Scheme`.

    Returns:
        The scheme.

    Raises:
        IntactError: There is no preset of that name.

    Example:

    >>> get_scheme("int8").name
    'int8'
    """
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise IntactError(
            f"There is no scheme {scheme!r}. Known schemes: {', '.join(sorted(SCHEMES))}. "
            "Pass one of these, or an `intact.Scheme` of your own."
        )
    return SCHEMES[scheme]
