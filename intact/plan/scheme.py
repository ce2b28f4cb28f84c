"""Schemes: frozen data that says what to quantize, and how."""

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

import keras

from intact.errors import IntactError
from intact.numerics.scale_layout import PER_TENSOR, ScaleLayout
from intact.quantizers.base import Quantizer, get_quantizer, quantizer_config, quantizer_from_config
from intact.quantizers.observers import Observer, get_observer
from intact.tables import short_repr

NARROW = ("int2", "int4")
"""The types of weights of fewer than 8 bits, from narrow to wide."""

BLOCKS = (32, 64, 128, 256)
"""How many weights a block may have: XNNPACK takes multiples of 32."""


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is quantized.

    Args:
        bits: Width in bits, 1 to 16. Files store weights of up to 2 bits as int2, and of up to 4
            as int4, where there is a kernel for it; else, and up to 8 bits, as int8; activations
            of up to 8 bits as int8, and of 9 to 16 bits as int16.
        symmetric: Zero point 0; of activations of less than 8 bits, in the middle.
        per_axis: A scale per output channel (weights only).
        block: A scale for each block of so many weights of an output channel: 32, 64, 128 or 256
            (weights of 2 to 4 bits, symmetric). For weights alone and ranges at run time;
            weights whose kernel takes no blocks have a scale per channel.
        kind: "int"; "uint" for the older unsigned files; "float" for float16 (weights only).
        dynamic: The range is that of each row or sample, found at run time (activations
            only): the tensor stays in float, and sums of products are computed on integers.
        observer: How `calibrate` finds the range by default (activations only): an `Observer`, or
            the name of one.
        momentum: Share of the old range that a training step keeps (activations only): 0 takes the
            last batch's, and with 1 ranges only grow.
        quantizer: The formula that makes whole numbers: "range" (as wide as the range), "lsq",
            "lsq_plus", "pact", "dorefa", "sign", "xnor", "ternary", "twn" or "ttq", or a
            `Quantizer`; `docs/guides/own_quantizer.md` describes them.
        power_of_two: Scales are powers of two.
        stochastic: Training rounds at random, up with a probability of the distance from below
            (arXiv:1502.02551); inference and files round to the nearest.
        limit: The range never exceeds `-limit` and `limit`, whatever the data (ranges of
            activations only): for inputs of a function that is constant beyond.
        whole: The values are whole numbers, for which a scale below 1 is useless (ranges of
            activations only).
        stored: The type in the file, "int4" or "int8" for weights of fewer bits; by default,
            the narrowest that holds them.

    Raises:
        IntactError: A width, kind, quantizer or observer does not exist.

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
    quantizer: str | Quantizer = "range"
    power_of_two: bool = False
    stochastic: bool = False
    limit: float | None = None
    whole: bool = False
    stored: str | None = None
    block: int | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        rule = self.rule
        known = {*rule.weight_bits, *rule.activation_bits}
        if self.kind == "int" and rule.name != "range" and self.bits not in known:
            raise IntactError(
                f"Quantizer {rule.name!r} has {_listed(known)} bits. Received: bits={self.bits!r}."
            )
        if self.kind != "int" and (rule.name != "range" or self.power_of_two or self.stochastic):
            raise IntactError(
                f"Kind {self.kind!r} is rounded by its range, to the nearest. Received: {self!r}."
            )
        widths: dict[str, Iterable[int]] = {
            "int": range(1 if rule.name != "range" else 2, 17),
            "uint": (8,),
            "float": (16,),
        }
        if self.bits not in widths.get(self.kind, ()):
            raise IntactError(
                "Expected kind 'int' with 2 to 16 bits, 'uint' with 8 or 'float' with 16. "
                f"Received: kind={self.kind!r}, bits={self.bits!r}."
            )
        if self.limit is not None and not self.limit > 0:
            raise IntactError(f"Expected a limit above 0, or None. Received: {self.limit!r}.")
        if self.block is not None:
            self._check_block()
            object.__setattr__(self, "per_axis", True)
        # From its name, or from its config in a saved model.
        object.__setattr__(self, "observer", get_observer(self.observer))

    def _check_block(self) -> None:
        narrow = self.kind == "int" and self.rule.stored_bits(self.bits) <= 4
        if self.block not in BLOCKS or not narrow or not self.symmetric:
            raise IntactError(
                f"Blocks have {', '.join(map(str, BLOCKS))} weights, of at most 4 bits, with "
                f"`symmetric=True`. Received: block={self.block!r}, bits={self.bits!r}, "
                f"kind={self.kind!r}, symmetric={self.symmetric!r}."
            )

    @property
    def rule(self) -> Quantizer:
        """The quantizer, as an object."""
        return get_quantizer(self.quantizer)

    @property
    def dtype(self) -> str:
        """The type that stores weights: "int2", "int4", "int8", "uint8", "int16" or "float16"."""
        bits = self.rule.stored_bits(self.bits)
        return self.stored or f"{self.kind}{next(n for n in (2, 4, 8, 16, 32) if n >= bits)}"

    @property
    def forms(self) -> tuple["TensorSpec", ...]:
        """This spec of weights, and what takes its place where a kernel does not take it so."""
        if self.dtype not in NARROW:
            return (self,)
        wider = NARROW[NARROW.index(self.dtype) + 1 :]
        if self.block is not None:
            blocks = (replace(self, stored=dtype) for dtype in wider)
            return (self, *blocks, *replace(self, block=None).forms)
        return (self, *(replace(self, stored=dtype) for dtype in (*wider, "int8")))

    @property
    def form(self) -> str:
        """The type that stores weights, as ops list those that their kernels take."""
        return self.dtype if self.block is None else f"{self.dtype} blocks"

    @property
    def width(self) -> str:
        """How wide weights are, in a word."""
        return f"w{self.bits}" if self.block is None else f"w{self.bits}/{self.block}"

    def layout(self, channels: ScaleLayout) -> ScaleLayout:
        """Which values of a weight share a scale.

        Args:
            channels: The layout with a scale for each output channel.
        """
        return replace(channels, block=self.block) if self.per_axis else PER_TENSOR

    @property
    def wide(self) -> bool:
        """Whether weights have more bits than any kernel takes, so that they cannot be exported."""
        return self.kind == "int" and self.dtype not in (*NARROW, "int8")

    @property
    def activation_dtype(self) -> str:
        """The type that stores activations: "int8", "uint8" or "int16"."""
        return f"{self.kind}{8 if self.bits <= 8 else 16}"

    def get_config(self) -> dict[str, Any]:
        """The spec as plain data."""
        own = {"quantizer": quantizer_config(self.quantizer)}
        if isinstance(self.observer, Observer):
            own["observer"] = self.observer.get_config()
        return {**asdict(self), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TensorSpec":
        """The spec of a config."""
        quantizer = quantizer_from_config(config.get("quantizer", "range"))
        return cls(**{**config, "quantizer": quantizer})


def _listed(bits: set[int]) -> str:
    low, high = min(bits), max(bits)
    return str(low) if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Rule:
    """What happens to the layers that match.

    Args:
        match: A layer class, a name pattern (`"block_*"`), or a callable that takes the
            layer and returns a bool. None matches every layer.
        weights: How the weights are quantized; None keeps them, and the layer, in float.
        activations: How the layer's output is quantized; None keeps it in float, and
            quantizes the weights alone.

    Raises:
        IntactError: A quantizer is not for weights, or not for activations, of that width.

    Example:

    >>> Rule("head_*", weights=None, activations=None).matches(keras.layers.Add(name="head_1"))
    True
    """

    match: type | str | Callable[[keras.layers.Layer], bool] | None = None
    weights: TensorSpec | None = TensorSpec(symmetric=True, per_axis=True)
    activations: TensorSpec | None = TensorSpec()

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.integer and self.weights is not None and self.weights.block is not None:
            raise IntactError(
                "LiteRT has no kernel for integer activations and weights in blocks. Received: "
                f"weights={self.weights!r}. Leave out `block`, or leave the activations in float: "
                "with `activations=None`, or with `activations=TensorSpec(dynamic=True)`."
            )
        for name, spec in (("weights", self.weights), ("activations", self.activations)):
            if spec is None or spec.kind == "float":
                continue
            rule = spec.rule
            known = rule.weight_bits if name == "weights" else rule.activation_bits
            if spec.bits not in known:
                for_them = f"for {name} of {_listed({*known})} bits" if known else f"not for {name}"
                raise IntactError(
                    f"Quantizer {rule.name!r} is {for_them}. Received: {name}={spec!r}."
                )

    @property
    def integer(self) -> bool:
        """Whether layers under this rule become integer."""
        weights, activations = self.weights, self.activations
        return weights is not None and activations is not None and not activations.dynamic

    def matches(self, layer: keras.layers.Layer) -> bool:
        """Whether the rule matches a layer."""
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

    Layers that become one kernel, such as a convolution, its batch norm and its ReLU, have one
    output: among their rules, the `activations` of the first one in the list count.

    Args:
        name: What tables and errors call it.
        rules: The rules.
        inputs: How float tensors are quantized that integer layers read: the model's inputs, and
            outputs of float layers. None: as the outputs of the layer that reads them, or with 8
            bits if these are signs.

    Example:

    >>> scheme = Scheme("head in float", (Rule("head", None, None), Rule()))
    >>> scheme.rule_for(keras.layers.Dense(2, name="head")).integer
    False
    """

    name: str
    rules: tuple[Rule, ...] = field(default=(Rule(),))
    inputs: TensorSpec | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.inputs is not None and self.inputs.rule.signs:
            raise IntactError(
                f"Scheme {self.name!r} cannot reduce its inputs to their signs. Received: "
                f"inputs={self.inputs!r}. Give the inputs 8 bits: `TensorSpec()`."
            )

    def rule_for(self, layer: keras.layers.Layer) -> Rule:
        """The first rule that matches a layer; layers without one stay in float."""
        for rule in self.rules:
            if rule.matches(layer):
                return rule
        return FLOAT_RULE

    def __str__(self) -> str:
        lines = [self.name]
        for rule in self.rules:
            what = rule.match.__name__ if callable(rule.match) else rule.match
            weights = rule.weights.form if rule.weights else "float"
            activations = "float"
            if rule.activations:
                spec = rule.activations
                activations = "dynamic" if spec.dynamic else spec.activation_dtype
            lines.append(f"  {what or 'all layers'}: weights {weights}, activations {activations}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def unused_rules(self, layers: Iterable[keras.layers.Layer]) -> list[Rule]:
        """The rules with a `match` that match none of some layers.

        Args:
            layers: The layers.
        """
        used = [self.rule_for(layer) for layer in layers]
        return [
            rule
            for rule in self.rules
            if rule.match is not None and not any(rule is other for other in used)
        ]


FLOAT_RULE = Rule(weights=None, activations=None)
