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
from intact.ops.registry import get_op, register_op
from intact.plan.filters import Filters, LayerFilter
from intact.plan.plan import BY_CHOICE, Plan, Step
from intact.plan.planner import make_plan
from intact.plan.scheme import Rule, Scheme
from intact.schemes import get_scheme
from intact.tables import table


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
        return self.unknown(*(tensors or [self.anchor]))


@dataclass(frozen=True)
class Explained:
    """What one layer becomes.

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


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns; printing it gives a table.

    Args:
        layers: One entry per layer of the model as it would be quantized.
        plan: What was decided, for programs.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> explain(model).integer
    True
    """

    layers: tuple[Explained, ...]
    plan: Plan

    @property
    def integer(self) -> bool:
        """Whether the whole model runs on integers."""
        return all(entry.integer for entry in self.layers)

    @property
    def supported(self) -> bool:
        """Whether the model can be quantized, some of it perhaps staying in float."""
        return all(entry.known for entry in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "becomes", "type", "kernels", "output range")]
        rows += [
            (e.name, e.kind, e.type, ", ".join(e.kernels), e.range)
            for e in self.layers
            if e.integer or e.rounded
        ]
        floats = [e for e in self.layers if not e.integer and e.reason]
        lines = [table(rows, left=None)]
        count = sum(e.integer for e in self.layers)
        lines += ["", f"{count} of {len(self.layers)} layers run on integers."]
        alone = sum(e.rounded and not e.integer for e in self.layers)
        if alone:
            lines.append(f"{alone} compute in float with rounded weights.")
        lines += [f"{entry.name} has {entry.wide}." for entry in self.layers if entry.wide]
        for entry in floats:
            fate = "stays float" if entry.known else "cannot be exported"
            if entry.known and entry.reason not in BY_CHOICE:
                fate += " (`allow_float=True`)"
            lines.append(f"{entry.name} {fate}: {entry.reason}")
        lines += [f"No layer is under the rule for {rule.match!r}." for rule in self.plan.unused]
        return "\n".join(lines)


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
    layer   becomes  type  kernels          output range
    a       Dense    int8  FULLY_CONNECTED  -
    a_relu  ReLU     int8  fused            a_relu
    b       Softmax  int8  SOFTMAX          b
    <BLANKLINE>
    3 of 3 layers run on integers.
    """
    refuse_quantized(model)
    chosen = LayerFilter(filters)
    scheme = get_scheme(scheme)
    canonical = simplify(trace_whole(model, lambda: _Explainer(chosen.rule)), scheme)
    plan = make_plan(canonical, scheme, allow_float=True)
    entries = []
    for step in plan.steps:
        layer = canonical.get_layer(step.name)
        op = get_op(layer)
        known, integer = not isinstance(op, UnknownOp), step.integer or bool(step.whole)
        kernels = ("fused",) if step.fused else ("folded",) if step.folds else op.litert
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
            )
        )
    return Explanation(tuple(entries), plan)


def _wide(step: Step, op: Op, rule: Rule) -> str:
    """How an op computes on 16 bits that its rule asks for, if its kernels do not take them."""
    spec = rule.activations
    if not step.integer or spec is None or spec.activation_dtype != "int16":
        return ""
    return op.wide or ("" if step.wide else "8 bits, because it has no 16-bit kernel")
