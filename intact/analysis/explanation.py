"""What quantization would make of a float model; the model itself stays as it is."""

from dataclasses import dataclass
from typing import Any

import keras

from intact.errors import UnsupportedLayerError
from intact.graph.canonicalize import trace_whole
from intact.graph.masks import Masks
from intact.graph.simplify import simplify
from intact.graph.tracer import Tracer
from intact.layers.quantized_model import refuse_quantized
from intact.names import SchemeName
from intact.numerics.tensors import is_symbolic
from intact.ops.base import Op
from intact.ops.loop import Opening, layers_of
from intact.ops.registry import get_op, register_op
from intact.plan.filters import Filters, LayerFilter
from intact.plan.plan import BY_CHOICE, Plan, Step
from intact.plan.planner import make_plan
from intact.plan.scheme import Rule, Scheme
from intact.schemes import get_scheme
from intact.tables import Report, Table

MOST_KERNELS = 6
"""How many kernels of a layer are named in the table."""

MOST_NAMES = 8
"""Up to how many layers that stay in float by choice are named."""


class Unknown(keras.layers.Layer):
    """Stands for a layer that cannot be handled.

    Args:
        reason: Why not.
        outputs: Its symbolic outputs.
    """

    def __init__(self, reason: str, outputs: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reason = reason
        self._outputs = (outputs,)
        self.built = True

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """What comes out of it."""
        return self._outputs[0]


@register_op
class UnknownOp(Op):
    """A layer that cannot be handled, in integers or in float."""

    keras_layers = (Unknown,)

    def refuse(self, layer: Any, shapes: list) -> str | None:
        """The tracer's reason."""
        return layer.reason


class _Explainer(Tracer):
    """A tracer that records the layers that it cannot handle, and raises no error."""

    unknown: Unknown | None = None

    def trace(self, layer: Any, args: tuple, kwargs: dict, masks: Masks | None = None) -> Any:
        cause: Exception
        try:
            return super().trace(layer, args, kwargs, masks)
        except UnsupportedLayerError as error:
            reason, cause = str(error).split(" Replace it")[0], error
        except Exception as error:
            # Only behind an unknown layer, there are tensors that no model has.
            if self.unknown is None:
                raise
            what = f"{type(layer).__name__} {layer.name!r}"
            reason, cause = f"{what} comes behind {self.unknown.name!r}, which is unknown.", error
        try:
            outputs = layer.compute_output_spec(*args, **kwargs)
        except Exception:
            # The layer around this one cannot be handled.
            raise cause from None
        tensors = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
        self.unknown = Unknown(reason, outputs, name=layer.name)
        self.unknown.name = self.unique(layer.name)
        self.unknown.owner = self._owner or (layer.name, type(layer).__name__)
        return self.unknown(*(tensors or [self.anchor]))


@dataclass(frozen=True)
class Explained:
    """What one layer of the quantized model is.

    Args:
        name: Its name in the quantized model, after the user's layer.
        kind: The op.
        type: What it computes with, such as "int8", "w4 a8" or "float".
        kernels: The LiteRT kernels that it becomes, or may become.
        integer: Whether they compute on integers.
        range: The name of the range that its output is rounded to; "-" where it has none.
        reason: Why it computes in float.
        known: Whether there is any kernel at all.
        rounded: Whether its weights are rounded.
        wide: How it computes on 16-bit activations, if the rule asks for them and no kernel takes
            them.
        owner: The user's layer that it is made of.
        owner_kind: The class of that layer.

    Example:

    >>> Explained("head", "Dense", "int8", ("FULLY_CONNECTED",), integer=True).kernels
    ('FULLY_CONNECTED',)
    """

    name: str
    kind: str
    type: str
    kernels: tuple[str, ...]
    integer: bool
    range: str = "-"
    reason: str = ""
    known: bool = True
    rounded: bool = False
    wide: str = ""
    owner: str = ""
    owner_kind: str = ""


@dataclass(frozen=True, repr=False)
class Explanation(Report):
    """What `explain` returns; printing it gives a table of the user's layers.

    Args:
        layers: One entry per layer of the model as it would be quantized.
        plan: What was decided, for programs.
        scheme: The scheme.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> explain(model).integer
    True
    """

    layers: tuple[Explained, ...]
    plan: Plan
    scheme: Scheme

    @property
    def integer(self) -> bool:
        """Whether the whole model runs on integers."""
        return all(entry.integer for entry in self.layers)

    @property
    def supported(self) -> bool:
        """Whether the model can be quantized, some of it perhaps staying in float."""
        return all(entry.known for entry in self.layers)

    @property
    def by_owner(self) -> dict[str, list[Explained]]:
        """What each of the user's layers becomes, in the order of the model."""
        groups: dict[str, list[Explained]] = {}
        for entry in self.layers:
            groups.setdefault(entry.owner or entry.name, []).append(entry)
        return groups

    @property
    def details(self) -> str:
        """A table of all layers of the quantized model, with their ranges."""
        rows = [("layer", "of", "becomes", "type", "kernels", "output range")]
        rows += [
            (e.name, e.owner, e.kind, e.type, ", ".join(e.kernels), e.range) for e in self.layers
        ]
        return str(Table(rows, None))

    def parts(self) -> list[str | Table]:
        """A row for each of the user's layers, what stays float and why, and the scheme."""
        groups = self.by_owner
        rows: list[tuple[str, ...]] = [("layer", "class", "type", "kernels")]
        rows += [_row(name, entries) for name, entries in groups.items()]
        whole = [all(entry.integer for entry in entries) for entries in groups.values()]
        lines: list[str | Table] = [Table(rows, None), ""]
        lines.append(f"{sum(whole)} of {len(whole)} layers run on integers.")
        alone = sum(any(e.rounded and not e.integer for e in es) for es in groups.values())
        if alone:
            lines.append(f"{alone} compute in float with rounded weights.")
        lines += [f"{entry.name} has {entry.wide}." for entry in self.layers if entry.wide]
        lines += _float_lines(self.layers)
        lines += [f"No layer is under the rule for {rule.match!r}." for rule in self.plan.unused]
        return [*lines, f"Scheme {self.scheme}"]


def _row(name: str, entries: list[Explained]) -> tuple[str, ...]:
    """The row of a user's layer: its class, types and kernels."""
    kinds = dict.fromkeys(entry.type.partition(" (")[0] for entry in entries)
    kernels = list(dict.fromkeys(kernel for entry in entries for kernel in entry.kernels))
    # What is fused or folded is said only of a layer that has nothing else.
    own = [kernel for kernel in kernels if kernel.isupper()] or kernels
    more = ", ..." if len(own) > MOST_KERNELS else ""
    kind = entries[0].owner_kind or entries[0].kind
    return name, kind, ", ".join(kinds), ", ".join(own[:MOST_KERNELS]) + more


def _float_lines(layers: tuple[Explained, ...]) -> list[str]:
    """Why layers stay in float: a line for each of the user's layers, or one for many by choice."""
    by_choice: dict[str, dict[str, None]] = {}
    lines = []
    for entry in layers:
        name = entry.owner or entry.name
        if entry.integer or not entry.reason:
            continue
        if entry.known and entry.reason in BY_CHOICE:
            by_choice.setdefault(entry.reason, {})[name] = None
            continue
        fate = "stays float (`allow_float=True`)" if entry.known else "cannot be exported"
        lines.append(f"{name} {fate}: {entry.reason}")
    for reason, names in by_choice.items():
        if len(names) > MOST_NAMES:
            lines.append(f"{len(names)} layers stay float: {reason}")
        else:
            lines += [f"{name} stays float: {reason}" for name in names]
    return list(dict.fromkeys(lines))


def explain(
    model: keras.Model, scheme: SchemeName | Scheme = "int8", filters: Filters | None = None
) -> Explanation:
    """Say what each layer of a float model would become, and what would stay float and why.

    Args:
        model: A built Keras model.
        scheme: The name of a preset, or a `Scheme`.
        filters: Which layers are quantized, as for `quantize_model`.

    Returns:
        The explanation; print it.

    Raises:
        InvalidModelError: The model is not built, or has weights that are not finite.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((4,)),
    ...         keras.layers.Dense(2, "relu", name="a"),
    ...         keras.layers.Softmax(name="b"),
    ...     ]
    ... )
    >>> print(explain(model))
    layer  class    type  kernels
    a      Dense    int8  FULLY_CONNECTED
    b      Softmax  int8  SOFTMAX
    <BLANKLINE>
    2 of 2 layers run on integers.
    Scheme int8
      all layers: weights int8, activations int8
    """
    refuse_quantized(model)
    chosen = LayerFilter(filters)
    scheme = get_scheme(scheme)
    canonical = simplify(trace_whole(model, lambda shared: _Explainer(chosen.rule, shared)), scheme)
    plan = make_plan(canonical, scheme, allow_float=True)
    # Layers that `simplify` has put in have no owner, and are named after one.
    owners = dict(filter(None, (getattr(layer, "owner", None) for layer in canonical.layers)))
    entries = []
    known_layers = layers_of(canonical)
    for step in plan.steps:
        layer = known_layers[step.name]
        if isinstance(layer, Opening):
            continue
        op = get_op(layer)
        known, integer = not isinstance(op, UnknownOp), step.integer or bool(step.whole)
        kernels = ("fused",) if step.fused else ("folded",) if step.folds else op.litert
        owner, owner_kind = _owner(layer, owners)
        wide = _wide(step, op, getattr(layer, "own_rule", None) or scheme.rule_for(layer))
        entries.append(
            Explained(
                name=step.name,
                kind=step.op,
                type=step.type,
                kernels=kernels,
                integer=integer,
                range=step.output_range,
                reason=step.why_float,
                known=known,
                rounded=step.weights is not None,
                wide=wide,
                owner=owner,
                owner_kind=owner_kind,
            )
        )
    return Explanation(tuple(entries), plan, scheme)


def _owner(layer: keras.layers.Layer, owners: dict[str, str]) -> tuple[str, str]:
    """Name and class of the user's layer that a canonical layer is a part of."""
    own = getattr(layer, "owner", None)
    if own is not None:
        return own
    names = [name for name in owners if layer.name.startswith(f"{name}_")]
    name = max(names, key=len, default=layer.name)
    return name, owners.get(name, type(layer).__name__)


def _wide(step: Step, op: Op, rule: Rule) -> str:
    """How an op computes on 16 bits that its rule asks for, if its kernels do not take them."""
    spec = rule.activations
    if not step.integer or spec is None or spec.activation_dtype != "int16":
        return ""
    return op.wide or ("" if step.wide else "8 bits, because it has no 16-bit kernel")
